"""The work of evaluate.py: opens networks and images, scores, and reports."""

import copy
import dataclasses
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from data.cache import open_cache
from data.check import print_resized_masks
from data.dataset import Dataset, ImageDataset, refuse_seen
from data.inputs import refuse_overwriting
from data.view import View
from evaluation.calibration import calibration_error, fit_temperature, scale_head
from evaluation.config import EvalConfig, logit
from evaluation.ensemble import Opened, open_networks
from evaluation.metrics import intervals, mean_scores
from evaluation.predict import Predictor
from evaluation.ranking import find_suspects, write_suspects
from evaluation.report import write_report
from evaluation.score import find_threshold, predictions_to_score, score_images
from models.checkpoint import save_checkpoint
from models.task import BACKGROUND
from runtime.device import choose_precision, get_device
from runtime.distributed import DistributedContext, init_distributed
from runtime.errors import UsageError
from runtime.files import writable_folder

FITTED = 4_000_000  # pixels, at most, to which a temperature is fitted


@dataclass
class Evaluation:
    """A network, the images as it wants them, and its scores.

    Args:
        part: the images of the dataset that are scored.
        threshold: probability above which a pixel is pet.
        rows: a row of scores for each image; see `score_images`.
        sums: over all images, see there.
        seconds: spent on scoring.
    """

    config: EvalConfig
    network: Opened
    predictor: Predictor
    dataset: Dataset
    part: ImageDataset
    threshold: float = 0.5
    rows: list[dict] = field(default_factory=list)
    sums: np.ndarray | None = None
    seconds: float = 0.0

    def score(self, threshold: float, context: DistributedContext) -> None:
        """Scores the images at a threshold, on all processes of `context`."""
        start, self.threshold = time.perf_counter(), threshold
        self.rows, self.sums = score_images(self.predictor, self.part, self.config, logit(threshold), context)
        self.seconds = time.perf_counter() - start


def start(config: EvalConfig) -> None:
    """Scores on one process or several."""
    device = get_device(config.device)
    with init_distributed(device) as context:
        evaluate(config, device, context)


def open_part(config: EvalConfig, network: Opened, dataset: Dataset, mode: str) -> ImageDataset:
    """A part of a dataset as a network wants it. Raises UsageError: see `refuse_seen`."""
    tile = config.resize == "tile"
    view = View.of(network.checkpoint, config.image_size, "square" if tile else config.resize)
    samples = dataset.part_of(network.checkpoint, mode)
    if mode != config.subset or not config.allow_seen:
        refuse_seen(network.seen, samples, network.path)
    # Tiles are cut from the images themselves.
    cache = open_cache(dataset.root, dataset.samples, view) if view.resize == "square" and not tile else None
    return ImageDataset(samples, view, cache, dataset.root, mode)


def open_evaluation(config: EvalConfig, paths: list[str] | None, dataset: Dataset, device: torch.device) -> Evaluation:
    """The network of these checkpoints and the images. Raises UsageError: see `open_networks` and `refuse_seen`."""
    network = open_networks(paths, config.model_name if paths is config.model_path else None, config.save_dir)
    config.refuse_for_classes(network.model.task)
    part = open_part(config, network, dataset, config.subset)
    precision = choose_precision(config.amp, device, part.view.size)
    predictor = Predictor(precision.to_device(network.model), precision, config.tta)
    return Evaluation(config, network, predictor, dataset, part)


