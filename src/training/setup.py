"""A training run from flags to the end: prepared, described, trained."""

import contextlib
import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from data.download import download
from data.loader import Batches, StepReader, StepSampler, make_loader, shard_batches
from models.build import build_model
from models.checkpoint import load_checkpoint, seen_names, take_weights
from models.names import ALIASES, DEFAULT_MODEL, MODELS, closest_model
from models.weights import find_encoder_weights, load_encoder_weights
from runtime.cli import StopRequest
from runtime.device import Precision, choose_precision, get_device
from runtime.distributed import SINGLE_PROCESS, DistributedContext, init_distributed
from runtime.errors import CheckpointError, UsageError
from runtime.files import writable_folder
from runtime.seeding import seed_everything
from training.config import TrainConfig
from training.data import Parts, augmented, open_images, open_parts, some_of
from training.header import print_header, resume_command
from training.listeners import Console, TensorBoard
from training.loop import Trainer, no_totals
from training.losses import balanced_weights
from training.optim import ModelEMA, build_optimizer, build_scheduler
from training.resolve import check_flags, restore_config, with_network_of, with_size_plan
from training.state import RunState, lock_run, resume_source, start_progress
from training.step import Net
from training.terms.denoise import open_denoising
from training.terms.distill import open_distillation
from training.terms.fixmatch import open_fixmatch
from training.terms.masks import open_masks

# What a run may learn from. Each function gives a term, or None where the config does not ask for it. Exactly one of
# the first two does.
TERMS = (open_masks, open_denoising, open_distillation, open_fixmatch)


class Source(NamedTuple):
    """What a run begins with: a checkpoint to resume, one whose weights it takes, or the weights of an encoder."""

    path: Path | None = None
    content: dict | None = None
    written: int = 0  # when, in nanoseconds
    initial: dict | None = None
    encoder: Path | None = None
    encoder_start: str = ""


@dataclass
class Setup:
    """What terms are made of."""

    config: TrainConfig
    source: Source
    parts: Parts
    batches: Batches  # of the first term
    state: RunState

    def loader(self, dataset: Dataset) -> DataLoader:
        """Batches of a dataset in order, to validate on."""
        net, config = self.state.net, self.config
        batches = shard_batches(dataset, config.batch_size, net.context)
        return make_loader(dataset, net.precision.device, batches, config.num_workers)


def start(overrides: dict) -> None:
    """Trains with these flags, on one process or several."""
    if "model_name" in overrides:
        overrides["model_name"] = known_model(overrides["model_name"])
    config = TrainConfig.from_flags(overrides)
    device = get_device(config.device)
    with init_distributed(device, config.peer_minutes) as context:
        run(config, overrides, device, context)


def known_model(name: str) -> str:
    """The model's full name. For an unknown one warns on stderr and returns the default."""
    name = ALIASES.get(name, name)
    if name in MODELS:
        return name
    print(f"WARNING: NO MODEL IS CALLED {name!r}. The closest is {closest_model(name)!r}.", end=" ", file=sys.stderr)
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
        print(f"No better {trainer.terms[0].score} in {patience} epochs: stopped after {progress.epoch}.")
    print(f"Best {trainer.best_in_words()}: {state.path('best')}")


def prepare(
    config: TrainConfig, overrides: dict, device: torch.device, context: DistributedContext = SINGLE_PROCESS
) -> tuple[Trainer, Parts, Path | None]:
    """Prepares a run: gives the trainer, the parts of the dataset, and the path of the resumed checkpoint or None."""
    source = context.broadcast(load_source(config, overrides) if context.first else None)
    config = resolve(overrides, source)
    check_flags(config, overrides, context.size)
    if config.download and context.first:
        download(writable_folder(config.data_path))
    context.barrier()  # the others wait for the download here
    saved = source.content and source.content["data"]
    parts, data = (open_images if config.denoises else open_parts)(config, saved, source.path)
    lock = None
    if context.first:
        for folder in (config.save_dir, config.log_dir):
            writable_folder(folder)
        lock = lock_run(config)
        if source.content is not None and source.path.stat().st_mtime_ns != source.written:
            raise UsageError(f"another run has just written {source.path}; try again")
    if config.class_weights == "auto":
        weights = balanced_weights(some_of(parts[0])[config.task.target], config.task)
        config = dataclasses.replace(config, class_weights=",".join(f"{weight:g}" for weight in weights))
    batches = Batches(augmented(config, parts[0]), config.batch_size, config.seed, context)
    precision = choose_precision(config.amp, device, config.image_size)
    state = build_state(config, "epochs" in overrides, precision, batches, source, data, lock)
    setup = Setup(config, source, parts, batches, state)
    terms = [term for open_term in TERMS if (term := open_term(setup)) is not None]
    record_terms(setup, terms)
    if source.content is not None:  # not before: a teacher's network draws random numbers when it is made
        state.restore(source.content, source.path)
    sampler, reader = StepSampler(batches.steps), StepReader([term.batches for term in terms])
    listeners = [Console(state.progress)]
    if config.tensorboard is not None and context.first:
        folder = Path(config.tensorboard or Path(config.log_dir) / "tensorboard")
        listeners.append(TensorBoard(folder, state, parts[1], precision))
    return (
        Trainer(
            state=state,
            terms=terms,
            sampler=sampler,
            loader=make_loader(reader, device, sampler, config.num_workers),
            stop=StopRequest(patient=context.size > 1),
            listeners=listeners,
            resume_command=resume_command(config, context),
        ),
        parts,
        source.path,
    )


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


