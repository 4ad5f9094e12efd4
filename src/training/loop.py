"""The training loop: epochs of steps, and what happens between them. What is learned is in training/terms."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.loader import StepSampler
from evaluation.predict import Predictor
from runtime.cli import StopRequest
from runtime.errors import Interrupted, PeerLostError, RunError
from training import config as settings
from training.state import LOG_COLUMNS, RunState
from training.step import training_step
from training.terms import At, Term, averages, no_totals


@dataclass
class Trainer:
    """A run: its state, what it learns from, and who is told of its epochs.

    Args:
        state: what is saved and restored.
        terms: what is learned. The first one validates.
        sampler: the steps of an epoch.
        loader: gives a list of batches for each step, one of each term.
        stop: asked between steps.
        listeners: called with each epoch's row of the log, after it was saved.
        resume_command: printed when the run stops.
        totals: of this process in this epoch; see `no_totals`.
        pending: metrics of steps that are still on the device, with the number of images and their files.
    """

    state: RunState
    terms: list[Term]
    sampler: StepSampler
    loader: DataLoader
    stop: StopRequest
    listeners: list[Callable[[dict], None]]
    resume_command: str = ""
    totals: torch.Tensor | None = None
    pending: list[tuple[torch.Tensor, int, list]] = field(default_factory=list)

    def train(self) -> None:
        """Runs the epochs that are left. On a signal, or when another process is lost, saves where it stands.

        Raises:
            Interrupted: a signal came to any process.
            PeerLostError: another process is gone.
            RunError: the loss is not finite.
        """
        state, progress, context = self.state, self.state.progress, self.state.net.context
        try:
            while not progress.is_over(state.config.patience):
                self.run_epoch()
                (signum,) = context.all_reduce_max(self.stop.signum)
                if signum and not progress.is_over(state.config.patience):
                    raise Interrupted(signum)
        except (Interrupted, PeerLostError) as reason:
            if isinstance(reason, PeerLostError):  # the others can't be asked: totals are scaled to the images of all
                self.fetch_metrics()
                images = sum(map(self.terms[0].batches.length, range(progress.step)))
                progress.sums = self.totals * (images / self.totals[1].clamp(min=1))
            state.save()
            print(f"Stopped in epoch {progress.epoch + 1} after step {progress.step}; saved {state.path('last')}.")
            print(f"To go on: {self.resume_command}", flush=True)
            if isinstance(reason, Interrupted):
                context.barrier()  # until all is saved: torchrun ends a run when one process ends
            raise

    def run_epoch(self) -> None:
        """Trains and validates one epoch, saves, logs, and tells the listeners."""
        state, progress, config, net = self.state, self.state.progress, self.state.config, self.state.net
        row = dict.fromkeys(LOG_COLUMNS) | {"run_id": progress.run_id, "epoch": progress.epoch + 1}
        # The first group may be the encoder's.
        row |= self.train_one_epoch() | {"learning_rate": net.optimizer.param_groups[-1]["lr"]}
        start = time.perf_counter()
        net.context.average_batch_norm(net.model)
        if row["epoch"] % config.validate_every == 0 or row["epoch"] == progress.planned_epochs:
            row["val_loss"], row["val_dice"] = self.validate()
        row["seconds"] = round(row["seconds"] + time.perf_counter() - start, 3)
        row = {name: float(f"{value:.8g}") if type(value) is float else value for name, value in row.items()}
        progress.history.append(row)
        score = row["val_dice"]
        if score is None and row["val_loss"] is not None:
            score = -row["val_loss"]
        if config.scheduler == "plateau" and score is not None:
            state.scheduler.step(score)
        progress.epoch, progress.step, progress.sums, progress.seconds = progress.epoch + 1, 0, None, 0.0
        self.save_epoch(score)
        for listener in self.listeners:
            listener(row)

    def save_epoch(self, score: float | None) -> None:
        """Saves after validation, every fifth epoch, or after ten minutes; as best where the score is higher."""
        state, progress = self.state, self.state.progress
        kinds: list[str | int] = []
        if score is not None and (progress.best_score is None or score > progress.best_score):
            progress.best_score, progress.best_epoch = score, progress.epoch
            kinds.append("best")
        if progress.epoch % settings.KEEP_EVERY == 0:
            kinds.append(progress.epoch)
        if score is not None or kinds or state.save_is_due():
            state.save(*kinds)
            state.write_log()

    def validate(self) -> tuple[float, float | None]:
        """Loss and Dice of the validation images, with the averaged weights where there are any."""
        state, context, model = self.state, self.state.net.context, self.state.net.model
        if state.ema:
            model = state.ema.model
            context.broadcast_batch_norm(model)
        # Several processes are never between the same two batches here: they finish, and stop after the epoch.
        check = self.stop.check if context.size == 1 else lambda: None
        return self.terms[0].validate(Predictor(model, state.net.precision), check)

    def train_one_epoch(self) -> dict[str, float]:
        """Trains from the step where the run stands to the end of the epoch.

        Returns:
            Columns of the log: `train_loss` and those of the terms, averaged over images, computed before each
            optimizer step; `seconds` and `images_per_second`.
        """
        state, progress, config = self.state, self.state.progress, self.state.config
        context = state.net.context
        self.sampler.epoch, self.sampler.start = progress.epoch, progress.step
        # After a resume only the first process keeps the sums from before.
        resumed = progress.sums is not None and context.first
        self.totals = progress.sums.clone() if resumed else no_totals(self.terms)
        state.net.forward.train()
        if config.freeze_encoder:
            state.net.model.freeze_encoder(progress.epoch < config.freeze_encoder)
            if progress.epoch == config.freeze_encoder:
                state.net.wrap()
        title = f"epoch {progress.epoch + 1}/{progress.planned_epochs}"
        bar = tqdm(desc=title, total=self.sampler.steps, initial=progress.step, unit="step", leave=False, disable=None)
        on_cpu, began = state.net.precision.device.type == "cpu", time.perf_counter() - progress.seconds
        with bar:
            for batches in self.loader:
                with context.peers_needed():
                    self.pending.append(self.train_batch(batches))
                progress.step += 1
                progress.seconds = time.perf_counter() - began
                signum, due = context.all_reduce_max(self.stop.signum, int(state.save_is_due() and context.first))
                # On a GPU metrics are fetched every 16 steps, because the host waits for the GPU then.
                if signum or due or on_cpu or len(self.pending) == 16:
                    self.fetch_metrics()
                if bar.update() and self.totals[1]:  # true where the bar has just been drawn
                    bar.set_postfix(averages(self.totals, self.terms[:1]), refresh=False)
                if signum or due:
                    progress.sums = context.all_reduce_sum(self.totals)
                    if signum:
                        raise Interrupted(signum)
                    state.save()
        self.fetch_metrics()
        progress.seconds = time.perf_counter() - began
        progress.sums = context.all_reduce_sum(self.totals)
        rate = round(len(self.terms[0].batches.dataset) / progress.seconds, 2)
        return averages(progress.sums, self.terms) | {"seconds": progress.seconds, "images_per_second": rate}

    def train_batch(self, batches: list[dict | None]) -> tuple[torch.Tensor, int, list[str]]:
        """Takes a step; updates average and learning rate. Returns `training_step`'s metrics, images and files."""
        state, at, parts = self.state, At(self.state.progress.epoch, self.state.progress.step), []
        for term, batch in zip(self.terms, batches):
            parts.append(term.prepare(batch, parts[0] if parts else None, at))
        length = self.terms[0].batches.length(at.step)
        # The same number in all processes: SyncBatchNorm waits for all of them in each micro-batch.
        micro_batches = min(state.config.accumulate, length // state.net.context.size)
        metrics = training_step(state.net, self.terms, parts, micro_batches)
        if state.ema:
            state.ema.update(state.net.model)
        if state.config.scheduler == "cosine":
            state.scheduler.step()
        return metrics, length, batches[0]["path"]

    def fetch_metrics(self) -> None:
        """Adds the metrics of pending steps to the totals, one by one: here the host waits for the device.

        Raises:
            RunError: a loss is not finite.
        """
        progress, size = self.state.progress, self.state.net.context.size
        rows = torch.stack([metrics for metrics, *_ in self.pending]).tolist() if self.pending else []
        first = progress.step - len(rows) + 1
        for step, (loss, *sums), (_, length, paths) in zip(range(first, progress.step + 1), rows, self.pending):
            if not math.isfinite(loss):
                names, last = ", ".join(Path(path).name for path in paths), self.state.path("last")
                advice = f"resume {last}" if self.state.owns_files and last.is_file() else "start again"
                position = f"epoch {progress.epoch + 1}, step {step}, on {names}"
                raise RunError(f"the loss is {loss} in {position}; {advice} with a smaller --learning_rate")
            self.totals += torch.tensor([loss * length / size, length / size, *sums], dtype=torch.float64)
        self.pending.clear()
