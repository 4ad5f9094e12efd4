"""Several networks as one: their probabilities are averaged."""

from pathlib import Path

import torch
from torch import nn

from models.checkpoint import open_checkpoint
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
        """Images (N, 3, H, W) to the logits (N, C, H, W) of the mean probabilities."""
        return self.task.average(torch.stack([member(images).float() for member in self.members]))


def open_checkpoints(paths: list[str] | None, model_name: str | None, save_dir: str) -> tuple[nn.Module, dict, Path]:
    """The network of one checkpoint, or the ensemble of several; see `open_checkpoint`.

    Of an ensemble the content is the first one's, with the training images of all, and so is the path.

    Raises:
        UsageError: the checkpoints are of different tasks, or see images at different sizes.
    """
    opened = [open_checkpoint(path, model_name, save_dir) for path in paths or (None,)]
    (first, content, path), *others = opened
    if not others:
        return opened[0]
    for other, theirs, place in others:
        if other.task.name != first.task.name or theirs["preprocessing"] != content["preprocessing"]:
            raise UsageError(
                f"{path} and {place} differ in classes, or in size, channels or window of the images, so they make no "
                "ensemble"
            )
    data = {**content["data"]}
    for name in ("train_names", "seen_names"):
        data[name] = sorted({one for _, some, _ in opened for one in some["data"][name]})
    run_ids = " ".join(some["progress"]["run_id"] for _, some, _ in opened)
    content = {**content, "data": data, "progress": {"run_id": run_ids}}
    return Ensemble([model for model, _, _ in opened]).eval(), content, path
