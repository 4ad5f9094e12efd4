"""The work of inference.py: segments images of any size, writes the results, and scores them where masks are known."""

import collections
import importlib.util
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from data.dataset import ImageDataset
from data.image_io import rgb_profile
from data.inputs import find_samples, refuse_overwriting
from data.layout import Sample
from data.pixels import shown
from data.view import View
from evaluation.config import POLYGONS, RESULTS, InferConfig, logit
from evaluation.matting import cut_out, matting_trimap
from evaluation.metrics import image_dice, label_counts
from evaluation.network import Network, open_network
from evaluation.polygons import proposals, write_coco, write_labelme, write_yolo, write_yolo_names
from evaluation.predict import Predicted, Predictor, label_map_at_size, predict_images, resize_logits, room_for
from evaluation.ranking import uncertainty, write_uncertain
from models.task import BACKGROUND, PET
from runtime.errors import DatasetError, RunError, UsageError, plural, raise_faults
from runtime.files import DISK_FULL, append_rows, read_rows, writable_folder
from visual.gallery import write_gallery
from visual.panels import draw_outline, draw_panel, mask_image, write_png


class Outcome(NamedTuple):
    """What came of an image."""

    sample: Sample
    row: dict  # of the log; `error` says what is wrong with the image, its mask or its results
    written: bool = False  # all results are
    polygons: tuple | None = None  # its part of a COCO file: file name, size and regions
    uncertainty: float = 0.0  # see ranking.py


class Segmenter:
    """Segments images and writes results of these kinds into a folder, in threads while the network computes."""

    def __init__(self, predictor: Predictor, view: View, config: InferConfig, kinds: list[str], folder: Path | None):
        self.predictor, self.view, self.config, self.folder = predictor, view, config, folder
        self.kinds = set(kinds if folder is not None else ())
        self.names = predictor.task.classes[1:] or ("pet",)

    def run(self, samples: list[Sample]) -> list[Outcome]:
        """Segments these images."""
        config, results, writing = self.config, [], collections.deque()
        dataset = ImageDataset(samples, self.view)
        with ThreadPoolExecutor(config.num_workers or None) as pool:
            for predicted in predict_images(self.predictor, dataset, config, "segmenting"):
                writing.append(pool.submit(self.finish, predicted))
                if len(writing) > 2 * max(8, config.batch_size):
                    results.append(writing.popleft().result())
            return results + [future.result() for future in writing]

    @torch.inference_mode()
    def finish(self, predicted: Predicted) -> Outcome:
        """Writes the files of an image."""
        sample, decision, labels, error = predicted
        row = dict.fromkeys(("picture", "width", "height", "pet_share", "dice", "error"), "")
        row |= {"picture": str(sample.image_path), "error": error}
        if decision is None:
            return Outcome(sample, row)
        task, decision = self.predictor.task, decision.cpu()
        label_map = task.label_map(decision, logit(self.config.threshold))
        row["pet_share"] = round((label_map != BACKGROUND).float().mean().item(), 6)
        if labels is not None:
            row["dice"] = round(image_dice(label_counts(task, label_map, labels)).item(), 6)
        try:
            row["width"], row["height"] = size = sample.displayed_size()
            with room_for(*size):
                polygons = self.write(sample, decision[0], *size, row["dice"])
            return Outcome(sample, row, True, polygons, uncertainty(decision[0]) if "uncertain" in self.kinds else 0.0)
        except DatasetError as problem:  # the network sees only part of a file's detail, and all of it can be broken
            row["error"] = str(problem)
        except OSError as problem:
            if problem.errno in DISK_FULL:
                raise
            row["error"] = f"the results of {sample.image_path} can't be written ({problem.strerror or problem})"
        return Outcome(sample, row)

    def write(self, sample: Sample, decision: torch.Tensor, width: int, height: int, dice) -> tuple | None:
        """Writes the wanted results at the image's own size, from decision logits (D, h, w) on the CPU.

        Returns `Outcome.polygons`.
        """
        kinds, task, file, size = self.kinds, self.predictor.task, sample.image_path, (width, height)

        def save(kind: str, result: Image.Image, icc_profile: bytes | None = None) -> None:
            path = self.folder / f"{sample.name}_{RESULTS[kind]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(result, path, icc_profile)

        if "probabilities" in kinds:
            levels = resize_logits(decision[:1], height, width)[0].sigmoid_().mul_(65535).round_()
            save("probabilities", Image.fromarray(levels.numpy().astype(np.uint16)))
        if not kinds - {"probabilities", "uncertain"}:
            return None
        labels = label_map_at_size(task, decision, logit(self.config.threshold), height, width)
        if "trimaps" in kinds:
            save("trimaps", Image.fromarray(np.array([2, 1, 3], np.uint8)[labels]))
        if "masks" in kinds:
            save("masks", mask_image(labels, task))
        if {"overlays", "cutouts", "panels"} & kinds:
            image, truth = self.view.read_at(sample)
        if "overlays" in kinds:
            save("overlays", Image.fromarray(draw_outline(image, labels)))
        if "cutouts" in kinds:
            tile = self.view.size if decision.shape[1:] == (height, width) else None
            cutout = cut_out(shown(image), matting_trimap(labels, task, tile), self.config.matting)
            save("cutouts", Image.fromarray(cutout), rgb_profile(file))
        if "panels" in kinds:
            title = file.name + ("" if dice == "" else f"   Dice {dice:.4f}")
            save("panels", draw_panel(image, labels, truth, title, task))
        if not kinds & set(POLYGONS):
            return None
        # Without named classes the border is pet.
        named = labels if task.classes else np.minimum(labels, PET)
        traced = proposals(named, dict(enumerate(self.names, start=1)), decision.shape[1:])
        if "labelme" in kinds:
            write_labelme(self.folder / f"{sample.name}.json", file, size, traced)
        if "yolo" in kinds:
            write_yolo(self.folder / f"labels/{sample.name}.txt", size, traced, self.names)
        return Path(sample.name).with_name(file.name).as_posix(), size, traced

    def write_overviews(self, written: list[Outcome], title: str) -> None:
        """Writes the files that are of all images together."""
        folder, kinds = self.folder, self.kinds
        if "coco" in kinds:
            write_coco(folder / "annotations.json", [outcome.polygons for outcome in written], self.names)
        if "yolo" in kinds:
            write_yolo_names(folder / "data.yaml", self.names)
        if "panels" in kinds and len(written) > 1:
            panels = [(f"{outcome.sample.name}_panel.png", outcome.row["dice"]) for outcome in written]
            write_gallery(folder, panels, title)
            order = "the worst first" if any(dice != "" for _, dice in panels) else "by name"
            print(f"All panels, {order}: {folder / 'index.html'}")
        if "uncertain" in kinds:
            scored = [(outcome.sample, outcome.uncertainty) for outcome in written]
            write_uncertain(folder / "uncertain.csv", scored)


