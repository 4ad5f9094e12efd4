"""The state of a training run: saved and restored; and its files: locked, and renamed before another run writes."""

import contextlib
import dataclasses
import itertools
import os
import re
import secrets
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from models.checkpoint import (
    RUN_ID,
    Checkpoint,
    DataRecord,
    Progress,
    TrainingState,
    checkpoint_path,
    read_progress,
    save_checkpoint,
)
from runtime.errors import CheckpointError, UsageError, first_line
from runtime.files import lock_file, read_rows, sync_folder, writable_folder, write_rows
from training.config import TrainConfig
from training.optim import change_learning_rate, restore_optimizer, restore_scheduler
from training.resolve import settings_to_save
from training.step import MetricLogger, Net
from training.terms import Term

LOG_COLUMNS = ["run_id", "epoch", "train_loss", "train_dice", "val_loss", "val_dice"]
LOG_COLUMNS += ["learning_rate", "seconds", "images_per_second"]


@dataclass
class RunState:
    """Everything that a checkpoint must hold for a run to resume exactly where it was."""

    config: TrainConfig
    net: Net
    data: DataRecord
    encoder_start: str  # what the encoder started from, in words
    progress: Progress
    terms: list[Term]  # what is learned; the first one validates
    lock: contextlib.ExitStack | None = None  # of `lock_run`; None for a process that must not write
    owns_files: bool = False  # until the first save the files under this model's names may be another run's
    last_save: float = field(default_factory=time.monotonic)

    def path(self, kind: str | int) -> Path:
        """This run's checkpoint: best, last, or that of an epoch."""
        return checkpoint_path(self.config.save_dir, self.config.model_name, kind)

    def save(self, *kinds: str | int) -> None:
        """Saves under the names of these kinds, and then as last; and writes the log."""
        if self.lock is None:
            return
        config, net = self.config, self.net
        training = TrainingState(
            settings=settings_to_save(config),
            optimizer=net.optimizer.state_dict(),
            scaler=net.scaler.state_dict(),
            random_state=torch.get_rng_state(),
            trained_weights=dict(net.model.state_dict()) if net.ema else None,
            updates=net.ema.updates if net.ema else 0,
        )
        checkpoint = Checkpoint(
            model_name=config.model_name,
            config=net.model.config,
            weights=dict((net.ema or net).model.state_dict()),
            image_size=config.image_size,
            data=self.data,
            encoder_start=self.encoder_start,
            progress=self.progress,
            terms={term.name: term.record() for term in self.terms},
            training=training,
        )
        # Once, before the first write: files of other runs, or of a later state of this one, are moved away.
        for moved in [] if self.owns_files else archive_previous_run(config):
            print(f"An earlier file is now {moved}.", flush=True)
        self.owns_files = True
        save_checkpoint(checkpoint, [self.path(kind) for kind in (*kinds, "last")])
        self.last_save = time.monotonic()
        self.write_log()

    def write_log(self) -> None:
        """Writes the log anew from the history in the checkpoint, so that the two can't disagree."""
        history = self.progress.history
        if self.lock is not None and history:
            columns = dict.fromkeys([*LOG_COLUMNS, *(name for row in history for name in row)])
            write_rows(log_path(self.config), history, list(columns))

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Takes over a checkpoint's state. Raises CheckpointError: it is of another network or other settings."""
        self.owns_files = is_file_of_run(path, self.config)
        saved, net = checkpoint.training, self.net
        try:
            net.model.load_state_dict(saved.trained_weights if net.ema else checkpoint.weights)
            if net.ema:
                net.ema.model.load_state_dict(checkpoint.weights)
                net.ema.updates = saved.updates
            restore_scheduler(net.scheduler, checkpoint.progress, self.terms[0].batches.steps)
            restore_optimizer(net.optimizer, saved.optimizer)
            if saved.scaler:
                net.scaler.load_state_dict(saved.scaler)
            torch.set_rng_state(saved.random_state)
            MetricLogger(self.terms, self.progress.sums)  # raises where they are of other terms
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            advice = "use another, or start a new run"
            raise CheckpointError(f"{path} can't be resumed: {first_line(error)}; {advice}") from None
        if self.config.learning_rate != saved.settings["learning_rate"]:
            change_learning_rate(net.optimizer, net.scheduler, self.config.learning_rate)


