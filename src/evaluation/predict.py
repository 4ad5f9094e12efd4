"""Images to decision logits: one forward pass, test-time augmentation, and an iterator over whole datasets."""

import collections
import contextlib
import dataclasses
import itertools
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data.dataset import ImageDataset
from data.layout import Sample
from data.pixels import to_tensor
from evaluation.config import PredictConfig
from models.task import Task
from runtime.device import Precision
from runtime.errors import DatasetError

LARGE = 12_000_000  # pixels; of images above that, one is held in memory at a time
ONE_LARGE = threading.Lock()
SPREAD = 1 / 8  # standard deviation of a tile's weights, as a share of its side
LEAST = 1e-3  # of the weights, so that a corner that one tile alone sees counts at all


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Runs a network over images."""

    model: torch.nn.Module  # a SegmentationModel on the device of `precision`, in evaluation mode
    precision: Precision
    tta: bool = False  # average the probabilities over three scales, each straight and flipped: six times the work

    @property
    def task(self) -> Task:
        """What the network has learned."""
        return self.model.task

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) to float32 logits (N, C', H, W) on the device."""
        with self.precision.autocast():
            return self.model(self.precision.prepare_images(images)).float()

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) to decision logits (N, D, H, W) on the device; see models/task.py."""
        if not self.tta:
            return self.task.decision_logits(self.logits(images))
        size, stride, views = images.shape[-2:], self.model.stride, []
        for step in (0, -1, 1):  # as it is, and a quarter smaller and larger, but at least one stride
            sides = [side + step * stride * max(1, round(side / 4 / stride)) for side in size]
            if min(sides) > 0:
                pixels = F.interpolate(images.float(), sides, mode="bilinear", antialias=True)
                straight, flipped = self.logits(pixels), self.logits(pixels.flip(-1)).flip(-1)
                views += [F.interpolate(view, size, mode="bilinear") for view in (straight, flipped)]
        return self.task.decision_logits(self.task.average(torch.stack(views)))

    @torch.inference_mode()
    def segment(self, pixels: np.ndarray, width: int, height: int, threshold: float = 0.0) -> np.ndarray:
        """An image as the network sees it, (h, w, C), to its label map at its own size, uint8 (height, width)."""
        decision = self.predict(to_tensor(pixels)[None])[0].cpu()
        return label_map_at_size(self.task, decision, threshold, height, width)


def tile_starts(length: int, size: int) -> list[int]:
    """Where tiles of a side begin along a length: evenly spread, overlapping by half at least."""
    count = 1 + math.ceil(max(0, length - size) / (size // 2))
    return [round(x) for x in np.linspace(0, max(0, length - size), count)]


def tile_weights(size: int) -> torch.Tensor:
    """Weights of a tile's pixels, float32 (size, size), a Gaussian bell of height 1."""
    distance = (torch.arange(size) - (size - 1) / 2) / (SPREAD * size)
    bell = torch.exp(-0.5 * distance**2)
    return (bell[:, None] * bell).clamp(min=LEAST)


def predict_tiles(predictor: Predictor, image: np.ndarray, size: int, batch_size: int) -> torch.Tensor:
    """Decision logits, float32 (D, H, W) on the CPU, of an image (H, W, C) at its own size, in tiles of a side.

    Neighbouring tiles overlap by half, and the middle of a tile counts more than its rim, where context lacks.
    """
    height, width = image.shape[:2]
    if height < size or width < size:  # the edge pixels are repeated
        image = np.pad(image, ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0)), mode="edge")
    places = [(top, left) for top in tile_starts(height, size) for left in tile_starts(width, size)]
    weights, sums, total = tile_weights(size), None, torch.zeros(image.shape[:2])
    for first in range(0, len(places), batch_size):
        batch = places[first : first + batch_size]
        tiles = torch.stack([to_tensor(image[top : top + size, left : left + size]) for top, left in batch])
        for (top, left), decision in zip(batch, predictor.predict(tiles).cpu()):
            if sums is None:
                sums = torch.zeros(len(decision), *image.shape[:2])
            sums[:, top : top + size, left : left + size] += decision * weights
            total[top : top + size, left : left + size] += weights
    return sums.div_(total)[:, :height, :width]


