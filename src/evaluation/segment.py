"""One image in, its mask out: what a notebook needs."""

import numpy as np
from PIL import Image

from data.pixels import image_pixels
from data.view import View
from evaluation.matting import cut_out, matting_trimap
from evaluation.predict import Predictor
from models.base import SegmentationModel
from models.checkpoint import Checkpoint
from models.task import BACKGROUND
from runtime.device import choose_precision


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
