"""Segments images of any size and writes the results: threads read and write while the network computes."""

import collections
import contextlib
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.index import Sample
from data.inputs import read_input
from evaluation.config import RESULTS, InferConfig
from evaluation.metrics import dice_score
from evaluation.predictor import Predictor, label_map_at_size, resize_logits
from models.task import BACKGROUND
from runtime.errors import DatasetError, UsageError
from runtime.files import DISK_FULL
from visual.panels import draw_outline, draw_panel, write_png

LARGE = 12_000_000  # pixels; of images above that, one is worked on at a time


def refuse_overwriting(folder: Path, samples: list[Sample]) -> None:
    """Raises UsageError where results would lie among the images or masks that they are made from."""
    sources = {file.parent.resolve() for s in samples for file in (s.image_path, s.mask_path) if file is not None}
    results = {(folder / s.name).parent.resolve() for s in samples} | {folder.resolve()}
    if sources & results:
        raise UsageError(f"--output_path {folder} is where the images or masks are; name another folder")


# --------------------------------------------------------------------------------------------------------- segmenting


class Segmenter:
    """Reads, segments and writes images.

    Args:
        predictor: its model is in evaluation mode.
        size: side of the network's input.
        config: batch_size, num_workers (threads here), threshold and save.
        folder: where results go, those that `config.save` names; None writes none.
    """

    def __init__(self, predictor: Predictor, size: int, config: InferConfig, folder: Path | None):
        self.predictor, self.size, self.config, self.folder = predictor, size, config, folder
        self.kinds = config.save if folder is not None else ()
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
                batch = [reading.popleft() for _ in range(min(self.config.batch_size, len(reading)))]
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

    def _read(self, sample: Sample):
        """What `read_input` gives; an error is the result, because it must not stop the rest."""
        try:
            with self._room_for(*sample.displayed_size()):
                return read_input(sample, self.size)
        except DatasetError as error:
            return error

    def _predict(self, batch: list) -> list[tuple]:
        """(sample, what was read) to (sample, decision logits (D, S, S), mask); errors are passed on."""
        good = [read[0] for _, read in batch if not isinstance(read, DatasetError)]
        if not good:
            return [(sample, read, None) for sample, read in batch]
        decisions = iter(self.predictor.predict(torch.stack(good)).final.cpu())
        return [
            (sample, read, None) if isinstance(read, DatasetError) else (sample, next(decisions), read[1])
            for sample, read in batch
        ]

    def _finish(self, sample: Sample, decision, mask: torch.Tensor | None) -> dict:
        """Writes the files of an image; returns its row."""
        row = {"picture": str(sample.image_path), "width": "", "height": "", "pet_share": "", "dice": "", "error": ""}
        if isinstance(decision, DatasetError):
            return {**row, "error": str(decision)}
        foreground = decision[:1] > self.config.logit_threshold
        row["pet_share"] = round(foreground.float().mean().item(), 6)
        if mask is not None:
            row["dice"] = round(dice_score(foreground[None], mask[None]).item(), 6)
        try:
            row["width"], row["height"] = width, height = sample.displayed_size()
            with self._room_for(width, height):
                for kind, result in self._draw(sample, decision, width, height, row["dice"]):
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

    def _draw(self, sample: Sample, decision: torch.Tensor, width: int, height: int, dice):
        """Makes the wanted results, one after the other, at the image's own size."""
        if not self.kinds:
            return
        if "probabilities" in self.kinds:
            full = resize_logits(decision[:1], height, width)[0]
            full = full.sigmoid_().mul_(65535).round_().numpy().astype(np.uint16)
            yield "probabilities", Image.fromarray(full)
            del full  # of a large image that is half a gigabyte
        task = self.predictor.task
        labels = label_map_at_size(task, decision, self.config.logit_threshold, height, width)
        mask = (labels != BACKGROUND).view(np.uint8)
        if "trimaps" in self.kinds:
            yield "trimaps", Image.fromarray(labels)
        if "masks" in self.kinds:
            yield "masks", Image.fromarray(mask * 255)
        if not {"overlays", "cutouts", "panels"} & set(self.kinds):
            return
        image, trimap = sample.read()
        if "overlays" in self.kinds:
            yield "overlays", Image.fromarray(draw_outline(image, mask))
        if "cutouts" in self.kinds:
            yield "cutouts", Image.fromarray(np.dstack([image, mask * 255]))
        if "panels" in self.kinds:
            title = sample.image_path.name + ("" if dice == "" else f"   Dice {dice:.4f}")
            yield "panels", draw_panel(image, labels, None if trimap is None else task.visible(trimap), title)
