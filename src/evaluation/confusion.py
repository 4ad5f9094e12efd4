"""The confusion matrix of named classes: counted, printed and drawn."""

from pathlib import Path

import matplotlib
import numpy as np
import torch

from models.task import Task
from runtime.files import atomic_write

SHOWN = 12  # classes, at most, of a matrix that is printed


def confusion_matrix(task: Task, labels: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    """Pixels by true class (rows) and predicted class (columns), int64 (C, C), from label maps of one shape."""
    counted, count = task.counted(truth), len(task.classes)
    codes = truth[counted].long() * count + labels[counted].long()
    return torch.bincount(codes, minlength=count**2).view(count, count).cpu().numpy()


def true_shares(matrix: np.ndarray) -> np.ndarray:
    """Each row of a confusion matrix as shares of the true class's pixels; of a class without pixels zeros."""
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def print_confusion(matrix: np.ndarray, classes: tuple[str, ...]) -> None:
    """Prints which class the pixels of each class are taken for."""
    if len(classes) > SHOWN:
        print(f"The confusion matrix of {len(classes)} classes is in the file of --json; --confusion draws it.")
        return
    width = max(8, *map(len, classes))
    print(f"Pixels of a class (row) by predicted class\n  {'':<{width}}", *(f"{name:>{width}}" for name in classes))
    for name, shares in zip(classes, true_shares(matrix)):
        print(f"  {name:<{width}}", *(f"{share:>{width}.2%}" for share in shares))


def draw_confusion(matrix: np.ndarray, classes: tuple[str, ...], path: Path) -> None:
    """Draws a confusion matrix as PNG; colors are shares of the true class's pixels."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shares, side = true_shares(matrix), 2.5 + 0.7 * len(classes)
    figure, axis = plt.subplots(figsize=(side, side))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="predicted", ylabel="true", title="Confusion matrix, share of the true class")
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    if len(classes) <= SHOWN:
        for row, column in np.ndindex(shares.shape):
            share = shares[row, column]
            axis.text(column, row, f"{share:.1%}", ha="center", va="center", color="white" if share > 0.5 else "black")
    figure.tight_layout()
    with atomic_write(path, "wb") as file:
        figure.savefig(file, dpi=100, format="png", metadata={"Software": None})
    plt.close(figure)
