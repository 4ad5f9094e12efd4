"""A training run from flags to the end: prepared, described, trained."""

import contextlib
import difflib
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from data.augment import BatchAugmentation, planned_sizes
from data.datasets import SimpleOxfordPetDataset
from data.download import download
from data.loader import make_loader, shard_batches
from models import ALIASES, DEFAULT_MODEL, MODELS, build_model
from models.checkpoint import load_checkpoint, seen_names, take_weights
from models.weights import find_encoder_weights, load_encoder_weights
from runtime.cli import StopRequest
from runtime.device import Precision, choose_precision, get_device
from runtime.distributed import SINGLE_PROCESS, DistributedContext, init_distributed
from runtime.errors import UsageError
from runtime.files import writable_folder
from runtime.seeding import seed_everything
from training.config import TrainConfig, check_flags, restore_config, with_network_of, with_size_plan
from training.header import print_header, resume_command
from training.losses import LOSSES
from training.optim import ModelEMA, build_optimizer, build_scheduler
from training.run_data import Parts, open_data, open_images, open_training_set, open_unlabeled, with_class_weights
from training.run_state import Progress, RunState, lock_run, resume_source, start_progress
from training.teacher import Teacher, load_teacher
from training.tensorboard import Board
from training.trainer import Trainer

LESS_MEMORY = "a smaller --batch_size, or the same with --accumulate 2 or --checkpoint_activations"


class Source(NamedTuple):
    """What a run begins with: a checkpoint to resume, one whose weights it takes, or the weights of an encoder."""

    path: Path | None = None
    content: dict | None = None
    written: int = 0  # when, in nanoseconds
    initial: dict | None = None
    encoder: Path | None = None
    encoder_start: str = ""


def start(overrides: dict) -> None:
    """Trains with these flags, on one process or several."""
    if "model_name" in overrides:
        overrides["model_name"] = known_model(overrides["model_name"])
    config = TrainConfig.from_flags(overrides)
    device = get_device(config.device)
    if config.verify_steps and device.type != "cpu" and not config.deterministic:
        raise UsageError(f"on {device} only --deterministic gives the same bits twice; --verify_steps needs it")
    with init_distributed(device, config.peer_minutes) as context:
        run(config, overrides, device, context)


def known_model(name: str) -> str:
    """The model's full name. For an unknown one warns on stderr and returns the default."""
    name = ALIASES.get(name, name)
    if name in MODELS:
        return name
    close = difflib.get_close_matches(name, [*MODELS, *ALIASES], n=1, cutoff=0)[0]
    print(f"WARNING: NO MODEL IS CALLED {name!r}. The closest is {close!r}.", end=" ", file=sys.stderr)
    print(f"TRAINING {DEFAULT_MODEL} INSTEAD.", file=sys.stderr)
    return DEFAULT_MODEL


def run(config: TrainConfig, overrides: dict, device: torch.device, context: DistributedContext) -> None:
    """Prepares a run, prints what it is about to do, and trains, on one process or several."""
    trainer, parts, resumed_from = prepare(config, overrides, device, context)
    state, progress = trainer.state, trainer.state.progress
    print_header(trainer, parts, resumed_from)
    patience = state.config.patience
    if progress.is_over(patience):
        source = "" if state.owns_files else f" {shlex.quote(str(resumed_from))}"
        if state.owns_files:
            state.write_log()  # it may have been killed before it did
        print(f"This run is complete. To train 5 more epochs: {trainer.resume_command}{source} --epochs 5")
        return
    if resumed_from is not None:
        if not state.owns_files:
            state.save()  # from now on this is where the run stands
        state.write_log()
    trainer.train()
    if progress.epoch < progress.planned_epochs:
        print(f"No better valid Dice in {patience} epochs: stopped after {progress.epoch}.")
    print(f"Best valid Dice {progress.best_dice:.4f} in epoch {progress.best_epoch}: {state.path('best')}")


