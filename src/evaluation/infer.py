"""The work of inference.py: segments images, writes results and reports."""

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import torch

from data.datasets import preprocessing_of
from data.inputs import find_samples, refuse_overwriting
from evaluation.config import InferConfig
from evaluation.ensemble import open_checkpoints
from evaluation.predictor import Predictor
from evaluation.segmenter import Segmenter
from models.checkpoint import seen_names
from runtime.device import choose_precision, get_device
from runtime.distributed import DistributedContext, init_distributed
from runtime.errors import RunError, UsageError, raise_faults
from runtime.files import append_rows, read_rows, writable_folder
from visual.gallery import write_gallery


def start(config: InferConfig) -> None:
    """Segments on one process or several."""
    device = get_device(config.device)
    with init_distributed(device, config.peer_minutes) as context:
        infer(config, device, context)


def infer(config: InferConfig, device: torch.device, context: DistributedContext) -> None:
    """Segments the images of a config, on one process or several, and reports."""
    model, content, path = open_checkpoints(config.model_path, config.model_name, config.save_dir)
    config.refuse_thresholds(model.task)
    if "trimaps" in config.save and not model.task.class_scores:
        raise UsageError(f"{path} was not trained with --classes trimap, so it has no trimaps to save")
    if config.matting == "pymatting" and not importlib.util.find_spec("pymatting"):
        raise UsageError("--matting pymatting needs PyMatting: pip install -r requirements-matting.txt")
    paths, output = config.photographs or [config.data_path], Path(config.output_path or "inference_results")
    samples, what = find_samples(paths, content, config.subset, config.recursive, output)
    scored = len(paths) == 1 and Path(paths[0]).is_dir() and any(sample.mask_path for sample in samples)
    folder = output if config.output_path or config.save_results or not scored else None
    kinds = config.save or ["masks", "panels"] + ["cutouts"] * (not scored)
    if folder is not None:
        refuse_overwriting(writable_folder(folder), samples)
    name, preprocessing = content["model"]["name"], preprocessing_of(content, config.image_size, config.resize)
    log = writable_folder(config.log_dir) / f"{name}_inference_log.csv"
    read_rows(log)  # raises before the work is done where rows can't be added
    precision = choose_precision(config.amp, device, preprocessing.image_size)
    files = " ".join(config.model_path or [str(path)])
    print(f"Segmenting {len(samples)} {what} with {name.upper()} ({files}) on {device}, {precision}", flush=True)
    predictor = Predictor(precision.to_device(model), precision, config.tta)
    segmenter = Segmenter(predictor, preprocessing, config, kinds, folder)
    start = time.perf_counter()
    rows = context.all_gather(segmenter.run(context.shard(samples)))
    if not context.first:
        return
    seconds = time.perf_counter() - start
    stamp = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "checkpoint": files,
        "run_id": content["progress"]["run_id"],
    }
    append_rows(log, [{**stamp, **row} for row in rows])
    print(f"{len(rows)} images in {seconds:.1f} s ({len(rows) / seconds:.1f} a second), listed in {log}")
    if folder is None:
        print("No results are written; --save_results or --output_path DIR does that")
    else:
        print(f"Results ({', '.join(kinds)}) are in {folder}")
        if "panels" in kinds and len(rows) > 1:
            panels = [(f"{s.name}_panel.png", row["dice"]) for s, row in zip(samples, rows) if not row["error"]]
            write_gallery(folder, panels, f"{name.upper()}, {path.name}")
            print(f"All panels, the worst first: {folder / 'index.html'}")
    report(rows, content, name)


def report(rows: list[dict], content: dict, name: str) -> None:
    """Prints the mean Dice, and warns where it says less than it seems.

    Raises:
        RunError: some of the images could not be segmented.
        DatasetError: none of them could.
    """
    scored = [row["dice"] for row in rows if row["dice"] != ""]
    seen = {Path(row["picture"]).stem for row in rows if row["dice"] != ""} & seen_names(content)
    if scored:
        print(
            f"{name.upper()} mean Dice: {np.mean(scored):.4f} over {len(scored)} images with ground truth", flush=True
        )
    if seen:
        print(f"WARNING: {len(seen)} of them were trained on, so this Dice is inflated by leakage.", file=sys.stderr)
    errors = [row["error"] for row in rows if row["error"]]
    if errors and len(errors) == len(rows):
        raise_faults(errors, "images")
    if errors:
        raise RunError(f"{len(errors)} of {len(rows)} images could not be segmented: {' | '.join(errors)}")
