"""segmentation_models.pytorch's binary example on the same pictures, parts and sizes as train.py's, for study.py.

    python benchmarks/smp_recipe.py --data_path dataset --split official --image_size 96 --epochs 40 --out folder

The recipe is theirs (examples/binary_segmentation_intro.ipynb): Unet with a ResNet34 encoder, their DiceLoss, Adam at
2e-4, cosine down to 1e-5 over all steps, 16 images a step, no augmentation. Reading, precision and scoring are ours, so
that nothing but network and recipe differs.
"""

import argparse
import json
import time
from pathlib import Path

import segmentation_models_pytorch as smp
import torch

import measure  # noqa: F401  sets the path to src
import utils
from data.loader import ResumableBatchSampler, make_loader, shard_batches
from evaluation.metrics import summarize
from data.index import SPLITS, find_root, split_samples
from data.datasets import load_dataset
from peers import SmpUnet
from data.cache import open_cache
from runtime.device import choose_precision
from evaluation.evaluator import validate

BATCH_SIZE, LEARNING_RATE, LOWEST_RATE = 16, 2e-4, 1e-5


def train_one_epoch(model, loader, optimizer, scheduler, loss_fn, precision) -> float:
    """Their training step over an epoch. Returns the mean loss of its steps."""
    model.train()
    losses = []
    for batch in loader:
        with precision.autocast():
            logits = model(precision.move(batch["image"]).float())
        loss = loss_fn(logits.float(), batch["mask"].to(precision.device).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def main() -> None:
    """Trains, validates after every epoch, scores the best epoch and the last on the test pictures."""
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
    device = utils.get_device(args.device)
    precision = choose_precision("auto", device, args.image_size)
    utils.seed_everything(args.seed)

    root = find_root(args.data_path)
    options = {
        "split": split_samples(root, args.split, args.seed),
        "image_size": args.image_size,
        "records": open_cache(root, args.image_size),
    }
    parts = {mode: load_dataset(root, mode, **options) for mode in ("train", "valid", "test")}
    order = ResumableBatchSampler(len(parts["train"]), BATCH_SIZE, args.seed)
    train_loader = make_loader(parts["train"], device, order)
    valid_loader, test_loader = (
        make_loader(parts[mode], device, shard_batches(parts[mode], BATCH_SIZE)) for mode in ("valid", "test")
    )
    model = precision.place(SmpUnet())
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * order.steps, LOWEST_RATE)
    loss_fn = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)

    history, best, counts = [], -1.0, {}
    for order.epoch in range(args.epochs):
        start = time.perf_counter()
        loss = train_one_epoch(model, train_loader, optimizer, scheduler, loss_fn, precision)
        scores = summarize(count_pixels(model, valid_loader, precision)[0])
        row = {"epoch": order.epoch + 1, "train_loss": loss, "val_dice": scores["dice"]}
        history.append({**row, "seconds": time.perf_counter() - start})
        print(history[-1], flush=True)
        last = order.epoch + 1 == args.epochs
        better = scores["dice"] > best
        if better or last:
            found = count_pixels(model, test_loader, precision)[0].tolist()
        if better:
            counts["best"], best = found, scores["dice"]
        if last:
            counts["last"] = found
    parameters = sum(p.numel() for p in model.parameters())
    with utils.atomic_write(args.out / "result.json") as file:
        json.dump({"history": history, "counts": counts, "parameters": parameters}, file)


if __name__ == "__main__":
    main()
