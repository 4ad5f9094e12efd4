"""The work of inference.py: segments images of any size, writes the results, and scores them where masks are known."""

import collections
import importlib.util
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.dataset import ImageDataset
from data.inputs import find_samples, refuse_overwriting
from data.pixels import shown
from data.view import View
from evaluation.config import RESULTS, InferConfig, logit
from evaluation.ensemble import Opened, open_networks
from evaluation.matting import cut_out, matting_trimap
from evaluation.metrics import image_dice, label_counts
from evaluation.predict import Predicted, Predictor, label_map_at_size, predict_images, resize_logits, room_for
from models.task import BACKGROUND
from runtime.device import choose_precision, get_device
from runtime.distributed import DistributedContext, init_distributed
from runtime.errors import DatasetError, RunError, UsageError, raise_faults
from runtime.files import DISK_FULL, append_rows, read_rows, writable_folder
from visual.gallery import write_gallery
from visual.panels import draw_outline, draw_panel, mask_image, sixteen_bits, trimap_image, with_profile, write_png


class Segmenter:
    """Segments images and writes the results, in threads while the network computes.

    Args:
        predictor: its model is in evaluation mode.
        view: how the network sees images.
        config: batch_size, num_workers, threshold, resize and matting.
        kinds: which of RESULTS are written.
        folder: where they go; None writes none.
    """

    def __init__(self, predictor: Predictor, view: View, config: InferConfig, kinds: list[str], folder: Path | None):
        self.predictor, self.view, self.config, self.folder = predictor, view, config, folder
        self.kinds = kinds if folder is not None else []

    def run(self, samples: list) -> list[dict]:
        """Segments these images. Returns a row of the log for each; `error` says what is wrong with one."""
        config, rows, writing = self.config, [], collections.deque()
        dataset = ImageDataset(samples, self.view)
        tile = config.resize == "tile"
        predictions = predict_images(self.predictor, dataset, config.batch_size, config.num_workers, tile)
        bar = tqdm(predictions, total=len(samples), desc="segmenting", unit="image", disable=None, delay=1)
        with ThreadPoolExecutor(config.num_workers or None) as pool:
            for predicted in bar:
                final = None if predicted.final is None else predicted.final[0].cpu()
                writing.append(pool.submit(self.finish, predicted._replace(plain=None, final=final)))
                if len(writing) > 2 * max(8, config.batch_size):
                    rows.append(writing.popleft().result())
            return rows + [future.result() for future in writing]

    @torch.inference_mode()
    def finish(self, predicted: Predicted) -> dict:
        """Writes the files of an image, whose decision logits are (D, h, w) on the CPU; returns its row."""
        sample, _, decision, labels, error = predicted
        row = {"picture": str(sample.image_path), "width": "", "height": "", "pet_share": "", "dice": ""}
        row["error"] = error
        if decision is None:
            return row
        task = self.predictor.task
        label_map = task.label_map(decision, logit(self.config.threshold))
        row["pet_share"] = round((label_map != BACKGROUND).float().mean().item(), 6)
        if labels is not None:
            row["dice"] = round(image_dice(label_counts(task, label_map[None], labels)).item(), 6)
        try:
            row["width"], row["height"] = width, height = sample.displayed_size()
            with room_for(width, height):
                for kind, result in self.draw(sample, decision, width, height, row["dice"]):
                    path = self.folder / f"{sample.name}_{RESULTS[kind]}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_png(result, path)
                    del result  # before the next one is made
        except DatasetError as problem:  # the network sees only part of a file's detail, and all of it can be broken
            row["error"] = str(problem)
        except OSError as problem:
            if problem.errno in DISK_FULL:
                raise
            row["error"] = f"the results of {sample.image_path} can't be written ({problem.strerror or problem})"
        return row

    def draw(self, sample, decision: torch.Tensor, width: int, height: int, dice) -> Iterator[tuple[str, Image.Image]]:
        """Makes the wanted results, one after the other, at the image's own size."""
        kinds, task = set(self.kinds), self.predictor.task
        if "probabilities" in kinds:
            yield "probabilities", Image.fromarray(sixteen_bits(resize_logits(decision[:1], height, width)[0]))
        if not kinds - {"probabilities"}:
            return
        labels = label_map_at_size(task, decision, logit(self.config.threshold), height, width)
        if "trimaps" in kinds:
            yield "trimaps", trimap_image(labels)
        if "masks" in kinds:
            yield "masks", mask_image(labels, task)
        if not {"overlays", "cutouts", "panels"} & kinds:
            return
        image, truth = self.view.read_at(sample)
        if "overlays" in kinds:
            yield "overlays", Image.fromarray(draw_outline(image, labels))
        if "cutouts" in kinds:
            tile = self.view.size if decision.shape[1:] == (height, width) else None
            cutout = cut_out(shown(image), matting_trimap(labels, task, tile), self.config.matting)
            yield "cutouts", with_profile(cutout, sample.image_path)
        if "panels" in kinds:
            title = sample.image_path.name + ("" if dice == "" else f"   Dice {dice:.4f}")
            yield "panels", draw_panel(image, labels, None if truth is None else task.visible(truth), title, task)


