"""The work of evaluate.py: opens networks and images, scores, and reports."""

import time
from pathlib import Path

from data.check import print_resized_masks
from data.dataset import Dataset, ImageDataset, refuse_seen
from data.inputs import refuse_overwriting
from evaluation.config import EvalConfig, logit
from evaluation.network import Network, open_network
from evaluation.predict import Predictor
from evaluation.ranking import write_label_errors
from evaluation.report import Evaluation, write_report
from evaluation.score import find_threshold, score_images
from runtime.errors import UsageError, plural
from runtime.files import writable_folder


def evaluate(config: EvalConfig) -> None:
    """Scores the checkpoints of a config and reports. Raises UsageError: they, the flags and the data don't fit."""
    dataset = Dataset(config.data_path)
    network = open_network(config, config.model_path, config.model_name)
    if config.subset != "all":
        dataset = dataset.under(network.checkpoint.data)
    part = open_part(config, network, dataset, config.subset)
    compared = open_compared(config, dataset, network, part) if config.compare else None
    ranked = parts_to_rank(config, dataset, network, part) if config.label_errors else []
    writable_folder(config.log_dir)
    if config.json:
        writable_folder(Path(config.json).parent)
        if Path(config.json).is_dir():
            raise UsageError(f"{config.json} is a folder; name a file")
    if config.report:
        refuse_overwriting(writable_folder(config.report), part.samples)
    predictor, checkpoint = network.predictor, network.checkpoint
    print(f"Evaluating {checkpoint.model_name.upper()} ({network.files}; encoder {checkpoint.encoder_start}) ", end="")
    print(f"on {predictor.precision.device}, {predictor.precision}")
    words = "labelled" if config.subset == "all" else config.subset
    split = "" if dataset.parts else f", split {checkpoint.data.split}"
    print(f"{plural(len(part), f'{words} image')} of {dataset.root}{split}", flush=True)
    print_resized_masks(part.samples)
    threshold = config.threshold
    if threshold == "auto":
        valid = open_part(config, network, dataset, "valid", "name a number as --threshold")
        threshold, dice = find_threshold(predictor, valid, config)
        print(f"Threshold {threshold:.2f}: Dice {dice:.4f} on {plural(len(valid), 'validation image')}")
    began = time.perf_counter()
    rows, confusion = score_images(predictor, part, config, logit(threshold))
    seconds = time.perf_counter() - began
    other_rows = score_images(*compared, config, logit(threshold))[0] if compared else None
    if ranked:
        write_label_errors(ranked, config, Path(config.report) / "label_errors")
    write_report(Evaluation(config, dataset, network, part, threshold, rows, confusion, seconds, other_rows))


def open_part(config: EvalConfig, network: Network, dataset: Dataset, mode: str, advice: str = "") -> ImageDataset:
    """A part of a dataset as a network wants it, with advice where it must not have been trained on.

    Raises UsageError: see `refuse_seen`; --allow_seen is for the part that is scored alone.
    """
    samples, view = dataset.part_of(network.checkpoint, mode), network.view
    if advice or not config.allow_seen:
        refuse_seen(network.seen, samples, network.path, advice or "name another --subset, or say --allow_seen")
    cached = config.resize == "square"  # tiles are cut from the images themselves
    cache = dataset.open_cache(view) if cached else None
    return ImageDataset(samples, view, cache, dataset.root, mode)


def open_compared(
    config: EvalConfig, dataset: Dataset, network: Network, part: ImageDataset
) -> tuple[Predictor, ImageDataset]:
    """The network of --compare, and the same images. Raises UsageError: the scores can't be compared."""
    other = open_network(config, [config.compare])
    images = open_part(config, other, dataset, config.subset)
    if [s.name for s in images.samples] != [s.name for s in part.samples]:
        raise UsageError(f"{other.path} has other {config.subset} images than {network.path}; compare another file")
    if other.predictor.task.classes != network.predictor.task.classes:
        raise UsageError(f"{other.path} and {network.path} have learned other classes; compare another file")
    if images.view.size != part.view.size and not config.original_size:
        raise UsageError(
            f"one sees images at {part.view.size} pixels, one at {images.view.size}; compare them with --original_size"
        )
    return other.predictor, images


def parts_to_rank(
    config: EvalConfig, dataset: Dataset, network: Network, part: ImageDataset
) -> list[tuple[Predictor, ImageDataset]]:
    """Of several checkpoints each and its validation images, and all together and the test images.

    Raises UsageError: an image is in two of these parts.
    """
    ranked, paths = [], config.model_path or []
    for path in paths if len(paths) > 1 else ():
        member = open_network(config, [path])
        ranked.append((member.predictor, open_part(config, member, dataset, "valid", "leave it out of --model_path")))
    if not ranked or config.subset == "test":
        ranked.append((network.predictor, part))
    names = [sample.name for _, images in ranked for sample in images.samples]
    if len(set(names)) < len(names):
        raise UsageError("--label_errors: the images of the checkpoints overlap; name the checkpoints of folds")
    return ranked
