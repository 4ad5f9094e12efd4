"""The training loop: epochs of steps, and what happens between them. It knows no method; see training/terms."""

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
from training.state import LOG_COLUMNS, RunState
from training.step import training_step
from training.terms import At, Term


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
    """

    state: RunState
    terms: list[Term]
    sampler: StepSampler
    loader: DataLoader
    stop: StopRequest
    listeners: list[Callable[[dict], None]]
    resume_command: str = ""
    totals: torch.Tensor | None = None  # of this process in this epoch; see `no_totals`
    pending: list = field(default_factory=list)  # rows of steps still on the device, with length and files

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
            if isinstance(reason, PeerLostError):
                progress.sums = self._extrapolated_totals()
            state.save()
            print(f"Stopped in epoch {progress.epoch + 1} after step {progress.step}; saved {state.path('last')}.")
            print(f"To go on: {self.resume_command}", flush=True)
            if isinstance(reason, Interrupted):
                context.barrier()  # until all is saved: torchrun ends a run when one process ends
            raise

    def best_in_words(self) -> str:
        """The best score so far and its epoch, as `valid Dice 0.9062 in epoch 6`."""
        progress, score = self.state.progress, self.terms[0].score
        if progress.best_score is None:
            return f"{score} not known yet"
        return f"{score} {abs(progress.best_score):.4f} in epoch {progress.best_epoch}"

    def run_epoch(self) -> None:
        """Trains and validates one epoch, saves, logs, and tells the listeners."""
        state, progress, config = self.state, self.state.progress, self.state.config
        row = {"run_id": progress.run_id, "epoch": progress.epoch + 1, **self.train_one_epoch()}
        row["learning_rate"] = state.net.optimizer.param_groups[-1]["lr"]  # the first may be the encoder's
        start = time.perf_counter()
        state.net.context.average_batch_norm(state.net.model)
        validated = row["epoch"] % config.validate_every == 0 or row["epoch"] == progress.planned_epochs
        row["val_loss"], row["val_dice"] = self.validate() if validated else (None, None)
        row["seconds"] += time.perf_counter() - start
        row = {name: _rounded(name, value) for name, value in {**dict.fromkeys(LOG_COLUMNS), **row}.items()}
        progress.history.append(row)
        self._finish_epoch(score_of(row))
        for listener in self.listeners:
            listener(row)

    def _finish_epoch(self, score: float | None) -> None:
        """Moves on to the next epoch. Saves where it was validated, is to be kept, or a save is due."""
        state, progress, config = self.state, self.state.progress, self.state.config
        if config.scheduler == "plateau" and score is not None:
            state.scheduler.step(score)
        progress.epoch, progress.step, progress.sums, progress.seconds = progress.epoch + 1, 0, None, 0.0
        kinds: list[str | int] = []
        if score is not None and (progress.best_score is None or score > progress.best_score):
            progress.best_score, progress.best_epoch = score, progress.epoch
            kinds.append("best")
        if config.save_every and progress.epoch % config.save_every == 0:
            kinds.append(progress.epoch)
        if score is not None or kinds or state.save_is_due():
            state.save(*kinds)
            state.write_log()

    def validate(self) -> tuple[float, float | None]:
        """Loss and Dice of the validation images, with the averaged weights where there are any."""
        state, context, evaluated = self.state, self.state.net.context, self.state.net.model
        if state.ema:
            evaluated = state.ema.model
            context.broadcast_batch_norm(evaluated)
        # Several processes are never between the same two batches here: they finish, and stop after the epoch.
        check = self.stop.check if context.size == 1 else lambda: None
        return self.terms[0].validate(Predictor(evaluated, state.net.precision), check)

    def train_one_epoch(self) -> dict:
        """Trains from the step where the run stands to the end of the epoch.

        Returns:
            Columns of the log: `train_loss` and those of the terms, averaged over images, each as it was when its step
            began; `seconds` and `images_per_second`.

        Raises:
            Interrupted, PeerLostError, RunError: see `train`; the position inside the epoch is in the progress.
        """
        state, progress, context = self.state, self.state.progress, self.state.net.context
        self.sampler.epoch, self.sampler.start = progress.epoch, progress.step
        # What was done before a resume is the first process's to count.
        before = progress.sums if context.first else None
        self.totals = no_totals(self.terms) if before is None else before.clone()
        self.start_training()
        title = f"epoch {progress.epoch + 1}/{progress.planned_epochs}"
        bar = tqdm(desc=title, total=self.sampler.steps, initial=progress.step, unit="step", leave=False, disable=None)
        began, fetched = time.perf_counter() - progress.seconds, time.monotonic()
        with bar:
            for batches in self.loader:
                with context.peers_needed():
                    self.pending.append(self.train_batch(batches))
                progress.step += 1
                progress.seconds = time.perf_counter() - began
                due = int(state.save_is_due() and context.first)
                signum, due = context.all_reduce_max(self.stop.signum, due)
                # On a GPU figures are fetched once a second, so that it never runs out of steps to do.
                if signum or due or state.net.precision.device.type == "cpu" or time.monotonic() - fetched > 1:
                    self.fetch_figures()
                    fetched = time.monotonic()
                if bar.update() and self.totals[1]:  # true where the bar has just been drawn
                    bar.set_postfix(averages(self.totals, self.terms[:1]), refresh=False)
                if signum or due:
                    progress.sums = context.all_reduce_sum(self.totals)
                if signum:
                    raise Interrupted(signum)
                if due:
                    state.save()
        self.fetch_figures()
        progress.seconds = time.perf_counter() - began
        progress.sums = context.all_reduce_sum(self.totals)
        images = sum(map(self.terms[0].batches.length, range(self.sampler.steps)))
        rate = {"seconds": progress.seconds, "images_per_second": images / progress.seconds}
        return {**averages(progress.sums, self.terms), **rate}

    def start_training(self) -> None:
        """Puts the network into training mode, with a frozen encoder in the first epochs of --freeze_encoder."""
        net, epoch, frozen = self.state.net, self.state.progress.epoch, self.state.config.freeze_encoder
        net.forward.train()
        if frozen:
            net.model.freeze_encoder(epoch < frozen)
            if epoch == frozen:
                net.wrap()

    def train_batch(self, batches: list[dict | None]) -> tuple[torch.Tensor, int, list[str]]:
        """Takes a step; updates average and learning rate. Returns `training_step`'s figures, images and files."""
        state, at, parts = self.state, At(self.state.progress.epoch, self.state.progress.step), []
        for term, batch in zip(self.terms, batches):
            parts.append(term.prepare(batch, parts[0] if parts else None, at))
        length = self.terms[0].batches.length(at.step)
        # As many pieces in all processes as the smallest share allows: batch norms on GPUs wait for each other in each.
        pieces = min(state.config.accumulate, length // state.net.context.size)
        figures = training_step(state.net, self.terms, parts, pieces)
        if state.ema:
            state.ema.update(state.net.model)
        if state.config.scheduler == "cosine":
            state.scheduler.step()
        return figures, length, batches[0]["path"]

    def fetch_figures(self) -> None:
        """Adds the figures of pending steps to the totals: here the host waits for the device.

        They are added one by one, so that the totals don't depend on when this is called.

        Raises:
            RunError: a loss is not finite.
        """
        progress, size = self.state.progress, self.state.net.context.size
        rows = torch.stack([figures for figures, *_ in self.pending]).tolist() if self.pending else []
        for back, row in enumerate(rows, start=-len(rows)):
            _, length, paths = self.pending[back]
            if not math.isfinite(row[0]):
                last = self.state.path("last")
                advice = f"resume {last} with" if self.state.owns_files and last.is_file() else "start again with"
                names = ", ".join(Path(path).name for path in paths)
                raise RunError(
                    f"the loss is {row[0]} in epoch {progress.epoch + 1}, step {progress.step + back + 1}, on {names}; "
                    f"{advice} a smaller --learning_rate"
                )
            self.totals += torch.tensor([row[0] * length / size, length / size, *row[1:]], dtype=torch.float64)
        self.pending.clear()

    def _extrapolated_totals(self) -> torch.Tensor:
        """This process's totals of the epoch, scaled to the images of all, when the others can't be asked."""
        if self.totals is None or not self.totals[1]:
            return no_totals(self.terms)
        images = sum(map(self.terms[0].batches.length, range(self.state.progress.step)))
        return self.totals * (images / self.totals[1])


def no_totals(terms: list[Term]) -> torch.Tensor:
    """Sums over the images of an epoch, before the first: of loss and images, and of each term images and columns."""
    return torch.zeros(2 + sum(len(term.columns) + 1 for term in terms), dtype=torch.float64)


def averages(totals: torch.Tensor, terms: list[Term]) -> dict[str, float]:
    """The columns of the log from such sums."""
    loss, images, *sums = totals.tolist()
    found = {"train_loss": loss / images}
    for term in terms:
        images, *sums = sums
        found |= {name: value / images for name, value in zip(term.columns, sums)}
        sums = sums[len(term.columns) :]
    return found


def score_of(row: dict) -> float | None:
    """By what the best epoch is chosen, the higher the better: Dice, or else the loss. None without validation."""
    return row["val_dice"] if row["val_dice"] is not None or row["val_loss"] is None else -row["val_loss"]


def _rounded(name: str, value):
    digits = {"seconds": 3, "images_per_second": 2}.get(name)
    if not isinstance(value, float):
        return value
    return round(value, digits) if digits else float(f"{value:.8g}")
