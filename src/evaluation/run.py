"""The work of evaluate.py: scores checkpoints and reports."""

import dataclasses
from pathlib import Path

import torch

from data.check import print_resized_masks
from data.inputs import refuse_overwriting
from evaluation.config import EvalConfig
from evaluation.evaluator import CheckpointEvaluator
from evaluation.label_errors import find_suspects, write_suspects
from evaluation.metrics import differences, mean_scores
from evaluation.report import Report
from runtime.device import get_device
from runtime.distributed import DistributedContext, init_distributed
from runtime.errors import UsageError
from runtime.files import writable_folder


def start(config: EvalConfig) -> None:
    """Scores on one process or several."""
    device = get_device(config.device)
    with init_distributed(device, config.peer_minutes) as context:
        evaluate(config, device, context)


def evaluate(config: EvalConfig, device: torch.device, context: DistributedContext) -> None:
    """Scores the checkpoints of a config, on one process or several, and reports."""
    evaluator, other = CheckpointEvaluator(config, device, context), None
    if config.compare:
        other_config = dataclasses.replace(config, model_path=[config.compare], model_name=None)
        other = CheckpointEvaluator(other_config, device, context)
        require_comparable(evaluator, other)
    paths = config.model_path or []
    members = [
        CheckpointEvaluator(dataclasses.replace(config, model_path=[path]), device, context)
        for path in (paths if len(paths) > 1 else ())
    ]
    for member in members:
        require_comparable(evaluator, member)
    ranked = parts_to_rank(evaluator, members) if config.label_errors else []
    log_dir = prepare_outputs(config, evaluator)
    content, dataset = evaluator.content, evaluator.dataset
    encoder, precision = content["encoder_start"], evaluator.predictor.precision
    print(f"Evaluating {evaluator.name.upper()} ({evaluator.files}; encoder {encoder}) on {device}, {precision}")
    part = "labelled" if config.subset == "all" else config.subset
    print(f"{len(dataset)} {part} images of {dataset.root}, split {content['data']['split']}", flush=True)
    print_resized_masks(dataset.samples)
    for one in filter(None, (evaluator, other)):
        one.score()
    for member in members:
        report_gain(evaluator, member)
    if config.label_errors and context.first:
        look_for_label_errors(config, ranked)
    if context.first:
        if config.calibrate:
            path = evaluator.calibrate()
            print(f"Wrote {path}. Masks at threshold 0.5 do not change.")
        Report(evaluator, other).write(log_dir)


def report_gain(ensemble: CheckpointEvaluator, member: CheckpointEvaluator) -> None:
    """Scores a member of an ensemble, and prints how much better all together are."""
    member.config = dataclasses.replace(member.config, threshold=ensemble.config.threshold, find_threshold=False)
    member.score()
    if ensemble.context.first:
        value, low, high = differences(ensemble.rows, member.rows)["dice"]
        print(f"{member.path} alone: Dice {mean_scores(member.rows)['dice']:.4f}; ", end="")
        print(f"together {value:+.4f} (95 % interval {low:+.4f} to {high:+.4f})", flush=True)


def parts_to_rank(evaluator: CheckpointEvaluator, members: list[CheckpointEvaluator]) -> list[tuple]:
    """Who ranks which images: of several checkpoints each its validation images, and all together the test images.

    Raises:
        UsageError: an image is in two of these parts.
    """
    ranked = [(member, "valid") for member in members]
    if not members or evaluator.config.subset == "test":
        ranked.append((evaluator, evaluator.config.subset))
    names = [sample.name for one, subset in ranked for sample in one.part(subset).samples]
    if len(set(names)) < len(names):
        raise UsageError("--label_errors: the images of the checkpoints overlap; name the checkpoints of folds")
    return ranked


def look_for_label_errors(config: EvalConfig, ranked: list[tuple]) -> None:
    """Ranks images by how wrong their masks look; see `parts_to_rank`."""
    suspects = [suspect for one, subset in ranked for suspect in find_suspects(one, subset, config.label_errors)]
    file = write_suspects(suspects, config.label_errors, Path(config.output_path) / "label_errors")
    print(f"Ranked {len(suspects)} images by likely label error, worst first: {file}")


def require_comparable(evaluator: CheckpointEvaluator, other: CheckpointEvaluator) -> None:
    """Raises UsageError where two checkpoints can't be scored on the same images at the same size."""
    config = evaluator.config
    if [s.name for s in other.dataset.samples] != [s.name for s in evaluator.dataset.samples]:
        raise UsageError(f"{other.path} has another {config.subset} part than {evaluator.path}: nothing to compare")
    if evaluator.predictor.task.classes != other.predictor.task.classes:
        raise UsageError(f"{other.path} and {evaluator.path} have learned other classes: nothing to compare")
    first, second = (one.dataset.preprocessing for one in (evaluator, other))
    if first != second and not config.original_size:
        raise UsageError(
            f"one sees images at {first.image_size} pixels ({first.resize}), one at {second.image_size} "
            f"({second.resize}); compare them with --original_size"
        )


def prepare_outputs(config: EvalConfig, evaluator: CheckpointEvaluator) -> Path:
    """Makes all folders before the work begins; returns that of the log."""
    log_dir = writable_folder(config.log_dir)
    files = [Path(file) for file in (config.json, config.csv, config.reliability, config.confusion) if file]
    if len({file.resolve() for file in files}) < len(files):
        raise UsageError("--json, --csv, --reliability and --confusion must name different files")
    if config.confusion and not evaluator.predictor.task.classes:
        raise UsageError("--confusion is for networks of named classes; leave it out")
    if config.calibrate:
        if evaluator.predictor.task.class_scores:
            raise UsageError("--calibrate is for networks of pet and background alone")
        writable_folder(evaluator.path.parent)
    if config.worst or config.label_errors:
        refuse_overwriting(writable_folder(config.output_path), evaluator.dataset.samples)
    for file in files:
        writable_folder(file.parent)
        if file.is_dir():
            raise UsageError(f"{file} is a folder; name a file")
    return log_dir
