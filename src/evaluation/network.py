"""Networks as users name them, ready to predict: of one checkpoint, or of several whose probabilities are averaged."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from data.pixels import image_pixels
from data.view import View
from evaluation.config import PredictConfig
from evaluation.matting import cut_out, matting_trimap
from evaluation.predict import Predictor
from models.base import SegmentationModel
from models.checkpoint import Checkpoint, open_checkpoint
from models.task import BACKGROUND
from runtime.device import choose_precision, get_device
from runtime.errors import UsageError


class Ensemble(nn.Module):
    """Networks of one task, in evaluation mode, that act as one network."""

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.task, self.stride = members[0].task, max(member.stride for member in members)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) to the logits (N, C', H, W) of the mean probabilities."""
        return self.task.average(torch.stack([member(images).float() for member in self.members]))


class Network(NamedTuple):
    """A network that is ready to predict; of an ensemble the checkpoint is that of the first member."""

    predictor: Predictor
    view: View  # of its images
    checkpoint: Checkpoint
    path: Path  # of the checkpoint
    files: str  # all checkpoints, as they were named
    run_id: str  # of all members
    seen: set[str]  # names of the images that any of them learned from


def open_network(config: PredictConfig, paths: list[str] | None, model_name: str | None = None) -> Network:
    """The network of one checkpoint, or the ensemble of several; see `open_checkpoint`.

    Raises UsageError: they learned or see different things, or a flag is not for this task.
    """
    models, checkpoints, files = zip(*(open_checkpoint(path, model_name, config.save_dir) for path in paths or (None,)))
    model, checkpoint, path = models[0], checkpoints[0], files[0]
    for other, file in zip(checkpoints, files):
        if other.task.name != checkpoint.task.name or View.of(other) != View.of(checkpoint):
            raise UsageError(
                f"{path} and {file} differ in classes, or in size or channels of the images, so are no ensemble"
            )
    if len(models) > 1:
        model = Ensemble(models).eval()
    config.refuse_for_classes(model.task)
    view = View.of(checkpoint, config.image_size, "square" if config.resize == "tile" else config.resize)
    precision = choose_precision(config.amp, get_device(config.device), view.size)
    predictor = Predictor(precision.to_device(model), precision, config.tta)
    run_ids, seen = (
        " ".join(c.progress.run_id for c in checkpoints),
        set().union(*(c.seen_names() for c in checkpoints)),
    )
    return Network(predictor, view, checkpoint, path, " ".join(paths or [str(path)]), run_ids, seen)


def segment(model: SegmentationModel, checkpoint: Checkpoint, image: Image.Image, alpha: bool = False) -> np.ndarray:
    """The mask of an image of any mode, as inference.py writes it, by the network of a checkpoint in evaluation mode.

    Returns uint8 (H, W), 255 where the pet is, border included, and 0 elsewhere; or with `alpha`, for a cutout, how
    much of each pixel is pet, float32 (H, W) of 0 to 1. The image's EXIF orientation is not looked at.
    """
    view = View.of(checkpoint)
    pixels = image_pixels(image, view.channels, view.fit(image.size))
    precision = choose_precision("auto", next(model.parameters()).device, view.size)
    labels = Predictor(model, precision).segment(pixels, *image.size)
    if not alpha:
        return (labels != BACKGROUND) * np.uint8(255)
    return cut_out(image_pixels(image), matting_trimap(labels, model.task))[..., 3].astype(np.float32) / 255
