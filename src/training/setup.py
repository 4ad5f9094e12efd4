"""A training run from flags to the end: prepared, described, trained."""

import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from data.loader import Batches, StepReader, StepSampler, make_loader
from models.build import build_model
from models.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from models.names import DENOISING
from models.weights import find_encoder_weights, load_encoder_weights
from runtime.cli import StopRequest
from runtime.device import choose_precision, get_device
from runtime.distributed import SINGLE_PROCESS, DistributedContext, init_distributed
from runtime.errors import UsageError, plural
from runtime.seeding import seed_everything
from training.config import TrainConfig
from training.data import Data, augmented, open_images, open_parts
from training.listeners import TensorBoard, best_in_words, print_epoch, print_header, resume_command
from training.loop import Trainer
from training.optim import ModelEMA, build_optimizer, build_scheduler
from training.resolve import check_flags, new_config, resumed_config
from training.state import RunState, lock_run, start_progress
from training.step import Net
from training.terms import Term
from training.terms.denoise import open_denoising
from training.terms.distill import open_distillation
from training.terms.fixmatch import open_fixmatch
from training.terms.masks import open_masks


class Source(NamedTuple):
    """What a run begins with: a checkpoint to resume, one whose weights it takes, or the weights of an encoder."""

    path: Path | None = None
    resumed: Checkpoint | None = None
    written: int = 0  # when, in nanoseconds
    initial: Checkpoint | None = None
    encoder: Path | None = None
    encoder_start: str = ""


def start(flags: dict) -> None:
    """Trains with these flags, on one process or several."""
    device = get_device(flags.get("device", "auto"))
    with init_distributed(device) as context:
        run(flags, device, context)


def run(flags: dict, device: torch.device, context: DistributedContext) -> None:
    """Prepares a run, prints what it is about to do, and trains."""
    trainer, data, resumed_from = prepare(flags, device, context)
    state, progress, patience = trainer.state, trainer.state.progress, trainer.state.config.patience
    print_header(state, data, resumed_from)
    if state.owns_files:
        state.write_log()  # it may have been killed before it did
    if progress.is_over(patience):
        source = "" if state.owns_files else f" {shlex.quote(str(resumed_from))}"
        print(f"This run is complete. To train 5 more epochs: {resume_command(state)}{source} --epochs 5")
        return
    if resumed_from is not None and not state.owns_files:
        state.save()  # from now on this is where the run stands
    trainer.train()
    if progress.epoch < progress.planned_epochs:
        print(f"No better {state.terms[0].score} in {plural(patience, 'epoch')}: stopped after {progress.epoch}.")
    print(f"Best {best_in_words(state)}: {state.path('best')}")


def prepare(
    flags: dict, device: torch.device, context: DistributedContext = SINGLE_PROCESS
) -> tuple[Trainer, Data, Path | None]:
    """Prepares a run: gives the trainer, the data, and the path of the resumed checkpoint or None."""
    source = context.broadcast(load_source(flags) if context.first else None)
    resumed = source.resumed
    if resumed:
        config = resumed_config(flags, resumed, source.path)
    else:
        config = new_config(flags, bool(source.initial or source.encoder), source.initial)
    check_flags(config, flags, context.size)
    open_data = open_images if config.classes == DENOISING else open_parts
    data = open_data(config, resumed and resumed.data, source.path)
    lock = lock_run(config) if context.first else None
    if lock and resumed and source.path.stat().st_mtime_ns != source.written:
        raise UsageError(f"another run has just written {source.path}; try again")
    batches = Batches(augmented(config, data.train), config.batch_size, config.seed, context)
    progress = start_progress(config, "epochs" in flags, batches.steps, resumed, source.path)
    net, encoder_start = build_net(config, source, device, context, progress.epoch)
    net.scheduler = build_scheduler(config.scheduler, net.optimizer, progress.planned_epochs * batches.steps)
    terms = open_terms(config, net, data, batches)
    state = RunState(config, net, data.record, encoder_start, progress, terms, lock)
    if resumed:  # not before: a teacher's network draws random numbers when it is made
        require_same_terms(state, resumed, source.path)
        state.restore(resumed, source.path)
    note_seen_images(state, source, data)
    reader, sampler = StepReader([term.batches for term in terms]), StepSampler(batches.steps)
    loader = make_loader(reader, device, sampler, config.num_workers)
    listeners = [print_epoch]
    if config.tensorboard and context.first:
        listeners.append(TensorBoard(state, data.valid))
    return Trainer(state, loader, StopRequest(patient=context.size > 1), listeners), data, source.path


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


def build_net(
    config: TrainConfig, source: Source, device: torch.device, context: DistributedContext, epoch: int
) -> tuple[Net, str]:
    """The network, freshly seeded, and what trains it after so many epochs; and what its encoder started from."""
    seed_everything(config.seed)
    model, encoder_start = build_model(config.model_name, **config.network), source.encoder_start
    if source.initial is not None:
        encoder_start = source.initial.give_weights(model, config.init)
    elif source.encoder is not None and context.first:  # the others get the first one's weights
        load_encoder_weights(model, source.encoder)
    precision = choose_precision(config.amp, device, config.image_size)
    precision.to_device(model)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype == torch.float16)
    if config.freeze_encoder:
        model.freeze_encoder(epoch < config.freeze_encoder)
    net = Net(model, build_optimizer(config, model), scaler, precision, context)
    if config.ema:  # after the processes have got the first one's weights
        net.ema = ModelEMA(model, config.ema)
    return net, encoder_start


def open_terms(config: TrainConfig, net: Net, data: Data, batches: Batches) -> list[Term]:
    """What the run learns from; the first of them validates."""
    open_first = open_denoising if config.classes == DENOISING else open_masks
    terms: list[Term] = [open_first(config, net, data, batches)]
    if config.teacher:
        terms.append(open_distillation(config, net))
    if config.unlabeled:
        terms.append(open_fixmatch(config, net, data, batches.steps))
    return terms


def require_same_terms(state: RunState, resumed: Checkpoint, path: Path) -> None:
    """Raises UsageError: the run that is resumed learned from something else."""
    before, now = resumed.terms, {term.name: term.record() for term in state.terms}
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            how = "without" if name not in before else "with another" if name in now else "with"
            raise UsageError(f"{path} was trained {how} --{name} (its content counts); resume it likewise")


def note_seen_images(state: RunState, source: Source, data: Data) -> None:
    """Notes images that were learned from without being training images, and warns of those in validation."""
    seen = {name for term in state.terms for name in term.seen}
    seen |= source.initial.seen_names() if source.initial else set()
    seen |= {*source.resumed.data.seen_names} if source.resumed else set()
    state.data.seen_names = sorted(seen - {*state.data.train_names})
    known = len(seen & {sample.name for sample in data.valid.samples})
    if known:
        print(
            f"WARNING: {known} of the {len(data.valid)} validation images were seen by the initial weights or the "
            "teacher: the validation Dice is INFLATED. Use the split, seed and fold that these were trained with.",
            file=sys.stderr,
        )
