"""What evaluate.py says and writes about the scores of a checkpoint."""

import copy
import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np

from data.datasets import copies_of_training
from data.index import describe_layout
from evaluation.calibration import BINS, calibration_error, draw_reliability
from evaluation.confusion import draw_confusion, print_confusion
from evaluation.evaluator import CheckpointEvaluator, predict_samples
from evaluation.metrics import Interval, differences, intervals, mean_scores
from evaluation.predictor import label_map_at_size
from runtime.errors import UsageError
from runtime.files import append_rows, atomic_write, write_rows
from visual.panels import draw_panel, write_png

# The rubric of the course that report B was written for.
VERDICTS = [
    (0.90, "Outstanding performance - full score!"),
    (0.85, "Good performance."),
    (0.80, "Passable: train longer, or with --augment."),
    (0.0, "Below 0.80: keep training."),
]


KINDS = ("dice", "iou")  # of scores of named classes


@dataclasses.dataclass
class Report:
    """The scores of one checkpoint, and how they differ from those of another."""

    evaluator: CheckpointEvaluator
    other: CheckpointEvaluator | None = None

    def __post_init__(self):
        rows, config = self.evaluator.rows, self.evaluator.config
        self.scores = _known(intervals(rows))
        if "dice" not in self.scores:
            raise UsageError(f"no image has a class in truth or prediction; score another part than {config.subset}")
        self.differences = _known(differences(rows, self.other.rows)) if self.other else {}
        pets = describe_layout(self.evaluator.dataset.root) == "Oxford-IIIT Pet layout"
        groups = group_rows(rows) if pets else {}
        self.groups = {name: (len(some), intervals(of_true_classes(some))["dice"]) for name, some in groups.items()}
        self.plain_dice = float(np.mean([row["plain_dice"] for row in rows])) if config.tta else None
        dataset = self.evaluator.dataset
        copies = copies_of_training(dataset.root, self.evaluator.content, dataset.samples)
        self.others = [row for row in rows if row["name"] not in copies]  # than near copies of training images

    def write(self, log_dir: Path) -> None:
        """Prints the scores, draws the worst images, and writes the files and a row of the log."""
        try:
            self.print()
        finally:  # a reader who went away must not cost the files, nor an unwritable log the figures
            self._save(log_dir)

    def print(self) -> None:
        """Prints the scores and the verdict, and draws the worst images."""
        evaluator, config = self.evaluator, self.evaluator.config
        side, resize = evaluator.dataset.preprocessing
        size = (
            "the images' own sizes"
            if config.original_size
            else f"{side}x{side}"
            if resize == "square"
            else (f"longer side {side} pixels")
        )
        border = ", border left out" if config.ignore_border else f", outlines within {config.tolerance} pixels"
        print_scores(self.scores, f"Scores at {size}{border}, threshold {config.threshold:g}")
        if self.groups:
            print(f"  {'group':<28} {'images':>8} {'dice':>8}   95 % interval")
        for name, (count, (value, low, high)) in self.groups.items():
            print(f"  {name:<28} {count:>8} {value:>8.4f}   {low:.4f} to {high:.4f}")
        if self.plain_dice is not None:
            dice = np.mean([row["dice"] for row in evaluator.rows])
            print(f"Test-time augmentation: Dice {self.plain_dice:.4f} without, {dice:.4f} with, averaged over images")
        if self.differences:
            print_scores(self.differences, f"Minus those of {self.other.path}")
            value, low, high = self.differences["dice"]
            sure = "excludes" if low > 0 or high < 0 else "includes"
            print(f"Difference in Dice: {value:+.4f}; its 95 % interval ({low:+.4f} to {high:+.4f}) {sure} zero.")
        if config.worst:
            draw_worst(evaluator, config.worst, Path(config.output_path))
            count = min(config.worst, len(evaluator.dataset))
            print(f"Panels of the {count} worst images are in {config.output_path}")
        without = self._without_copies()
        if without:
            print(
                f"Without {without['near_copies']} near copies of training images: Dice {without['dice']:.4f}, "
                f"dataset Dice {without['dataset_dice']:.4f}"
            )
        if evaluator.confusion is None:
            print(f"Calibration error, {BINS} bins: {calibration_error(evaluator.bins):.4f}")
        else:
            print_confusion(evaluator.confusion, evaluator.predictor.task.classes)
        dice = self.scores["dice"].value
        verdict = next(words for least, words in VERDICTS if dice >= least)
        print(f"{evaluator.name.upper()} {config.subset} Dice score: {dice:.4f}\n{verdict}", flush=True)

    def _facts(self) -> dict:
        """The columns of the log."""
        evaluator, config, content = self.evaluator, self.evaluator.config, self.evaluator.content
        settings = {name: getattr(config, name) for name in ("ignore_border", "tolerance", "threshold", "tta")}
        count, named = len(evaluator.dataset), evaluator.confusion is not None
        return {
            "model": evaluator.name,
            "checkpoint": evaluator.files,
            "run_id": content["progress"]["run_id"],
            "encoder_start": content["encoder_start"],
            "data_path": str(evaluator.dataset.root),
            "split": content["data"]["split"],
            "subset": config.subset,
            **evaluator.dataset.preprocessing._asdict(),
            "tile": config.tile,
            "scored_at": "original" if config.original_size else evaluator.dataset.image_size,
            **settings,
            "compute": str(evaluator.predictor.precision),
            "images": count,
            **{name: round(score.value, 6) for name, score in self.scores.items()},
            "calibration_error": "" if named else round(calibration_error(evaluator.bins), 6),
            "seconds": round(evaluator.seconds, 3),
            "images_per_second": round(count / evaluator.seconds, 1),
        }

    def _save(self, log_dir: Path) -> None:
        evaluator, config, facts = self.evaluator, self.evaluator.config, self._facts()
        details = {
            "intervals": {name: _rounded(score)[1:] for name, score in self.scores.items()},
            "groups": {
                name: {"images": count, "dice": _rounded(dice)[0], "interval": _rounded(dice)[1:]}
                for name, (count, dice) in self.groups.items()
            },
            "without_near_copies": self._without_copies(),
            "confusion": None if evaluator.confusion is None else evaluator.confusion.tolist(),
            # Of named classes the Dice is no average over images.
            "dice_without_tta": evaluator.confusion is None and self.plain_dice and round(self.plain_dice, 6),
            "differences": {name: _rounded(score) for name, score in self.differences.items()},
        }
        if config.reliability:
            draw_reliability(evaluator.bins, Path(config.reliability))
        if config.confusion:
            draw_confusion(evaluator.confusion, evaluator.predictor.task.classes, Path(config.confusion))
        if config.csv:
            write_rows(config.csv, evaluator.rows)
        if config.json:
            with atomic_write(config.json) as file:
                json.dump(
                    {**facts, **{name: value for name, value in details.items() if value}},
                    file,
                    indent=2,
                    allow_nan=False,
                )
                file.write("\n")
        stamp = {"time": time.strftime("%Y-%m-%d %H:%M:%S")}
        append_rows(log_dir / f"{evaluator.name}_evaluation_log.csv", [{**stamp, **facts}])

    def _without_copies(self) -> dict:
        """The scores without near copies of training images, and how many these are; empty where there are none."""
        count = len(self.evaluator.rows) - len(self.others)
        if not (count and self.others):
            return {}
        scores = mean_scores(self.others)
        return {"near_copies": count, **{name: round(scores[name], 6) for name in ("dice", "dataset_dice")}}


