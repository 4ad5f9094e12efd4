"""The figures of an epoch of training."""

import math

import torch

from runtime.errors import RunError
from training.terms import Term


def score_of(row: dict) -> float:
    """By which the best epoch is chosen, from its row of the log: validation Dice, or where there is none -loss."""
    return -row["val_loss"] if row["val_dice"] is None else row["val_dice"]


class MetricLogger:
    """Averages over the images of an epoch: of the loss, and of the columns of all terms.

    `sums`, float64 (K,), are of this process: of loss and images, and of each term of images and columns. On a GPU the
    metrics of 16 steps wait for `fetch`, because the host waits for the GPU then.
    """

    def __init__(self, terms: list[Term], sums: torch.Tensor | None = None):
        self.columns, self.waiting = [term.columns for term in terms], []
        self.sums = torch.zeros(2 + sum(len(columns) + 1 for columns in self.columns), dtype=torch.float64)
        if sums is not None:
            self.sums.add_(sums)

    def add(self, metrics: torch.Tensor, images: float, place: str) -> None:
        """Takes what `training_step` returns of a step of so many images; `place` says which step it is."""
        self.waiting.append((metrics, images, place))
        if metrics.device.type == "cpu" or len(self.waiting) == 16:
            self.fetch()

    def fetch(self) -> None:
        """Adds what waits to the sums, step by step. Raises RunError: a loss is not finite."""
        for metrics, images, place in self.waiting:
            loss, *sums = metrics.tolist()
            if not math.isfinite(loss):
                raise RunError(f"the loss is {loss} in {place}; use a smaller --learning_rate")
            self.sums += torch.tensor([loss * images, images, *sums], dtype=torch.float64)
        self.waiting.clear()

    def averages(self, sums: torch.Tensor | None = None) -> dict[str, float]:
        """The columns of the log; of the `sums` of all processes, or else of this one."""
        loss, images, *sums = (self.sums if sums is None else sums).tolist()
        row = {"train_loss": loss / images}
        for columns in self.columns:
            images, *values = sums[: len(columns) + 1]
            row |= {name: value / images for name, value in zip(columns, values)}
            sums = sums[len(columns) + 1 :]
        return row
