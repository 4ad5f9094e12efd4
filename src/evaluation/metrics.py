"""Scores of masks: Dice, IoU, boundary F, and their bootstrap intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from models.task import BACKGROUND, TASKS, Task

COUNTS = ("true_positives", "false_positives", "false_negatives", "true_negatives")
TRIMAP_SCORES = tuple(TASKS["trimap"].class_scores.values())
RESAMPLES = 10_000


class Interval(NamedTuple):
    """A figure and its 95 % bootstrap interval over images."""

    value: float
    low: float
    high: float


def pixel_counts(prediction: torch.Tensor, mask: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """True positives, false positives, false negatives and true negatives of each image, int64 (N, 4).

    Args:
        prediction: (N, 1, H, W) or (N, H, W), zero for background.
        mask: the same shape, zero for background.
        counted: the same shape, zero for pixels to leave out; None leaves none out.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != mask.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and mask {tuple(mask.shape)} differ in shape")
    p, m = (prediction != 0).flatten(1), (mask != 0).flatten(1)
    pixels = torch.full((len(p),), p.shape[1], device=p.device)
    if counted is not None:
        c = (counted != 0).flatten(1)
        p, m, pixels = p & c, m & c, c.sum(1)
    both, predicted, true = (p & m).sum(1), p.sum(1), m.sum(1)
    return torch.stack([both, predicted - both, true - both, pixels - predicted - true + both], dim=1)


def dice_from_counts(counts: torch.Tensor) -> torch.Tensor:
    """Dice from `pixel_counts`: (..., 4) to (...), 2 TP / (2 TP + FP + FN); empty against empty is 1."""
    tp, fp, fn = counts[..., 0], counts[..., 1], counts[..., 2]
    total = 2 * tp + fp + fn
    return torch.where(total == 0, 1.0, 2 * tp / total.clamp(min=1))


