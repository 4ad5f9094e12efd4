"""Networks as users name them, ready to predict: of one checkpoint, or of several whose probabilities are averaged."""

import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from data.image_io import image_size_of, read_image
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


def segment(
    model: SegmentationModel, checkpoint: Checkpoint, image: str | os.PathLike | Image.Image | np.ndarray, alpha=False
) -> np.ndarray:
    """The mask of an image, as inference.py writes it, by the network of a checkpoint in evaluation mode.

    The image is a file, a PIL image of any mode, or an array in RGB, uint8 (H, W, 3). A file alone is turned as its
    EXIF orientation says. Returns uint8 (H, W), 255 where the pet is, border included, and 0 elsewhere; or with
    `alpha`, for a cutout, how much of each pixel is pet, float32 (H, W) of 0 to 1. Raises TypeError: it is no image.
    """
    view = View.of(checkpoint)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        size, read = image.size, functools.partial(image_pixels, image)
    elif isinstance(image, (str, os.PathLike)):
        size, read = image_size_of(image, upright=True), functools.partial(read_image, image, upright=True)
    else:
        what = f"array of {image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"segment takes a file, a PIL image or an array of uint8 (H, W, 3), no {what}")
    precision = choose_precision("auto", next(model.parameters()).device, view.size)
    labels = Predictor(model, precision).segment(read(channels=view.channels, size=view.fit(size)), *size)
    if not alpha:
        return (labels != BACKGROUND) * np.uint8(255)
    return cut_out(read(), matting_trimap(labels, model.task))[..., 3].astype(np.float32) / 255
