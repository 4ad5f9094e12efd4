"""The training loop: epochs of steps, and what happens between them. What is learned is in training/terms."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.data import DataLoader
from tqdm import tqdm

from evaluation.predict import Predictor
from runtime.cli import StopRequest
from runtime.errors import Interrupted
from training import config as settings
from training.listeners import resume_command
from training.optim import score_of
from training.state import LOG_COLUMNS, RunState
from training.step import MetricLogger, training_step
from training.terms import Batch


@dataclass
class Trainer:
    """A run: its state, which is saved and restored, and what it needs to go on.

    It learns from a list of terms, such as masks or a teacher's probabilities; the first of them validates.
    """

    state: RunState
    loader: DataLoader  # gives a list for each step: for each term the dict that it reads, or None
    stop: StopRequest  # asked between steps
    listeners: list[Callable[[RunState, dict], None]] = field(default_factory=list)  # told each row of the log

    def train(self) -> None:
        """Runs the epochs that are left. Raises Interrupted, with the state saved: a signal came to any process."""
        state, progress, context = self.state, self.state.progress, self.state.net.context
        patience = state.config.patience
        try:
            while not progress.is_over(patience):
                self.run_epoch()
                (signum,) = context.all_reduce_max(self.stop.signum)
                if signum and not progress.is_over(patience):
                    raise Interrupted(signum)
        except Interrupted:
            state.save()
            print(f"Stopped in epoch {progress.epoch + 1} after step {progress.step}; saved {state.path('last')}.")
            print(f"To go on: {resume_command(state)}", flush=True)
            context.broadcast(None)  # waits until all is saved: torchrun ends a run when one process ends
            raise

    def run_epoch(self) -> None:
        """Trains and validates one epoch, saves, and tells the listeners."""
        state, progress, net = self.state, self.state.progress, self.state.net
        row = dict.fromkeys(LOG_COLUMNS) | {"run_id": progress.run_id, "epoch": progress.epoch + 1}
        row |= self.train_one_epoch()
        row["learning_rate"] = net.optimizer.param_groups[-1]["lr"]  # the first group may be the encoder's
        start = time.perf_counter()
        row["val_loss"], row["val_dice"] = self.validate()
        row["seconds"] = round(row["seconds"] + time.perf_counter() - start, 3)
        row = {name: float(f"{value:.8g}") if type(value) is float else value for name, value in row.items()}
        progress.history.append(row)
        score = score_of(row)
        if state.config.scheduler == "plateau":
            net.scheduler.step(score)
        progress.epoch, progress.step, progress.sums, progress.seconds = progress.epoch + 1, 0, None, 0.0
        kinds: list[str | int] = [progress.epoch] if progress.epoch % settings.KEEP_EVERY == 0 else []
        best = progress.history[progress.best_epoch - 1 : progress.best_epoch]  # its row; none before the first
        tie = score == progress.best_score and any(row["val_loss"] < other["val_loss"] for other in best)
        if progress.best_score is None or score > progress.best_score or tie:
            progress.best_score, progress.best_epoch = score, progress.epoch
            kinds = ["best", *kinds]
        state.save(*kinds)
        for listener in self.listeners:
            listener(state, row)

    def train_one_epoch(self) -> dict[str, float]:
        """Trains from the step where the run stands to the end of the epoch.

        Returns columns of the log: averages over images, computed before each optimizer step, and times.
        """
        state, progress, config, net = self.state, self.state.progress, self.state.config, self.state.net
        sampler, context, thaw = self.loader.sampler, net.context, config.freeze_encoder
        sampler.epoch, sampler.start = progress.epoch, progress.step
        net.forward.train()
        if thaw:
            net.model.freeze_encoder(progress.epoch < thaw)
            if progress.epoch == thaw:
                net.wrap()
        # After a resume only the first process has the sums from before.
        metrics = MetricLogger(state.terms, progress.sums if context.first else None)
        title = f"epoch {progress.epoch + 1}/{progress.planned_epochs}"
        began = time.perf_counter() - progress.seconds
        steps = {"total": sampler.steps, "initial": progress.step, "unit": "step"}
        with tqdm(desc=title, **steps, leave=False, disable=None) as bar:
            for read in self.loader:
                self.train_batch(read, metrics)
                progress.step += 1
                progress.seconds = time.perf_counter() - began
                if bar.update() and metrics.sums[1]:  # true where the bar has just been drawn
                    bar.set_postfix(metrics.averages(), refresh=False)
                due = context.first and time.monotonic() - state.last_save > 60 * settings.CHECKPOINT_MINUTES
                signum, due = context.all_reduce_max(self.stop.signum, due)
                if signum or due:
                    metrics.fetch()
                    progress.sums = context.all_reduce(metrics.sums)
                    if signum:
                        raise Interrupted(signum)
                    state.save()
        metrics.fetch()
        progress.seconds = time.perf_counter() - began
        progress.sums = context.all_reduce(metrics.sums)
        rate = round(len(state.terms[0].batches.dataset) / progress.seconds, 2)
        return metrics.averages(progress.sums) | {"seconds": progress.seconds, "images_per_second": rate}

    def train_batch(self, read: list[dict | None], metrics: MetricLogger) -> None:
        """One step of the optimizer, then of the moving average and of the cosine schedule."""
        state, net, epoch, step = self.state, self.state.net, self.state.progress.epoch, self.state.progress.step
        batches: list[Batch] = []
        for term, of_term in zip(state.terms, read):
            batches.append(term.prepare(of_term, batches[0] if batches else None, epoch, step))
        images, size = state.terms[0].batches.length(step), net.context.size
        # The same number in all processes: SyncBatchNorm waits for all of them in each micro-batch.
        figures = training_step(net, state.terms, batches, min(state.config.accumulate, images // size))
        if net.ema:
            net.ema.update()
        if state.config.scheduler == "cosine":
            net.scheduler.step()
        names = ", ".join(Path(path).name for path in read[0]["path"])
        metrics.add(figures, images / size, f"epoch {epoch + 1}, step {step + 1}, on {names}")

    def validate(self) -> tuple[float, float | None]:
        """Loss and Dice of the validation images, with the averaged weights where there are any."""
        net, model = self.state.net, self.state.net.model
        net.context.average_batch_norm(model)
        if net.ema:
            model = net.ema.model
            net.context.broadcast_batch_norm(model)
        # Several processes are never between the same two batches here: they finish, and stop after the epoch.
        check = self.stop.check if net.context.size == 1 else lambda: None
        return self.state.terms[0].validate(Predictor(model, net.precision), check)
