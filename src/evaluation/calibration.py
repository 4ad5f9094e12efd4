"""How far probabilities can be trusted: calibration error and temperature scaling.

Guo, Pleiss, Sun, Weinberger, 2017 (https://arxiv.org/abs/1706.04599).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

BINS = 15


def confidence_bins(probability: torch.Tensor, truth: torch.Tensor, counted: torch.Tensor | None = None) -> np.ndarray:
    """Sums over the pixels of an image by how confident the network is in its decision at probability 0.5.

    Args:
        probability: of the pet, any shape.
        truth: nonzero for pet, the same shape.
        counted: zero for pixels to leave out, or None.

    Returns:
        float64 (BINS, 3): number of pixels, sum of confidences, number of right decisions. Confidences are from 0.5 to
        1, the bins from 0 to 1.
    """
    probability, truth = probability.float().flatten().cpu(), truth.flatten().cpu() != 0  # MPS has no float64
    if counted is not None:
        kept = counted.flatten().cpu() != 0
        probability, truth = probability[kept], truth[kept]
    confidence = torch.maximum(probability, 1 - probability)
    right = (probability > 0.5) == truth
    index = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    weights = (torch.ones_like(confidence), confidence, right)
    sums = [torch.bincount(index, weights=values.double(), minlength=BINS) for values in weights]
    return torch.stack(sums, dim=1).numpy()


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error: |right decisions - confidence| of each bin, averaged over all pixels."""
    count, confidence, right = bins.T
    return float(np.abs(right - confidence).sum() / max(1, count.sum()))


def fit_temperature(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """The temperature T, between 0.05 and 20, whose sigmoid(logits / T) has the least cross-entropy with the truth."""

    def loss(log_temperature: float) -> float:
        return F.binary_cross_entropy_with_logits(logits / np.exp(log_temperature), truth).item()

    # In 1 / T the loss is convex, so it has one minimum in log T, too: golden-section search.
    low, high, ratio = np.log(0.05), np.log(20.0), (5**0.5 - 1) / 2
    while high - low > 1e-4:
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return float(np.exp((low + high) / 2))


def scale_head(model: nn.Module, factor: float) -> None:
    """Multiplies all logits of a network by a factor, by its head's weights. Decisions at probability 0.5 stay."""
    last = [module for module in model.head.modules() if isinstance(module, nn.Conv2d)][-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(factor)
