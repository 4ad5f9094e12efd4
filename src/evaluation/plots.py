"""Plots of a report: how far probabilities can be trusted, and which class is taken for which."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from evaluation.calibration import calibration_error
from runtime.files import atomic_write

SHOWN = 12  # classes, at most, of a confusion matrix with figures


def draw_reliability(bins: np.ndarray, path: Path) -> None:
    """Draws the share of right decisions over confidence, from sums of `confidence_bins`."""
    count, confidence, right = bins[bins[:, 0] > 0].T
    figure = Figure(figsize=(5, 5))
    axis = figure.subplots()
    axis.plot([0.5, 1], [0.5, 1], "--", color="gray", label="perfect")
    axis.plot(confidence / count, right / count, marker="o", label=f"error {calibration_error(bins):.4f}")
    axis.bar(confidence / count, count / count.sum() * 0.5, bottom=0.5, width=0.02, alpha=0.3, label="share of pixels")
    axis.set(xlabel="confidence", ylabel="right decisions", xlim=(0.49, 1.01), ylim=(0.49, 1.01), title="Reliability")
    axis.legend()
    _save(figure, path)


def true_shares(matrix: np.ndarray) -> np.ndarray:
    """Each row of a confusion matrix as shares of the true class's pixels; of a class without pixels zeros."""
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def draw_confusion(matrix: np.ndarray, classes: tuple[str, ...], path: Path) -> None:
    """Draws a confusion matrix; colors are shares of the true class's pixels."""
    shares, side = true_shares(matrix), 2.5 + 0.7 * len(classes)
    figure = Figure(figsize=(side, side))
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="predicted", ylabel="true", title="Confusion matrix, share of the true class")
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    for (row, column), share in np.ndenumerate(shares) if len(classes) <= SHOWN else ():
        axis.text(column, row, f"{share:.1%}", ha="center", va="center", color="white" if share > 0.5 else "black")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    with atomic_write(path, "wb") as file:
        figure.savefig(file, dpi=100, format="png", metadata={"Software": None})
