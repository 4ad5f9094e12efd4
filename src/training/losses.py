"""Losses on logits (N, C, H, W) and targets (N, 1, H, W) of a task. Each returns a scalar.

A new loss is a function like these and a line in LOSSES.
"""

import torch

from models.task import Task


def bce_loss(logits: torch.Tensor, target: torch.Tensor, task: Task) -> torch.Tensor:
    """Cross-entropy, averaged over pixels and images: binary for one channel, of a softmax for several."""
    return task.cross_entropy(logits.float(), task.one_hot(target))


def dice_loss(logits: torch.Tensor, target: torch.Tensor, task: Task) -> torch.Tensor:
    """1 - soft Dice of each image and class, averaged over both (V-Net: https://arxiv.org/abs/1606.04797).

    One pixel is added to numerator and denominator, so that an image without a pet costs little where little is
    predicted, and the gradient stays finite.
    """
    probabilities, truth = task.probabilities(logits.float()), task.one_hot(target)
    overlap = (probabilities * truth).sum(dim=(2, 3))
    total = probabilities.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    return (1 - (2 * overlap + 1) / (total + 1)).mean()


def bce_dice_loss(logits: torch.Tensor, target: torch.Tensor, task: Task) -> torch.Tensor:
    """The sum of both: the steady gradient of cross-entropy, and Dice, to which small pets count as much."""
    return bce_loss(logits, target, task) + dice_loss(logits, target, task)


LOSSES = {"bce": bce_loss, "dice": dice_loss, "bce_dice": bce_dice_loss}
