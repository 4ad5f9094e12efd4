"""Scores of masks: Dice, IoU, boundary F, and their bootstrap intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from models.task import BACKGROUND, TASKS, Task

COUNTS = ("true_positives", "false_positives", "false_negatives", "true_negatives")
TRIMAP_SCORES = tuple(TASKS["trimap"].class_scores.values())
EXTREMES = ("empty_predictions", "full_predictions")  # shares of images
RESAMPLES = 10_000
TOLERANCE = 2  # pixels by which outlines may be apart and still agree


class Interval(NamedTuple):
    """A figure and its 95 % bootstrap interval over images, rounded to six digits."""

    value: float
    low: float
    high: float


def pixel_counts(prediction: torch.Tensor, mask: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """True positives, false positives, false negatives and true negatives of each image, int64 (N, 4).

    Masks are (N, 1, H, W) or (N, H, W), zero for background; where `counted` is zero, pixels are left out. Raises
    ValueError: the shapes differ.
    """
    if prediction.shape != mask.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and mask {tuple(mask.shape)} differ in shape")
    counted = torch.ones_like(mask) if counted is None else counted
    p, m, c = ((values != 0).flatten(1) for values in (prediction, mask, counted))
    return torch.stack([(kind & c).sum(1) for kind in (p & m, p & ~m, ~p & m, ~p & ~m)], dim=1)


def dice_from_counts(counts: torch.Tensor) -> torch.Tensor:
    """Dice from `pixel_counts`: (..., 4) to (...), 2 TP / (2 TP + FP + FN); empty against empty is 1."""
    tp, fp, fn = counts[..., 0], counts[..., 1], counts[..., 2]
    total = 2 * tp + fp + fn
    return torch.where(total == 0, 1.0, 2 * tp / total.clamp(min=1))


def dice_score(prediction: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Dice of each image (Dice, 1945; Sorensen, 1948), float (N,), 1 where both are empty; see `pixel_counts`."""
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
    return label_counts(task, task.label_map(decision), labels)


def image_dice(counts: torch.Tensor) -> torch.Tensor:
    """Dice of each image from (N, K, 4), float (N,): of several classes the mean of those in truth or prediction."""
    dice, present = dice_from_counts(counts), counts[..., :3].sum(-1) > 0
    return torch.where(present.any(1), (dice * present).sum(1) / present.sum(1).clamp(min=1), 1.0)


def mean_dice(counts: torch.Tensor, task: Task) -> float:
    """The Dice of a part from `score_counts` (n, K, 4): averaged over images, and then over classes.

    Each named class is averaged over the images that have it in truth or prediction: to predict none earns nothing.
    Classes in no image don't count.
    """
    dice = dice_from_counts(counts).double()
    if not task.classes:
        return dice.mean().item()
    present = counts[..., :3].sum(-1) > 0
    sums, images = (dice * present).sum(0), present.sum(0)
    return float((sums / images.clamp(min=1))[images > 0].mean()) if present.any() else 1.0


