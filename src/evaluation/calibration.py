"""How far probabilities can be trusted: calibration error, reliability diagram, temperature scaling.

Guo, Pleiss, Sun, Weinberger, 2017 (https://arxiv.org/abs/1706.04599).
"""

import math
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data.dataset import ImageDataset
from evaluation.predict import Predicted
from models.task import BACKGROUND
from runtime.files import atomic_write

BINS = 15
FITTED = 4_000_000  # pixels, at most, to which a temperature is fitted


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


def draw_reliability(bins: np.ndarray, path: Path) -> None:
    """Draws the share of right decisions over confidence, as PNG."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    count, confidence, right = bins[bins[:, 0] > 0].T
    figure, axis = plt.subplots(figsize=(5, 5))
    axis.plot([0.5, 1], [0.5, 1], "--", color="gray", label="perfect")
    axis.plot(confidence / count, right / count, marker="o", label=f"error {calibration_error(bins):.4f}")
    axis.bar(confidence / count, count / count.sum() * 0.5, bottom=0.5, width=0.02, alpha=0.3, label="share of pixels")
    axis.set(xlabel="confidence", ylabel="right decisions", xlim=(0.49, 1.01), ylim=(0.49, 1.01), title="Reliability")
    axis.legend()
    figure.tight_layout()
    with atomic_write(path, "wb") as file:
        figure.savefig(file, dpi=100, format="png", metadata={"Software": None})
    plt.close(figure)


@torch.inference_mode()
def collect_logits(predictions: Iterable[Predicted], dataset: ImageDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Decision logits of foreground against background, and the truth, of up to FITTED pixels all over the images."""
    logits, truths = [], []
    step = max(1, math.ceil(len(dataset) * dataset.view.size**2 / FITTED))
    for predicted in predictions:
        logits.append(predicted.plain[0, 0].flatten()[::step].cpu())
        truths.append((predicted.labels != BACKGROUND).flatten()[::step].float().cpu())
    return torch.cat(logits), torch.cat(truths)


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
