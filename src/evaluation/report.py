"""What evaluate.py says and writes about the scores of a checkpoint."""

import json
import time
from pathlib import Path

import numpy as np

from evaluation.calibration import BINS, calibration_error
from evaluation.config import logit
from evaluation.metrics import Interval, intervals, mean_scores
from evaluation.plots import SHOWN, draw_confusion, draw_reliability, true_shares
from evaluation.ranking import draw_ranked
from runtime.errors import UsageError
from runtime.files import append_rows, atomic_write, write_rows

WORST = 24  # images with the lowest Dice, of which panels are drawn
# The rubric of the course that report B was written for.
VERDICTS = [
    (0.90, "Outstanding performance - full score!"),
    (0.85, "Good performance."),
    (0.80, "Passable: train longer, or with --augment."),
    (0.0, "Below 0.80: keep training."),
]


def facts_of(evaluation, scores: dict) -> dict:
    """What was scored and how, and the scores: the columns of the log."""
    config, network, view = evaluation.config, evaluation.network, evaluation.part.view
    own_size, count = config.original_size or config.resize == "tile", len(evaluation.part)
    named = bool(evaluation.predictor.task.classes)
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
        "scored_at": "original" if own_size else view.size,
        "ignore_border": config.ignore_border,
        "threshold": evaluation.threshold,
        "tta": config.tta,
        "compute": str(evaluation.predictor.precision),
        "images": count,
        **{name: round(score.value, 6) for name, score in scores.items()},
        "calibration_error": "" if named else round(calibration_error(evaluation.sums), 6),
        "seconds": round(evaluation.seconds, 3),
        "images_per_second": round(count / evaluation.seconds, 1),
    }


def conditions(evaluation) -> str:
    """The size, the pixels and the threshold of the scores, in words."""
    config, view = evaluation.config, evaluation.part.view
    size = f"{view.size}x{view.size}" if view.resize == "square" else f"longer side {view.size} pixels"
    if config.original_size or config.resize == "tile":
        size = "the images' own sizes"
    border = ", border left out" if config.ignore_border else ""
    return f"{size}{border}, threshold {evaluation.threshold:g}"


def write_report(evaluation, other, log_dir: Path) -> None:
    """Prints the scores of an Evaluation and the verdict; writes the files that are asked for, and a row of the log.

    Args:
        evaluation: it is scored.
        other: another one of the same images, or None; the report says how the scores differ.
        log_dir: where the log is.

    Raises:
        UsageError: no image has a class in truth or prediction.
    """
    config, network, rows = evaluation.config, evaluation.network, evaluation.rows
    model_name, task, count = network.checkpoint.model_name, evaluation.predictor.task, len(evaluation.part)
    classes = task.classes[1:]
    scores = intervals(rows, classes)
    if "dice" not in scores:
        raise UsageError(f"no image has a class in truth or prediction; score another part than {config.subset}")
    facts = facts_of(evaluation, scores)
    details: dict = {"intervals": {name: _rounded(score)[1:] for name, score in scores.items()}}
    lines = table_of(scores, f"Scores at {conditions(evaluation)}")
    if evaluation.dataset.lists:
        details["groups"] = {}
        lines.append(f"  {'group':<28} {'images':>8} {'dice':>8}   95 % interval")
        for name, group in group_rows(rows, classes).items():
            dice = intervals(group, classes_of(group, classes))["dice"]
            details["groups"][name] = {"images": len(group), "dice": _rounded(dice)[0], "interval": _rounded(dice)[1:]}
            lines.append(f"  {name:<28} {len(group):>8} {dice.value:>8.4f}   {dice.low:.4f} to {dice.high:.4f}")
    if config.tta:
        plain, dice = (float(np.mean([row[name] for row in rows])) for name in ("plain_dice", "dice"))
        lines.append(f"Test-time augmentation: Dice {plain:.4f} without, {dice:.4f} with, averaged over images")
        details["dice_without_tta"] = round(plain, 6)
    if other:
        differences = intervals(rows, classes, minus=other.rows)
        details["differences"] = {name: _rounded(score) for name, score in differences.items()}
        lines += table_of(differences, f"Minus those of {other.network.path}")
        value, low, high = differences["dice"]
        verb = "excludes" if low > 0 or high < 0 else "includes"
        lines.append(f"Difference in Dice: {value:+.4f}; its 95 % interval ({low:+.4f} to {high:+.4f}) {verb} zero.")
    copies = evaluation.dataset.copies_of_training(network.seen, evaluation.part.samples)
    if copies and len(copies) < count:
        means = mean_scores([row for row in rows if row["name"] not in copies], classes)
        names = ("dice", "dataset_dice")
        details["without_near_copies"] = {"near_copies": len(copies), **{n: round(means[n], 6) for n in names}}
        lines.append(f"Without {len(copies)} near copies of training images: Dice {means['dice']:.4f}, ")
        lines[-1] += f"dataset Dice {means['dataset_dice']:.4f}"
    if task.classes:
        details["confusion"] = evaluation.sums.tolist()
        lines += confusion_table(evaluation.sums, task.classes)
    else:
        lines.append(f"Calibration error, {BINS} bins: {calibration_error(evaluation.sums):.4f}")
    if config.report:
        lines.append(f"The report goes to {config.report}: scores, images, a plot, and panels of the worst images")
    dice = scores["dice"].value
    lines.append(f"{model_name.upper()} {config.subset} Dice score: {dice:.4f}")
    lines.append(next(words for least, words in VERDICTS if dice >= least))
    try:
        print(*lines, sep="\n", flush=True)
    finally:  # a reader who went away must not cost the files, nor an unwritable log the figures
        write_files(evaluation, facts, details, log_dir)


