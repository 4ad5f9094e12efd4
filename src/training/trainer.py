"""The training loop: steps, epochs, and what happens between them."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.augment import BatchAugmentation, augment_batch
from data.loader import ResumableBatchSampler
from data.unlabeled import REST
from evaluation.evaluator import validate
from evaluation.metrics import image_dice, mean_dice, score_counts
from evaluation.predictor import Predictor
from models.task import Task
from runtime.cli import StopRequest
from runtime.device import Precision
from runtime.distributed import SINGLE_PROCESS, DistributedContext
from runtime.errors import Interrupted, PeerLostError, RunError
from training.run_state import LOG_COLUMNS, UNLABELED_NUMBERS, RunState, no_sums
from training.semi_supervised import PseudoLabeled, pseudo_label
from training.teacher import Teacher
from training.verify import compute_twice


def training_step(
    model: torch.nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    task: Task,
    loss_fn: Callable,
    precision: Precision,
    context: DistributedContext = SINGLE_PROCESS,
    batch_length: int | None = None,
    accumulate: int = 1,
    teacher: torch.Tensor | None = None,
    unlabeled: PseudoLabeled | None = None,
    verify: bool = False,
) -> torch.Tensor:
    """One step of the optimizer. Nothing in here waits for the device, unless it is to verify.

    Args:
        model: the network, wrapped for several processes.
        images: (N, 3, H, W) in 0..255, this process's shard of the batch.
        targets: (N, 1, H, W) of the task.
        optimizer: of the model's parameters.
        scaler: of the loss, for fp16.
        task: what is learned.
        loss_fn: see training/losses.py.
        precision: where and how to compute.
        context: the processes that share the batch.
        batch_length: images in the whole batch; None for those given.
        accumulate: compute the step in so many pieces.
        teacher: probabilities (N, C, H, W) that are learned too.
        unlabeled: images without masks that are learned too.
        verify: see training/verify.py.

    Returns:
        float (3,) on the device: the shard's sums of loss and Dice, and its size.
    """
    length, images = batch_length or len(images), precision.prepare_images(images)
    # As many pieces in all processes as the smallest shard allows: batch norms on GPUs wait for each other in each.
    pieces = min(accumulate, length // context.size)
    nothing = [None] * pieces
    parts = [nothing if of is None else of.tensor_split(pieces) for of in (images, targets, teacher, unlabeled)]

    def compute() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        rows = []
        for number, (some, truth, taught, extra) in enumerate(zip(*parts), start=1):
            unsynced = context.size > 1 and number < pieces  # gradients are exchanged once, with the last piece
            with model.no_sync() if unsynced else contextlib.nullcontext():
                with precision.autocast():
                    logits, guess = model(_together(some, extra, precision)).tensor_split([len(some)])
                share = len(some) * context.size / length  # of the batch; undoes the mean over processes
                loss = loss_fn(logits, truth, task) + _other_losses(logits, guess, taught, extra, task, share)
                scaler.scale(loss * share).backward()
            rows.append(_figures(loss, logits, truth, task))
        return torch.stack(rows).sum(0)

    sums = compute_twice(compute, model) if verify else compute()
    _update(model, optimizer, scaler)
    return sums


def _update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Clips the gradients and takes the step."""
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    scaler.step(optimizer)
    scaler.update()


@torch.no_grad()
def _figures(loss: torch.Tensor, logits: torch.Tensor, truth: torch.Tensor, task: Task) -> torch.Tensor:
    """Sums of loss and Dice of some images, and how many they are."""
    dice = image_dice(score_counts(task, task.decision_logits(logits), truth)).sum()
    return torch.stack([loss.detach() * len(logits), dice, torch.full_like(dice, len(logits))])


def _together(images: torch.Tensor, extra: PseudoLabeled | None, precision: Precision) -> torch.Tensor:
    """Images and those without masks, for one forward pass."""
    return images if extra is None else torch.cat([images, precision.prepare_images(extra.images)])


