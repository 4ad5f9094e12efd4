"""Segments images of any size and writes the results: threads read and write while the network computes."""

import collections
import contextlib
import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.datasets import Preprocessing
from data.index import Sample
from data.inputs import read_input
from data.pixels import shown
from evaluation.config import RESULTS, InferConfig
from evaluation.matting import cut_out, matting_trimap
from evaluation.metrics import image_dice, label_counts
from evaluation.predictor import Predictor, label_map_at_size, resize_logits
from evaluation.tiles import tiled_decisions
from models.task import BACKGROUND
from runtime.errors import DatasetError
from runtime.files import DISK_FULL
from visual.panels import draw_outline, draw_panel, palette_image, sixteen_bits, with_profile, write_png

LARGE = 12_000_000  # pixels; of images above that, one is worked on at a time


# --------------------------------------------------------------------------------------------------------- segmenting


@dataclass
class Segmented:
    """What is known of an image before its results are written.

    Args:
        decision: decision logits (D, h, w), as large as the network saw the image; None where it was tiled.
        truth: label map of the ground truth, (1, h, w) or at the image's own size if it was tiled; None without one.
        labels: label map at the image's own size, of one that was tiled.
        probabilities: likewise, uint16 (H, W) of 0 to 65535.
    """

    decision: torch.Tensor | None = None
    truth: torch.Tensor | None = None
    labels: np.ndarray | None = None
    probabilities: np.ndarray | None = None


