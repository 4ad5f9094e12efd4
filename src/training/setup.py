"""A training run from flags to the end: prepared, described, trained."""

import contextlib
import functools
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from data.dataset import Dataset, ImageDataset
from data.loader import Batches, StepReader, StepSampler, make_loader, shard_batches
from models.build import build_model
from models.checkpoint import Checkpoint, DataRecord, find_checkpoint, load_checkpoint
from models.weights import find_encoder_weights, load_encoder_weights
from runtime.cli import StopRequest
from runtime.device import Precision, choose_precision, get_device
from runtime.distributed import SINGLE_PROCESS, DistributedContext, init_distributed
from runtime.errors import CheckpointError, UsageError, plural
from runtime.files import writable_folder
from runtime.seeding import seed_everything
from training.config import TrainConfig
from training.data import Parts, augmented, open_images, open_parts
from training.header import best_in_words, print_header, resume_command
from training.listeners import TensorBoard, print_epoch
from training.loop import Trainer
from training.optim import ModelEMA, build_optimizer, build_scheduler
from training.resolve import check_flags, new_config, resumed_config
from training.run_files import lock_run
from training.state import RunState, start_progress
from training.step import Net
from training.terms import no_totals
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
    resumed: Checkpoint | None = None
    written: int = 0  # when, in nanoseconds
    initial: Checkpoint | None = None
    encoder: Path | None = None
    encoder_start: str = ""


@dataclass
class Setup:
    """What terms are made of; `batches` are of the first term, `dataset` is None in a pre-training."""

    config: TrainConfig
    source: Source
    dataset: Dataset | None
    parts: Parts
    batches: Batches
    state: RunState

    def loader(self, dataset: ImageDataset) -> DataLoader:
        """Batches of a dataset in order, to validate on."""
        net, config = self.state.net, self.config
        batches = shard_batches(dataset, config.batch_size, net.context)
        return make_loader(dataset, net.precision.device, batches, config.num_workers)


def start(flags: dict) -> None:
    """Trains with these flags, on one process or several."""
    device = get_device(flags.get("device", "auto"))
    with init_distributed(device) as context:
        run(flags, device, context)


def run(flags: dict, device: torch.device, context: DistributedContext) -> None:
    """Prepares a run, prints what it is about to do, and trains."""
    trainer, parts, resumed_from = prepare(flags, device, context)
    state, progress, patience = trainer.state, trainer.state.progress, trainer.state.config.patience
    print_header(trainer, parts, resumed_from)
    if resumed_from is not None and state.owns_files:
        state.write_log()  # it may have been killed before it did
    if progress.is_over(patience):
        source = "" if state.owns_files else f" {shlex.quote(str(resumed_from))}"
        print(f"This run is complete. To train 5 more epochs: {trainer.resume_command}{source} --epochs 5")
        return
    if resumed_from is not None and not state.owns_files:
        state.save()  # from now on this is where the run stands
        state.write_log()
    trainer.train()
    if progress.epoch < progress.planned_epochs:
        print(f"No better {trainer.terms[0].score} in {plural(patience, 'epoch')}: stopped after {progress.epoch}.")
    print(f"Best {best_in_words(trainer)}: {state.path('best')}")


def prepare(
    flags: dict, device: torch.device, context: DistributedContext = SINGLE_PROCESS
) -> tuple[Trainer, Parts, Path | None]:
    """Prepares a run: gives the trainer, the parts of the dataset, and the path of the resumed checkpoint or None."""
    source = context.broadcast(load_source(flags) if context.first else None)
    if source.resumed:
        config = resumed_config(flags, source.resumed, source.path)
    else:
        config = new_config(flags, bool(source.initial or source.encoder), source.initial)
    check_flags(config, flags, context.size)
    saved = source.resumed and source.resumed.data
    parts, record, dataset = (open_images if config.denoises else open_parts)(config, saved, source.path)
    lock = None
    if context.first:
        for folder in (config.save_dir, config.log_dir):
            writable_folder(folder)
        lock = lock_run(config)
        if source.resumed and source.path.stat().st_mtime_ns != source.written:
            raise UsageError(f"another run has just written {source.path}; try again")
    batches = Batches(augmented(config, parts[0]), config.batch_size, config.seed, context)
    precision = choose_precision(config.amp, device, config.image_size)
    state = build_state(config, "epochs" in flags, precision, batches, source, record, lock)
    setup = Setup(config, source, dataset, parts, batches, state)
    terms = [term for open_term in TERMS if (term := open_term(setup)) is not None]
    record_terms(setup, terms)
    if source.resumed:  # not before: a teacher's network draws random numbers when it is made
        state.restore(source.resumed, source.path)
    listeners = [functools.partial(print_epoch, state.progress)]
    if config.tensorboard and context.first:
        listeners.append(TensorBoard(Path(config.log_dir) / "tensorboard", state, parts[1], precision))
    sampler, reader = StepSampler(batches.steps), StepReader([term.batches for term in terms])
    loader, stop = make_loader(reader, device, sampler, config.num_workers), StopRequest(patient=context.size > 1)
    trainer = Trainer(state, terms, sampler, loader, stop, listeners, resume_command(config, context))
    return trainer, parts, source.path