def start_progress(
    config: TrainConfig, more_epochs: bool, steps: int, checkpoint: Checkpoint | None, path: Path | None
) -> Progress:
    """A new run's beginning; or where the one stands whose checkpoint is resumed, with `config.epochs` more if asked.

    Raises CheckpointError: it stands where it can't in epochs of so many steps.
    """
    if checkpoint is None:
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        return Progress(run_id=run_id, planned_epochs=config.epochs)
    saved = checkpoint.progress
    if saved.step > steps or (saved.step and (saved.sums is None or saved.sums[1] <= 0)):
        raise CheckpointError(f"{path} is malformed: it stands after step {saved.step} of {steps}; use another one")
    progress = dataclasses.replace(saved, resumed=[*saved.resumed, saved.epoch], best_score=None, best_epoch=0)
    if more_epochs:
        progress.planned_epochs, progress.patient_from = progress.epoch + config.epochs, progress.epoch
    # The best score is that of its checkpoint, which a kill between two writes leaves an epoch ahead; where that does
    # not lie beside the one that is resumed, the next epoch is the best so far, and patience begins here.
    best = read_progress(checkpoint_path(config.save_dir, config.model_name, "best"))
    if best is not None and best.run_id == progress.run_id and is_file_of_run(path, config):
        progress.best_score, progress.best_epoch = best.best_score, best.best_epoch
    else:
        progress.patient_from = progress.epoch
    return progress


def log_path(config: TrainConfig) -> Path:
    """The training log of a model."""
    return Path(config.log_dir) / f"{config.model_name}_training_log.csv"


def is_file_of_run(path: Path, config: TrainConfig) -> bool:
    """Whether a checkpoint is the one that a run with these settings writes last."""
    last = checkpoint_path(config.save_dir, config.model_name, "last")
    return path.is_file() and path.resolve() == last.resolve()


def lock_run(config: TrainConfig) -> contextlib.ExitStack:
    """Lets this process alone write a model's files, and removes what a killed one left. Raises UsageError."""
    name, lock = config.model_name, contextlib.ExitStack()
    for folder in {writable_folder(folder).resolve() for folder in (config.save_dir, config.log_dir)}:
        path = folder / f".{name}.lock"
        try:
            file = lock.enter_context(lock_file(path, wait=False))
        except BlockingIOError:
            reason = (
                f"another run ({path.read_text().strip() or 'just starting'}) is writing files of {name} in {folder}"
            )
            advice = "wait until it ends, or give this one a --save_dir and a --log_dir of its own"
            raise UsageError(f"{reason}; {advice}") from None
        except OSError as error:
            reason = f"{path} can't be locked ({error.strerror}), so two runs could write the same files"
            raise UsageError(f"{reason}; name folders on another disk with --save_dir and --log_dir") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for kind in ("best", "last", "epoch", "training_log"):  # not all: `unet` and `unet_small` may share a folder
            for leftover in folder.glob(f".{name}_{kind}*.tmp"):
                leftover.unlink(missing_ok=True)
    return lock


def archive_previous_run(config: TrainConfig) -> list[Path]:
    """Renames the files under a model's names so that each carries the id of the run that wrote it; gives the names."""
    ours, moved = re.compile(rf"{config.model_name}_(best|last|epoch_\d+)"), []
    files = [path for path in sorted(Path(config.save_dir).glob("*.pth")) if ours.fullmatch(path.stem)]
    for path in filter(Path.is_file, [*files, log_path(config)]):
        owner = writer_of(path) or time.strftime("unknown-%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
        numbers = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        names = (path.with_stem(f"{path.stem}_{owner}{number}") for number in numbers)
        moved.append(path.rename(next(name for name in names if not name.exists())))
    for folder in {path.parent for path in moved}:
        sync_folder(folder)  # before a new file takes a name: a power failure could keep that and lose the renaming
    return moved


def writer_of(path: Path) -> str | None:
    """The id of the run that wrote a checkpoint or a log; None where it can't be read."""
    run_id = None
    if path.suffix == ".pth":
        run_id = getattr(read_progress(path), "run_id", None)
    else:
        with contextlib.suppress(UsageError, IndexError, KeyError):  # changed by hand, it is renamed all the same
            run_id = read_rows(path)[0]["run_id"]
    return run_id if run_id and RUN_ID.fullmatch(run_id) else None
