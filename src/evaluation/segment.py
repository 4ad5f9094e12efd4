"""One image in, its mask out: what a notebook needs."""

import numpy as np
import torch
from PIL import Image

from data.pixels import image_pixels, to_tensor
from data.view import View
from evaluation.matting import cut_out, matting_trimap
from evaluation.predict import Predictor, label_map_at_size
from models.base import SegmentationModel
from models.checkpoint import Checkpoint
from models.task import BACKGROUND
from runtime.device import choose_precision


@torch.inference_mode()
def segment(model: SegmentationModel, checkpoint: Checkpoint, image: Image.Image, alpha: bool = False) -> np.ndarray:
    """The mask of an image, as inference.py writes it.

    Args:
        model: the network of a checkpoint, in evaluation mode, on any device.
        checkpoint: it says what the network sees.
        image: of any mode and size. Its EXIF orientation is not looked at.
        alpha: return how much of each pixel is pet, for a cutout.

    Returns:
        uint8 (H, W), 255 where the pet is, border included, and 0 elsewhere; or float32 (H, W) of 0 to 1.
    """
    view = View.of(checkpoint)
    pixels = image_pixels(image, view.channels, view.fit(image.size))
    precision = choose_precision("auto", next(model.parameters()).device, view.size)
    decision = Predictor(model, precision).predict(to_tensor(pixels)[None]).final[0].cpu()
    labels = label_map_at_size(model.task, decision, 0.0, *image.size[::-1])
    if not alpha:
        return (labels != BACKGROUND) * np.uint8(255)
    return cut_out(image_pixels(image), matting_trimap(labels, model.task))[..., 3].astype(np.float32) / 255