def infer(config: InferConfig) -> None:
    """Segments images, and says what came of it. For errors see `report`."""
    network = open_network(config, config.model_path, config.model_name)
    predictor, checkpoint = network.predictor, network.checkpoint
    if "trimaps" in config.save and not predictor.task.class_scores:
        raise UsageError(f"{network.path} was not trained with --classes trimap; leave trimaps out of --save")
    if config.matting == "pymatting" and not importlib.util.find_spec("pymatting"):
        raise UsageError("--matting pymatting needs PyMatting: pip install -r requirements-matting.txt")
    paths, output = config.photographs or [config.data_path], Path(config.output_path or "inference_results")
    samples, words = find_samples(paths, checkpoint, config.subset, output)
    scored = len(paths) == 1 and Path(paths[0]).is_dir() and any(sample.mask_path for sample in samples)
    folder = output if config.output_path or config.save_results or not scored else None
    kinds = config.save or ["masks", "panels"] + ["cutouts"] * (not scored)
    if folder is not None:
        refuse_overwriting(writable_folder(folder), samples)
    name = checkpoint.model_name
    log = writable_folder(config.log_dir) / f"{name}_inference_log.csv"
    read_rows(log)  # raises before the work is done where rows can't be added
    print(f"Segmenting {plural(len(samples), 'image')} ({words}) with {name.upper()} ({network.files}) ", end="")
    print(f"on {predictor.precision.device}, {predictor.precision}", flush=True)
    segmenter = Segmenter(predictor, network.view, config, kinds, folder)
    began = time.perf_counter()
    outcomes = segmenter.run(samples)
    seconds, stamp = time.perf_counter() - began, time.strftime("%Y-%m-%d %H:%M:%S")
    head = {"time": stamp, "checkpoint": network.files, "run_id": network.run_id}
    append_rows(log, [{**head, **outcome.row} for outcome in outcomes])
    rate = len(outcomes) / seconds
    print(f"{plural(len(outcomes), 'image')} in {seconds:.1f} s ({rate:.1f} a second), listed in {log}")
    written = [outcome for outcome in outcomes if outcome.written]
    if folder is None:
        print("No results are written; --save_results or --output_path DIR does that")
    elif written:
        print(f"Results ({', '.join(kinds)}) are in {folder}")
        segmenter.write_overviews(written, f"{name.upper()}, {network.path.name}")
    nothing = sum(outcome.row["pet_share"] == 0 for outcome in written)
    if nothing:
        print(f"Nothing was found in {nothing:,} of them")
    report(outcomes, network)


def report(outcomes: list[Outcome], network: Network) -> None:
    """Prints the mean Dice, and warns where it says less than it seems.

    Raises RunError: some of the images could not be segmented, or not be scored; DatasetError: none was segmented.
    """
    scores = {outcome.sample.name: outcome.row["dice"] for outcome in outcomes if outcome.row["dice"] != ""}
    if scores:
        dice = np.mean(list(scores.values()))
        print(f"{network.checkpoint.model_name.upper()} mean Dice: {dice:.4f} ", end="")
        print(f"over {plural(len(scores), 'image')} with ground truth", flush=True)
    if seen := scores.keys() & network.seen:
        print(f"WARNING: it was trained on {len(seen)} of them, so this Dice is inflated by leakage.", file=sys.stderr)
    errors = [outcome.row["error"] for outcome in outcomes if outcome.row["error"]]
    if not any(outcome.written for outcome in outcomes):
        raise_faults(errors, "images")
    if errors:
        count = plural(len(outcomes), "image")
        raise RunError(f"{len(errors)} of {count}, or their masks, can't be used: {' | '.join(errors)}")
