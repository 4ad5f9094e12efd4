"""What a run learns from. Each method is a file here: a class like those, and a line in training/setup.py.

A term gives the part of each step's batch that it learns from, the loss of that part, its columns in the log, and what
a resumed run must find again.
"""

from collections.abc import Set
from typing import NamedTuple, Protocol

import torch

from data.loader import Batches


class At(NamedTuple):
    """Where a run stands: finished epochs, and finished steps of the current one."""

    epoch: int
    step: int


class Part(NamedTuple):
    """What a term learns from in one step, or in a piece of it.

    Args:
        images: (N, C, H, W) in 0..255; None for the images of the first term.
        target: (N, ...), as the term's loss takes it.
        counted: pixels that count, bool (N, 1, H, W); None for all.
        metrics: columns of the log that are known already, float (N, K); None where there are none.
        scale: how much each image counts in the loss of the step.
    """

    images: torch.Tensor | None
    target: torch.Tensor
    counted: torch.Tensor | None = None
    metrics: torch.Tensor | None = None
    scale: float = 1.0

    def split(self, micro_batches: int) -> list["Part"]:
        """In so many micro-batches, some of which may have no image."""
        nothing = [None] * micro_batches
        columns = [nothing if t is None else t.tensor_split(micro_batches) for t in self[:4]]
        return [Part(*column, self.scale) for column in zip(*columns)]


class Term(Protocol):
    """What `training_step` and the loop ask of a method.

    The first one of a run also has `score`, the name of what the best epoch is chosen by, and `validate(predictor,
    after_batch)`, which returns the validation loss and Dice; see MasksTerm.
    """

    name: str
    batches: Batches | None  # what the loader reads for it
    columns: tuple[str, ...]  # that it adds to the log
    seen: Set[str]  # names of images that the network learns from besides the training images

    def prepare(self, batch: dict, first: Part | None, at: At) -> Part:
        """The part of a step, augmented and labelled, on the device. No gradient passes through it.

        Args:
            batch: what the loader has read for this term.
            first: the first term's part; None for the first term itself.
            at: where the run stands.
        """

    def loss(self, logits: torch.Tensor, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the losses of the images; and their number, and the sums of the columns over them.

        Args:
            logits: float32 (N, C, H, W) of the part's images.
            part: of `prepare`, or a piece of it.

        Returns:
            A scalar, and float (K + 1,) without gradient.
        """

    def record(self) -> dict:
        """Plain values that go into the checkpoint; a resumed run must give the same."""


def no_totals(terms: list[Term]) -> torch.Tensor:
    """Sums over the images of an epoch, before the first: of loss and images, and of each term images and columns."""
    return torch.zeros(2 + sum(len(term.columns) + 1 for term in terms), dtype=torch.float64)


def averages(totals: torch.Tensor, terms: list[Term]) -> dict[str, float]:
    """The columns of the log from such sums."""
    loss, images, *sums = totals.tolist()
    columns = {"train_loss": loss / images}
    for term in terms:
        images, *sums = sums
        columns |= {name: value / images for name, value in zip(term.columns, sums)}
        sums = sums[len(term.columns) :]
    return columns
