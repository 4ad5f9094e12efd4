"""Scores a checkpoint.

python src/evaluate.py --model_name unet --model_path saved_models/unet_best.pth --data_path dataset
"""

import dataclasses
from pathlib import Path

from runtime import cli

with cli.explain_import_errors():
    import torchvision  # noqa: F401

import torch

from data.check import print_resized_masks
from evaluation.config import EvalConfig
from evaluation.evaluator import CheckpointEvaluator, mean_dice
from evaluation.label_errors import find_suspects, write_suspects
from evaluation.metrics import differences
from evaluation.report import Report
from evaluation.segmenter import refuse_overwriting
from runtime.device import get_device
from runtime.distributed import SINGLE_PROCESS, DistributedContext, init_distributed
from runtime.errors import UsageError
from runtime.files import writable_folder


def build_parser() -> cli.Parser:
    """Flags of evaluate.py."""
    return cli.Parser("evaluate.py", "Score a checkpoint on a part of the dataset.", EvalConfig)


def main(argv=None) -> None:
    """Reads the flags and scores."""
    overrides = build_parser().parse_overrides(argv)
    config = EvalConfig(**overrides)
    if config.find_threshold and "threshold" in overrides:
        raise UsageError("--find_threshold looks for what --threshold says; leave one of them out")
    if config.tile:
        config = dataclasses.replace(config, original_size=True)
    if config.tile and config.tta:
        raise UsageError("--tile can't be combined with --tta here; leave one of them out")
    if config.calibrate and len(config.model_path or ()) > 1:
        raise UsageError("--calibrate changes one checkpoint; name one")
    if config.calibrate and config.subset != "test":
        raise UsageError("--calibrate fits to the validation images, so score others: --subset test")
    if config.find_threshold and config.subset != "test":
        raise UsageError("--find_threshold chooses on the validation images, so score others: --subset test")
    device = get_device(config.device)
    with init_distributed(device) as context:
        evaluate(config, device, context)


def evaluate(config: EvalConfig, device: torch.device, context: DistributedContext) -> None:
    """Scores the checkpoints of a config, on one process or several, and reports."""
    evaluator, other = CheckpointEvaluator(config, device, context), None
    if config.compare:
        other_config = dataclasses.replace(config, model_path=[config.compare], model_name=None)
        other = CheckpointEvaluator(other_config, device, context)
        require_comparable(evaluator, other)
    log_dir = prepare_outputs(config, evaluator)
    content, dataset = evaluator.content, evaluator.dataset
    encoder, precision = content["encoder_start"], evaluator.predictor.precision
    files = " ".join(config.model_path or [str(evaluator.path)])
    print(f"Evaluating {evaluator.name.upper()} ({files}; encoder {encoder}) on {device}, {precision}")
    part = "labelled" if config.subset == "all" else config.subset
    print(f"{len(dataset)} {part} images of {dataset.root}, split {content['data']['split']}", flush=True)
    print_resized_masks(dataset.samples)
    for one in filter(None, (evaluator, other)):
        one.score()
    members = config.model_path or []
    for path in members if len(members) > 1 else ():
        report_gain(evaluator, CheckpointEvaluator(dataclasses.replace(config, model_path=[path]), device, context))
    if config.label_errors and context.first:
        look_for_label_errors(evaluator, device)
    if context.first:
        if config.calibrate:
            print(f"The calibrated network is {evaluator.calibrate()}; its masks at threshold 0.5 are the same.")
        Report(evaluator, other).write(log_dir)


def report_gain(ensemble: CheckpointEvaluator, member: CheckpointEvaluator) -> None:
    """Scores a member of an ensemble, and prints how much better all together are."""
    member.config = dataclasses.replace(member.config, threshold=ensemble.config.threshold, find_threshold=False)
    member.score()
    if ensemble.context.first:
        value, low, high = differences(ensemble.rows, member.rows)["dice"]
        print(f"{member.path} alone: Dice {mean_dice(member.rows):.4f}; ", end="")
        print(f"together {value:+.4f} (95 % interval {low:+.4f} to {high:+.4f})", flush=True)


def look_for_label_errors(evaluator: CheckpointEvaluator, device: torch.device) -> None:
    """Ranks images by how wrong their masks look: the scored ones, or of several checkpoints each one's validation."""
    config, suspects = evaluator.config, []
    paths = config.model_path or []
    if len(paths) > 1:
        for path in paths:
            one = CheckpointEvaluator(dataclasses.replace(config, model_path=[path]), device, SINGLE_PROCESS)
            suspects += find_suspects(one, "valid")
    else:
        suspects = find_suspects(evaluator, config.subset)
    file = write_suspects(suspects, config.label_errors, Path(config.output_path) / "label_errors", config)
    print(f"{len(suspects)} images by how wrong their masks look, the most suspect first: {file}")


def require_comparable(evaluator: CheckpointEvaluator, other: CheckpointEvaluator) -> None:
    """Raises UsageError where two checkpoints can't be scored on the same images at the same size."""
    config = evaluator.config
    if [s.name for s in other.dataset.samples] != [s.name for s in evaluator.dataset.samples]:
        raise UsageError(f"{other.path} has another {config.subset} part than {evaluator.path}: nothing to compare")
    first, second = (one.dataset.preprocessing for one in (evaluator, other))
    if first != second and not config.original_size:
        raise UsageError(
            f"one sees images at {first.image_size} pixels ({first.resize}), one at {second.image_size} "
            f"({second.resize}); compare them with --original_size"
        )


def prepare_outputs(config: EvalConfig, evaluator: CheckpointEvaluator) -> Path:
    """Makes all folders before the work begins; returns that of the log."""
    log_dir = writable_folder(config.log_dir)
    if config.csv and config.json and Path(config.csv).resolve() == Path(config.json).resolve():
        raise UsageError("--csv and --json name one file; name two")
    if config.worst or config.label_errors:
        refuse_overwriting(writable_folder(config.output_path), evaluator.dataset.samples)
    for file in filter(None, (config.json, config.csv, config.reliability)):
        writable_folder(Path(file).parent)
        if Path(file).is_dir():
            raise UsageError(f"{file} is a folder; name a file")
    return log_dir


if __name__ == "__main__":
    cli.run(main)
