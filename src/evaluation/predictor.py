"""The forward pass of validation, scoring and inference, with test-time augmentation."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from models.task import Task
from runtime.device import Precision


class Prediction(NamedTuple):
    """Decision logits (N, D, H, W) of a batch; see models/task.py."""

    plain: torch.Tensor
    final: torch.Tensor  # with test-time augmentation, if there is any


@dataclass(frozen=True)
class Predictor:
    """Runs a network over images.

    Args:
        model: a SegmentationModel on the device of `precision`, in evaluation mode.
        precision: where and how to compute.
        tta: average the probabilities over three scales, each straight and flipped: six times the work.
    """

    model: torch.nn.Module
    precision: Precision
    tta: bool = False

    @property
    def task(self) -> Task:
        """What the network has learned."""
        return self.model.task

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) to float32 logits (N, C, H, W) on the device."""
        with self.precision.autocast():
            return self.model(self.precision.prepare_images(images)).float()

    def predict(self, images: torch.Tensor) -> Prediction:
        """Images (N, 3, H, W) to decision logits on the device."""
        views = [self.logits(images)]
        plain = self.task.decision_logits(views[0])
        if not self.tta:
            return Prediction(plain, plain)
        size, stride = images.shape[-2:], self.model.stride
        views += [self.logits(images.flip(-1)).flip(-1)]
        for step in (-1, 1):  # a quarter smaller and larger, but at least one stride
            sides = [side + step * stride * max(1, round(side / 4 / stride)) for side in size]
            if min(sides) > 0:
                pixels = F.interpolate(images.float(), sides, mode="bilinear", antialias=True)
                scaled = [self.logits(pixels), self.logits(pixels.flip(-1)).flip(-1)]
                views += [F.interpolate(view, size, mode="bilinear") for view in scaled]
        return Prediction(plain, self.task.decision_logits(self.task.average(torch.stack(views))))


def resize_logits(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Logits (1, h, w) on the CPU to float32 (1, height, width). Resized before thresholding, outlines stay smooth."""
    return F.interpolate(logits[None].float(), (height, width), mode="bilinear", align_corners=False)[0]


def label_map_at_size(task: Task, decision: torch.Tensor, threshold: float, height: int, width: int) -> np.ndarray:
    """Decision logits (D, h, w) on the CPU to a label map at this size, uint8 (height, width); see Task.label_map."""
    resized = [resize_logits(channel, height, width) for channel in decision.split(1)]
    return task.label_map(torch.cat(resized) if len(resized) > 1 else resized[0], threshold)[0].numpy()
