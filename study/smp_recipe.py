"""segmentation_models.pytorch's binary example on the same images, split and size as train.py, for runner.py.

    python study/smp_recipe.py --data_path dataset --split official --image_size 96 --epochs 40 --out folder

The recipe is theirs (examples/binary_segmentation_intro.ipynb): Unet with a ResNet34 encoder, their DiceLoss, Adam at
2e-4, cosine down to 1e-5 over all steps, 16 images a step, no augmentation. Reading, precision and scoring are ours, so
only network and recipe differ.
"""

import argparse
import json
import time
from pathlib import Path

import segmentation_models_pytorch as smp
import torch

import experiments  # noqa: F401  makes the others importable
from data.cache import open_cache
from data.datasets import load_dataset
from data.index import find_root
from data.loader import ResumableBatchSampler, make_loader, shard_batches
from data.splits import MODES, SPLITS, split_samples
from evaluation.evaluator import validate
from evaluation.metrics import summarize
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
    for batch in loader:
        with precision.autocast():
            logits = model(precision.prepare_images(batch["image"]).float())
        loss = loss_fn(logits.float(), batch["mask"].to(precision.device).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def main() -> None:
    """Trains, validates after every epoch, scores the best epoch and the last on the test images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--split", choices=SPLITS, default="official")
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True, help="folder for result.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = get_device(args.device)
    precision = choose_precision("auto", device, args.image_size)
    seed_everything(args.seed)

    root = find_root(args.data_path)
    options = {
        "split": split_samples(root, args.split, args.seed),
        "image_size": args.image_size,
        "cache": open_cache(root, args.image_size),
    }
    parts = {mode: load_dataset(root, mode, **options) for mode in MODES}
    sampler = ResumableBatchSampler(len(parts["train"]), BATCH_SIZE, args.seed)
    train_loader = make_loader(parts["train"], device, sampler)
    valid_loader, test_loader = (
        make_loader(parts[mode], device, shard_batches(parts[mode], BATCH_SIZE)) for mode in ("valid", "test")
    )
    model = precision.to_device(SmpUnet())
    predictor = Predictor(model, precision)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * sampler.steps, LOWEST_RATE)
    loss_fn = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)

    history, best, counts = [], -1.0, {}
    for sampler.epoch in range(args.epochs):
        start = time.perf_counter()
        loss = train_one_epoch(model, train_loader, optimizer, scheduler, loss_fn, precision)
        scores = summarize(validate(predictor, valid_loader)[0])
        row = {"epoch": sampler.epoch + 1, "train_loss": loss, "val_dice": scores["dice"]}
        history.append({**row, "seconds": time.perf_counter() - start})
        print(history[-1], flush=True)
        last = sampler.epoch + 1 == args.epochs
        better = scores["dice"] > best
        if better or last:
            found = validate(predictor, test_loader)[0].tolist()
        if better:
            counts["best"], best = found, scores["dice"]
        if last:
            counts["last"] = found
    parameters = sum(p.numel() for p in model.parameters())
    with atomic_write(args.out / "result.json") as file:
        json.dump({"history": history, "counts": counts, "parameters": parameters}, file)


if __name__ == "__main__":
    main()
