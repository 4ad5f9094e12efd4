"""Losses on logits (N, C, H, W) and targets (N, 1, H, W) of a task. Each returns a scalar.

A new loss is a function like these and a line in LOSSES. Weights, float (C,), say how much each class counts; the one
of a single logit is that of the foreground, the background counts 1.
"""

from functools import partial

import torch

from models.task import Task

Weights = torch.Tensor | None
FOCUS = 2.0  # gamma of the focal loss: how little easy pixels count
MISSED = 0.7  # beta of the Tversky loss: how much missed pixels count, and false ones the rest


def _mean(values: torch.Tensor, target: torch.Tensor, task: Task) -> torch.Tensor:
    """The mean of pixels (N, 1, H, W) over those of each image that count, and then over images."""
    counted = task.counted(target)
    if counted is None:
        return values.mean()
    return ((values * counted).sum(dim=(1, 2, 3)) / counted.sum(dim=(1, 2, 3)).clamp(min=1)).mean()


def _overlaps(logits: torch.Tensor, target: torch.Tensor, task: Task) -> tuple[torch.Tensor, ...]:
    """Sums of p * t, p and t over each image and class, (N, C), of probabilities p and truth t."""
    probabilities, truth, counted = task.probabilities(logits.float()), task.one_hot(target), task.counted(target)
    if counted is not None:
        probabilities = probabilities * counted
    return tuple(part.sum(dim=(2, 3)) for part in (probabilities * truth, probabilities, truth))


def _over_classes(losses: torch.Tensor, weights: Weights) -> torch.Tensor:
    """The mean of (N, C), weighted over classes."""
    if weights is None or losses.shape[1] == 1:
        return losses.mean()
    return ((losses * weights).sum(1) / weights.sum()).mean()


def bce_loss(logits: torch.Tensor, target: torch.Tensor, task: Task, weights: Weights = None) -> torch.Tensor:
    """Cross-entropy, averaged over pixels and images: binary for one channel, of a softmax for several."""
    if weights is None and task.counted(target) is None:
        return task.cross_entropy(logits.float(), task.one_hot(target))
    return _mean(task.cross_entropy(logits.float(), task.one_hot(target), weights, "none"), target, task)


def focal_loss(logits: torch.Tensor, target: torch.Tensor, task: Task, weights: Weights = None) -> torch.Tensor:
    """Cross-entropy times (1 - p)^2, p the probability of the truth (https://arxiv.org/abs/1708.02002)."""
    truth = task.one_hot(target)
    plain = task.cross_entropy(logits.float(), truth, None, "none")
    weighed = plain if weights is None else task.cross_entropy(logits.float(), truth, weights, "none")
    return _mean((1 - torch.exp(-plain)) ** FOCUS * weighed, target, task)


def dice_loss(logits: torch.Tensor, target: torch.Tensor, task: Task, weights: Weights = None) -> torch.Tensor:
    """1 - soft Dice of each image and class, averaged over both (V-Net: https://arxiv.org/abs/1606.04797).

    One pixel is added to both sums, so that an image without a pet costs little where little is predicted.
    """
    overlap, predicted, true = _overlaps(logits, target, task)
    return _over_classes(1 - (2 * overlap + 1) / (predicted + true + 1), weights)


def tversky_loss(
    logits: torch.Tensor, target: torch.Tensor, task: Task, weights: Weights = None, power: float = 1.0
) -> torch.Tensor:
    """Dice in which a missed pixel costs more than a false one (https://arxiv.org/abs/1706.05721).

    With a power below 1 large losses count more, as in the focal Tversky loss (https://arxiv.org/abs/1810.07842).
    """
    overlap, predicted, true = _overlaps(logits, target, task)
    wrong = (1 - MISSED) * (predicted - overlap) + MISSED * (true - overlap)
    losses = 1 - (overlap + 1) / (overlap + wrong + 1)
    if power != 1:  # at 0 the slope would be infinite
        losses = losses.clamp(min=1e-6) ** power * (losses > 1e-6)
    return _over_classes(losses, weights)


def bce_dice_loss(logits: torch.Tensor, target: torch.Tensor, task: Task, weights: Weights = None) -> torch.Tensor:
    """The sum of cross-entropy, whose gradient is steady and which alone is weighted, and Dice."""
    return bce_loss(logits, target, task, weights) + dice_loss(logits, target, task)


LOSSES = {
    "bce": bce_loss,
    "dice": dice_loss,
    "bce_dice": bce_dice_loss,
    "focal": focal_loss,
    "tversky": tversky_loss,
    "focal_tversky": partial(tversky_loss, power=0.75),
}


def balanced_weights(targets: torch.Tensor, task: Task) -> list[float]:
    """Weights inverse to the number of pixels of each class in targets (N, 1, H, W), to three digits.

    With them all classes count alike, and pixels count 1 on average; of a single logit it is background over
    foreground. A class of less than a thousandth of the pixels counts as one of that; one without any weighs 1.
    """
    shares, counted = task.one_hot(targets).sum(dim=(0, 2, 3), dtype=torch.float64), task.counted(targets)
    shares = shares / (targets.numel() if counted is None else max(1, int(counted.sum())))
    present = shares > 0
    shares = shares.clamp(min=1e-3, max=1 - 1e-3)
    weights = (1 - shares) / shares if len(shares) == 1 else torch.where(present, 1 / (present.sum() * shares), 1.0)
    return [float(f"{weight:.3g}") for weight in weights.tolist()]