def _unlabeled_scores(sums: list[float], known: bool) -> dict:
    """The columns of the log for images without masks, from their sums; `known`: they have masks all the same."""
    if not sums:
        return {}
    shares = [round(value / sums[2], 6) for value in sums[:2]]
    return dict(zip(UNLABELED_NUMBERS, shares if known else (shares[0], None)))


def _other_losses(
    logits: torch.Tensor,
    guess: torch.Tensor,
    taught: torch.Tensor | None,
    extra: PseudoLabeled | None,
    task: Task,
    share: float,
) -> torch.Tensor | float:
    """What a piece of a step learns beside the masks: the teacher's probabilities, and labels of images without masks.

    Those are weighted by their own number, so the share by which the piece counts is undone.
    """
    of_teacher = 0.0 if taught is None else task.cross_entropy(logits.float(), taught)
    return of_teacher if extra is None else of_teacher + extra.loss(guess, task) / share


@dataclass
class Trainer:
    """A run's state and what the loop needs besides.

    Args:
        state: what is saved and restored.
        wrap: wraps the model for several processes, compiles it.
        forward: the state's model, wrapped.
        sampler: order of the training images.
        train_loader: its batches.
        valid_loader: batches of the validation images.
        augmentation: what is done to whole batches.
        loss_fn: what is minimized; see training/losses.py.
        precision: where and how to compute.
        context: the processes of the run.
        stop: asked between steps.
        teacher: whose probabilities are learned too, or None.
        resume_command: printed when the run stops.
        on_epoch: called with the row of the log after each epoch, before it is saved.
    """

    state: RunState
    wrap: Callable[[torch.nn.Module], torch.nn.Module]
    forward: torch.nn.Module
    sampler: ResumableBatchSampler
    train_loader: DataLoader
    valid_loader: DataLoader
    augmentation: BatchAugmentation
    loss_fn: Callable
    precision: Precision
    context: DistributedContext
    stop: StopRequest
    teacher: Teacher | None = None
    resume_command: str = ""
    on_epoch: Callable[[dict], None] = lambda row: None
    totals: torch.Tensor | None = None  # loss, Dice and images of this process's shards of the epoch, float64 (3,)
    pending: list = field(default_factory=list)  # metrics of steps still on the device, and their image files

    def train(self) -> None:
        """Runs the epochs that are left. On a signal, or when another process is lost, saves where it stands.

        Raises:
            Interrupted: a signal came to any process.
            PeerLostError: another process is gone.
            RunError: the loss is not finite.
        """
        state, progress = self.state, self.state.progress
        try:
            while not progress.is_over(state.config.patience):
                self.run_epoch()
                (signum,) = self.context.all_reduce_max(self.stop.signum)
                if signum and not progress.is_over(state.config.patience):
                    raise Interrupted(signum)
        except (Interrupted, PeerLostError) as reason:
            if isinstance(reason, PeerLostError):
                progress.sums = self._extrapolated_totals()
            state.save()
            print(f"Stopped in epoch {progress.epoch + 1} after step {progress.step}; saved {state.path('last')}.")
            print(f"To go on: {self.resume_command}", flush=True)
            if isinstance(reason, Interrupted):
                self.context.barrier()  # until all is saved: torchrun ends a run when one process ends
            raise

    def run_epoch(self) -> None:
        """Trains and validates one epoch, saves, logs and prints."""
        state, progress, context = self.state, self.state.progress, self.context
        train_loss, train_dice, rate, unlabeled = self.train_one_epoch()
        learning_rate = state.optimizer.param_groups[-1]["lr"]  # the first may be the encoder's
        start = time.perf_counter()
        context.average_batch_norm(state.model)
        epoch, losses = progress.epoch + 1, (None, None)
        validated = epoch % state.config.validate_every == 0 or epoch == progress.planned_epochs
        if validated:
            losses = self.validate()
        seconds = progress.seconds + time.perf_counter() - start
        metrics = [x if x is None else float(f"{x:.8g}") for x in (train_loss, train_dice, *losses, learning_rate)]
        values = [progress.run_id, epoch, *metrics, round(seconds, 3), round(rate, 2)]
        row = {**dict(zip(LOG_COLUMNS, values)), **unlabeled}
        progress.history.append(row)
        self.on_epoch(row)
        self._finish_epoch(losses[1])
        valid = f"valid loss {row['val_loss']:.4f} dice {row['val_dice']:.4f}" if validated else "not validated"
        print(
            f"epoch {row['epoch']:>3}/{progress.planned_epochs}  "
            f"train loss {row['train_loss']:.4f} dice {row['train_dice']:.4f}  {valid}  lr {row['learning_rate']:.1e}  "
            f"{row['seconds']:.1f} s, {row['images_per_second']:.1f} images/s"
            f"{'  best' if progress.best_epoch == row['epoch'] else ''}",
            flush=True,
        )

    def validate(self) -> tuple[float, float]:
        """Loss and Dice of the validation images, with the averaged weights where there are any."""
        state, context = self.state, self.context
        evaluated = state.model
        if state.ema:
            evaluated = state.ema.model
            context.broadcast_batch_norm(evaluated)
        # Several processes are never between the same two batches here: they finish, and stop after the epoch.
        check = self.stop.check if context.size == 1 else lambda: None
        predictor = Predictor(evaluated, self.precision)
        counts, loss = validate(predictor, self.valid_loader, self.loss_fn, check, context)
        return loss, mean_dice(counts, state.model.task)

    def _finish_epoch(self, val_dice: float | None) -> None:
        """Moves on to the next epoch. Saves where it was validated, is to be kept, or a save is due."""
        state, progress, config = self.state, self.state.progress, self.state.config
        if config.scheduler == "plateau" and val_dice is not None:
            state.scheduler.step(val_dice)
        progress.epoch, progress.step, progress.sums, progress.seconds = progress.epoch + 1, 0, None, 0.0
        kinds: list[str | int] = []
        if val_dice is not None and val_dice > progress.best_dice:
            progress.best_dice, progress.best_epoch = val_dice, progress.epoch
            kinds.append("best")
        if config.save_every and progress.epoch % config.save_every == 0:
            kinds.append(progress.epoch)
        if val_dice is not None or kinds or state.save_is_due():
            state.save(*kinds)
            state.write_log()

    def train_one_epoch(self) -> tuple[float, float, float, dict]:
        """Trains from the step where the run stands to the end of the epoch.

        Returns:
            Loss and Dice, averaged over the images of the epoch, each as it was when its step began; images a second;
            and of images without masks the share of confident pixels, and the Dice of their labels where it is known.

        Raises:
            Interrupted, PeerLostError, RunError: see `train`; the position inside the epoch is in the progress.
        """
        state, progress, context, config = self.state, self.state.progress, self.context, self.state.config
        self.sampler.epoch, self.sampler.start = progress.epoch, progress.step
        # What was done before a resume is the first process's to count.
        before = no_sums(config)
        if context.first and progress.sums is not None:
            before = progress.sums
        self.totals = totals = before.clone()
        self.forward.train()
        if config.freeze_encoder:
            state.model.freeze_encoder(progress.epoch < config.freeze_encoder)
            if progress.epoch == config.freeze_encoder:  # the wrapper of several processes knows what is trained
                self.forward = self.wrap(state.model)
        title = f"epoch {progress.epoch + 1}/{progress.planned_epochs}"
        bar = tqdm(desc=title, total=self.sampler.steps, initial=progress.step, unit="step", leave=False, disable=None)
        began, fetched = time.perf_counter() - progress.seconds, time.monotonic()
        with bar:
            for batch in self.train_loader:
                with context.peers_needed():
                    self.pending.append((self.train_batch(batch), batch["path"]))
                progress.step += 1
                progress.seconds = time.perf_counter() - began
                due = int(state.save_is_due() and context.first)
                signum, due = context.all_reduce_max(self.stop.signum, due)
                # On a GPU metrics are fetched once a second, so that it never runs out of steps to do.
                if signum or due or self.precision.device.type == "cpu" or time.monotonic() - fetched > 1:
                    self.fetch_metrics()
                    fetched = time.monotonic()
                if bar.update() and totals[2]:  # true where the bar has just been drawn
                    loss, dice = (totals[:2] / totals[2]).tolist()
                    bar.set_postfix(loss=f"{loss:.4f}", dice=f"{dice:.4f}", refresh=False)
                if signum or due:
                    progress.sums = context.all_reduce_sum(totals)
                if signum:
                    raise Interrupted(signum)
                if due:
                    state.save()
        self.fetch_metrics()
        progress.seconds = time.perf_counter() - began
        progress.sums = context.all_reduce_sum(totals)
        loss, dice, images, *others = progress.sums.tolist()
        return (
            loss / images,
            dice / images,
            images / progress.seconds,
            _unlabeled_scores(others, config.unlabeled == REST),
        )

    def train_batch(self, batch: dict) -> torch.Tensor:
        """Augments a batch, takes a step, updates average and learning rate; see `training_step`."""
        state, progress, config = self.state, self.state.progress, self.state.config
        task, epoch, step = state.model.task, progress.epoch, progress.step
        images, targets = augment_batch(batch, task, self.augmentation, self.precision.device, epoch, step)
        unlabeled, sums = None, []
        if "unlabeled" in batch:
            self.context.broadcast_batch_norm(state.ema.model)
            averaged = Predictor(state.ema.model, self.precision)
            how = self.augmentation
            unlabeled, found = pseudo_label(batch["unlabeled"], averaged, how, config.confidence, epoch, step)
            weight = config.unlabeled_weight * self.context.size / self.sampler.unlabeled_batch
            unlabeled, sums = unlabeled._replace(weight=weight), [found]
        metrics = training_step(
            self.forward,
            images,
            targets,
            state.optimizer,
            state.scaler,
            task,
            self.loss_fn,
            self.precision,
            self.context,
            self.sampler.batch_length(step),
            config.accumulate,
            None if self.teacher is None else self.teacher.probabilities(images),
            unlabeled,
            bool(config.verify_steps) and step % config.verify_steps == 0,
        )
        if state.ema:
            state.ema.update(state.model)
        if config.scheduler == "cosine":
            state.scheduler.step()
        return torch.cat([metrics, *sums])

    def fetch_metrics(self) -> None:
        """Adds the metrics of pending steps to the totals: here the host waits for the device.

        They are added one by one, so that the totals don't depend on when this is called.

        Raises:
            RunError: a loss is not finite.
        """
        progress, rows = self.state.progress, [row for row, _ in self.pending]
        for back, row in enumerate(torch.stack(rows).tolist() if rows else [], start=-len(rows)):
            self.totals += torch.tensor(row, dtype=torch.float64)
            if not math.isfinite(row[0]):
                last = self.state.path("last")
                advice = f"resume {last} with" if self.state.owns_files and last.is_file() else "start again with"
                names = ", ".join(Path(path).name for path in self.pending[back][1])
                raise RunError(
                    f"the loss is {row[0]} in epoch {progress.epoch + 1}, step {progress.step + back + 1}, on {names}; "
                    f"{advice} a smaller --learning_rate"
                )
        self.pending.clear()

    def _extrapolated_totals(self) -> torch.Tensor:
        """This process's totals of the epoch, scaled to the images of all, when the others can't be asked."""
        if self.totals is None or not self.totals[2]:
            return no_sums(self.state.config)
        images = sum(self.sampler.batch_length(step) for step in range(self.state.progress.step))
        return self.totals * (images / self.totals[2])
