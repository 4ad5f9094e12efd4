"""The state of a training run: saved, restored, and protected from other runs."""

import contextlib
import dataclasses
import os
import re
import secrets
import socket
import sys
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
    find_checkpoint,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from runtime.errors import CheckpointError, UsageError, first_line
from runtime.files import lock_file, read_rows, sync_folder, write_rows
from training import config as settings
from training.config import TrainConfig
from training.optim import ModelEMA, change_learning_rate, restore_optimizer
from training.resolve import settings_to_save
from training.saved_state import adopt_plain
from training.step import Net

LOG_COLUMNS = [
    "run_id",
    "epoch",
    "train_loss",
    "train_dice",
    "val_loss",
    "val_dice",
    "learning_rate",
    "seconds",
    "images_per_second",
]
KINDS = ("best", "last", "epoch")  # of checkpoints


@dataclass
class RunState:
    """Everything that a checkpoint must hold for a run to resume exactly where it was.

    Args:
        config: the settings.
        net: the network and what trains it.
        ema: moving average of its weights, or None.
        scheduler: of the learning rate, or None.
        data: the checkpoint's record of the data.
        encoder_start: what the encoder started from.
        progress: where the run stands.
        lock: from `lock_run`, held as long as the run may write; None for a process that must not.
    """

    config: TrainConfig
    net: Net
    ema: ModelEMA | None
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    data: DataRecord
    encoder_start: str
    progress: Progress
    lock: contextlib.ExitStack | None
    terms: dict[str, dict] = field(default_factory=dict)  # the records of what is learned from, by name
    last_save: float = field(default_factory=time.monotonic)
    owns_files: bool = False  # until the first save, the files under this model's names may be another run's

    def path(self, kind: str | int) -> Path:
        """This run's checkpoint of a kind: best, last, or the number of an epoch."""
        return checkpoint_path(self.config.save_dir, self.config.model_name, kind)

    def save_is_due(self) -> bool:
        """Whether CHECKPOINT_MINUTES have passed since the last save."""
        return time.monotonic() - self.last_save > 60 * settings.CHECKPOINT_MINUTES

    def save(self, *kinds: str | int) -> None:
        """Saves under the names of these kinds, and then as last."""
        if self.lock is None:
            return
        checkpoint = Checkpoint(
            model_name=self.config.model_name,
            config=self.net.model.config,
            weights=dict((self.ema or self.net).model.state_dict()),
            image_size=self.config.image_size,
            window=self.config.view.window and list(self.config.view.window),
            data=self.data,
            encoder_start=self.encoder_start,
            progress=self.progress,
            terms=self.terms,
            training=TrainingState(
                settings=settings_to_save(self.config),
                optimizer=self.net.optimizer.state_dict(),
                scheduler=self.scheduler.state_dict() if self.scheduler else None,
                scaler=self.net.scaler.state_dict(),
                random_state=torch.get_rng_state(),
                trained_weights=dict(self.net.model.state_dict()) if self.ema else None,
                updates=self.ema.updates if self.ema else 0,
            ),
        )
        # Once, before the first write: files of other runs, or of a later state of this one, are moved away.
        for moved in [] if self.owns_files else archive_previous_run(self.config):
            print(f"An earlier file is now {moved}.", flush=True)
        self.owns_files = True
        save_checkpoint(checkpoint, [self.path(kind) for kind in (*kinds, "last")])
        self.last_save = time.monotonic()

    def restore(self, checkpoint: Checkpoint, resumed_from: Path) -> None:
        """Takes over the state of a checkpoint.

        Raises:
            CheckpointError: it is not one of this network and these settings.
        """
        self.owns_files = same_file(resumed_from, self.path("last"))
        saved, scaler = checkpoint.training, self.net.scaler
        try:
            self.net.model.load_state_dict(saved.trained_weights or checkpoint.weights)
            if self.ema:
                self.ema.model.load_state_dict(checkpoint.weights)
                self.ema.updates = saved.updates
            restore_optimizer(self.net.optimizer, saved.optimizer)
            if saved.scaler and scaler.is_enabled():
                fresh = scaler.state_dict()
                known = {name: fresh[name] for name in ("scale", "_growth_tracker")}
                scaler.load_state_dict({**fresh, **adopt_plain(saved.scaler, known, "scaler")})
            if self.scheduler:
                fresh = self.scheduler.state_dict()
                self.scheduler.load_state_dict(adopt_plain(saved.scheduler or {}, fresh, "scheduler"))
            torch.set_rng_state(saved.random_state)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise CheckpointError(
                f"{resumed_from} can't be resumed: {first_line(error)}; use another checkpoint, or start a new run"
            ) from None
        if self.config.learning_rate != saved.settings["learning_rate"]:
            change_learning_rate(self.net.optimizer, self.scheduler, self.config.learning_rate)

    def write_log(self) -> None:
        """Writes the log anew from the history in the checkpoint, so that the two can't disagree."""
        if self.lock is not None:
            columns = dict.fromkeys([*LOG_COLUMNS, *(name for row in self.progress.history for name in row)])
            rows = [{name: row.get(name) for name in columns} for row in self.progress.history]
            write_rows(log_path(self.config), rows, list(columns))


