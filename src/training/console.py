"""What a training run prints: a header, a line for each epoch, and the command that resumes it."""

import shlex
from pathlib import Path

import torch

from data.layout import describe_layout, find_parts
from runtime.distributed import SINGLE_PROCESS, DistributedContext
from runtime.errors import plural
from runtime.options import options_of
from training.config import TrainConfig
from training.data import Data
from training.state import RunState

SHOWN = {"batch_size", "image_size", "learning_rate", "optimizer", "scheduler", "seed"}  # even if by default


def print_header(state: RunState, data: Data, resumed_from: Path | None) -> None:
    """Device, model, data and plan: what a reader of the output wants to know later."""
    config, progress, net, root = state.config, state.progress, state.net, data.train.root
    threads = f"{torch.get_num_threads()} threads"
    processes = f"{net.context.size} processes of {threads}" if net.context.size > 1 else threads
    print(f"Device  {net.precision.device} ({processes}), {net.precision}, torch {torch.__version__}")
    count = sum(parameter.numel() for parameter in net.model.parameters())
    print(f"Model   {config.model_name}, {count:,} parameters, encoder {state.encoder_start}")
    split = "" if find_parts(root) else f", split {config.split}"
    sizes = ", ".join(f"{len(part):,} {part.mode}" for part in data.parts)
    cached = "not cached" if data.train.decodes else "cached"
    print(f"Data    {root} ({describe_layout(root)}){split}: {sizes}; {cached}")
    settings = [
        f"{name} {getattr(config, name)}"
        for name, (flag, default) in options_of(TrainConfig).items()
        if flag.resume and (name in SHOWN or getattr(config, name) != default) and name not in ("model_name", "split")
    ]
    print(f"Plan    {', '.join(settings)}")
    plan = f"{plural(progress.planned_epochs, 'epoch')} of {plural(state.terms[0].batches.steps, 'step')}"
    if resumed_from is not None:
        plan = (
            f"resumes from {resumed_from} in epoch {progress.epoch + 1} of {progress.planned_epochs} after step "
            f"{progress.step}; best {best_in_words(state)}"
        )
    print(f"Run     {progress.run_id}: {plan}", flush=True)


def print_epoch(state: RunState, row: dict) -> None:
    """Prints a row of the log."""

    def figures(part: str) -> str:
        loss, dice = row[f"{part}_loss"], row[f"{part}_dice"]
        return f"loss {loss:.4f}" + ("" if dice is None else f" dice {dice:.4f}")

    best = "  best" if state.progress.best_epoch == row["epoch"] else ""
    print(
        f"epoch {row['epoch']:>3}/{state.progress.planned_epochs}  train {figures('train')}  valid {figures('val')}  "
        f"lr {row['learning_rate']:.1e}  {row['seconds']:.1f} s, {row['images_per_second']:.1f} images/s{best}",
        flush=True,
    )


def best_in_words(state: RunState) -> str:
    """The best score so far and its epoch, as `valid Dice 0.9062 in epoch 6`."""
    progress, score = state.progress, state.terms[0].score
    if progress.best_score is None:
        return f"{score} not known yet"
    return f"{score} {abs(progress.best_score):.4f} in epoch {progress.best_epoch}"


def resume_command(config: TrainConfig, context: DistributedContext = SINGLE_PROCESS) -> str:
    """The command that resumes this run: with the flags that its checkpoint does not keep."""
    script = "pretrain" if config.denoises else "train"
    words = [context.launcher, f"src/{script}.py", "--model_name", config.model_name]
    for name, (flag, default) in options_of(TrainConfig).items():
        value = getattr(config, name)
        if flag.resume is None and name not in ("epochs", "resume") and value != default:
            switch = f"--{name}" if value else f"--no-{name}"
            words += [switch] if isinstance(default, bool) else [f"--{name}", shlex.quote(str(value))]
    return " ".join([*words, "--resume"])
