"""The state of a training run: saved and restored."""

import contextlib
import dataclasses
import secrets
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
    read_progress,
    save_checkpoint,
)
from runtime.errors import CheckpointError, first_line
from runtime.files import write_rows
from training import config as settings
from training.config import TrainConfig
from training.metrics import MetricLogger
from training.optim import change_learning_rate, restore_optimizer, restore_scheduler
from training.resolve import settings_to_save
from training.run_files import archive_previous_run, is_file_of_run, log_path
from training.step import Net
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
        """This run's checkpoint of a kind: best, last, or the number of an epoch."""
        return checkpoint_path(self.config.save_dir, self.config.model_name, kind)

    def save_is_due(self) -> bool:
        """Whether CHECKPOINT_MINUTES have passed since the last save."""
        return time.monotonic() - self.last_save > 60 * settings.CHECKPOINT_MINUTES

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
            reason = first_line(error)
            raise CheckpointError(f"{path} can't be resumed: {reason}; use another, or start a new run") from None
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
