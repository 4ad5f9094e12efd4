"""Scores a checkpoint.

python src/evaluate.py --model_name unet --model_path saved_models/unet_best.pth --data_path dataset
"""

import json
import math
import time
from pathlib import Path
from typing import Callable, Optional

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

import cli
import utils
from batches import make_loader, share_batches
from checkpoint import build_from_checkpoint, find_checkpoint, load_checkpoint
from distributed import ALONE, Team, join
from models import ALIASES, MODELS, SegmentationModel
from oxford_pet import MODES, find_root, load_dataset
from pictures import DatasetError
from pixel_cache import open_cache
from precision import Precision, choose_precision

VERDICTS = [
    (0.90, "Outstanding performance - full score!"),
    (0.85, "Good performance."),
    (0.80, "Passable: train longer, or with --augment."),
    (0.0, "Below 0.80: keep training."),
]


def measure(
    model: SegmentationModel,
    loader: DataLoader,
    precision: Precision,
    loss_fn: Optional[Callable] = None,
    after_batch: Callable[[], None] = lambda: None,
    title: str = "evaluating",
    team: Team = ALONE,
) -> tuple[torch.Tensor, float]:
    """Runs the model over a loader and counts pixels.

    Args:
        model: placed by `precision`; it is put into evaluation mode and left there.
        loader: batches of SimpleOxfordPetDataset's samples, every image once; of `share_batches` where a team works.
        precision: where and how to compute.
        loss_fn: of (logits, masks), averaged over the batch; None computes none.
        after_batch: called after every batch; may raise to stop.
        title: of the progress bar.
        team: the processes that share the batches; all of them get the whole result.

    Returns:
        `pixel_counts` of every image, int64 (n, 4) on the CPU in the loader's order, and the mean loss over images
        (NaN without `loss_fn`).
    """
    model.eval()
    done, device = [], precision.device
    bar = tqdm(loader, desc=title, unit="batch", leave=False, disable=None, delay=1)
    with torch.inference_mode():
        for batch in bar:
            masks = batch["mask"].to(device, non_blocking=True)
            with precision.autocast():
                logits = model(precision.move(batch["image"]))
            loss = logits.new_tensor(math.nan) if loss_fn is None else loss_fn(logits, masks)
            done.append((utils.pixel_counts(logits > 0, masks), loss * len(masks)))
            after_batch()
    done = team.collect([(counts.cpu(), loss.item()) for counts, loss in done])
    counts = torch.cat([counts for counts, _ in done])
    return counts, sum(loss for _, loss in done) / len(counts)


def summarize(counts: torch.Tensor) -> dict[str, float]:
    """Scores from `pixel_counts` (n, 4): Dice and IoU averaged over images, the rest over all pixels of the dataset.

    An image or a dataset without a pet in mask and prediction has Dice, IoU, precision and recall 1.
    """
    tp, fp, fn, tn = counts.sum(0).tolist()

    def share(part: int, whole: int) -> float:
        return part / whole if whole else 1.0

    dice = utils.dice_from_counts(counts).double()
    return {
        "dice": dice.mean().item(),
        "iou": (dice / (2 - dice)).mean().item(),  # IoU = Dice / (2 - Dice), image by image
        "dataset_dice": share(2 * tp, 2 * tp + fp + fn),
        "dataset_iou": share(tp, tp + fp + fn),
        "pixel_accuracy": share(tp + tn, tp + fp + fn + tn),
        "precision": share(tp, tp + fp),
        "recall": share(tp, tp + fn),
    }


def open_checkpoint(args) -> tuple[SegmentationModel, dict, Path]:
    """The model, the checkpoint's content and its path, as the flags of evaluate.py and inference.py name them.

    Raises:
        UsageError: no such model, or the flag contradicts the file; see also `load_checkpoint`.
    """
    name = args.model_name
    if name is not None:
        name = ALIASES.get(name, name)
        if name not in MODELS:
            raise cli.UsageError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
    path = Path(args.model_path or find_checkpoint(args.save_dir, name, "best"))
    content = load_checkpoint(path)
    inside = content["model"]["name"]
    if name not in (None, inside):
        raise cli.UsageError(
            f"{path} holds a {inside}, but --model_name says {name}; leave the flag out, or name another file"
        )
    return build_from_checkpoint(content, path), content, path