class Predicted(NamedTuple):
    """What is known of an image, as large as the network saw it or, in tiles, as it is."""

    sample: Sample  # without its mask where that can't be read
    decision: torch.Tensor | None = None  # decision logits (1, D, h, w); None where the image can't be read
    labels: torch.Tensor | None = None  # of its mask, (1, 1, h, w) on the CPU
    error: str = ""  # why the image, or its mask alone, can't be read


@torch.inference_mode()
def predict_images(
    predictor: Predictor, dataset: ImageDataset, config: PredictConfig, title: str
) -> Iterator[Predicted]:
    """Runs a network over images, with masks or without, in their order, while threads read ahead.

    A batch is of images of one shape or, with --resize tile, of tiles of an image. The title is that of the progress
    bar.
    """
    threads, tile, size = config.num_workers or min(8, os.cpu_count() or 1), config.resize == "tile", config.batch_size
    numbers, reading = iter(range(len(dataset))), collections.deque()
    bar = tqdm(total=len(dataset), desc=title, unit="image", leave=False, disable=None, delay=1)
    with bar, ThreadPoolExecutor(threads) as pool:
        while True:
            for number in itertools.islice(numbers, 2 * max(threads, size) - len(reading)):
                reading.append(pool.submit(_read, dataset, number, tile))
            count = 1 if config.resize != "square" else size
            batch = [reading.popleft().result() for _ in range(min(count, len(reading)))]
            if not batch:
                return
            images, decisions = [image for _, image in batch if image is not None], iter(())
            if images and isinstance(images[0], np.ndarray):
                decisions = iter([predict_tiles(predictor, images[0], dataset.view.size, size)[None]])
            elif images:
                decisions = iter(predictor.predict(torch.cat(images)).split(1))
            for predicted, image in batch:
                yield predicted if image is None else predicted._replace(decision=next(decisions))
                bar.update()


def _read(dataset: ImageDataset, number: int, tile: bool) -> tuple[Predicted, torch.Tensor | np.ndarray | None]:
    """Reads an image: (1, C, h, w), or whole, (H, W, C), for tiles. Its error must not stop those of others."""
    sample, view = dataset.samples[number], dataset.view
    try:
        size = sample.displayed_size() if dataset.decodes else (0, 0)
        with room_for(*size):
            if not tile or max(size) <= view.size:
                batch = dataset.read_batch([number])
                return Predicted(sample, labels=batch.get("labels")), batch["image"]
            image, labels = view.read_at(sample)
            return Predicted(sample, labels=None if labels is None else torch.tensor(labels)[None, None]), image
    except DatasetError as error:
        if sample.mask_path is None:
            return Predicted(sample, error=str(error)), None
        # A bad mask must not cost the image.
        alone = dataclasses.replace(sample, mask_path=None)
        predicted, image = _read(ImageDataset([alone], view), 0, tile)
        return (predicted if image is None else predicted._replace(error=str(error))), image


def room_for(width: int, height: int):
    """Context in which an image may be held in memory."""
    return ONE_LARGE if width * height > LARGE else contextlib.nullcontext()


def resize_logits(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Logits (D, h, w) to float32 (D, height, width). Resized before thresholding, outlines stay smooth."""
    return F.interpolate(logits[None].float(), (height, width), mode="bilinear", align_corners=False)[0]


def label_map_at_size(task: Task, decision: torch.Tensor, threshold: float, height: int, width: int) -> np.ndarray:
    """Decision logits (D, h, w) on the CPU to a label map at this size, uint8 (height, width); see Task.label_map."""
    return task.label_map(resize_logits(decision, height, width), threshold)[0].numpy()
