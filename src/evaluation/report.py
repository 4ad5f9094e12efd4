"""What evaluate.py says and writes about the scores of a checkpoint."""

import collections
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.dataset import Dataset, ImageDataset
from evaluation.config import EvalConfig, logit
from evaluation.metrics import Interval, intervals
from evaluation.network import Network
from evaluation.ranking import draw_ranked
from runtime.errors import UsageError, plural
from runtime.files import append_rows, atomic_write, write_rows

FEW = 20  # images, below which the verdict says how many they are
SHOWN = 12  # classes, at most, of a confusion matrix on the screen
WORST = 24  # images with the lowest Dice, of which panels are drawn
# The rubric of the course that report B was written for.
VERDICTS = [
    (0.90, "Outstanding performance - full score!"),
    (0.85, "Good performance."),
    (0.80, "Passable: train longer, or with --augment."),
    (0.0, "Below 0.80: keep training."),
]


class Evaluation(NamedTuple):
    """A network and its scores on a part of a dataset; see `score_images`."""

    config: EvalConfig
    dataset: Dataset
    network: Network
    part: ImageDataset
    threshold: float
    rows: list[dict]
    confusion: np.ndarray | None
    seconds: float
    other_rows: list[dict] | None  # of --compare, on the same images


def write_report(evaluation: Evaluation) -> None:
    """Prints scores and the verdict; writes the files that are asked for, and a row of the log.

    Raises UsageError: no image has a class in truth or prediction.
    """
    config, rows, view = evaluation.config, evaluation.rows, evaluation.part.view
    classes = evaluation.network.predictor.task.classes
    scores = intervals(rows, classes[1:])
    if "dice" not in scores:
        raise UsageError(f"no image has a class in truth or prediction; score another part than {config.subset}")
    facts = facts_of(evaluation, scores)
    size = "the images' own sizes" if facts["scored_at"] == "original" else f"{view.size} pixels"
    tables = {"intervals": (f"Scores at {size}, threshold {evaluation.threshold:g}", scores)}
    if evaluation.dataset.lists:
        tables["groups"] = "Dice by group", group_scores(rows, classes[1:])
    if evaluation.other_rows:
        tables["differences"] = f"Minus those of {config.compare}", intervals(rows, classes[1:], evaluation.other_rows)
    copies = evaluation.dataset.copies_of_training(evaluation.network.seen, evaluation.part.samples)
    if copies and len(copies) < len(rows):
        title = f"Without {plural(len(copies), 'near copy', 'near copies')} of training images"
        others = [row for row in rows if row["name"] not in copies]
        tables["without_near_copies"] = title, intervals(others, classes[1:])
    lines = [line for title, table in tables.values() for line in table_of(title, table)]
    details = {name: table for name, (_, table) in tables.items()}
    if classes:
        details["confusion"] = evaluation.confusion.tolist()
        lines += confusion_table(evaluation.confusion, classes)
    if config.report:
        lines.append(f"The report goes to {config.report}: scores, images, and panels of the worst images")
    lines.append(f"{facts['model'].upper()} {config.subset} Dice score: {facts['dice']:.4f}")
    verdict = next(words for least, words in VERDICTS if facts["dice"] >= least)
    lines.append(verdict + f" (on {plural(len(rows), 'image')} alone)" * (len(rows) < FEW))
    try:
        print(*lines, sep="\n", flush=True)
    finally:  # a reader who went away must not cost the files, nor an unwritable log the figures
        write_files(evaluation, facts, details)


def facts_of(evaluation: Evaluation, scores: dict[str, Interval]) -> dict:
    """What was scored and how, and the scores: the columns of the log."""
    config, network, size = evaluation.config, evaluation.network, evaluation.part.view.size
    return {
        "model": network.checkpoint.model_name,
        "checkpoint": network.files,
        "run_id": network.run_id,
        "encoder_start": network.checkpoint.encoder_start,
        "data_path": str(evaluation.dataset.root),
        "split": network.checkpoint.data.split,
        "subset": config.subset,
        "image_size": size,
        "resize": config.resize,
        "scored_at": "original" if config.original_size or config.resize == "tile" else size,
        "threshold": evaluation.threshold,
        "tta": config.tta,
        "compute": str(network.predictor.precision),
        "images": len(evaluation.rows),
        **{name: score.value for name, score in scores.items()},
        "seconds": round(evaluation.seconds, 3),
        "images_per_second": round(len(evaluation.rows) / evaluation.seconds, 1),
    }


def write_files(evaluation: Evaluation, facts: dict, details: dict) -> None:
    """Writes the files that are asked for, and a row of the log."""
    config, part, folder = evaluation.config, evaluation.part, Path(evaluation.config.report or "")
    for file in (config.json, config.report and folder / "scores.json"):
        if file:
            with atomic_write(file) as stream:
                stream.write(json.dumps(facts | details, indent=2, allow_nan=False) + "\n")
    if config.report:
        # No value, NaN, is an empty cell, as in the logs.
        cells = [{name: "" if value != value else value for name, value in row.items()} for row in evaluation.rows]
        write_rows(folder / "images.csv", cells)
        worst = sorted(zip(evaluation.rows, part.samples), key=lambda pair: pair[0]["dice"])[:WORST]
        predictor = evaluation.network.predictor
        ranked = [(predictor, part.view, sample, f"{sample.name}   Dice {row['dice']:.4f}") for row, sample in worst]
        draw_ranked(ranked, config, logit(evaluation.threshold), folder / "worst")
    stamp = {"time": time.strftime("%Y-%m-%d %H:%M:%S")}
    append_rows(Path(config.log_dir) / f"{facts['model']}_evaluation_log.csv", [stamp | facts])


def group_scores(rows: list[dict], classes: tuple[str, ...]) -> dict[str, Interval]:
    """Dice of cats and dogs, and then of breeds, the worst first.

    File names of cats have capital letters. Classes that no image of a group has don't count in it.
    """
    groups = collections.defaultdict(list)
    for row in rows:
        name = row["name"]
        groups["cats" if name[0].isupper() else "dogs"].append(row)
        groups[name.rpartition("_")[0] or name].append(row)
    scores = {}
    for name, group in groups.items():
        present = [one for one in classes if any(row[f"pixels_{one}"] for row in group)]
        scores[name] = intervals(group, present)["dice"]
    return dict(sorted(scores.items(), key=lambda item: (item[0] not in ("cats", "dogs"), item[1].value)))


def table_of(title: str, scores: dict[str, Interval]) -> list[str]:
    """A line for each score, with its interval, below a title."""
    lines = [title, f"  {'':<28} {'value':>8}   95 % interval"]
    for name, (value, low, high) in scores.items():
        lines.append(f"  {name.replace('_', ' '):<28} {value:>8.4f}   {low:.4f} to {high:.4f}")
    return lines


def confusion_table(matrix: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """Which class the pixels of each class are taken for, as lines; of a class without pixels zeros."""
    if len(classes) > SHOWN:
        return [f"The confusion matrix of {len(classes)} classes is in the file of --json."]
    width = max(8, *map(len, classes))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    cells = [("", *classes)] + [(name, *(f"{share:.2%}" for share in row)) for name, row in zip(classes, shares)]
    return ["Pixels of a class (row) by predicted class", *(" ".join(f"{c:>{width}}" for c in row) for row in cells)]
