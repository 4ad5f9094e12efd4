"""Scores a checkpoint.

python src/evaluate.py --model_name unet --model_path saved_models/unet_best.pth --data_path dataset
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import cli
import utils
from batches import make_loader, share_batches
from checkpoint import build_from_checkpoint, find_checkpoint, load_checkpoint
from distributed import Team, join
from metrics import Interval, differences, intervals
from models import ALIASES, MODELS, SegmentationModel
from oxford_pet import MODES, SPLITS, SimpleOxfordPetDataset, describe_layout, find_root, has_lists, load_dataset
from panels import draw_panel, write_png
from pictures import BACKGROUND, DatasetError, read_pair
from pixel_cache import open_cache
from precision import choose_precision
from scoring import Scoring, decide_at_size, find_threshold, predict, score_pictures

VERDICTS = [
    (0.90, "Outstanding performance - full score!"),
    (0.85, "Good performance."),
    (0.80, "Passable: train longer, or with --augment."),
    (0.0, "Below 0.80: keep training."),
]


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
    """The part of the dataset that the checkpoint's own split and preprocessing give.

    Where the dataset is another one and has no lists for an official split, it is divided like own pictures.
    """
    data, size, root = content["data"], content["preprocessing"]["image_size"], find_root(args.data_path)
    records = open_cache(root, size) if args.cache == "on" else None
    split = data["split"] if has_lists(root) else SPLITS[0]
    return load_dataset(root, mode, split=split, seed=data["seed"], image_size=size, records=records)


def refuse_seen(content: dict, dataset, path: Path) -> None:
    """Raises UsageError where pictures of the dataset are among those that the checkpoint was trained on."""
    seen = set(content["data"]["train_names"])
    hits = [pet.name for pet in dataset.pets if pet.name in seen]
    if hits:
        raise cli.UsageError(
            f"{path} was trained on {len(hits)} of these {len(dataset)} pictures ({hits[0]}, ...), so a score on them "
            "would be flattery; use --subset test, or say --allow_seen"
        )


def refuse_folder(folder: Path, dataset) -> None:
    """Raises UsageError where results would lie among the pictures or masks of a dataset."""
    if folder.resolve() in {path.parent.resolve() for pet in dataset.pets for path in (pet.image_path, pet.mask_path)}:
        raise cli.UsageError(f"--output_path {folder} is a folder of the dataset; name another for the results")


def build_parser() -> cli.Parser:
    """Flags of evaluate.py."""
    parser = cli.Parser(prog="evaluate.py", description="Score a checkpoint on a part of the dataset.")
    cli.add_cache_flag(cli.add_data_flags(parser, batch_size=8))
    cli.add_checkpoint_flags(parser)
    cli.add_device_flags(parser)
    cli.add_folder_flags(parser)
    flag = parser.add_argument_group("evaluation").add_argument
    flag("--subset", choices=MODES, default="test", help="which part of the dataset")
    flag("--allow_seen", action="store_true", help="score pictures that the model was trained on, too")
    flag("--original_size", action="store_true", help="score at the pictures' own sizes instead of the network's")
    flag("--ignore_border", action="store_true", help="leave the border of the trimaps out")
    pixels = cli.whole_number(0, 100)
    flag("--tolerance", type=pixels, default=2, metavar="PX", help="how far apart outlines may be and agree")
    flag("--tta", action="store_true", help="average predictions over flips and scales")
    flag("--threshold", type=cli.share, default=0.5, metavar="P", help="probability above which a pixel is pet")
    flag("--find_threshold", action="store_true", help="take the best one for the validation pictures")
    flag("--compare", metavar="FILE", help="a second checkpoint: is the first one better, and how sure is that?")
    flag = parser.add_argument_group("results").add_argument
    flag("--json", metavar="FILE", help="write every figure into this file")
    flag("--csv", metavar="FILE", help="write a row a picture into this file")
    flag("--worst", type=cli.whole_number(1), metavar="N", help="draw panels of the N worst pictures")
    flag("--output_path", default="worst_panels", metavar="DIR", help="where --worst draws them")
    return parser


class Candidate:
    """A checkpoint that is being scored, with the pictures as it wants them.

    Args:
        args: the flags.
        path: of the checkpoint; None for the one that the flags name.
        device: where to compute.
        team: the processes that share the work.

    Raises:
        UsageError: see `open_checkpoint` and `refuse_seen`.
    """

    def __init__(self, args, path: str | None, device: torch.device, team: Team):
        if path is not None:
            args = argparse.Namespace(**{**vars(args), "model_path": path, "model_name": None})
        self.args, self.team = args, team
        self.model, self.content, self.path = open_checkpoint(args)
        self.name = self.content["model"]["name"]
        self.dataset = open_part(args, self.content, args.subset)
        if not args.allow_seen:
            refuse_seen(self.content, self.dataset, self.path)
        self.precision = choose_precision(args.amp, device, self.dataset.image_size)
        self.precision.place(self.model)
        self.threshold, self.rows, self.seconds = args.threshold, [], 0.0

    def loader(self, dataset: SimpleOxfordPetDataset):
        """Batches of this process's share."""
        batches = share_batches(dataset, self.args.batch_size, self.team)
        return make_loader(dataset, self.precision.device, batches, self.args.num_workers)

    def score(self) -> None:
        """Finds the threshold, if asked to, and scores the pictures at it."""
        args = self.args
        scoring = Scoring(
            original_size=args.original_size, ignore_border=args.ignore_border, tolerance=args.tolerance, tta=args.tta
        )
        if args.find_threshold:
            valid = open_part(args, self.content, "valid")
            refuse_seen(self.content, valid, self.path)
            loader = self.loader(valid)
            self.threshold, dice = find_threshold(self.model, valid, loader, self.precision, scoring, self.team)
            print(f"Threshold {self.threshold:.2f}: Dice {dice:.4f} on the {len(valid)} validation pictures")
        scoring = replace(scoring, cut=math.log(self.threshold / (1 - self.threshold)))
        start, loader = time.perf_counter(), self.loader(self.dataset)
        self.rows = score_pictures(self.model, self.dataset, loader, self.precision, scoring, self.team)
        self.seconds = time.perf_counter() - start