class Segmenter:
    """Reads, segments and writes images.

    Args:
        predictor: its model is in evaluation mode.
        preprocessing: how large the network sees images.
        config: batch_size, num_workers (threads here), threshold, tile and matting.
        kinds: which of RESULTS are written.
        folder: where they go; None writes none.
    """

    def __init__(
        self,
        predictor: Predictor,
        preprocessing: Preprocessing,
        config: InferConfig,
        kinds: list[str],
        folder: Path | None,
    ):
        self.predictor, self.preprocessing, self.config, self.folder = predictor, preprocessing, config, folder
        self.kinds = kinds if folder is not None else []
        self.threads = config.num_workers or min(8, os.cpu_count() or 1)
        self.one_large = threading.Lock()

    def run(self, samples: list[Sample]) -> list[dict]:
        """Segments these images. Returns a row of the log for each; `error` says what is wrong with one."""
        ahead, rows = 2 * max(self.threads, self.config.batch_size), []
        source, reading, writing = iter(samples), collections.deque(), collections.deque()
        bar = tqdm(total=len(samples), desc="segmenting", unit="image", disable=None, delay=1)
        with torch.inference_mode(), bar, ThreadPoolExecutor(self.threads) as pool:
            while True:
                for sample in itertools.islice(source, ahead - len(reading)):
                    reading.append((sample, pool.submit(self._read, sample)))
                count = 1 if self.config.tile else self.config.batch_size  # of tiles, and results can be large
                batch = [reading.popleft() for _ in range(min(count, len(reading)))]
                if not batch:
                    break
                for result in self._predict([(sample, read.result()) for sample, read in batch]):
                    writing.append(pool.submit(self._finish, *result))
                while len(writing) > ahead:
                    rows.append(writing.popleft().result())
                    bar.update()
            rows += [future.result() for future in writing]
            bar.update(len(samples) - bar.n)
        return rows

    def _room_for(self, width: int, height: int):
        """Context in which an image may be held in memory."""
        return self.one_large if width * height > LARGE else contextlib.nullcontext()

    def _tiled(self, sample: Sample) -> bool:
        return self.config.tile and max(sample.displayed_size()) > self.preprocessing.image_size

    def _read(self, sample: Sample):
        """What `read_input` gives, nothing of an image to be tiled; an error is the result: it must not stop others."""
        try:
            if self._tiled(sample):
                return None
            with self._room_for(*sample.displayed_size()):
                return read_input(sample, self.preprocessing)
        except DatasetError as error:
            return error

    def _predict(self, batch: list) -> Iterator[tuple[Sample, Segmented | DatasetError]]:
        """Segments what was read, images of one shape together. Errors are passed on."""
        found: dict[int, Segmented | DatasetError] = {}
        alike: dict[tuple, list[int]] = {}
        for i, (sample, read) in enumerate(batch):
            if read is None:
                found[i] = self._predict_tiles(sample)
            elif isinstance(read, DatasetError):
                found[i] = read
            else:
                alike.setdefault(read[0].shape, []).append(i)
        for members in alike.values():
            images = torch.stack([batch[i][1][0] for i in members])
            for i, decision in zip(members, self.predictor.predict(images).final.cpu()):
                found[i] = Segmented(decision, batch[i][1][1])
        for i, (sample, _) in enumerate(batch):
            yield sample, found[i]

    def _predict_tiles(self, sample: Sample) -> Segmented | DatasetError:
        """Segments an image that is larger than a tile, stripe by stripe."""
        task, threshold, size = self.predictor.task, self.config.logit_threshold, self.preprocessing.image_size
        wanted = "probabilities" in self.kinds
        try:
            with self._room_for(*sample.displayed_size()):
                image, trimap = sample.read()
                labels = np.empty(image.shape[:2], np.uint8)
                probabilities = np.empty(image.shape[:2], np.uint16) if wanted else None
                for top, stripe in tiled_decisions(self.predictor, image, size, self.config.batch_size):
                    rows = slice(top, top + stripe.shape[1])
                    labels[rows] = task.label_map(stripe, threshold)[0].numpy()
                    if wanted:
                        probabilities[rows] = sixteen_bits(stripe[0])
        except DatasetError as error:
            return error
        truth = None if trimap is None else torch.from_numpy(trimap.copy())[None]
        return Segmented(None, truth, labels, probabilities)

    def _finish(self, sample: Sample, found: Segmented | DatasetError) -> dict:
        """Writes the files of an image; returns its row."""
        row = {"picture": str(sample.image_path), "width": "", "height": "", "pet_share": "", "dice": "", "error": ""}
        if isinstance(found, DatasetError):
            return {**row, "error": str(found)}
        task = self.predictor.task
        if found.labels is None:
            labels = task.label_map(found.decision, self.config.logit_threshold)
        else:
            labels = torch.from_numpy(found.labels)[None]
        row["pet_share"] = round((labels != BACKGROUND).float().mean().item(), 6)
        if found.truth is not None:
            row["dice"] = round(image_dice(label_counts(task, labels[None], found.truth[None])).item(), 6)
        try:
            row["width"], row["height"] = width, height = sample.displayed_size()
            with self._room_for(width, height):
                for kind, result in self._draw(sample, found, width, height, row["dice"]):
                    path = self.folder / f"{sample.name}_{RESULTS[kind]}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_png(result, path)
                    del result  # before the next one is made
        except DatasetError as error:  # the network sees only part of a file's detail, and all of it can be broken
            row["error"] = str(error)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            row["error"] = f"the results of {sample.image_path} can't be written ({error.strerror or error})"
        return row

    def _draw(self, sample: Sample, found: Segmented, width: int, height: int, dice):
        """Makes the wanted results, one after the other, at the image's own size."""
        kinds, task, labels, probabilities = set(self.kinds), self.predictor.task, found.labels, found.probabilities
        if not kinds:
            return
        if "probabilities" in kinds:
            if probabilities is None:
                probabilities = sixteen_bits(resize_logits(found.decision[:1], height, width)[0])
            yield "probabilities", Image.fromarray(probabilities)
        if labels is None:
            labels = label_map_at_size(task, found.decision, self.config.logit_threshold, height, width)
        mask = (labels != BACKGROUND).view(np.uint8)
        if "trimaps" in kinds:
            yield "trimaps", Image.fromarray(labels)
        if "masks" in kinds:
            yield "masks", palette_image(labels, task) if task.classes else Image.fromarray(mask * 255)
        if not {"overlays", "cutouts", "panels"} & kinds:
            return
        image, trimap = sample.read()
        if "overlays" in kinds:
            yield "overlays", Image.fromarray(draw_outline(image, mask))
        if "cutouts" in kinds:
            tile = None if found.labels is None else self.preprocessing.image_size
            cutout = cut_out(shown(image), matting_trimap(labels, task, tile), self.config.matting)
            yield "cutouts", with_profile(cutout, sample.image_path)
        if "panels" in kinds:
            title = sample.image_path.name + ("" if dice == "" else f"   Dice {dice:.4f}")
            yield "panels", draw_panel(image, labels, None if trimap is None else task.visible(trimap), title, task)
