"""Scores of masks: Dice, IoU, boundary F, and their bootstrap intervals."""

import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from models.task import BACKGROUND, Task

COUNTS = ("true_positives", "false_positives", "false_negatives", "true_negatives")
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


def label_counts(task: Task, labels: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """`pixel_counts` of each class that is scored, int64 (N, K, 4), from label maps (N, 1, H, W).

    Without named classes that is the foreground; with them it is each class but the background.
    """
    if not task.classes:
        return pixel_counts(labels != BACKGROUND, truth != BACKGROUND)[:, None]
    counted = task.counted(truth)
    return torch.stack([pixel_counts(labels == value, truth == value, counted) for value in task.class_scores], dim=1)


def score_counts(task: Task, decision: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The same from decision logits (N, D, H, W) and a target (N, 1, H, W) of the task."""
    if not task.classes:
        return pixel_counts(decision[:, :1] > 0, task.foreground(target))[:, None]
    return label_counts(task, task.label_map(decision), target)


def image_dice(counts: torch.Tensor) -> torch.Tensor:
    """Dice of each image from (N, K, 4), float (N,): of several classes the mean of those in truth or prediction."""
    dice = dice_from_counts(counts)
    if counts.shape[1] == 1:
        return dice[:, 0]
    there = counts[..., :3].sum(-1) > 0
    return torch.where(there.any(1), (dice * there).sum(1) / there.sum(1).clamp(min=1), 1.0)


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


def class_scores_of(rows: list[dict]) -> list[str]:
    """Names of the scores of single classes in these rows, such as `border_dice`, or `dice_cat` and `iou_cat`."""
    return [
        name
        for name in rows[0]
        if name.startswith(("dice_", "iou_")) or (name.endswith("_dice") and name != "plain_dice")
    ]


def score_terms(rows: list[dict]) -> np.ndarray:
    """What scores are averaged from, float64 (n, 9 + 2k).

    Per image Dice, IoU, boundary F, empty, full, the four counts, the scores of k single classes, and where these are
    known: an image that has a class neither in truth nor in prediction has no score of it (NaN in the rows).
    """
    counts = np.array([[row[name] for name in COUNTS] for row in rows], dtype=np.float64)
    tp, fp, fn, tn = counts.T
    dice = np.array([row["dice"] for row in rows])
    boundary = np.array([row["boundary_f"] for row in rows])
    parts = [dice, dice / (2 - dice), boundary, tp + fp == 0, fn + tn == 0, tp, fp, fn, tn]
    singles = [np.array([row[name] for row in rows], dtype=np.float64) for name in class_scores_of(rows)]
    parts += [np.nan_to_num(single) for single in singles] + [~np.isnan(single) for single in singles]
    return np.stack(parts, axis=1).astype(np.float64)


def scores_of(means: np.ndarray, class_scores=()) -> dict[str, np.ndarray]:
    """Scores from means of `score_terms` over images, (..., 9 + 2k); 0 of 0 pixels is a share of 1.

    Of named classes Dice and IoU are the means of the classes'; of one that is in no image nothing is known.
    """
    dice, iou, boundary, empty, full, tp, fp, fn, tn, *singles = np.moveaxis(means, -1, 0)
    known = singles[len(class_scores) :]
    with np.errstate(invalid="ignore"):
        # Where all images have a score the division would change nothing but the last bits.
        classes = {n: s if (k > 1 - 1e-9).all() else s / k for n, s, k in zip(class_scores, singles, known)}
    named = {kind: [v for n, v in classes.items() if n.startswith(f"{kind}_")] for kind in ("dice", "iou")}
    if named["dice"]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of means of nothing
            dice, iou = (np.nanmean(named[kind], axis=0) for kind in ("dice", "iou"))

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
        **classes,
    }


def mean_dice(counts: torch.Tensor, task: Task) -> float:
    """The Dice of a part from `score_counts` (n, K, 4): averaged over images, and then over classes.

    Each named class is averaged over the images that have it in truth or prediction: to predict none earns nothing.
    Classes in no image don't count.
    """
    if not task.classes:
        return summarize(counts[:, 0])["dice"]
    dice, there = dice_from_counts(counts).double(), counts[..., :3].sum(-1) > 0
    sums, images = (dice * there).sum(0), there.sum(0)
    return float((sums / images.clamp(min=1))[images > 0].mean()) if there.any() else 1.0


def summarize(counts: torch.Tensor) -> dict[str, float]:
    """Scores from `pixel_counts` (n, 4): Dice and IoU averaged over images, the rest over all pixels."""
    dice = dice_from_counts(counts).tolist()
    rows = [{**dict(zip(COUNTS, row)), "dice": d, "boundary_f": 0.0} for row, d in zip(counts.tolist(), dice)]
    return {name: value for name, value in mean_scores(rows).items() if name != "boundary_f"}


def _resamples(count: int):
    """Weights of images in bootstrap samples, float64 (k, n) in portions: the same in every call."""
    rng = np.random.default_rng(0)
    portion = max(1, 2_000_000 // count)
    for start in range(0, RESAMPLES, portion):
        k = min(portion, RESAMPLES - start)
        yield rng.multinomial(count, np.full(count, 1 / count), size=k) / count


def _between(values: np.ndarray) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    low, high = np.percentile(known if len(known) else values, [2.5, 97.5])
    return float(low), float(high)


def mean_scores(rows: list[dict]) -> dict[str, float]:
    """Every score of these images together."""
    return {name: float(value) for name, value in scores_of(score_terms(rows).mean(0), class_scores_of(rows)).items()}


def intervals(rows: list[dict]) -> dict[str, Interval]:
    """Every score with its interval: the images are resampled 10,000 times, with replacement (Efron, 1979)."""
    terms, classes = score_terms(rows), class_scores_of(rows)
    drawn = [scores_of(weights @ terms, classes) for weights in _resamples(len(terms))]
    return {
        name: Interval(float(value), *_between(np.concatenate([part[name] for part in drawn])))
        for name, value in scores_of(terms.mean(0), classes).items()
    }


def differences(rows: list[dict], others: list[dict]) -> dict[str, Interval]:
    """How much higher the first model's scores are on the same images, paired in every bootstrap sample."""
    terms, classes = [score_terms(rows), score_terms(others)], [class_scores_of(rows), class_scores_of(others)]
    a, b = (scores_of(some.mean(0), names) for some, names in zip(terms, classes))
    drawn = [
        [scores_of(weights @ some, names) for some, names in zip(terms, classes)]
        for weights in _resamples(len(terms[0]))
    ]
    return {
        name: Interval(
            float(a[name] - b[name]), *_between(np.concatenate([one[name] - two[name] for one, two in drawn]))
        )
        for name in a
        if name in b
    }
