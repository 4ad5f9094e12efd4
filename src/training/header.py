"""What a training run prints before its first step."""

import shlex
from pathlib import Path

import torch

from data.layout import describe_layout
from runtime.distributed import SINGLE_PROCESS, DistributedContext
from runtime.options import options_of
from training.config import WEIGHT_DECAY, TrainConfig
from training.loop import Trainer


def print_header(trainer: Trainer, parts: tuple, resumed_from: Path | None) -> None:
    """Device, model, data and plan: what a reader of the output wants to know later."""
    state, config, progress = trainer.state, trainer.state.config, trainer.state.progress
    net, size = state.net, config.image_size
    precision, context, model = net.precision, net.context, net.model
    processes = f"{context.size} processes of " if context.size > 1 else ""
    compiled = ", compiled" if config.compile else ""
    print(f"Device  {precision.device} ({processes}{torch.get_num_threads()} threads), ", end="")
    print(f"{precision}{compiled}, torch {torch.__version__}")
    count = sum(p.numel() for p in model.parameters())
    attention = "" if config.attention == "none" else f", attention {config.attention}"
    decoder = "" if config.decoder == "plain" else f", decoder {config.decoder}"
    task = f", {model.task.title}" if model.task.title else ""
    print(f"Model   {config.model_name}{decoder}{attention}{task}, {count:,} parameters, encoder {state.encoder_start}")
    sizes = ", ".join(f"{len(part):,} {part.mode}" for part in parts)
    cached = "not cached" if parts[0].decodes else "cached"
    fold = f", fold {config.fold.replace('/', ' of ')}" if config.fold else ""
    groups = f", {len(set(state.data.groups.values()))} groups" if state.data.groups else ""
    print(f"Data    {parts[0].root} ({describe_layout(parts[0].root)}), ", end="")
    print(f"split {config.split}{fold}{groups}: {sizes}; ", end="")
    print(f"{size}x{size}, {cached}, augment {describe_augmentation(config, len(parts[0]))}")
    optimizer = "Adam" if config.optimizer == "adam" else f"AdamW (decay {WEIGHT_DECAY:g})"
    average = f", average {config.ema:g}" if config.ema else ""
    loss = "" if config.denoises else f"{config.loss}, "
    print(f"Plan    recipe {config.recipe}: {loss}{optimizer} {config.learning_rate:g}, ", end="")
    print(f"{config.scheduler}{average}, batch {config.batch_size}, {trainer.sampler.steps} steps an epoch, ", end="")
    taught = f", teacher {config.teacher}" if config.teacher else ""
    patience = f", patience {config.patience}" if config.patience else ""
    print(f"seed {config.seed}{taught}{patience}")
    plan = f"{progress.planned_epochs} epochs"
    if resumed_from is not None:
        plan = (
            f"resumes from {resumed_from} in epoch {progress.epoch + 1} of {progress.planned_epochs} after step "
            f"{progress.step}; best {trainer.best_in_words()}"
        )
    print(f"Run     {progress.run_id}: {plan}", flush=True)


def describe_augmentation(config: TrainConfig, count: int) -> str:
    """Augmentation in words, of so many training images."""
    words = [config.augment]
    if config.variants:
        words = [f"bulk x{config.variants} ({count * (1 + config.variants):,} samples)"]
    if config.augments:
        words += [config.augment_strength, *config.changes]
    if config.sizes != "fixed":
        words.append(f"sizes {config.sizes}")
    return ", ".join(words)


def resume_command(config: TrainConfig, context: DistributedContext = SINGLE_PROCESS) -> str:
    """The command that resumes this run."""
    words = [
        f"{context.launcher} src/{'pretrain' if config.denoises else 'train'}.py",
        f"--model_name {config.model_name}",
    ]
    for name in ("data_path", "save_dir", "log_dir", "device", "num_workers"):
        if getattr(config, name) != options_of(TrainConfig)[name][1]:
            words.append(f"--{name} {shlex.quote(str(getattr(config, name)))}")
    words += [] if config.cache else ["--no-cache"]
    words += ["--tensorboard"] if config.tensorboard else []
    return " ".join([*words, "--resume"])
