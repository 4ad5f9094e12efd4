"""The state of a training run: saved and restored."""

import contextlib
import dataclasses
import secrets
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from models.checkpoint import (
    Checkpoint,
    DataRecord,
    Progress,
    TrainingState,
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
)
from runtime.errors import CheckpointError, UsageError, first_line
from runtime.files import write_rows
from training import config as settings
from training.config import TrainConfig
from training.optim import ModelEMA, adopt_plain, change_learning_rate, restore_optimizer
from training.resolve import settings_to_save
from training.run_files import archive_previous_run, is_file_of_run, log_path
from training.step import Net

LOG_COLUMNS = ["run_id", "epoch", "train_loss", "train_dice", "val_loss", "val_dice"]
LOG_COLUMNS += ["learning_rate", "seconds", "images_per_second"]


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
        terms: the records of what is learned from, by name.
        owns_files: False until the first save, as the files under this model's names may be another run's.
    """

    config: TrainConfig
    net: Net
    ema: ModelEMA | None
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    data: DataRecord
    encoder_start: str
    progress: Progress
    lock: contextlib.ExitStack | None
    terms: dict[str, dict] = field(default_factory=dict)
    last_save: float = field(default_factory=time.monotonic)
    owns_files: bool = False

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
        self.owns_files = is_file_of_run(resumed_from, self.config)
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
    saved = checkpoint.progress
    images = 0 if saved.sums is None else saved.sums[1].item()
    if saved.step > steps or (saved.step and images <= 0):
        raise CheckpointError(f"{resumed_from} is malformed: step {saved.step} of {steps} after {images:g} images")
    progress = dataclasses.replace(saved, resumed=[*saved.resumed, saved.epoch], best_score=None, best_epoch=0)
    if more_epochs:
        progress.planned_epochs, progress.patient_from = progress.epoch + config.epochs, progress.epoch
    best = checkpoint_path(config.save_dir, config.model_name, "best")
    if best.is_file() and is_file_of_run(resumed_from, config):
        try:
            record = load_checkpoint(best).progress
            # A kill between the writes of best and last leaves a best that is an epoch ahead: it counts.
            if record.run_id == progress.run_id:
                progress.best_score, progress.best_epoch = record.best_score, record.best_epoch
        except UsageError as error:
            print(f"WARNING: {error}. The next epoch becomes the best.", file=sys.stderr)
    if not progress.best_epoch and any(row["val_loss"] is not None for row in progress.history):
        progress.patient_from = progress.epoch  # the best is not known, so patience begins here
    return progress
