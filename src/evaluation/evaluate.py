"""The work of evaluate.py: opens networks and images, scores, and reports."""

import copy
import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from data.cache import open_cache
from data.check import print_resized_masks
from data.dataset import Dataset, ImageDataset
from data.inputs import refuse_overwriting
from data.parts import refuse_seen, samples_of_part
from data.view import View
from evaluation.calibration import BINS, calibration_error, collect_logits, fit_temperature, scale_head
from evaluation.config import EvalConfig, logit
from evaluation.ensemble import Opened, open_networks
from evaluation.label_errors import find_suspects, write_suspects
from evaluation.metrics import differences, mean_scores
from evaluation.predict import Predictor
from evaluation.report import Report
from evaluation.score import find_threshold, predictions_to_score, score_images
from models.checkpoint import save_checkpoint
from runtime.device import choose_precision, get_device
from runtime.distributed import DistributedContext, init_distributed
from runtime.errors import UsageError
from runtime.files import writable_folder


@dataclass
class Evaluation:
    """A network, the images as it wants them, and its scores.

    Args:
        config: the settings.
        network: what is scored.
        predictor: runs it.
        dataset: all images.
        part: those that are scored.
        threshold: probability above which a pixel is pet.
        rows: a row of scores for each image; see `score_images`.
        bins: sums of `confidence_bins`; zero of named classes.
        confusion: of named classes, or None.
        seconds: spent on scoring.
    """

    config: EvalConfig
    network: Opened
    predictor: Predictor
    dataset: Dataset
    part: ImageDataset
    threshold: float = 0.5
    rows: list[dict] = field(default_factory=list)
    bins: np.ndarray = field(default_factory=lambda: np.zeros((BINS, 3)))
    confusion: np.ndarray | None = None
    seconds: float = 0.0


def start(config: EvalConfig) -> None:
    """Scores on one process or several."""
    device = get_device(config.device)
    with init_distributed(device) as context:
        evaluate(config, device, context)


def open_part(config: EvalConfig, network: Opened, dataset: Dataset, mode: str) -> ImageDataset:
    """A part of a dataset as a network wants it. Raises UsageError: see `refuse_seen`."""
    resize = "square" if config.resize == "tile" else config.resize
    view = View.of(network.checkpoint, config.image_size, resize)
    samples = samples_of_part(dataset, network.checkpoint, mode)
    if mode != config.subset or not config.allow_seen:
        refuse_seen(network.seen, samples, network.path)
    cached = view.resize == "square" and config.resize != "tile"  # tiles are cut from the images themselves
    cache = open_cache(dataset.root, dataset.samples, view) if cached else None
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
    """Scores the checkpoints of a config, on one process or several, and reports."""
    dataset, paths = Dataset(config.data_path), config.model_path or []
    evaluation = open_evaluation(config, config.model_path, dataset, device)
    other = open_evaluation(config, [config.compare], dataset, device) if config.compare else None
    members = [open_evaluation(config, [path], dataset, device) for path in (paths if len(paths) > 1 else ())]
    for one in filter(None, (other, *members)):
        require_comparable(evaluation, one)
    ranked = parts_to_rank(evaluation, members) if config.label_errors else []
    log_dir = prepare_outputs(config, evaluation)
    network, part = evaluation.network, evaluation.part
    name, start_words = network.checkpoint.model_name.upper(), network.checkpoint.encoder_start
    print(f"Evaluating {name} ({network.files}; encoder {start_words}) on {device}, {evaluation.predictor.precision}")
    words = "labelled" if config.subset == "all" else config.subset
    print(f"{len(part)} {words} images of {dataset.root}, split {network.checkpoint.data.split}", flush=True)
    print_resized_masks(part.samples)
    if config.threshold == "auto":
        valid = open_part(config, network, dataset, "valid")
        threshold, dice = find_threshold(evaluation.predictor, valid, config)
        print(f"Threshold {threshold:.2f}: Dice {dice:.4f} on the {len(valid)} validation images")
    else:
        threshold = config.threshold
    for one in filter(None, (evaluation, other, *members)):
        score(one, threshold, context)
    if not context.first:
        return
    for member in members:
        value, low, high = differences(evaluation.rows, member.rows, member.predictor.task.classes[1:])["dice"]
        alone = mean_scores(member.rows, member.predictor.task.classes[1:])["dice"]
        print(f"{member.network.path} alone: Dice {alone:.4f}; ", end="")
        print(f"together {value:+.4f} (95 % interval {low:+.4f} to {high:+.4f})", flush=True)
    if ranked:
        suspects = [suspect for one, images in ranked for suspect in find_suspects(one.predictor, images, config)]
        file = write_suspects(suspects, part.view, Path(config.report) / "label_errors")
        print(f"Ranked {len(suspects)} images by likely label error, worst first: {file}")
    if config.calibrate:
        path = calibrate(evaluation)
        print(f"Wrote {path}. Masks at threshold 0.5 do not change.")
    Report(evaluation, other).write(log_dir)


