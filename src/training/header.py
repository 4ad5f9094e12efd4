"""What a training run prints before its first step, and how it is resumed."""

import shlex
from pathlib import Path

import torch

from data.layout import describe_layout, find_parts
from models.names import DENOISING
from runtime.distributed import SINGLE_PROCESS, DistributedContext
from runtime.errors import plural
from runtime.options import options_of
from training.config import WEIGHT_DECAY, TrainConfig
from training.loop import Trainer


def print_header(trainer: Trainer, parts: tuple, resumed_from: Path | None) -> None:
    """Device, model, data and plan: what a reader of the output wants to know later."""
    state, config, progress, net = trainer.state, trainer.state.config, trainer.state.progress, trainer.state.net
    size, root, groups, task = config.image_size, parts[0].root, state.data.groups, net.model.task.title
    processes = f"{net.context.size} processes of " if net.context.size > 1 else ""
    words = [f"{net.precision.device} ({processes}{torch.get_num_threads()} threads)", str(net.precision)]
    words += ["compiled"] * config.compile
    print("Device ", ", ".join([*words, f"torch {torch.__version__}"]))
    words = [config.model_name]
    words += [f"decoder {config.decoder}"] * (config.decoder != "plain")
    words += [f"attention {config.attention}"] * (config.attention != "none")
    words += [task] if task else []
    count = sum(parameter.numel() for parameter in net.model.parameters())
    print("Model  ", ", ".join([*words, f"{count:,} parameters", f"encoder {state.encoder_start}"]))
    words = [f"{root} ({describe_layout(root)})", *([] if find_parts(root) else [f"split {config.split}"])]
    words += [f"fold {config.fold.replace('/', ' of ')}"] if config.fold else []
    words += [f"{len(set(groups.values()))} groups"] if groups else []
    sizes = ", ".join(f"{len(part):,} {part.mode}" for part in parts)
    cached = "not cached" if parts[0].decodes else "cached"
    print(
        f"Data    {', '.join(words)}: {sizes}; {size}x{size}, {cached}, augment ",
        end="",
    )
    words = [config.augment]
    if config.variants:
        words = [f"bulk x{config.variants} ({len(parts[0]) * (1 + config.variants):,} samples)"]
    words += [config.augment_strength, *config.changes] if config.augments else []
    words += [f"sizes {config.sizes}"] * (config.sizes != "fixed")
    print(", ".join(words))
    optimizer = "Adam" if config.optimizer == "adam" else f"AdamW (decay {WEIGHT_DECAY:g})"
    words = [] if config.denoises else [config.loss]
    words += [f"{optimizer} {config.learning_rate:g}", config.scheduler]
    words += [f"average {config.ema:g}"] if config.ema else []
    words += [f"batch {config.batch_size}", f"{plural(trainer.sampler.steps, 'step')} an epoch", f"seed {config.seed}"]
    words += [f"teacher {config.teacher}"] if config.teacher else []
    words += [f"patience {config.patience}"] if config.patience else []
    print(f"Plan    recipe {DENOISING if config.denoises else config.recipe}:", ", ".join(words))
    plan = plural(progress.planned_epochs, "epoch")
    if resumed_from is not None:
        plan = (
            f"resumes from {resumed_from} in epoch {progress.epoch + 1} of {progress.planned_epochs} after step "
            f"{progress.step}; best {best_in_words(trainer)}"
        )
    print(f"Run     {progress.run_id}: {plan}", flush=True)


def best_in_words(trainer: Trainer) -> str:
    """The best score so far and its epoch, as `valid Dice 0.9062 in epoch 6`."""
    progress, score = trainer.state.progress, trainer.terms[0].score
    if progress.best_score is None:
        return f"{score} not known yet"
    return f"{score} {abs(progress.best_score):.4f} in epoch {progress.best_epoch}"


def resume_command(config: TrainConfig, context: DistributedContext = SINGLE_PROCESS) -> str:
    """The command that resumes this run."""
    script = "pretrain" if config.denoises else "train"
    words = [f"{context.launcher} src/{script}.py --model_name {config.model_name}"]
    for name in ("data_path", "save_dir", "log_dir", "device", "num_workers"):
        value = getattr(config, name)
        if value != options_of(TrainConfig)[name][1]:
            words.append(f"--{name} {shlex.quote(str(value))}")
    words += ["--no-cache"] * (not config.cache) + ["--tensorboard"] * config.tensorboard
    return " ".join([*words, "--resume"])
