"""Networks as users name them: one checkpoint, or several whose probabilities are averaged."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from data.view import View
from models.checkpoint import Checkpoint, open_checkpoint
from runtime.errors import UsageError


class Ensemble(nn.Module):
    """Networks of one task that act as one network.

    Args:
        members: at least one, in evaluation mode.
    """

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.task, self.stride = members[0].task, max(member.stride for member in members)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) to the logits (N, C', H, W) of the mean probabilities."""
        return self.task.average(torch.stack([member(images).float() for member in self.members]))


class Opened(NamedTuple):
    """A network and what is known of it; of an ensemble the checkpoint is that of the first member.

    Args:
        model: in evaluation mode.
        checkpoint: it says what the network sees, and the split.
        path: of that.
        files: the checkpoints as they were named.
        run_id: of all members.
        seen: names of the images that any of them learned from.
    """

    model: nn.Module
    checkpoint: Checkpoint
    path: Path
    files: str
    run_id: str
    seen: set[str]


def open_networks(paths: list[str] | None, model_name: str | None, save_dir: str) -> Opened:
    """The network of one checkpoint, or the ensemble of several; see `open_checkpoint`.

    Raises:
        UsageError: the checkpoints are of different tasks, or see images at different sizes.
    """
    opened = [open_checkpoint(path, model_name, save_dir) for path in paths or (None,)]
    model, checkpoint, path = opened[0]
    for _, other, place in opened[1:]:
        if other.task.name != checkpoint.task.name or View.of(other) != View.of(checkpoint):
            raise UsageError(
                f"{path} and {place} differ in classes, or in size or channels of the images, so they make no ensemble"
            )
    if len(opened) > 1:
        model = Ensemble([member for member, _, _ in opened]).eval()
    return Opened(
        model,
        checkpoint,
        path,
        " ".join(paths or [str(path)]),
        " ".join(member.progress.run_id for _, member, _ in opened),
        set().union(*(member.seen_names() for _, member, _ in opened)),
    )
