"""What evaluate.py says and writes about the scores of a checkpoint."""

import copy
import json
import math
import time
from pathlib import Path

import numpy as np

from data.parts import copies_of_training
from evaluation.calibration import BINS, calibration_error, draw_reliability
from evaluation.config import logit
from evaluation.confusion import draw_confusion, print_confusion
from evaluation.metrics import Interval, differences, intervals, mean_scores
from evaluation.predict import label_map_at_size
from evaluation.score import predictions_to_score
from runtime.errors import UsageError
from runtime.files import append_rows, atomic_write, write_rows
from visual.panels import draw_panel, write_png

WORST = 24  # images with the lowest Dice, of which panels are drawn
# The rubric of the course that report B was written for.
VERDICTS = [
    (0.90, "Outstanding performance - full score!"),
    (0.85, "Good performance."),
    (0.80, "Passable: train longer, or with --augment."),
    (0.0, "Below 0.80: keep training."),
]


class Report:
    """The scores of an Evaluation, and how they differ from those of another.

    Raises:
        UsageError: no image has a class in truth or prediction.
    """

    def __init__(self, evaluation, other=None):
        self.evaluation, self.other, rows = evaluation, other, evaluation.rows
        self.classes = evaluation.predictor.task.classes[1:]
        self.scores = _known(intervals(rows, self.classes))
        if "dice" not in self.scores:
            subset = evaluation.config.subset
            raise UsageError(f"no image has a class in truth or prediction; score another part than {subset}")
        self.differences = _known(differences(rows, other.rows, self.classes)) if other else {}
        self.groups = {}
        for name, group in (group_rows(rows, self.classes) if evaluation.dataset.lists else {}).items():
            self.groups[name] = len(group), intervals(group, classes_of(group, self.classes))["dice"]
        self.without_copies = self._without_copies()

    def _without_copies(self) -> dict:
        """The scores without near copies of training images, and how many these are; empty where there are none."""
        evaluation = self.evaluation
        copies = copies_of_training(evaluation.dataset, evaluation.network.seen, evaluation.part.samples)
        rows = [row for row in evaluation.rows if row["name"] not in copies]
        if not copies or not rows:
            return {}
        scores = mean_scores(rows, self.classes)
        return {"near_copies": len(copies), **{name: round(scores[name], 6) for name in ("dice", "dataset_dice")}}

    def write(self, log_dir: Path) -> None:
        """Prints the scores, and writes the files and a row of the log."""
        try:
            self.print()
        finally:  # a reader who went away must not cost the files, nor an unwritable log the figures
            self._save(log_dir)

    def print(self) -> None:
        """Prints the scores and the verdict."""
        evaluation, config, view = self.evaluation, self.evaluation.config, self.evaluation.part.view
        size = f"{view.size}x{view.size}" if view.resize == "square" else f"longer side {view.size} pixels"
        if config.original_size or config.resize == "tile":
            size = "the images' own sizes"
        border = ", border left out" if config.ignore_border else ""
        print_scores(self.scores, f"Scores at {size}{border}, threshold {evaluation.threshold:g}")
        if self.groups:
            print(f"  {'group':<28} {'images':>8} {'dice':>8}   95 % interval")
        for name, (count, (value, low, high)) in self.groups.items():
            print(f"  {name:<28} {count:>8} {value:>8.4f}   {low:.4f} to {high:.4f}")
        if config.tta:
            plain, dice = (np.mean([row[name] for row in evaluation.rows]) for name in ("plain_dice", "dice"))
            print(f"Test-time augmentation: Dice {plain:.4f} without, {dice:.4f} with, averaged over images")
        if self.differences:
            print_scores(self.differences, f"Minus those of {self.other.network.path}")
            value, low, high = self.differences["dice"]
            verb = "excludes" if low > 0 or high < 0 else "includes"
            print(f"Difference in Dice: {value:+.4f}; its 95 % interval ({low:+.4f} to {high:+.4f}) {verb} zero.")
        if self.without_copies:
            print(
                f"Without {self.without_copies['near_copies']} near copies of training images: Dice "
                f"{self.without_copies['dice']:.4f}, dataset Dice {self.without_copies['dataset_dice']:.4f}"
            )
        if evaluation.confusion is None:
            print(f"Calibration error, {BINS} bins: {calibration_error(evaluation.bins):.4f}")
        else:
            print_confusion(evaluation.confusion, evaluation.predictor.task.classes)
        dice = self.scores["dice"].value
        verdict = next(words for least, words in VERDICTS if dice >= least)
        name = evaluation.network.checkpoint.model_name.upper()
        print(f"{name} {config.subset} Dice score: {dice:.4f}\n{verdict}", flush=True)

    def _facts(self) -> dict:
        """The columns of the log."""
        evaluation, config = self.evaluation, self.evaluation.config
        network, view, count = evaluation.network, evaluation.part.view, len(evaluation.part)
        named = evaluation.confusion is not None
        return {
            "model": network.checkpoint.model_name,
            "checkpoint": network.files,
            "run_id": network.run_id,
            "encoder_start": network.checkpoint.encoder_start,
            "data_path": str(evaluation.dataset.root),
            "split": network.checkpoint.data.split,
            "subset": config.subset,
            "image_size": view.size,
            "resize": config.resize,
            "scored_at": "original" if config.original_size or config.resize == "tile" else view.size,
            "ignore_border": config.ignore_border,
            "threshold": evaluation.threshold,
            "tta": config.tta,
            "compute": str(evaluation.predictor.precision),
            "images": count,
            **{name: round(score.value, 6) for name, score in self.scores.items()},
            "calibration_error": "" if named else round(calibration_error(evaluation.bins), 6),
            "seconds": round(evaluation.seconds, 3),
            "images_per_second": round(count / evaluation.seconds, 1),
        }

    def _save(self, log_dir: Path) -> None:
        evaluation, config, facts = self.evaluation, self.evaluation.config, self._facts()
        plain = [row["plain_dice"] for row in evaluation.rows] if config.tta and not self.classes else []
        details = {
            "intervals": {name: _rounded(score)[1:] for name, score in self.scores.items()},
            "groups": {
                name: {"images": count, "dice": _rounded(dice)[0], "interval": _rounded(dice)[1:]}
                for name, (count, dice) in self.groups.items()
            },
            "without_near_copies": self.without_copies,
            "confusion": None if evaluation.confusion is None else evaluation.confusion.tolist(),
            "dice_without_tta": round(float(np.mean(plain)), 6) if plain else None,
            "differences": {name: _rounded(score) for name, score in self.differences.items()},
        }
        content = {**facts, **{name: value for name, value in details.items() if value}}
        if config.json:
            write_json(Path(config.json), content)
        if config.report:
            self._write_folder(Path(config.report), content)
        stamp = {"time": time.strftime("%Y-%m-%d %H:%M:%S")}
        append_rows(log_dir / f"{evaluation.network.checkpoint.model_name}_evaluation_log.csv", [{**stamp, **facts}])

    def _write_folder(self, folder: Path, content: dict) -> None:
        """Writes scores.json, images.csv, a plot, and panels of the worst images."""
        evaluation = self.evaluation
        write_json(folder / "scores.json", content)
        write_rows(folder / "images.csv", evaluation.rows)
        if evaluation.confusion is None:
            draw_reliability(evaluation.bins, folder / "reliability.png")
        else:
            draw_confusion(evaluation.confusion, evaluation.predictor.task.classes, folder / "confusion.png")
        draw_worst(evaluation, folder / "worst")
        print(f"The report is in {folder}: scores, a row for each image, a plot, and panels of the worst images")


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file atomically."""
    with atomic_write(path) as file:
        json.dump(content, file, indent=2, allow_nan=False)
        file.write("\n")


def _known(scores: dict[str, Interval]) -> dict[str, Interval]:
    return {name: score for name, score in scores.items() if not math.isnan(score.value)}


def _rounded(score: Interval) -> list[float]:
    return [round(x, 6) for x in score]


def classes_of(rows: list[dict], classes: tuple[str, ...]) -> list[str]:
    """Those classes that any of these images has: a group has few of them."""
    return [name for name in classes if any(row[f"pixels_{name}"] for row in rows)]


def group_rows(rows: list[dict], classes: tuple[str, ...] = ()) -> dict[str, list[dict]]:
    """Rows by cats and dogs (file names of cats have capital letters) and then by breed, the worst first."""
    groups: dict[str, list[dict]] = {"cats": [], "dogs": []}
    breeds: dict[str, list[dict]] = {}
    for row in rows:
        name = row["name"]
        groups["cats" if name[0].isupper() else "dogs"].append(row)
        breeds.setdefault(name.rpartition("_")[0] or name, []).append(row)
    worst_first = sorted(breeds.items(), key=lambda item: mean_scores(item[1], classes_of(item[1], classes))["dice"])
    return {name: rows for name, rows in {**groups, **dict(worst_first)}.items() if rows}


def print_scores(scores: dict[str, Interval], title: str) -> None:
    """Prints a line per score, with its interval."""
    print(f"{title}\n  {'':<18} {'value':>8}   95 % interval")
    for name, (value, low, high) in scores.items():
        print(f"  {name.replace('_', ' '):<18} {value:>8.4f}   {low:.4f} to {high:.4f}")


def draw_worst(evaluation, folder: Path) -> None:
    """Draws panels, `<rank>_<name>.png`, of the images with the lowest Dice."""
    config, task, view = evaluation.config, evaluation.predictor.task, evaluation.part.view
    worst = sorted(evaluation.rows, key=lambda row: row["dice"])[:WORST]
    by_name = {sample.name: sample for sample in evaluation.part.samples}
    part = copy.copy(evaluation.part)
    part.samples = [by_name[row["name"]] for row in worst]
    folder.mkdir(parents=True, exist_ok=True)
    predictions = predictions_to_score(evaluation.predictor, part, config, "drawing")
    for rank, (row, predicted) in enumerate(zip(worst, predictions), start=1):
        image, labels = view.read_at(predicted.sample)
        threshold = logit(evaluation.threshold)
        label_map = label_map_at_size(task, predicted.final[0].cpu(), threshold, *labels.shape)
        title = f"{predicted.sample.name}   Dice {row['dice']:.4f}"
        panel = draw_panel(image, label_map, task.visible(labels), title, task)
        write_png(panel, folder / f"{rank:03d}_{predicted.sample.name}.png")