def boundary_f(
    prediction: torch.Tensor, mask: torch.Tensor, tolerance: int = TOLERANCE, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """F-score of outlines of masks (N, 1, H, W) (Martin et al., 2004; Perazzi et al., 2016: https://davischallenge.org).

    The harmonic mean, float (N,), of the shares of either outline that lie within `tolerance` pixels of the other; 1
    where neither mask has one, 0 where one has none. Outlines within `tolerance` of a pixel that is not counted are
    left out: where they would be is not known.
    """
    masks = torch.stack([prediction, mask]) != 0
    around = (
        F.pad(masks.flatten(0, 1).float(), (1, 1, 1, 1), mode="replicate") > 0
    )  # the image's own edge is no outline
    inside = around[..., :-2, 1:-1] & around[..., 2:, 1:-1] & around[..., 1:-1, :-2] & around[..., 1:-1, 2:]
    outlines = masks & ~inside.view_as(masks)
    if counted is not None:
        outlines &= F.max_pool2d((~counted).float(), 2 * tolerance + 3, stride=1, padding=tolerance + 1) == 0
    steps = torch.arange(-tolerance, tolerance + 1, device=mask.device)
    disc = (steps[:, None] ** 2 + steps**2 <= tolerance**2).float()[None, None]
    near = torch.stack([F.conv2d(o.float(), disc, padding=tolerance) > 0.5 for o in outlines])
    lengths = outlines.sum(dim=(2, 3, 4))  # (2, N), and so are the shares of each outline near the other
    precision, recall = (outlines & near.flip(0)).sum(dim=(2, 3, 4)) / lengths.clamp(min=1)
    f = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    return torch.where((lengths == 0).all(0), 1.0, f)


def score_image(task: Task, predicted: torch.Tensor, labels: torch.Tensor, trimap: bool = False) -> dict:
    """The scores of one image by name, from label maps (1, 1, H, W): size scored at, counts, Dice, boundary F.

    With them are the Dice of the classes of a `trimap`; or Dice, IoU and pixels of named classes, NaN for one that is
    neither in truth nor in prediction.
    """
    found, mask, counted = predicted != BACKGROUND, labels != BACKGROUND, task.counted(labels)
    if counted is not None:
        found, mask = found & counted, mask & counted
    counts = label_counts(task, predicted, labels)
    row = {"width": labels.shape[-1], "height": labels.shape[-2]}
    row |= zip(COUNTS, pixel_counts(found, mask, counted)[0].tolist())
    row |= {"dice": image_dice(counts).item(), "boundary_f": boundary_f(found, mask, counted=counted).item()}
    for name, (tp, fp, fn, _) in zip(task.classes[1:], counts[0].tolist()):
        row[f"pixels_{name}"] = tp + fn
        row[f"dice_{name}"] = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan
        row[f"iou_{name}"] = tp / (tp + fp + fn) if tp + fp + fn else math.nan
    if trimap and not task.classes:
        for number, name in task.class_scores.items():
            row[name] = dice_from_counts(pixel_counts(predicted == number, labels == number)).item()
    return row


def confusion_matrix(task: Task, predicted: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Pixels by true class (rows) and predicted class (columns), int64 (C, C), from label maps."""
    counted, count = task.counted(labels), len(task.classes)
    codes = labels[counted].long() * count + predicted[counted].long()
    return torch.bincount(codes, minlength=count**2).view(count, count).cpu().numpy()


def _columns(rows: list[dict]) -> dict[str, np.ndarray]:
    """The scores of images by name, float64 (n,) each; NaN where an image has none."""
    columns = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0] if name != "name"}
    tp, fp, fn, tn = (columns[name] for name in COUNTS)
    iou = columns["dice"] / (2 - columns["dice"])
    return columns | {"iou": iou, "empty_predictions": 1.0 * (tp + fp == 0), "full_predictions": 1.0 * (fn + tn == 0)}


def _together(columns: dict[str, np.ndarray], weights: np.ndarray, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores (k,) of images together, for weights of the images (k, n); 0 of 0 pixels is a share of 1.

    Of named classes Dice and IoU are the means of the classes'; of one that is in no image nothing is known.
    """
    values = np.stack(list(columns.values()), axis=1)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        shares = np.where(known.all(0), 1.0, weights @ known)
        mean = dict(zip(columns, (weights @ np.nan_to_num(values) / shares).T))
    for kind in ("dice", "iou") if classes else ():
        of_classes = np.ma.masked_invalid([mean[f"{kind}_{name}"] for name in classes])
        mean[kind] = of_classes.mean(axis=0).filled(np.nan)
    tp, fp, fn, tn = (mean[name] for name in COUNTS)

    def share(part, whole):
        return np.divide(part, whole, out=np.ones_like(whole), where=whole > 0)

    more = [*EXTREMES, *TRIMAP_SCORES, *(f"{kind}_{name}" for name in classes for kind in ("dice", "iou"))]
    return {
        **{name: mean[name] for name in ("dice", "iou", "boundary_f")},
        "dataset_dice": share(2 * tp, 2 * tp + fp + fn),
        "dataset_iou": share(tp, tp + fp + fn),
        "pixel_accuracy": share(tp + tn, tp + fp + fn + tn),
        "precision": share(tp, tp + fp),
        "recall": share(tp, tp + fn),
        **{name: mean[name] for name in more if name in mean},
    }


def intervals(rows: list[dict], classes: Sequence[str] = (), minus: list[dict] | None = None) -> dict[str, Interval]:
    """Every score of images together that is known, with its interval, from rows of `score_image`.

    The images are resampled 10,000 times (Efron, 1979). Of named classes Dice and IoU are means of the classes'.
    With `minus`, the rows of another model on the same images, the scores are how much higher the first model's are,
    paired in every sample.
    """
    columns = [_columns(part) for part in (rows, minus) if part is not None]

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        first, *others = [_together(part, weights, classes) for part in columns]
        for other in others:
            first = {name: first[name] - other[name] for name in first if name in other}
        return first

    count, rng = len(rows), np.random.default_rng(0)
    uniform, portion = np.full(count, 1 / count), max(1, 2_000_000 // count)
    drawn = [scores(uniform[None])]
    for start in range(0, RESAMPLES, portion):
        drawn.append(scores(rng.multinomial(count, uniform, min(portion, RESAMPLES - start)) / count))
    samples = {name: np.concatenate([part[name] for part in drawn]) for name in drawn[0]}
    return {
        name: Interval(*np.round([value[0], *np.nanpercentile(value[1:], [2.5, 97.5])], 6).tolist())
        for name, value in samples.items()
        if not np.isnan(value[0])
    }