def resolve(overrides: dict, source: Source) -> TrainConfig:
    """The settings of a run: flags, what it begins with, recipe and defaults."""
    if source.content is not None:
        return restore_config(overrides, source.content, source.path)
    config = TrainConfig.from_flags(overrides, pretrained=bool(source.initial or source.encoder))
    return with_size_plan(with_network_of(config, overrides, source.initial) if source.initial else config)


def build_state(
    config: TrainConfig,
    more_epochs: bool,
    precision: Precision,
    batches: Batches,
    source: Source,
    data: dict,
    lock: contextlib.ExitStack | None,
) -> RunState:
    """Network, average, optimizer and scheduler, freshly seeded, and where the run stands; see RunState."""
    context, content = batches.context, source.content
    seed_everything(config.seed, config.deterministic)
    model = build_model(config.model_name, **config.network)
    encoder_start = source.encoder_start
    if source.initial is not None:
        encoder_start = take_weights(model, source.initial, config.init)
    elif source.encoder is not None and context.first:  # the others get the first one's weights
        load_encoder_weights(model, source.encoder)
    progress = start_progress(config, more_epochs, batches.steps, content, source.path)
    precision.to_device(model)
    ema = ModelEMA(model, config.ema) if config.ema else None
    if config.checkpoint_activations:
        model.checkpoint_activations()
    optimizer = build_optimizer(config, model)
    scheduler = build_scheduler(config.scheduler, optimizer, progress.planned_epochs * batches.steps)
    scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.dtype == torch.float16)
    net = Net(model, optimizer, scaler, precision, context, config.compile)
    state = RunState(config, net, ema, scheduler, data, encoder_start, progress, lock)
    if config.freeze_encoder:
        model.freeze_encoder(progress.epoch < config.freeze_encoder)
    net.wrap()
    if ema and content is None:
        ema.model.load_state_dict(model.state_dict())  # the others have just got the first one's
    return state


def record_terms(setup: Setup, terms: list) -> None:
    """Notes in the state what is learned from, and which images were seen.

    Raises:
        UsageError: the run that is resumed learned from something else.
        CheckpointError: its sums are not of these terms.
    """
    state, source, valid_set = setup.state, setup.source, setup.parts[1]
    state.terms = {term.name: term.record() for term in terms}
    seen = {name for term in terms for name in term.seen} | (seen_names(source.initial) if source.initial else set())
    if source.content:
        before, sums = source.content["terms"], state.progress.sums
        for name in sorted(before.keys() ^ state.terms.keys()):
            raise UsageError(
                f"{source.path} was trained with{'' if name in before else 'out'} --{name}; resume it likewise"
            )
        for name in (name for name, record in state.terms.items() if record != before[name]):
            raise UsageError(
                f"{source.path} was trained with another --{name} (its content counts, not its path); resume it with "
                "that one"
            )
        if sums is not None and len(sums) != len(no_totals(terms)):
            raise CheckpointError(f"{source.path} is malformed: progress.sums has {len(sums)} numbers")
        seen |= {*source.content["data"]["seen_names"]}
    state.data["seen_names"] = sorted(seen - {*state.data["train_names"]})
    known = len(seen & {sample.name for sample in valid_set.samples})
    if known:
        print(
            f"WARNING: {known} of the {len(valid_set)} validation images were seen by the initial weights or the "
            "teacher: the validation Dice is INFLATED. Use the split, seed and fold that these were trained with.",
            file=sys.stderr,
        )
