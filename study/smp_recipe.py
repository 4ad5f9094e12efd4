"""segmentation_models.pytorch's binary example on the same images, split and size as train.py, for runner.py.

    python study/smp_recipe.py --data_path dataset --image_size 128 --epochs 20 --out folder

The recipe is theirs (examples/binary_segmentation_intro.ipynb): Unet with a ResNet34 encoder from scratch, or with
`--encoder timm-tf_efficientnet_lite0` from ImageNet weights, their DiceLoss, Adam at 2e-4, cosine down to 1e-5 over all
steps, 16 images a step, no augmentation. Reading and scoring are ours. It can't be resumed.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import segmentation_models_pytorch as smp
import torch

import experiments  # noqa: F401  makes the others importable
from data.cache import open_cache
from data.dataset import Dataset, ImageDataset
from data.loader import Batches, StepReader, StepSampler, make_loader, shard_batches
from data.names import MODES
from data.view import View
from evaluation.metrics import COUNTS, dice_from_counts, intervals, mean_dice
from evaluation.predict import Predictor
from evaluation.score import validate
from peers import SmpUnet
from runtime.device import choose_precision, get_device
from runtime.files import atomic_write, write_rows
from runtime.seeding import seed_everything

BATCH_SIZE, LEARNING_RATE, LOWEST_RATE = 16, 2e-4, 1e-5


def main() -> None:
    """Trains, validates after every epoch, and scores the best epoch on the test images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--encoder", choices=["resnet34", "timm-tf_efficientnet_lite0"], default="resnet34")
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", choices=["auto", "off"], default="auto", help="as of train.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the log and the scores")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device, dataset = get_device(args.device), Dataset(args.data_path)
    precision = choose_precision(args.amp, device, args.image_size)
    seed_everything(args.seed)
    view = View(args.image_size)
    cache, split = open_cache(dataset.root, dataset.samples, view), dataset.split("official")
    parts = {mode: ImageDataset(getattr(split, mode), view, cache) for mode in MODES}
    batches = Batches(parts["train"], BATCH_SIZE, args.seed)
    sampler = StepSampler(batches.steps)
    train_loader = make_loader(StepReader([batches]), device, sampler, 0)
    valid_loader, test_loader = (
        make_loader(parts[mode], device, shard_batches(parts[mode], BATCH_SIZE), 0) for mode in ("valid", "test")
    )
    model = precision.to_device(SmpUnet(args.encoder))
    predictor = Predictor(model, precision)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * sampler.steps, LOWEST_RATE)
    loss_fn = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)

    def task_loss(logits, labels, task):
        return loss_fn(logits, (labels != 0).float())

    best, history = {}, []
    for sampler.epoch in range(args.epochs):
        start = time.process_time()
        model.train()
        for (batch,) in train_loader:
            with precision.autocast():
                logits = model(precision.prepare_images(batch["image"]).float())
            optimizer.zero_grad()
            loss_fn(logits.float(), (batch["labels"] != 0).to(device).float()).backward()
            optimizer.step()
            scheduler.step()
        dice = mean_dice(validate(predictor, valid_loader, task_loss)[0], predictor.task)
        if dice > max((row["val_dice"] for row in history), default=-1.0):
            best = copy.deepcopy(model.state_dict())
        history.append({"epoch": sampler.epoch + 1, "val_dice": dice, "seconds": time.process_time() - start})
        print(history[-1], flush=True)
    model.load_state_dict(best)
    counts = validate(predictor, test_loader, task_loss)[0][:, 0]
    pairs = zip(counts.tolist(), dice_from_counts(counts).tolist())
    rows = [{**dict(zip(COUNTS, row)), "dice": dice, "boundary_f": 0.0} for row, dice in pairs]
    report = args.out / "best"
    report.mkdir(exist_ok=True)
    write_rows(report / "images.csv", rows)
    scores = intervals(rows)
    with atomic_write(report / "scores.json") as file:
        json.dump({name: scores[name].value for name in ("dice", "iou", "dataset_dice", "dataset_iou")}, file)
    write_rows(args.out / "smp_training_log.csv", history)  # at the end: with it the run counts as trained


if __name__ == "__main__":
    main()