def open_part(args, content: dict, mode: str):
    """The part of the dataset that the checkpoint's own split and preprocessing give."""
    data, size, root = content["data"], content["preprocessing"]["image_size"], find_root(args.data_path)
    records = open_cache(root, size) if args.cache == "on" else None
    return load_dataset(root, mode, split=data["split"], seed=data["seed"], image_size=size, records=records)


def refuse_seen(content: dict, dataset, path: Path) -> None:
    """Raises UsageError where pictures of the dataset are among those that the checkpoint was trained on."""
    seen = set(content["data"]["train_names"])
    hits = [pet.name for pet in dataset.pets if pet.name in seen]
    if hits:
        raise cli.UsageError(
            f"{path} was trained on {len(hits)} of these {len(dataset)} pictures ({hits[0]}, ...), so a score on them "
            "would be flattery; use --subset test, or say --allow_seen"
        )


def build_parser() -> cli.Parser:
    """Flags of evaluate.py."""
    parser = cli.Parser(prog="evaluate.py", description="Score a checkpoint on a part of the dataset.")
    cli.add_cache_flag(cli.add_data_flags(parser, batch_size=8))
    cli.add_checkpoint_flags(parser)
    cli.add_device_flags(parser)
    cli.add_folder_flags(parser)
    group = parser.add_argument_group("evaluation")
    group.add_argument("--subset", choices=MODES, default="test", help="which part of the dataset")
    group.add_argument("--allow_seen", action="store_true", help="score pictures that the model was trained on, too")
    group.add_argument("--json", metavar="FILE", help="write every figure into this file")
    return parser


def main(argv=None) -> None:
    """Loads, scores, reports."""
    args = build_parser().parse_args(argv)
    device = utils.get_device(args.device)
    with join(device) as team:
        evaluate(args, device, team)


def evaluate(args, device: torch.device, team: Team) -> None:
    """Scores the checkpoint that the flags name, on one process or several."""
    model, content, path = open_checkpoint(args)
    dataset = open_part(args, content, args.subset)
    if not args.allow_seen:
        refuse_seen(content, dataset, path)
    log_dir = cli.writable_folder(args.log_dir)
    if args.json:
        cli.writable_folder(Path(args.json).parent)
        if Path(args.json).is_dir():
            raise cli.UsageError(f"--json {args.json} is a folder; name a file")

    name = content["model"]["name"]
    precision = choose_precision(args.amp, device, dataset.image_size)
    print(f"Evaluating {name.upper()} ({path}; encoder {content['encoder_start']}) on {device}, {precision}")
    print(f"{len(dataset)} {args.subset} pictures of {dataset.root}, split {content['data']['split']}")
    batches = share_batches(dataset, args.batch_size, team)
    loader = make_loader(dataset, device, args.num_workers, batch_sampler=batches)
    start = time.perf_counter()
    counts, _ = measure(precision.place(model), loader, precision, team=team)
    if not team.first:
        return
    seconds = time.perf_counter() - start
    scores = summarize(counts)
    report = {
        "model": name,
        "checkpoint": str(path),
        "run_id": content.get("progress", {}).get("run_id", ""),
        "encoder_start": content["encoder_start"],
        "data_path": str(dataset.root),
        "split": content["data"]["split"],
        "subset": args.subset,
        "image_size": dataset.image_size,
        "precision": str(precision),
        "images": len(dataset),
        **{key: round(value, 6) for key, value in scores.items()},
        "seconds": round(seconds, 3),
        "images_per_second": round(len(dataset) / seconds, 1),
    }
    for key, value in scores.items():
        print(f"  {key.replace('_', ' '):<15} {value:.4f}")
    verdict = next(words for least, words in VERDICTS if scores["dice"] >= least)
    print(f"{name.upper()} {args.subset} Dice score: {scores['dice']:.4f}\n{verdict}", flush=True)
    if args.json:
        with utils.atomic_write(args.json) as file:
            json.dump(report, file, indent=2)
            file.write("\n")
    utils.append_rows(log_dir / f"{name}_evaluation_log.csv", [{"time": time.strftime("%Y-%m-%d %H:%M:%S"), **report}])


if __name__ == "__main__":
    cli.run(main, DatasetError)
