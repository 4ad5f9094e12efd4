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
from tqdm import tqdm

from data.dataset import ImageDataset
from data.inputs import find_samples, refuse_overwriting
from data.layout import Sample
from data.pixels import shown
from data.view import View
from evaluation.config import POLYGONS, RESULTS, InferConfig, logit
from evaluation.ensemble import Opened, open_networks
from evaluation.matting import cut_out, matting_trimap
from evaluation.metrics import image_dice, label_counts
from evaluation.polygon_files import write_coco, write_labelme, write_yolo, write_yolo_names
from evaluation.polygons import regions
from evaluation.predict import Predicted, Predictor, label_map_at_size, predict_images, resize_logits, room_for
from evaluation.ranking import uncertainty, write_uncertain
from models.task import BACKGROUND, PET
from runtime.device import choose_precision, get_device
from runtime.distributed import DistributedContext, init_distributed
from runtime.errors import DatasetError, RunError, UsageError, raise_faults
from runtime.files import DISK_FULL, append_rows, read_rows, writable_folder
from visual.gallery import write_gallery
from visual.panels import draw_outline, draw_panel, mask_image, sixteen_bits, trimap_image, with_profile, write_png


class Outcome(NamedTuple):
    """What came of an image.

    Args:
        row: of the log; `error` says what is wrong with the image, its mask or its results.
        written: whether all results are there.
        polygons: the image's part of a COCO file: file name, size and regions.
        uncertainty: see ranking.py.
    """

    row: dict
    written: bool = False
    polygons: tuple | None = None
    uncertainty: float = 0.0