def dice_score(prediction: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Dice of each image (Dice, 1945; Sorensen, 1948), float (N,), 1 where both are empty.

    It is the one that training, evaluation and inference report. Average it over images, not over batches. Arguments
    and errors: see `pixel_counts`.
    """
    return dice_from_counts(pixel_counts(prediction, mask))


def label_counts(task: Task, predicted: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`pixel_counts` of each class that is scored, int64 (N, K, 4), from label maps (N, 1, H, W).

    Without named classes that is the foreground; with them it is each class but the background.
    """
    if not task.classes:
        return pixel_counts(predicted != BACKGROUND, labels != BACKGROUND)[:, None]
    counted = task.counted(labels)
    return torch.stack([pixel_counts(predicted == c, labels == c, counted) for c in task.class_scores], dim=1)


def score_counts(task: Task, decision: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The same from decision logits (N, D, H, W) and labels (N, 1, H, W)."""
    if not task.classes:
        return pixel_counts(decision[:, :1] > 0, labels != BACKGROUND)[:, None]
    return label_counts(task, task.label_map(decision), labels)


def image_dice(counts: torch.Tensor) -> torch.Tensor:
    """Dice of each image from (N, K, 4), float (N,): of several classes the mean of those in truth or prediction."""
    dice = dice_from_counts(counts)
    if counts.shape[1] == 1:
        return dice[:, 0]
    present = counts[..., :3].sum(-1) > 0
    return torch.where(present.any(1), (dice * present).sum(1) / present.sum(1).clamp(min=1), 1.0)


def mean_dice(counts: torch.Tensor, task: Task = TASKS["binary"]) -> float:
    """The Dice of a part from `score_counts` (n, K, 4): averaged over images, and then over classes.

    Each named class is averaged over the images that have it in truth or prediction: to predict none earns nothing.
    Classes in no image don't count.
    """
    dice = dice_from_counts(counts).double()
    if counts.shape[1] == 1 and not task.classes:
        return dice.mean().item()
    present = counts[..., :3].sum(-1) > 0
    sums, images = (dice * present).sum(0), present.sum(0)
    return float((sums / images.clamp(min=1))[images > 0].mean()) if present.any() else 1.0


def _outline(mask: torch.Tensor) -> torch.Tensor:
    """Pixels of a mask, bool (N, 1, H, W), with a neighbour above, below or beside that is not in it."""
    around = F.pad(mask.float(), (1, 1, 1, 1), mode="replicate") > 0  # the image's own edge is no outline
    inside = around[..., :-2, 1:-1] & around[..., 2:, 1:-1] & around[..., 1:-1, :-2] & around[..., 1:-1, 2:]
    return mask & ~inside


def boundary_f(
    prediction: torch.Tensor, mask: torch.Tensor, tolerance: int, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """F-score of outlines (Martin et al., 2004; Perazzi et al., 2016: https://davischallenge.org).

    The harmonic mean, float (N,), of the shares of either outline that lie within `tolerance` pixels of the other; 1
    where neither mask has one, 0 where one has none. Masks are (N, 1, H, W), zero for background. Outlines within
    `tolerance` of a pixel that is not counted are left out: where they would be is not known.
    """
    steps = torch.arange(-tolerance, tolerance + 1, device=mask.device)
    disc = (steps[:, None] ** 2 + steps**2 <= tolerance**2).float()[None, None]
    outlines = [_outline(m != 0) for m in (prediction, mask)]
    if counted is not None:
        reach = F.max_pool2d((~counted).float(), 2 * tolerance + 3, stride=1, padding=tolerance + 1) > 0
        outlines = [o & ~reach for o in outlines]
    near = [F.conv2d(o.float(), disc, padding=tolerance) > 0.5 for o in outlines]
    lengths = [o.sum(dim=(1, 2, 3)) for o in outlines]
    shares = [
        (o & n).sum(dim=(1, 2, 3)) / length.clamp(min=1) for o, n, length in zip(outlines, reversed(near), lengths)
    ]
    f = 2 * shares[0] * shares[1] / (shares[0] + shares[1]).clamp(min=1e-12)
    return torch.where((lengths[0] == 0) & (lengths[1] == 0), 1.0, f)


def confusion_matrix(task: Task, predicted: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Pixels by true class (rows) and predicted class (columns), int64 (C, C), from label maps of one shape."""
    counted, count = task.counted(labels), len(task.classes)
    codes = labels[counted].long() * count + predicted[counted].long()
    return torch.bincount(codes, minlength=count**2).view(count, count).cpu().numpy()


# --------------------------------------------------------------------------------------------------- of many together


class Table:
    """The scores of images by name, float64 (n,) each; NaN where an image has none, such as that of an absent class.

    Args:
        rows: of each image COUNTS, `dice`, `boundary_f` and the scores of single classes.
        classes: names of those that are averaged.
    """

    def __init__(self, rows: list[dict], classes: Sequence[str] = ()):
        names = [*COUNTS, "dice", "boundary_f", *(name for name in TRIMAP_SCORES if name in rows[0])]
        names += [f"{kind}_{name}" for kind in ("dice", "iou") for name in classes]
        columns = {name: np.array([row[name] for row in rows], np.float64) for name in names}
        tp, fp, fn, tn = (columns[name] for name in COUNTS)
        columns["iou"] = columns["dice"] / (2 - columns["dice"])
        columns |= {"empty_predictions": tp + fp == 0, "full_predictions": fn + tn == 0}
        self.count, self.classes, self.names = len(rows), classes, list(columns)
        self.values = np.stack([column.astype(np.float64) for column in columns.values()], axis=1)

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Scores (k,) of the images together, for weights of the images (k, n); 0 of 0 pixels is a share of 1.

        Of named classes Dice and IoU are the means of the classes'; of one that is in no image nothing is known.
        """
        known = ~np.isnan(self.values)
        with np.errstate(invalid="ignore"):
            shares = np.where(known.all(0), 1.0, weights @ known)
            mean = dict(zip(self.names, (weights @ np.nan_to_num(self.values) / shares).T))
        tp, fp, fn, tn = (mean[name] for name in COUNTS)

        def share(part, whole):
            return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 1.0)

        for kind in ("dice", "iou") if self.classes else ():
            of_classes = np.ma.masked_invalid([mean[f"{kind}_{name}"] for name in self.classes])
            mean[kind] = of_classes.mean(axis=0).filled(np.nan)
        named = [f"{kind}_{name}" for name in self.classes for kind in ("dice", "iou")]
        return {
            "dice": mean["dice"],
            "iou": mean["iou"],
            "boundary_f": mean["boundary_f"],
            "dataset_dice": share(2 * tp, 2 * tp + fp + fn),
            "dataset_iou": share(tp, tp + fp + fn),
            "pixel_accuracy": share(tp + tn, tp + fp + fn + tn),
            "precision": share(tp, tp + fp),
            "recall": share(tp, tp + fn),
            "empty_predictions": mean["empty_predictions"],
            "full_predictions": mean["full_predictions"],
            **{name: mean[name] for name in (*TRIMAP_SCORES, *named) if name in mean},
        }

    def means(self) -> dict[str, float]:
        """Every score of the images together."""
        scores = self.scores(np.full((1, self.count), 1 / self.count))
        return {name: float(value[0]) for name, value in scores.items()}

    def resampled(self) -> dict[str, np.ndarray]:
        """Every score of bootstrap samples of the images, the same images in every call (Efron, 1979)."""
        rng, portion, drawn = np.random.default_rng(0), max(1, 2_000_000 // self.count), []
        for start in range(0, RESAMPLES, portion):
            counts = rng.multinomial(self.count, np.full(self.count, 1 / self.count), min(portion, RESAMPLES - start))
            drawn.append(self.scores(counts / self.count))
        return {name: np.concatenate([part[name] for part in drawn]) for name in drawn[0]}


def mean_scores(rows: list[dict], classes: Sequence[str] = ()) -> dict[str, float]:
    """Every score of these images together; see Table."""
    return Table(rows, classes).means()


def intervals(rows: list[dict], classes: Sequence[str] = (), minus: list[dict] | None = None) -> dict[str, Interval]:
    """Every score that is known, with its interval: the images are resampled 10,000 times, with replacement.

    Args:
        rows: see Table.
        classes: see Table.
        minus: rows of another model on the same images; then the scores are how much higher the first model's are,
            paired in every bootstrap sample.
    """
    tables = [Table(part, classes) for part in (rows, minus) if part is not None]
    (values, drawn), *others = [(table.means(), table.resampled()) for table in tables]
    for less, drawn_less in others:
        values = {name: values[name] - less[name] for name in values if name in less}
        drawn = {name: drawn[name] - drawn_less[name] for name in values}
    known = {name: value for name, value in values.items() if not np.isnan(value)}
    return {
        name: Interval(value, *np.nanpercentile(drawn[name], [2.5, 97.5]).tolist()) for name, value in known.items()
    }