def breed_of(name: str) -> str:
    """The breed in a file name of the pets, as in Abyssinian_12."""
    return name.rpartition("_")[0] or name


def group_rows(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows by cats and dogs (the pets' cats have capital letters) and then by breed, the worst first."""
    groups: dict[str, list[dict]] = {"cats": [], "dogs": []}
    breeds: dict[str, list[dict]] = {}
    for row in rows:
        groups["cats" if row["name"][0].isupper() else "dogs"].append(row)
        breeds.setdefault(breed_of(row["name"]), []).append(row)
    worst_first = sorted(breeds.items(), key=lambda item: mean_dice(item[1]))
    return {name: rows for name, rows in {**groups, **dict(worst_first)}.items() if rows}


def print_scores(scores: dict[str, Interval], title: str) -> None:
    """A line a score, with its interval."""
    print(f"{title}\n  {'':<18} {'value':>8}   95 % interval")
    for name, (value, low, high) in scores.items():
        if not math.isnan(value):
            print(f"  {name.replace('_', ' '):<18} {value:>8.4f}   {low:.4f} to {high:.4f}")


def print_groups(groups: dict[str, list[dict]]) -> None:
    """A line a group: how many pictures, and their mean Dice."""
    for number, (name, rows) in enumerate(groups.items()):
        if number == 0:
            print("  group                        pictures     dice")
        print(f"  {name:<28} {len(rows):>8} {mean_dice(rows):>8.4f}")


def mean_dice(rows: list[dict]) -> float:
    """Dice, averaged over pictures."""
    return float(np.mean([row["dice"] for row in rows]))


def rounded(score: Interval) -> list[float]:
    """Value, low and high, as they go into a file."""
    return [round(x, 6) for x in score]


def draw_worst(candidate: Candidate, count: int, folder: Path) -> None:
    """Draws tri-panels, `<rank>_<name>.png`, of the pictures with the lowest Dice."""
    pets = {pet.name: number for number, pet in enumerate(candidate.dataset.pets)}
    cut = math.log(candidate.threshold / (1 - candidate.threshold))
    for rank, row in enumerate(sorted(candidate.rows, key=lambda row: row["dice"])[:count], start=1):
        number = pets[row["name"]]
        pet, sample = candidate.dataset.pets[number], candidate.dataset[number]
        with torch.inference_mode():
            logits = predict(candidate.model, sample["image"][None], candidate.precision, candidate.args.tta)[-1]
        image, trimap = read_pair(*pet[2:])
        found, truth = decide_at_size(logits[0].cpu(), cut, *trimap.shape), trimap
        if len(logits[0]) == 1:
            found, truth = found != BACKGROUND, truth != BACKGROUND
        panel = draw_panel(image, found, truth, f"{pet.name}   Dice {row['dice']:.4f}")
        write_png(panel, folder / f"{rank:03d}_{pet.name}.png")


def main(argv=None) -> None:
    """Reads the flags and scores."""
    args, given = build_parser().parse_given(argv)
    if args.find_threshold and "threshold" in given:
        raise cli.UsageError("--find_threshold looks for what --threshold says; leave one of them out")
    if args.find_threshold and args.subset != "test":
        raise cli.UsageError("--find_threshold chooses on the validation pictures, so score others: --subset test")
    device = utils.get_device(args.device)
    with join(device) as team:
        evaluate(args, device, team)


def evaluate(args, device: torch.device, team: Team) -> None:
    """Scores the checkpoints that the flags name, on one process or several, and reports."""
    candidate = Candidate(args, None, device, team)
    other = Candidate(args, args.compare, device, team) if args.compare else None
    sizes = {one.dataset.image_size for one in (candidate, other) if one}
    if other and [pet.name for pet in other.dataset.pets] != [pet.name for pet in candidate.dataset.pets]:
        raise cli.UsageError(f"{other.path} has another {args.subset} part than {candidate.path}: nothing to compare")
    if len(sizes) > 1 and not args.original_size:
        raise cli.UsageError(f"the two see pictures at different sizes ({sizes}); compare them with --original_size")
    log_dir = cli.writable_folder(args.log_dir)
    if args.csv and args.json and Path(args.csv).resolve() == Path(args.json).resolve():
        raise cli.UsageError("--csv and --json name one file; name two")
    if args.worst:
        refuse_folder(cli.writable_folder(args.output_path), candidate.dataset)
    for file in filter(None, (args.json, args.csv)):
        cli.writable_folder(Path(file).parent)
        if Path(file).is_dir():
            raise cli.UsageError(f"{file} is a folder; name a file")

    content, dataset, name = candidate.content, candidate.dataset, candidate.name
    encoder = content["encoder_start"]
    print(f"Evaluating {name.upper()} ({candidate.path}; encoder {encoder}) on {device}, {candidate.precision}")
    print(f"{len(dataset)} {args.subset} pictures of {dataset.root}, split {content['data']['split']}", flush=True)
    candidate.score()
    if other:
        other.score()
    if not team.first:
        return
    report(candidate, other, log_dir)


def report(candidate: Candidate, other: Candidate | None, log_dir: Path) -> None:
    """Computes, prints and writes what is to be known about the scores."""
    args, content, dataset, rows = candidate.args, candidate.content, candidate.dataset, candidate.rows
    scores = intervals(rows)
    found = differences(rows, other.rows) if other else {}
    groups = group_rows(rows) if describe_layout(dataset.root) == "the pets' layout" else {}
    facts = {
        "model": candidate.name,
        "checkpoint": str(candidate.path),
        "run_id": content.get("progress", {}).get("run_id", ""),
        "encoder_start": content["encoder_start"],
        "data_path": str(dataset.root),
        "split": content["data"]["split"],
        "subset": args.subset,
        "image_size": dataset.image_size,
        "scored_at": "original" if args.original_size else dataset.image_size,
        "ignore_border": args.ignore_border,
        "tolerance": args.tolerance,
        "threshold": candidate.threshold,
        "tta": args.tta,
        "precision": str(candidate.precision),
        "images": len(dataset),
        **{key: round(score.value, 6) for key, score in scores.items() if not math.isnan(score.value)},
        "seconds": round(candidate.seconds, 3),
        "images_per_second": round(len(dataset) / candidate.seconds, 1),
    }
    plain = round(float(np.mean([row["plain_dice"] for row in rows])), 6) if args.tta else None
    details = {
        "intervals": {key: rounded(score)[1:] for key, score in scores.items() if not math.isnan(score.value)},
        "groups": {key: {"images": len(some), "dice": round(mean_dice(some), 6)} for key, some in groups.items()},
        "dice_without_tta": plain,
        "differences": {key: rounded(score) for key, score in found.items() if not math.isnan(score.value)},
    }
    try:
        say(candidate, other, scores, found, groups, plain)
    finally:  # a reader who went away must not cost the files, nor an unwritable log the figures
        save(candidate, facts, details, log_dir)


def say(candidate: Candidate, other: Candidate | None, scores, found, groups: dict, plain: float | None) -> None:
    """Prints the scores, and draws the worst pictures."""
    args, dataset = candidate.args, candidate.dataset
    size = "the pictures' own sizes" if args.original_size else f"{dataset.image_size}x{dataset.image_size}"
    border = ", border left out" if args.ignore_border else f", outlines within {args.tolerance} pixels"
    print_scores(scores, f"Scores at {size}{border}, threshold {candidate.threshold:g}")
    print_groups(groups)
    if args.tta:
        print(f"Test-time augmentation: Dice {plain:.4f} without, {scores['dice'].value:.4f} with")
    if found:
        print_scores(found, f"Minus those of {other.path}")
        value, low, high = found["dice"]
        sure = "excludes" if low > 0 or high < 0 else "includes"
        print(f"Difference in Dice: {value:+.4f}; its 95 % interval ({low:+.4f} to {high:+.4f}) {sure} zero.")
    if args.worst:
        draw_worst(candidate, args.worst, Path(args.output_path))
        print(f"Panels of the {min(args.worst, len(dataset))} worst pictures are in {args.output_path}")
    dice, title = scores["dice"].value, candidate.name.upper()
    verdict = next(words for least, words in VERDICTS if dice >= least)
    print(f"{title} {args.subset} Dice score: {dice:.4f}\n{verdict}", flush=True)


def save(candidate: Candidate, facts: dict, details: dict, log_dir: Path) -> None:
    """Writes the files that were asked for, and a row of the log."""
    args = candidate.args
    if args.csv:
        utils.write_rows(args.csv, candidate.rows)
    if args.json:
        with utils.atomic_write(args.json) as file:
            json.dump({**facts, **{key: value for key, value in details.items() if value}}, file, indent=2)
            file.write("\n")
    stamp = {"time": time.strftime("%Y-%m-%d %H:%M:%S")}
    utils.append_rows(log_dir / f"{candidate.name}_evaluation_log.csv", [{**stamp, **facts}])


if __name__ == "__main__":
    cli.run(main, DatasetError)
