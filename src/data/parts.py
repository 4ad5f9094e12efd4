"""The part of a dataset that a checkpoint's split means, and which of its images a network has seen."""

import copy
from pathlib import Path

from data.dataset import Dataset
from data.layout import Sample
from data.names import SPLITS
from models.checkpoint import Checkpoint
from runtime.errors import UsageError


def samples_of_part(dataset: Dataset, checkpoint: Checkpoint, mode: str) -> list[Sample]:
    """The images of one part of a dataset under the split of a checkpoint.

    A dataset without lists, for which there is no official split, is divided like own images.
    """
    data, grouped = checkpoint.data, copy.copy(dataset)
    grouped.groups = data.groups
    return grouped.part(
        mode, data.split if dataset.lists else SPLITS[0], data.seed, None if dataset.parts else data.fold
    )


def copies_of_training(dataset: Dataset, seen: set[str], samples: list[Sample]) -> set[str]:
    """Names of those samples that were not trained on, but a near copy of them was; `seen` are names of images."""
    if not any(sample.name in seen for sample in dataset.samples):
        return set()
    pairs = [(a.name, b.name) for a, b in dataset.near_copies]
    copied = {a for a, b in pairs if b in seen} | {b for a, b in pairs if a in seen}
    return (copied - seen) & {sample.name for sample in samples}


def refuse_seen(seen: set[str], samples: list[Sample], path: Path) -> None:
    """Raises UsageError where the network of a checkpoint was trained on some of these samples."""
    hits = [sample.name for sample in samples if sample.name in seen]
    if hits:
        raise UsageError(
            f"{path} was trained on {len(hits)} of these {len(samples)} images ({hits[0]}, ...), so a score on them "
            "would be inflated by leakage; use --subset test, or say --allow_seen"
        )