def log_path(config: TrainConfig) -> Path:
    """The training log of a model."""
    return Path(config.log_dir) / f"{config.model_name}_training_log.csv"


def resume_source(flags: dict, config: TrainConfig) -> Path | None:
    """The checkpoint that --resume means; None for a new run."""
    if config.resume is None:
        return None
    return Path(config.resume or find_checkpoint(config.save_dir, flags.get("model_name"), "last"))


def start_progress(
    config: TrainConfig, more_epochs: bool, steps: int, checkpoint: Checkpoint | None, resumed_from: Path | None
) -> Progress:
    """A new run's beginning, or where the resumed one stands.

    A best score counts only where its checkpoint lies beside the one that is resumed: else the next epoch is the best
    so far and writes one.

    Args:
        config: the settings.
        more_epochs: on resume, plan `config.epochs` more; else finish what was planned.
        steps: of an epoch.
        checkpoint: that is resumed, or None.
        resumed_from: its path.

    Raises:
        CheckpointError: the run stands where it can't.
    """
    if checkpoint is None:
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        return Progress(run_id=run_id, planned_epochs=config.epochs)
    progress = dataclasses.replace(checkpoint.progress)
    done = 0 if progress.sums is None else progress.sums[1].item()  # images
    if progress.step > steps or (progress.step and done <= 0):
        raise CheckpointError(f"{resumed_from} is malformed: step {progress.step} of {steps} after {done:g} images")
    progress.resumed = [*progress.resumed, progress.epoch]
    if more_epochs:
        progress.planned_epochs, progress.patient_from = progress.epoch + config.epochs, progress.epoch
    progress.best_score, progress.best_epoch = None, 0
    if same_file(resumed_from, checkpoint_path(config.save_dir, config.model_name, "last")):
        best = checkpoint_path(config.save_dir, config.model_name, "best")
        try:
            record = load_checkpoint(best).progress if best.is_file() else None
        except UsageError as error:
            print(f"WARNING: {error}. The next epoch becomes the best.", file=sys.stderr)
            record = None
        # A kill between the writes of best and last leaves a best that is an epoch ahead: the score never falls back.
        if record is not None and record.run_id == progress.run_id:
            progress.best_score, progress.best_epoch = record.best_score, record.best_epoch
    validated = any(row["val_loss"] is not None for row in progress.history)
    if validated and not progress.best_epoch:  # it is not known, so patience begins here
        progress.patient_from = progress.epoch
    return progress


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths lead to one existing file."""
    return a.is_file() and b.is_file() and a.resolve() == b.resolve()


def lock_run(config: TrainConfig) -> contextlib.ExitStack:
    """Makes this process the only one that writes the files of a model, and removes what a killed one left unfinished.

    Returns:
        The lock. It lasts until it is closed or the process ends.

    Raises:
        UsageError: another run holds the lock.
    """
    name, lock = config.model_name, contextlib.ExitStack()
    for folder in {Path(config.save_dir).resolve(), Path(config.log_dir).resolve()}:
        path = folder / f".{name}.lock"
        try:
            file = lock.enter_context(lock_file(path, wait=False))
        except BlockingIOError:
            raise UsageError(
                f"another run ({path.read_text().strip() or 'just starting'}) is writing files of {name} in "
                f"{folder}; wait until it ends, or give this one a --save_dir and a --log_dir of its own"
            ) from None
        except OSError as error:
            raise UsageError(
                f"{path} can't be locked ({error.strerror}), so two runs could write the same files; name folders on "
                "another disk with --save_dir and --log_dir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    stems = [(config.log_dir, log_path(config).name), *((config.save_dir, f"{name}_{kind}") for kind in KINDS)]
    for folder, stem in stems:  # of this model alone: `unet` and `unet_small` may be in one folder
        for leftover in Path(folder).glob(f".{stem}*.tmp"):
            leftover.unlink(missing_ok=True)
    return lock


def archive_previous_run(config: TrainConfig) -> list[Path]:
    """Renames the files under a model's names so that each carries the id of the run that wrote it.

    Returns:
        The new names. None of them existed before.
    """
    saved, name, moved = Path(config.save_dir), config.model_name, []
    epochs = [p for p in saved.glob(f"{name}_epoch_*.pth") if re.search(r"_epoch_\d+$", p.stem)]
    files = [*(checkpoint_path(saved, name, kind) for kind in ("best", "last")), *sorted(epochs), log_path(config)]
    for path in filter(Path.is_file, files):
        rows = []
        if path.suffix == ".csv":
            with contextlib.suppress(UsageError):  # whoever changed it by hand, it is only to be renamed
                rows = read_rows(path)
        progress = read_progress(path)
        owner = (rows[0].get("run_id") if rows else progress and progress.run_id) or ""
        if not RUN_ID.fullmatch(owner):
            owner = time.strftime("unknown-%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
        target, number = path.with_name(f"{path.stem}_{owner}{path.suffix}"), 1
        while target.exists():
            number += 1
            target = path.with_name(f"{path.stem}_{owner}-{number}{path.suffix}")
        moved.append(path.rename(target))
    for folder in {path.parent for path in moved}:
        sync_folder(folder)  # before a new file takes a name: a power failure could keep that and lose the renaming
    return moved
