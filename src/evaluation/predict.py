"""Images to decision logits: one forward pass, test-time augmentation, and an iterator over whole datasets.

Scoring, segmenting, calibrating and ranking all consume that iterator.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from data.dataset import ImageDataset
from data.layout import Sample
from evaluation.tiles import predict_tiles
from models.task import Task
from runtime.device import Precision
from runtime.errors import DatasetError

LARGE = 12_000_000  # pixels; of images above that, one is held in memory at a time
ONE_LARGE = threading.Lock()


class Prediction(NamedTuple):
    """Decision logits (N, D, H, W) of a batch; see models/task.py."""

    plain: torch.Tensor
    final: torch.Tensor  # with test-time augmentation, if there is any


@dataclasses.dataclass(frozen=True)
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
        """Images (N, C, H, W) to float32 logits (N, C', H, W) on the device."""
        with self.precision.autocast():
            return self.model(self.precision.prepare_images(images)).float()

    def predict(self, images: torch.Tensor) -> Prediction:
        """Images (N, C, H, W) to decision logits on the device."""
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


class Predicted(NamedTuple):
    """What is known of an image.

    Args:
        sample: the image; without its mask where that can't be read.
        plain: decision logits (1, D, h, w) on the device, as large as the network saw the image or, in tiles, as the
            image; None where it can't be read.
        final: likewise, with test-time augmentation.
        labels: of its mask, (1, 1, h, w) on the CPU, as large; None without a mask.
        error: why the image, or its mask alone, can't be read.
    """

    sample: Sample
    plain: torch.Tensor | None = None
    final: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    error: str = ""


@torch.inference_mode()
def predict_images(
    predictor: Predictor, dataset: ImageDataset, batch_size: int = 1, num_workers: int | None = None, tile: bool = False
) -> Iterator[Predicted]:
    """Runs a network over images, in their order, while threads read ahead.

    Args:
        predictor: its network is in evaluation mode.
        dataset: the images, with or without masks, and what is seen of them.
        batch_size: images at a time, or tiles; images of one shape are computed together.
        num_workers: threads; by default one a core, 8 at most.
        tile: slide over images that are larger than the network's input, at their own size.
    """
    threads = num_workers or min(8, os.cpu_count() or 1)
    ahead, count = 2 * max(threads, batch_size), 1 if tile else batch_size
    numbers, reading = iter(range(len(dataset))), collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        while True:
            for number in itertools.islice(numbers, ahead - len(reading)):
                reading.append(pool.submit(_read, dataset, number, tile))
            batch = [reading.popleft().result() for _ in range(min(count, len(reading)))]
            if not batch:
                return
            results, alike = [predicted for predicted, _ in batch], collections.defaultdict(list)
            for number, (_, image) in enumerate(batch):
                if isinstance(image, np.ndarray):
                    decision = predict_tiles(predictor, image, dataset.view.size, batch_size)[None]
                    results[number] = results[number]._replace(plain=decision, final=decision)
                elif image is not None:
                    alike[image.shape].append(number)
            for members in alike.values():
                views = predictor.predict(torch.cat([batch[number][1] for number in members]))
                for number, plain, final in zip(members, *(view.split(1) for view in views)):
                    results[number] = results[number]._replace(plain=plain, final=final)
            yield from results


def _read(dataset: ImageDataset, number: int, tile: bool) -> tuple[Predicted, torch.Tensor | np.ndarray | None]:
    """Reads an image: (1, C, h, w), or whole, (H, W, C), for tiles. Its error must not stop those of others."""
    sample, view = dataset.samples[number], dataset.view
    try:
        if tile and max(size := sample.displayed_size()) > view.size:
            with room_for(*size):
                image, labels = view.read_at(sample)
            labels = None if labels is None else torch.from_numpy(labels.copy())[None, None]
            return Predicted(sample, labels=labels), image
        with room_for(*sample.displayed_size()) if dataset.decodes else contextlib.nullcontext():
            batch = dataset.read_batch([number])
        return Predicted(sample, labels=batch.get("labels")), batch["image"]
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
    """Logits (1, h, w) on the CPU to float32 (1, height, width). Resized before thresholding, outlines stay smooth."""
    return F.interpolate(logits[None].float(), (height, width), mode="bilinear", align_corners=False)[0]


def label_map_at_size(task: Task, decision: torch.Tensor, threshold: float, height: int, width: int) -> np.ndarray:
    """Decision logits (D, h, w) on the CPU to a label map at this size, uint8 (height, width); see Task.label_map."""
    resized = [resize_logits(channel, height, width) for channel in decision.split(1)]
    return task.label_map(torch.cat(resized) if len(resized) > 1 else resized[0], threshold)[0].numpy()