def evaluate(config: EvalConfig, device: torch.device, context: DistributedContext) -> None:
    """Scores the checkpoints of a config, on one process or several, and reports.

    Raises:
        UsageError: flags contradict each other, the checkpoints or the dataset.
    """
    dataset, paths = Dataset(config.data_path), config.model_path or []
    evaluation = open_evaluation(config, config.model_path, dataset, device)
    other = open_evaluation(config, [config.compare], dataset, device) if config.compare else None
    members = [open_evaluation(config, [path], dataset, device) for path in (paths if len(paths) > 1 else ())]
    compared = [*([other] if other else []), *members]
    for second in compared:
        require_comparable(evaluation, second)
    ranked = parts_to_rank(evaluation, members) if config.label_errors else []
    network, predictor, part = evaluation.network, evaluation.predictor, evaluation.part
    log_dir = writable_folder(config.log_dir)
    if config.json:
        writable_folder(Path(config.json).parent)
        if Path(config.json).is_dir():
            raise UsageError(f"{config.json} is a folder; name a file")
    if config.calibrate:
        if predictor.task.class_scores:
            raise UsageError("--calibrate is for networks of pet and background alone")
        writable_folder(network.path.parent)
    if config.report:
        refuse_overwriting(writable_folder(config.report), part.samples)
    name, encoder = network.checkpoint.model_name.upper(), network.checkpoint.encoder_start
    print(f"Evaluating {name} ({network.files}; encoder {encoder}) on {device}, {predictor.precision}")
    words = "labelled" if config.subset == "all" else config.subset
    split = "" if dataset.parts else f", split {network.checkpoint.data.split}"
    print(f"{len(part)} {words} images of {dataset.root}{split}", flush=True)
    print_resized_masks(part.samples)
    threshold = config.threshold
    if threshold == "auto":
        valid = open_part(config, network, dataset, "valid")
        threshold, dice = find_threshold(predictor, valid, config)
        print(f"Threshold {threshold:.2f}: Dice {dice:.4f} on the {len(valid)} validation images")
    for scored in (evaluation, *compared):
        scored.score(threshold, context)
    if not context.first:
        return
    for member in members:
        classes = predictor.task.classes[1:]
        value, low, high = intervals(evaluation.rows, classes, minus=member.rows)["dice"]
        print(f"{member.network.path} alone: Dice {mean_scores(member.rows, classes)['dice']:.4f}; ", end="")
        print(f"together {value:+.4f} (95 % interval {low:+.4f} to {high:+.4f})", flush=True)
    if ranked:
        suspects = [suspect for by, images in ranked for suspect in find_suspects(by.predictor, images, config)]
        file = write_suspects(suspects, config, Path(config.report) / "label_errors")
        print(f"Ranked {len(suspects)} images by likely label error, worst first: {file}")
    if config.calibrate:
        print(f"Wrote {calibrate(evaluation)}. Masks at threshold 0.5 do not change.")
    write_report(evaluation, other, log_dir)


@torch.inference_mode()
def calibrate(evaluation: Evaluation) -> Path:
    """Fits a temperature to the validation images, scores again with it, and writes a checkpoint that has it."""
    config, network, predictor = evaluation.config, evaluation.network, evaluation.predictor
    valid, logits, truths = open_part(config, network, evaluation.dataset, "valid"), [], []
    step = max(1, math.ceil(len(valid) * valid.view.size**2 / FITTED))
    for predicted in predictions_to_score(predictor, valid, config, "calibrating"):
        logits.append(predicted.plain[0, 0].flatten()[::step].cpu())
        truths.append((predicted.labels != BACKGROUND).flatten()[::step].float().cpu())
    temperature = fit_temperature(torch.cat(logits), torch.cat(truths))
    model = copy.deepcopy(predictor.model)
    scale_head(model, 1 / temperature)
    _, bins = score_images(dataclasses.replace(predictor, model=model), evaluation.part, config)
    print(f"Temperature {temperature:.3f}, fitted to {len(valid)} validation images: calibration error ", end="")
    print(f"{calibration_error(evaluation.sums):.4f} before, {calibration_error(bins):.4f} after")
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    path = network.path.with_name(f"{network.path.stem}_calibrated.pth")
    save_checkpoint(dataclasses.replace(network.checkpoint, weights=weights).without_training(), [path])
    return path


def parts_to_rank(evaluation: Evaluation, members: list[Evaluation]) -> list[tuple[Evaluation, ImageDataset]]:
    """Who ranks which images: of several checkpoints each its validation images, and all together the test images.

    Raises:
        UsageError: an image is in two of these parts.
    """
    config, dataset = evaluation.config, evaluation.dataset
    ranked = [(member, open_part(config, member.network, dataset, "valid")) for member in members]
    if not members or config.subset == "test":
        ranked.append((evaluation, evaluation.part))
    names = [sample.name for _, images in ranked for sample in images.samples]
    if len(set(names)) < len(names):
        raise UsageError("--label_errors: the images of the checkpoints overlap; name the checkpoints of folds")
    return ranked


def require_comparable(first: Evaluation, second: Evaluation) -> None:
    """Raises UsageError where two checkpoints can't be scored on the same images at the same size."""
    config, path, other_path = first.config, first.network.path, second.network.path
    if [s.name for s in second.part.samples] != [s.name for s in first.part.samples]:
        raise UsageError(f"{other_path} has another {config.subset} part than {path}: nothing to compare")
    if first.predictor.task.classes != second.predictor.task.classes:
        raise UsageError(f"{other_path} and {path} have learned other classes: nothing to compare")
    size, other_size = first.part.view.size, second.part.view.size
    if size != other_size and not config.original_size:
        raise UsageError(f"one sees images at {size} pixels, one at {other_size}; compare them with --original_size")
