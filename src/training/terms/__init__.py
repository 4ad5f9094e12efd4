"""What a run learns from. Each method is a file here: a Term, and a function that makes it for training/setup.py."""

from collections.abc import Sequence, Set
from typing import NamedTuple

import torch

from data.loader import Batches


class Batch(NamedTuple):
    """What a term learns from in one step, or in a micro-batch of it."""

    images: torch.Tensor | None  # (N, C, H, W) in 0..255; None for those of the first term
    target: torch.Tensor  # (N, ...), as the term's loss takes it
    counted: torch.Tensor | None = None  # pixels that count, bool (N, 1, H, W); None for all
    metrics: torch.Tensor | None = None  # columns of the log that are known already, float (N, K)
    scale: float = 1.0  # how much each image counts in the loss of the step

    def split(self, micro_batches: int) -> list["Batch"]:
        """In so many micro-batches, which are as equal as can be."""
        nothing = [None] * micro_batches
        columns = [nothing if t is None else t.tensor_split(micro_batches) for t in self[:4]]
        return [Batch(*column, self.scale) for column in zip(*columns)]


class Term:
    """What `training_step` and the loop ask of a method.

    The first one of a run also has `score`, the name of what the best epoch is chosen by, and `validate(predictor,
    after_batch)`, which returns the validation loss and Dice; see MasksTerm.
    """

    name: str
    batches: Batches | None = None  # what the loader reads for it
    columns: tuple[str, ...] = ()  # that it adds to the log
    seen: Set[str] = frozenset()  # names of images that the network learns from besides the training images

    def prepare(self, read: dict | None, first: Batch | None, epoch: int, step: int) -> Batch:
        """The batch of a step, augmented and labelled, on the device. No gradient passes through it.

        `read` is what the loader has read for this term, `first` the first term's batch; epoch and step begin at 0.
        """
        raise NotImplementedError

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """Over the images of a batch, or micro-batch, of `prepare`: the sum of the losses; the sums of the columns.

        The logits are float32 (N, C, H, W). The columns have no gradient.
        """
        raise NotImplementedError

    def record(self) -> dict:
        """Plain values that go into the checkpoint; a resumed run must give the same."""
        return {}