def _known(scores: dict[str, Interval]) -> dict[str, Interval]:
    return {name: score for name, score in scores.items() if not math.isnan(score.value)}


def _rounded(score: Interval) -> list[float]:
    return [round(x, 6) for x in score]


def of_true_classes(rows: list[dict]) -> list[dict]:
    """The rows without the scores of named classes that none of their images has: a group has few of them."""
    names = [name.removeprefix("pixels_") for name in rows[0] if name.startswith("pixels_")]
    absent = {f"{kind}_{name}" for name in names if not any(row[f"pixels_{name}"] for row in rows) for kind in KINDS}
    return [{name: value for name, value in row.items() if name not in absent} for row in rows]


def group_rows(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows by cats and dogs (file names of cats have capital letters) and then by breed, the worst first."""
    groups: dict[str, list[dict]] = {"cats": [], "dogs": []}
    breeds: dict[str, list[dict]] = {}
    for row in rows:
        name = row["name"]
        groups["cats" if name[0].isupper() else "dogs"].append(row)
        breeds.setdefault(name.rpartition("_")[0] or name, []).append(row)
    worst_first = sorted(breeds.items(), key=lambda item: mean_scores(of_true_classes(item[1]))["dice"])
    return {name: rows for name, rows in {**groups, **dict(worst_first)}.items() if rows}


def print_scores(scores: dict[str, Interval], title: str) -> None:
    """Prints a line per score, with its interval."""
    print(f"{title}\n  {'':<18} {'value':>8}   95 % interval")
    for name, (value, low, high) in scores.items():
        print(f"  {name.replace('_', ' '):<18} {value:>8.4f}   {low:.4f} to {high:.4f}")


def draw_worst(evaluator: CheckpointEvaluator, count: int, folder: Path) -> None:
    """Draws panels, `<rank>_<name>.png`, of the images with the lowest Dice."""
    dataset, config, task = evaluator.dataset, evaluator.config, evaluator.predictor.task
    worst = sorted(evaluator.rows, key=lambda row: row["dice"])[:count]
    index = {sample.name: number for number, sample in enumerate(dataset.samples)}
    some = copy.copy(dataset)
    some.samples = [dataset.samples[index[row["name"]]] for row in worst]
    batches = predict_samples(evaluator.predictor, some, evaluator.loader(some, alone=True), config)
    predictions = (one for found in batches for one in found)
    for rank, (row, (sample, prediction, _)) in enumerate(zip(worst, predictions), start=1):
        image, trimap = sample.read()
        found = label_map_at_size(task, prediction.final[0].cpu(), config.logit_threshold, *trimap.shape)
        panel = draw_panel(image, found, task.visible(trimap), f"{sample.name}   Dice {row['dice']:.4f}", task)
        write_png(panel, folder / f"{rank:03d}_{sample.name}.png")
