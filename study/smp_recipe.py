"""segmentation_models.pytorch's binary example on the same images, split and size as train.py, for runner.py.

    python study/smp_recipe.py --data_path dataset --image_size 128 --epochs 20 --out folder

The recipe is theirs (examples/binary_segmentation_intro.ipynb): Unet with a ResNet34 encoder from scratch, or with
`--encoder timm-tf_efficientnet_lite0` from ImageNet weights, their DiceLoss, Adam at 2e-4, cosine down to 1e-5 over all
steps, 16 images a step, no augmentation. Reading and scoring are ours. `--amp off` computes in float32, as they do. The
same command resumes a run after its last whole epoch.
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
from data.datasets import load_dataset
from data.index import find_root
from data.loader import Batches, StepReader, StepSampler, make_loader, shard_batches
from data.names import MODES
from data.splits import split_samples
from evaluation.evaluator import validate
from evaluation.metrics import mean_dice
from evaluation.predictor import Predictor
from peers import SmpUnet
from runtime.device import choose_precision, get_device
from runtime.files import atomic_write
from runtime.seeding import seed_everything

BATCH_SIZE, LEARNING_RATE, LOWEST_RATE = 16, 2e-4, 1e-5


def train_one_epoch(model, loader, optimizer, scheduler, loss_fn, precision) -> float:
    """One epoch of their training steps. Returns the mean loss."""
    model.train()
    losses = []
    for (batch,) in loader:
        with precision.autocast():
            logits = model(precision.prepare_images(batch["image"]).float())
        loss = loss_fn(logits.float(), batch["mask"].to(precision.device).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def load_parts(data_path: str, size: int) -> dict:
    """The three parts of the official split."""
    root = find_root(data_path)
    options = {"split": split_samples(root, "official"), "image_size": size, "cache": open_cache(root, size)}
    return {mode: load_dataset(root, mode, **options) for mode in MODES}


def main() -> None:
    """Trains, validates after every epoch, scores the best epoch and the last on the test images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--encoder", choices=["resnet34", "timm-tf_efficientnet_lite0"], default="resnet34")
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", choices=["auto", "off"], default="auto")
    parser.add_argument("--out", type=Path, required=True, help="folder for result.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = get_device(args.device)
    precision = choose_precision(args.amp, device, args.image_size)
    seed_everything(args.seed)
    parts = load_parts(args.data_path, args.image_size)
    batches = Batches(parts["train"], BATCH_SIZE, args.seed)
    sampler = StepSampler(batches.steps)
    train_loader = make_loader(StepReader([batches]), device, sampler)
    valid_loader, test_loader = (
        make_loader(parts[mode], device, shard_batches(parts[mode], BATCH_SIZE)) for mode in ("valid", "test")
    )
    model = precision.to_device(SmpUnet(args.encoder))
    predictor = Predictor(model, precision)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * sampler.steps, LOWEST_RATE)
    loss_fn = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)

    record = {"history": [], "counts": {}, "parameters": sum(p.numel() for p in model.parameters())}
    stateful, state, best = {"model": model, "optimizer": optimizer, "scheduler": scheduler}, args.out / "state.pth", {}
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        record, best = json.loads(saved["record"]), saved["best"]
        for name, one in stateful.items():
            one.load_state_dict(saved[name])
    for sampler.epoch in range(len(record["history"]), args.epochs):
        start = time.perf_counter()
        loss = train_one_epoch(model, train_loader, optimizer, scheduler, loss_fn, precision)
        trained = time.perf_counter() - start
        dice = mean_dice(validate(predictor, valid_loader)[0], predictor.task)
        if dice > max((row["val_dice"] for row in record["history"]), default=-1.0):
            best = copy.deepcopy(model.state_dict())
        seconds = {"seconds": time.perf_counter() - start, "training_seconds": trained}
        record["history"].append({"epoch": sampler.epoch + 1, "train_loss": loss, "val_dice": dice, **seconds})
        print(record["history"][-1], flush=True)
        with atomic_write(state, "wb") as file:
            saved = {name: one.state_dict() for name, one in stateful.items()}
            torch.save({**saved, "best": best, "record": json.dumps(record)}, file)
    for kind, weights in {"last": model.state_dict(), "best": best}.items():
        model.load_state_dict(weights)
        record["counts"][kind] = validate(predictor, test_loader)[0][:, 0].tolist()
    with atomic_write(args.out / "result.json") as file:
        json.dump(record, file)
    state.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
