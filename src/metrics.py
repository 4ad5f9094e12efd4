"""Scores of masks and how sure one can be of them."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import utils

COUNTS = ("true_positives", "false_positives", "false_negatives", "true_negatives")
# Dice of each class of a trimap, by its value: what three-class networks are scored by as well.
CLASSES = {1: "pet_dice", 2: "background_dice", 3: "border_dice"}
RESAMPLES = 10_000


class Interval(NamedTuple):
    """A figure and its 95 % bootstrap interval over images."""

    value: float
    low: float
    high: float


def _outline(mask: torch.Tensor) -> torch.Tensor:
    """Pixels of a mask, bool (N, 1, H, W), with a neighbour above, below or beside that is not in it."""
    around = F.pad(mask.float(), (1, 1, 1, 1), mode="replicate") > 0  # the picture's own edge is no outline
    inside = around[..., :-2, 1:-1] & around[..., 2:, 1:-1] & around[..., 1:-1, :-2] & around[..., 1:-1, 2:]
    return mask & ~inside


def boundary_f(prediction: torch.Tensor, mask: torch.Tensor, tolerance: int) -> torch.Tensor:
    """F-score of outlines (Martin et al., 2004; Perazzi et al., 2016: https://davischallenge.org).

    Args:
        prediction: (N, 1, H, W), zero for background.
        mask: the same shape, zero for background.
        tolerance: how far apart, in pixels, outlines may be and still agree.

    Returns:
        float (N,): harmonic mean of the shares of either outline that lie near the other; 1 where neither mask has one,
        0 where one has none.
    """
    steps = torch.arange(-tolerance, tolerance + 1, device=mask.device)
    disc = (steps[:, None] ** 2 + steps**2 <= tolerance**2).float()[None, None]
    outlines = [_outline(m != 0) for m in (prediction, mask)]
    near = [F.conv2d(o.float(), disc, padding=tolerance) > 0.5 for o in outlines]
    lengths = [o.sum(dim=(1, 2, 3)) for o in outlines]
    shares = [
        (o & n).sum(dim=(1, 2, 3)) / length.clamp(min=1) for o, n, length in zip(outlines, reversed(near), lengths)
    ]
    f = 2 * shares[0] * shares[1] / (shares[0] + shares[1]).clamp(min=1e-12)
    return torch.where((lengths[0] == 0) & (lengths[1] == 0), 1.0, f)


def figures_of(rows: list[dict]) -> np.ndarray:
    """What scores are made of, float64 (n, 9): per image Dice, IoU, boundary F, empty, full, and the four counts.

    With three classes (n, 12): the Dice of each behind them.
    """
    counts = np.array([[row[name] for name in COUNTS] for row in rows], dtype=np.float64)
    tp, fp, fn, tn = counts.T
    dice = np.array([row["dice"] for row in rows])
    boundary = np.array([row["boundary_f"] for row in rows])
    parts = [dice, dice / (2 - dice), boundary, tp + fp == 0, fn + tn == 0, tp, fp, fn, tn]
    parts += [np.array([row[name] for row in rows]) for name in CLASSES.values() if name in rows[0]]
    return np.stack(parts, axis=1).astype(np.float64)


def scores_of(means: np.ndarray) -> dict[str, np.ndarray]:
    """Scores from averages of `figures_of` over images, (..., 9) or (..., 12); of 0 pixels in 0 the share is 1."""
    dice, iou, boundary, empty, full, tp, fp, fn, tn, *classes = np.moveaxis(means, -1, 0)

    def share(part, whole):
        return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 1.0)

    return {
        "dice": dice,
        "iou": iou,
        "boundary_f": boundary,
        "dataset_dice": share(2 * tp, 2 * tp + fp + fn),
        "dataset_iou": share(tp, tp + fp + fn),
        "pixel_accuracy": share(tp + tn, tp + fp + fn + tn),
        "precision": share(tp, tp + fp),
        "recall": share(tp, tp + fn),
        "empty_predictions": empty,
        "full_predictions": full,
        **dict(zip(CLASSES.values(), classes)),
    }


def summarize(counts: torch.Tensor) -> dict[str, float]:
    """Scores from `utils.pixel_counts` (n, 4): Dice and IoU averaged over images, the rest over all pixels."""
    dice = utils.dice_from_counts(counts).tolist()
    rows = [{**dict(zip(COUNTS, row)), "dice": d, "boundary_f": 0.0} for row, d in zip(counts.tolist(), dice)]
    scores = scores_of(figures_of(rows).mean(0))
    return {name: float(value) for name, value in scores.items() if name != "boundary_f"}


def _resamples(count: int):
    """Weights of images in bootstrap samples, float64 (k, n) in portions: the same in every call."""
    rng = np.random.default_rng(0)
    portion = max(1, 2_000_000 // count)
    for start in range(0, RESAMPLES, portion):
        k = min(portion, RESAMPLES - start)
        yield rng.multinomial(count, np.full(count, 1 / count), size=k) / count


def _between(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def intervals(rows: list[dict]) -> dict[str, Interval]:
    """Every score with its interval: the images are drawn anew 10,000 times, with replacement (Efron, 1979)."""
    figures = figures_of(rows)
    drawn = [scores_of(weights @ figures) for weights in _resamples(len(figures))]
    return {
        name: Interval(float(value), *_between(np.concatenate([part[name] for part in drawn])))
        for name, value in scores_of(figures.mean(0)).items()
    }


def differences(rows: list[dict], others: list[dict]) -> dict[str, Interval]:
    """By how much the first model's scores on the same images are higher, image by image in every bootstrap sample."""
    a, b = figures_of(rows), figures_of(others)
    first, second = scores_of(a.mean(0)), scores_of(b.mean(0))
    drawn = [(scores_of(weights @ a), scores_of(weights @ b)) for weights in _resamples(len(a))]
    return {
        name: Interval(
            float(first[name] - second[name]), *_between(np.concatenate([one[name] - two[name] for one, two in drawn]))
        )
        for name in first
        if name in second
    }