def prepare(
    config: TrainConfig, overrides: dict, device: torch.device, context: DistributedContext = SINGLE_PROCESS
) -> tuple[Trainer, Parts, Path | None]:
    """Prepares a run: gives the trainer, the parts of the dataset, and the path of the resumed checkpoint or None."""
    source = context.broadcast(load_source(config, overrides) if context.first else None)
    resumed_from, content = source.path, source.content
    if content is not None:
        config = restore_config(overrides, content, resumed_from)
    else:
        config = TrainConfig.from_flags(overrides, pretrained=bool(source.initial or source.encoder))
        config = with_network_of(config, overrides, source.initial) if source.initial else config
        config = with_size_plan(config)
    check_flags(config, overrides, context.size)
    if config.download and context.first:
        download(writable_folder(config.data_path))
    context.barrier()  # the others wait for the download here
    *parts, data = (open_images if config.denoises else open_data)(config, content, resumed_from)
    lock = None
    if context.first:
        for folder in (config.save_dir, config.log_dir):
            writable_folder(folder)
        lock = lock_run(config)
        if content is not None and resumed_from.stat().st_mtime_ns != source.written:
            raise UsageError(f"another run has just written {resumed_from}; try again")

    unlabeled = open_unlabeled(config, content, resumed_from, data, parts)
    teacher = open_teacher(config, device, source, data, parts[1])
    train_set, valid_set = parts[:2]
    config = with_class_weights(config, train_set)
    train_set, sampler = open_training_set(config, train_set, unlabeled, context)
    progress = start_progress(config, "epochs" in overrides, sampler.steps, content, resumed_from)
    precision = choose_precision(config.amp, device, config.image_size)
    total_steps = progress.planned_epochs * sampler.steps
    state = build_state(config, precision, total_steps, source, data, progress, lock, context)
    if content is not None:
        state.restore(content, resumed_from)
    if config.freeze_encoder:
        state.model.freeze_encoder(progress.epoch < config.freeze_encoder)

    def wrap(model: torch.nn.Module) -> torch.nn.Module:
        wrapped = context.wrap_model(model)
        return torch.compile(wrapped) if config.compile else wrapped

    forward = wrap(state.model)
    if state.ema and content is None:
        state.ema.model.load_state_dict(state.model.state_dict())  # the others have just got the first one's
    valid_batches = shard_batches(valid_set, config.batch_size, context)
    stride = state.model.stride
    trainer = Trainer(
        state=state,
        wrap=wrap,
        forward=forward,
        sampler=sampler,
        train_loader=make_loader(train_set, device, sampler, config.num_workers),
        valid_loader=make_loader(valid_set, device, valid_batches, config.num_workers),
        augmentation=BatchAugmentation(
            config.mix, config.multi_scale, stride, config.seed, tuple(planned_sizes(config.progressive))
        ),
        loss_fn=partial(LOSSES[config.loss], weights=config.loss_weights(device)),
        precision=precision,
        context=context,
        stop=StopRequest(patient=context.size > 1),
        teacher=teacher,
        resume_command=resume_command(config, context),
    )
    if config.tensorboard is not None and context.first:
        folder = Path(config.tensorboard or Path(config.log_dir) / "tensorboard")
        trainer.on_epoch = Board(folder, state, valid_set, precision).write
    return trainer, tuple(parts), resumed_from


def build_state(
    config: TrainConfig,
    precision: Precision,
    total_steps: int,
    source: Source,
    data: dict,
    progress: Progress,
    lock: contextlib.ExitStack | None,
    context: DistributedContext,
) -> RunState:
    """Network, average, optimizer and scheduler, seeded and freshly initialised; see RunState for the arguments."""
    seed_everything(config.seed, config.deterministic)
    model = build_model(config.model_name, **config.network)
    if source.initial is not None:
        encoder_start = take_weights(model, source.initial, config.init)
    else:
        encoder_start = source.encoder_start
        if source.encoder is not None and context.first:  # the others get the first one's weights
            load_encoder_weights(model, source.encoder)
    precision.to_device(model)
    ema = ModelEMA(model, config.ema) if config.ema else None
    if config.checkpoint_activations:
        model.checkpoint_activations()
    optimizer = build_optimizer(config, model)
    scheduler = build_scheduler(config.scheduler, optimizer, total_steps)
    scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.dtype == torch.float16)
    return RunState(config, model, ema, optimizer, scheduler, scaler, data, encoder_start, progress, lock)


def load_source(config: TrainConfig, overrides: dict) -> Source:
    """What a run begins with."""
    path = resume_source(overrides, config)
    if path is not None:
        content = load_checkpoint(path)
        return Source(path, content, path.stat().st_mtime_ns, encoder_start=content["encoder_start"])
    if config.init is not None:
        return Source(initial=load_checkpoint(config.init))
    encoder, encoder_start = find_encoder_weights(config.model_name, config.encoder_weights)
    return Source(encoder=encoder, encoder_start=encoder_start)


def open_teacher(
    config: TrainConfig, device: torch.device, source: Source, data: dict, valid_set: SimpleOxfordPetDataset
) -> Teacher | None:
    """The teacher of a run, if it has one. Its fingerprint, and what images it and initial weights saw, go into `data`.

    Raises:
        UsageError: see `load_teacher`; or a run is resumed without its teacher, or with one that it did not have.
    """
    before = source.content["data"] if source.content else {}
    teacher = load_teacher(config, device, config.task, before.get("teacher"))
    if source.content and (teacher is None) != (before.get("teacher") is None):
        raise UsageError(f"{source.path} was trained {'without' if teacher else 'with'} a teacher; resume it likewise")
    seen = {*data.get("seen_names", ()), *before.get("seen_names", ()), *(teacher.seen_names if teacher else ())}
    seen |= seen_names(source.initial) if source.initial else set()
    data.update(seen_names=sorted(seen - {*data["train_names"]}), teacher=teacher and teacher.fingerprint)
    known = len(seen & {sample.name for sample in valid_set.samples})
    if known:
        print(
            f"WARNING: {known} of the {len(valid_set)} validation images were seen by the initial weights or the "
            "teacher: the validation Dice is INFLATED. Use the split, seed and fold that these were trained with.",
            file=sys.stderr,
        )
    return teacher
