"""The state of a training run: saved, restored, and protected from other runs."""

import contextlib
import os
import re
import secrets
import socket
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch

from models.checkpoint import checkpoint_path, find_checkpoint, load_checkpoint, run_id_of, save_checkpoint
from models.schema import RUN_ID
from runtime.errors import CheckpointError, UsageError, first_line
from runtime.files import lock_file, read_rows, sync_folder, write_rows
from training.config import TrainConfig
from training.optim import ModelEMA, change_learning_rate, restore_optimizer
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
class Progress:
    """Where a run stands. Plain values and one tensor: it goes into the checkpoint as it is."""

    run_id: str
    planned_epochs: int
    epoch: int = 0  # finished ones
    step: int = 0  # finished ones of the current epoch
    sums: torch.Tensor | None = None  # over these steps; see `no_totals` in training/loop.py
    seconds: float = 0.0  # spent on them
    best_score: float | None = None  # valid Dice, or the loss times -1 where there is no Dice
    best_epoch: int = 0
    history: list[dict] = field(default_factory=list)  # a row of the log per epoch
    resumed: list[int] = field(default_factory=list)  # after which epochs
    patient_from: int = 0  # the epoch after which --patience counts at the earliest

    def is_over(self, patience: int) -> bool:
        """Whether no epoch is left, or the last one was validated and none of the last `patience` was the best.

        Patience of 0 is endless. It is counted from the epoch in which more epochs were asked for.
        """
        validated = bool(self.history) and self.history[-1]["val_loss"] is not None
        tired = 0 < patience <= self.epoch - max(self.best_epoch, self.patient_from) and validated
        return self.epoch >= self.planned_epochs or tired


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
    data: dict
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
        """Whether --checkpoint_minutes have passed since the last save."""
        return time.monotonic() - self.last_save > 60 * self.config.checkpoint_minutes

    def save(self, *kinds: str | int) -> None:
        """Saves under the names of these kinds, and then as last."""
        if self.lock is None:
            return
        content = {
            "model": {"name": self.config.model_name, "config": self.net.model.config},
            "weights": (self.ema or self.net).model.state_dict(),
            "preprocessing": self.config.preprocessing,
            "data": self.data,
            "encoder_start": self.encoder_start,
            "settings": self.config.settings(),
            "progress": asdict(self.progress),
            "terms": self.terms,
            "optimizer": self.net.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "scaler": self.net.scaler.state_dict(),
            "random_state": torch.get_rng_state(),
        }
        if self.ema:
            content["average"] = {"updates": self.ema.updates, "trained_weights": dict(self.net.model.state_dict())}
        # Once, before the first write: files of other runs, or of a later state of this one, are moved away.
        for moved in [] if self.owns_files else archive_previous_run(self.config):
            print(f"An earlier file is now {moved}.", flush=True)
        self.owns_files = True
        save_checkpoint(content, [self.path(kind) for kind in (*kinds, "last")])
        self.last_save = time.monotonic()

    def restore(self, content: dict, resumed_from: Path) -> None:
        """Takes over the state of a checkpoint.

        Raises:
            CheckpointError: it is not one of this network and these settings.
        """
        self.owns_files = same_file(resumed_from, self.path("last"))
        average = content.get("average") or {}
        try:
            self.net.model.load_state_dict(average.get("trained_weights", content["weights"]))
            if self.ema:
                self.ema.model.load_state_dict(content["weights"])
                self.ema.updates = average["updates"]
            restore_optimizer(self.net.optimizer, content["optimizer"])
            if content["scaler"] and self.net.scaler.is_enabled():
                fresh = self.net.scaler.state_dict()
                known = {name: fresh[name] for name in ("scale", "_growth_tracker")}
                self.net.scaler.load_state_dict({**fresh, **adopt_plain(content["scaler"], known, "scaler")})
            if self.scheduler:
                saved, fresh = content["scheduler"] or {}, self.scheduler.state_dict()
                self.scheduler.load_state_dict(adopt_plain(saved, fresh, "scheduler"))
            torch.set_rng_state(content["random_state"])
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise CheckpointError(
                f"{resumed_from} can't be resumed: {first_line(error)}; use another checkpoint, or start a new run"
            ) from None
        if self.config.learning_rate != content["settings"]["learning_rate"]:
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


def resume_source(overrides: dict, config: TrainConfig) -> Path | None:
    """The checkpoint that --resume means; None for a new run."""
    if config.resume is None:
        return None
    return Path(config.resume or find_checkpoint(config.save_dir, overrides.get("model_name"), "last"))


def start_progress(
    config: TrainConfig, more_epochs: bool, steps: int, content: dict | None, resumed_from: Path | None
) -> Progress:
    """A new run's beginning, or where the resumed one stands.

    A best score counts only where its checkpoint lies beside the one that is resumed: else the next epoch is the best
    so far and writes one.

    Args:
        config: the settings.
        more_epochs: on resume, plan `config.epochs` more; else finish what was planned.
        steps: of an epoch.
        content: of the checkpoint that is resumed, or None.
        resumed_from: its path.

    Raises:
        CheckpointError: the run stands where it can't.
    """
    if content is None:
        return Progress(f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}", config.epochs)
    saved = content["progress"]
    progress = Progress(**{f.name: saved[f.name] for f in fields(Progress) if saved.get(f.name) is not None})
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
            record = load_checkpoint(best)["progress"] if best.is_file() else {}
        except UsageError as error:
            print(f"WARNING: {error}. The next epoch becomes the best.", file=sys.stderr)
            record = {}
        # A kill between the writes of best and last leaves a best that is an epoch ahead: the score never falls back.
        if record.get("run_id") == progress.run_id:
            progress.best_score, progress.best_epoch = record["best_score"], record["best_epoch"]
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
        owner = rows[0].get("run_id") if rows else run_id_of(path)
        if not RUN_ID(owner):
            owner = time.strftime("unknown-%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
        target, number = path.with_name(f"{path.stem}_{owner}{path.suffix}"), 1
        while target.exists():
            number += 1
            target = path.with_name(f"{path.stem}_{owner}-{number}{path.suffix}")
        moved.append(path.rename(target))
    for folder in {path.parent for path in moved}:
        sync_folder(
            folder
        )  # before a new file takes a name: else a power failure could keep that and lose the renaming
    return moved