def start(config: InferConfig) -> None:
    """Segments on one process or several."""
    device = get_device(config.device)
    with init_distributed(device) as context:
        segment_all(config, device, context)


def segment_all(config: InferConfig, device: torch.device, context: DistributedContext) -> None:
    """Segments images on one process or several, and says what came of it.

    Raises:
        UsageError: flags contradict each other or the checkpoint, or there are no images.
        RunError, DatasetError: see `report`.
    """
    network = open_networks(config.model_path, config.model_name, config.save_dir)
    model, checkpoint, path = network.model, network.checkpoint, network.path
    config.refuse_for_classes(model.task)
    if "trimaps" in config.save and not model.task.class_scores:
        raise UsageError(f"{path} was not trained with --classes trimap, so it has no trimaps to save")
    if config.matting == "pymatting" and not importlib.util.find_spec("pymatting"):
        raise UsageError("--matting pymatting needs PyMatting: pip install -r requirements-matting.txt")
    paths, output = config.photographs or [config.data_path], Path(config.output_path or "inference_results")
    samples, words = find_samples(paths, checkpoint, config.subset, config.recursive, output)
    scored = len(paths) == 1 and Path(paths[0]).is_dir() and any(sample.mask_path for sample in samples)
    folder = output if config.output_path or config.save_results or not scored else None
    kinds = config.save or ["masks", "panels"] + ["cutouts"] * (not scored)
    if folder is not None:
        refuse_overwriting(writable_folder(folder), samples)
    name = checkpoint.model_name
    view = View.of(checkpoint, config.image_size, "square" if config.resize == "tile" else config.resize)
    log = writable_folder(config.log_dir) / f"{name}_inference_log.csv"
    read_rows(log)  # raises before the work is done where rows can't be added
    precision = choose_precision(config.amp, device, view.size)
    print(
        f"Segmenting {len(samples)} {words} with {name.upper()} ({network.files}) on {device}, {precision}", flush=True
    )
    segmenter = Segmenter(Predictor(precision.to_device(model), precision, config.tta), view, config, kinds, folder)
    began = time.perf_counter()
    rows = context.all_gather(segmenter.run(context.shard(samples)))
    if not context.first:
        return
    seconds, stamp = time.perf_counter() - began, time.strftime("%Y-%m-%d %H:%M:%S")
    head = {"time": stamp, "checkpoint": network.files, "run_id": network.run_id}
    append_rows(log, [{**head, **row} for row in rows])
    print(f"{len(rows)} images in {seconds:.1f} s ({len(rows) / seconds:.1f} a second), listed in {log}")
    if folder is None:
        print("No results are written; --save_results or --output_path DIR does that")
    else:
        print(f"Results ({', '.join(kinds)}) are in {folder}")
        if "panels" in kinds and len(rows) > 1:
            panels = [(f"{s.name}_panel.png", row["dice"]) for s, row in zip(samples, rows) if not row["error"]]
            write_gallery(folder, panels, f"{name.upper()}, {path.name}")
            print(f"All panels, the worst first: {folder / 'index.html'}")
    report(rows, network)


def report(rows: list[dict], network: Opened) -> None:
    """Prints the mean Dice, and warns where it says less than it seems.

    Raises:
        RunError: some of the images could not be segmented.
        DatasetError: none of them could.
    """
    scored = [row["dice"] for row in rows if row["dice"] != ""]
    seen = {Path(row["picture"]).stem for row in rows if row["dice"] != ""} & network.seen
    if scored:
        name, dice = network.checkpoint.model_name.upper(), np.mean(scored)
        print(f"{name} mean Dice: {dice:.4f} over {len(scored)} images with ground truth", flush=True)
    if seen:
        print(f"WARNING: {len(seen)} of them were trained on, so this Dice is inflated by leakage.", file=sys.stderr)
    errors = [row["error"] for row in rows if row["error"]]
    if errors and len(errors) == len(rows):
        raise_faults(errors, "images")
    if errors:
        raise RunError(f"{len(errors)} of {len(rows)} images could not be segmented: {' | '.join(errors)}")