class Segmenter:
    """Segments images and writes the results, in threads while the network computes.

    Args:
        predictor: its model is in evaluation mode.
        view: how the network sees images.
        config: batch_size, num_workers, threshold, resize and matting.
        kinds: which of RESULTS and POLYGONS are written.
        folder: where they go; None writes none.
    """

    def __init__(self, predictor: Predictor, view: View, config: InferConfig, kinds: list[str], folder: Path | None):
        self.predictor, self.view, self.config, self.folder = predictor, view, config, folder
        self.kinds = set(kinds if folder is not None else ())
        self.names = predictor.task.classes[1:] or ("pet",)

    def run(self, samples: list[Sample]) -> list[Outcome]:
        """Segments these images."""
        config, results, writing = self.config, [], collections.deque()
        dataset, tile = ImageDataset(samples, self.view), config.resize == "tile"
        predictions = predict_images(self.predictor, dataset, config.batch_size, config.num_workers, tile)
        bar = tqdm(predictions, total=len(samples), desc="segmenting", unit="image", disable=None, delay=1)
        with ThreadPoolExecutor(config.num_workers or None) as pool:
            for predicted in bar:
                final = None if predicted.final is None else predicted.final[0].cpu()
                writing.append(pool.submit(self.finish, predicted._replace(plain=None, final=final)))
                if len(writing) > 2 * max(8, config.batch_size):
                    results.append(writing.popleft().result())
            return results + [future.result() for future in writing]

    @torch.inference_mode()
    def finish(self, predicted: Predicted) -> Outcome:
        """Writes the files of an image, whose decision logits are (D, h, w) on the CPU."""
        sample, _, decision, labels, error = predicted
        row = {
            "picture": str(sample.image_path),
            "width": "",
            "height": "",
            "pet_share": "",
            "dice": "",
            "error": error,
        }
        if decision is None:
            return Outcome(row)
        task = self.predictor.task
        label_map = task.label_map(decision, logit(self.config.threshold))
        row["pet_share"] = round((label_map != BACKGROUND).float().mean().item(), 6)
        if labels is not None:
            row["dice"] = round(image_dice(label_counts(task, label_map[None], labels)).item(), 6)
        try:
            row["width"], row["height"] = size = sample.displayed_size()
            with room_for(*size):
                polygons = self.write(sample, decision, *size, row["dice"])
            return Outcome(row, True, polygons, uncertainty(decision) if self.config.rank_uncertain else 0.0)
        except DatasetError as problem:  # the network sees only part of a file's detail, and all of it can be broken
            row["error"] = str(problem)
        except OSError as problem:
            if problem.errno in DISK_FULL:
                raise
            row["error"] = f"the results of {sample.image_path} can't be written ({problem.strerror or problem})"
        return Outcome(row)

    def write(self, sample: Sample, decision: torch.Tensor, width: int, height: int, dice) -> tuple | None:
        """Writes the wanted results, one after the other, at the image's own size; returns `Outcome.polygons`."""
        kinds, task, file = self.kinds, self.predictor.task, sample.image_path

        def save(kind: str, result: Image.Image) -> None:
            path = self.folder / f"{sample.name}_{RESULTS[kind]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(result, path)

        if "probabilities" in kinds:
            save("probabilities", Image.fromarray(sixteen_bits(resize_logits(decision[:1], height, width)[0])))
        if not kinds - {"probabilities"}:
            return None
        labels = label_map_at_size(task, decision, logit(self.config.threshold), height, width)
        if "trimaps" in kinds:
            save("trimaps", trimap_image(labels))
        if "masks" in kinds:
            save("masks", mask_image(labels, task))
        if {"overlays", "cutouts", "panels"} & kinds:
            image, truth = self.view.read_at(sample)
        if "overlays" in kinds:
            save("overlays", Image.fromarray(draw_outline(image, labels)))
        if "cutouts" in kinds:
            tile = self.view.size if decision.shape[1:] == (height, width) else None
            cutout = cut_out(shown(image), matting_trimap(labels, task, tile), self.config.matting)
            save("cutouts", with_profile(cutout, file))
            del cutout
        if "panels" in kinds:
            title = file.name + ("" if dice == "" else f"   Dice {dice:.4f}")
            save("panels", draw_panel(image, labels, truth, title, task))
        if not kinds & set(POLYGONS):
            return None
        # Without named classes the border is pet.
        traced = regions(labels if task.classes else np.minimum(labels, PET), dict(enumerate(self.names, start=1)))
        if "labelme" in kinds:
            write_labelme(self.folder / f"{sample.name}.json", file, (width, height), traced)
        if "yolo" in kinds:
            write_yolo(self.folder / f"labels/{sample.name}.txt", (width, height), traced, self.names)
        return (Path(sample.name).with_name(file.name).as_posix(), (width, height), traced) if "coco" in kinds else None


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
    if config.rank_uncertain:
        writable_folder(Path(config.rank_uncertain).parent)
    read_rows(log)  # raises before the work is done where rows can't be added
    precision = choose_precision(config.amp, device, view.size)
    print(
        f"Segmenting {len(samples)} {words} with {name.upper()} ({network.files}) on {device}, {precision}", flush=True
    )
    segmenter = Segmenter(Predictor(precision.to_device(model), precision, config.tta), view, config, kinds, folder)
    began = time.perf_counter()
    outcomes = context.all_gather(segmenter.run(context.shard(samples)))
    if not context.first:
        return
    seconds, stamp = time.perf_counter() - began, time.strftime("%Y-%m-%d %H:%M:%S")
    head = {"time": stamp, "checkpoint": network.files, "run_id": network.run_id}
    append_rows(log, [{**head, **outcome.row} for outcome in outcomes])
    print(f"{len(outcomes)} images in {seconds:.1f} s ({len(outcomes) / seconds:.1f} a second), listed in {log}")
    written = [(sample.name, outcome) for sample, outcome in zip(samples, outcomes) if outcome.written]
    if folder is None:
        print("No results are written; --save_results or --output_path DIR does that")
    elif written:
        if "coco" in kinds:
            write_coco(folder / "annotations.json", [outcome.polygons for _, outcome in written], segmenter.names)
        if "yolo" in kinds:
            write_yolo_names(folder / "data.yaml", segmenter.names)
        print(f"Results ({', '.join(kinds)}) are in {folder}")
        if "panels" in kinds and len(outcomes) > 1:
            panels = [(f"{stem}_panel.png", outcome.row["dice"]) for stem, outcome in written]
            write_gallery(folder, panels, f"{name.upper()}, {path.name}")
            print(f"All panels, the worst first: {folder / 'index.html'}")
    if config.rank_uncertain and written:
        ranked = [(s, outcome.uncertainty) for s, outcome in zip(samples, outcomes) if outcome.written]
        count = write_uncertain(Path(config.rank_uncertain), *map(list, zip(*ranked)))
        print(f"{count} images without masks, the most uncertain first: {config.rank_uncertain}")
    report(samples, outcomes, network)


def report(samples: list[Sample], outcomes: list[Outcome], network: Opened) -> None:
    """Prints the mean Dice, and warns where it says less than it seems.

    Raises:
        RunError: some of the images could not be segmented, or not be scored.
        DatasetError: none of them could be segmented.
    """
    scored = [outcome.row for outcome in outcomes if outcome.row["dice"] != ""]
    seen = {s.name for s, outcome in zip(samples, outcomes) if outcome.row["dice"] != ""} & network.seen
    if scored:
        name, dice = network.checkpoint.model_name.upper(), np.mean([row["dice"] for row in scored])
        print(f"{name} mean Dice: {dice:.4f} over {len(scored)} images with ground truth", flush=True)
    if seen:
        print(f"WARNING: {len(seen)} of them were trained on, so this Dice is inflated by leakage.", file=sys.stderr)
    failed = [outcome.row["error"] for outcome in outcomes if not outcome.written]
    if len(failed) == len(outcomes):
        raise_faults(failed, "images")
    if failed:
        raise RunError(f"{len(failed)} of {len(outcomes)} images could not be segmented: {' | '.join(failed)}")
    unscored = [outcome.row["error"] for outcome in outcomes if outcome.row["error"]]
    if unscored:
        raise RunError(f"{len(unscored)} of {len(outcomes)} masks could not be used: {' | '.join(unscored)}")