def score(evaluation: Evaluation, threshold: float, context: DistributedContext) -> None:
    """Scores the images at a threshold, on all processes of `context`."""
    start, evaluation.threshold = time.perf_counter(), threshold
    rows, sums = score_images(evaluation.predictor, evaluation.part, evaluation.config, logit(threshold), context)
    evaluation.rows, evaluation.seconds = rows, time.perf_counter() - start
    if evaluation.predictor.task.classes:
        evaluation.confusion = sums
    else:
        evaluation.bins = sums


def calibrate(evaluation: Evaluation) -> Path:
    """Fits a temperature to the validation images, scores again with it, and writes a checkpoint that has it."""
    config, network, predictor = evaluation.config, evaluation.network, evaluation.predictor
    valid = open_part(config, network, evaluation.dataset, "valid")
    temperature = fit_temperature(*collect_logits(predictions_to_score(predictor, valid, config, "calibrating"), valid))
    model = copy.deepcopy(predictor.model)
    scale_head(model, 1 / temperature)
    _, bins = score_images(dataclasses.replace(predictor, model=model), evaluation.part, config)
    print(f"Temperature {temperature:.3f}, fitted to {len(valid)} validation images: calibration error ", end="")
    print(f"{calibration_error(evaluation.bins):.4f} before, {calibration_error(bins):.4f} after")
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


def require_comparable(evaluation: Evaluation, other: Evaluation) -> None:
    """Raises UsageError where two checkpoints can't be scored on the same images at the same size."""
    config, path, other_path = evaluation.config, evaluation.network.path, other.network.path
    if [s.name for s in other.part.samples] != [s.name for s in evaluation.part.samples]:
        raise UsageError(f"{other_path} has another {config.subset} part than {path}: nothing to compare")
    if evaluation.predictor.task.classes != other.predictor.task.classes:
        raise UsageError(f"{other_path} and {path} have learned other classes: nothing to compare")
    first, second = evaluation.part.view.size, other.part.view.size
    if first != second and not config.original_size:
        raise UsageError(f"one sees images at {first} pixels, one at {second}; compare them with --original_size")


def prepare_outputs(config: EvalConfig, evaluation: Evaluation) -> Path:
    """Makes all folders before the work begins; returns that of the log."""
    log_dir = writable_folder(config.log_dir)
    if config.json:
        writable_folder(Path(config.json).parent)
        if Path(config.json).is_dir():
            raise UsageError(f"{config.json} is a folder; name a file")
    if config.calibrate:
        if evaluation.predictor.task.class_scores:
            raise UsageError("--calibrate is for networks of pet and background alone")
        writable_folder(evaluation.network.path.parent)
    if config.report:
        refuse_overwriting(writable_folder(config.report), evaluation.part.samples)
    return log_dir