def load_source(flags: dict) -> Source:
    """What a run with these flags begins with."""
    config = TrainConfig(**flags)
    if config.resume is not None:
        path = Path(config.resume or find_checkpoint(config.save_dir, flags.get("model_name"), "last"))
        written = path.stat().st_mtime_ns if path.is_file() else 0  # before it is read
        checkpoint = load_checkpoint(path, "leave --resume out to start a new run")
        return Source(path, checkpoint, written, encoder_start=checkpoint.encoder_start)
    if config.init is not None:
        return Source(initial=load_checkpoint(config.init))
    encoder, encoder_start = find_encoder_weights(config.model_name, config.encoder_weights)
    return Source(encoder=encoder, encoder_start=encoder_start)


def build_state(
    config: TrainConfig,
    more_epochs: bool,
    precision: Precision,
    batches: Batches,
    source: Source,
    record: DataRecord,
    lock: contextlib.ExitStack | None,
) -> RunState:
    """Network, average, optimizer and scheduler, freshly seeded, and where the run stands; see RunState."""
    context, encoder_start = batches.context, source.encoder_start
    seed_everything(config.seed)
    model = build_model(config.model_name, **config.network)
    if source.initial is not None:
        encoder_start = source.initial.give_weights(model, config.init)
    elif source.encoder is not None and context.first:  # the others get the first one's weights
        load_encoder_weights(model, source.encoder)
    progress = start_progress(config, more_epochs, batches.steps, source.resumed, source.path)
    precision.to_device(model)
    ema = ModelEMA(model, config.ema) if config.ema else None
    if config.checkpoint_activations:
        model.checkpoint_activations()
    optimizer = build_optimizer(config, model)
    scheduler = build_scheduler(config.scheduler, optimizer, progress.planned_epochs * batches.steps)
    scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.dtype == torch.float16)
    net = Net(model, optimizer, scaler, precision, context, config.compile)
    if config.freeze_encoder:
        model.freeze_encoder(progress.epoch < config.freeze_encoder)
    net.wrap()
    if ema and source.resumed is None:
        ema.model.load_state_dict(model.state_dict())  # the others have just got the first one's
    return RunState(config, net, ema, scheduler, record, encoder_start, progress, lock)


def record_terms(setup: Setup, terms: list) -> None:
    """Notes in the state what is learned from, and which images were seen.

    Raises:
        UsageError: the run that is resumed learned from something else.
        CheckpointError: its sums are not of these terms.
    """
    state, resumed, path, valid_set = setup.state, setup.source.resumed, setup.source.path, setup.parts[1]
    state.terms = {term.name: term.record() for term in terms}
    seen = {name for term in terms for name in term.seen}
    seen |= setup.source.initial.seen_names() if setup.source.initial else set()
    if resumed:
        for name in sorted(resumed.terms.keys() ^ state.terms.keys()):
            without = "" if name in resumed.terms else "out"
            raise UsageError(f"{path} was trained with{without} --{name}; resume it likewise")
        for name in (name for name, record in state.terms.items() if record != resumed.terms[name]):
            raise UsageError(
                f"{path} was trained with another --{name} (its content counts, not its path); resume it with that one"
            )
        sums = state.progress.sums
        if sums is not None and len(sums) != len(no_totals(terms)):
            raise CheckpointError(f"{path} is malformed: progress.sums has {len(sums)} numbers")
        seen |= {*resumed.data.seen_names}
    state.data.seen_names = sorted(seen - {*state.data.train_names})
    known = len(seen & {sample.name for sample in valid_set.samples})
    if known:
        print(
            f"WARNING: {known} of the {len(valid_set)} validation images were seen by the initial weights or the "
            "teacher: the validation Dice is INFLATED. Use the split, seed and fold that these were trained with.",
            file=sys.stderr,
        )