def write_files(evaluation, facts: dict, details: dict, log_dir: Path) -> None:
    """Writes the files that are asked for, and a row of the log."""
    config = evaluation.config
    if config.json:
        write_json(Path(config.json), facts | details)
    if config.report:
        write_folder(evaluation, facts | details, Path(config.report))
    stamp = {"time": time.strftime("%Y-%m-%d %H:%M:%S")}
    append_rows(log_dir / f"{facts['model']}_evaluation_log.csv", [stamp | facts])


def write_folder(evaluation, content: dict, folder: Path) -> None:
    """Writes scores.json, images.csv, a plot, and panels of the worst images."""
    task, part = evaluation.predictor.task, evaluation.part
    write_json(folder / "scores.json", content)
    write_rows(folder / "images.csv", evaluation.rows)
    if task.classes:
        draw_confusion(evaluation.sums, task.classes, folder / "confusion.png")
    else:
        draw_reliability(evaluation.sums, folder / "reliability.png")
    by_name = {sample.name: sample for sample in part.samples}
    worst = sorted(evaluation.rows, key=lambda row: row["dice"])[:WORST]
    titles = {row["name"]: f"{row['name']}   Dice {row['dice']:.4f}" for row in worst}
    ranked = [(evaluation.predictor, part, by_name[name], title) for name, title in titles.items()]
    draw_ranked(ranked, evaluation.config, logit(evaluation.threshold), folder / "worst")


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file atomically."""
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


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


def table_of(scores: dict[str, Interval], title: str) -> list[str]:
    """A line for each score, with its interval, below a title."""
    lines = [title, f"  {'':<18} {'value':>8}   95 % interval"]
    for name, (value, low, high) in scores.items():
        lines.append(f"  {name.replace('_', ' '):<18} {value:>8.4f}   {low:.4f} to {high:.4f}")
    return lines


def confusion_table(matrix: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """Which class the pixels of each class are taken for, as lines."""
    if len(classes) > SHOWN:
        return [f"The confusion matrix of {len(classes)} classes is in the file of --json; --report draws it."]
    width = max(8, *map(len, classes))
    lines = ["Pixels of a class (row) by predicted class", f"  {'':<{width}} "]
    lines[-1] += " ".join(f"{name:>{width}}" for name in classes)
    for name, shares in zip(classes, true_shares(matrix)):
        lines.append(" ".join([f"  {name:<{width}}", *(f"{share:>{width}.2%}" for share in shares)]))
    return lines
