"""The training loop: steps, epochs, and what happens between them."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

import cli
import utils
from batches import EpochOrder
from distributed import PeerLostError, Team
from metrics import summarize
from mixing import mix
from models import pet_logits
from pictures import BACKGROUND
from precision import Precision, to_device
from run_state import LOG_COLUMNS, RunState
from scoring import measure

TARGETS = {"binary": "mask", "trimap": "trimap"}  # what of a sample the network learns, by --classes
SIDES, MIXING = 2, 3  # purposes under which steps draw their random numbers; see utils.AUGMENTATION
MIXED = 0.5  # share of the pictures that --mix changes


@dataclass
class Training:
    """What the loop works with."""

    state: RunState
    forward: torch.nn.Module  # the state's model, wrapped for several processes, compiled
    order: EpochOrder
    train_loader: DataLoader
    valid_loader: DataLoader
    loss_fn: Callable
    precision: Precision
    team: Team
    stop: cli.StopRequest
    sums: torch.Tensor | None = None  # loss, Dice and images of this process's share of the epoch, float64 (3,)
    recent: list = field(default_factory=list)  # figures of steps, and their pictures, not yet fetched from the device


def training_step(run: Training, batch: dict) -> torch.Tensor:
    """One step of the optimizer, on this process's share of the batch, in as many pieces as --accumulate says.

    Nothing in here waits for the device.

    Returns:
        float (3,) on the device: the share's sums of loss and Dice, and its size.
    """
    state = run.state
    images, targets = vary(run, batch)
    images = run.precision.move(images)
    state.optimizer.zero_grad(set_to_none=True)
    # As many pieces in all processes as the smallest share allows: batch norms on GPUs wait for each other in each.
    length = run.order.batch_length(state.progress.step)
    count = min(state.args.accumulate, length // run.team.size)
    # Losses are means: each piece counts by its share of the whole batch, and the mean over processes is undone.
    per_image = run.team.size / length
    pieces = list(zip(images.tensor_split(count), targets.tensor_split(count)))
    rows = []
    for number, (some_images, some_targets) in enumerate(pieces, start=1):
        apart = run.team.size > 1 and number < len(pieces)  # gradients are exchanged once, when all are there
        with run.forward.no_sync() if apart else contextlib.nullcontext():
            with run.precision.autocast():
                logits = run.forward(some_images)
            loss = run.loss_fn(logits, some_targets)
            state.scaler.scale(loss * (len(some_images) * per_image)).backward()
        with torch.no_grad():
            pet = some_targets if logits.shape[1] == 1 else some_targets != BACKGROUND
            dice = utils.dice_score(pet_logits(logits) > 0, pet).sum()
            rows.append(torch.stack([loss.detach() * len(logits), dice, torch.full_like(dice, len(logits))]))
    state.scaler.unscale_(state.optimizer)
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), max_norm=1.0)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.average:
        state.average.update(state.model)
    if state.args.scheduler == "cosine":
        state.scheduler.step()
    return torch.stack(rows).sum(0)


def vary(run: Training, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and what the network should say of them, on the device, augmented, at the size of this step."""
    args, device = run.state.args, run.precision.device
    images, targets = (to_device(batch[name], device) for name in ("image", TARGETS[args.classes]))
    if "affine" in batch:
        images, targets = utils.apply_augmentations(images, targets, to_device(batch["affine"], device))
    if "colours" in batch:
        images = utils.apply_colours(images, to_device(batch["colours"], device))
    if args.mix != "none":
        images, targets = mix(images, targets, args.mix, MIXED, step_rng(run, MIXING))
    if args.multi_scale:
        side = draw_side(step_rng(run, SIDES), args.image_size, run.state.model.stride, args.multi_scale)
        images = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
        targets = F.interpolate(targets.float(), (side, side), mode="nearest-exact").to(torch.uint8)
    return images, targets


def step_rng(run: Training, purpose: int) -> np.random.Generator:
    """The random numbers of a step, for one purpose, from seed, epoch and step alone: the same in all processes."""
    return np.random.default_rng([run.state.args.seed, run.state.progress.epoch, run.state.progress.step, purpose])


def possible_sides(size: int, stride: int, share: float) -> list[int]:
    """Sides within `share` of `size`: itself, and multiples of the stride, of which batch norm needs two at least."""
    first, last = math.ceil(size * (1 - share) / stride), math.floor(size * (1 + share) / stride)
    return sorted({size, *(stride * k for k in range(max(2, first), last + 1))})


def draw_side(rng: np.random.Generator, size: int, stride: int, share: float) -> int:
    """Draws the side of a step's pictures, in pixels; see `possible_sides`."""
    return int(rng.choice(possible_sides(size, stride, share)))


def fetch_figures(run: Training, sums: torch.Tensor) -> None:
    """Adds the figures of recent steps to their sums, float64 (3,): here the host waits for the device.

    They are added one by one, so that the sums don't depend on when this is called.

    Raises:
        RunError: a loss is not finite.
    """
    progress, rows = run.state.progress, [row for row, _ in run.recent]
    for back, row in enumerate(torch.stack(rows).tolist() if rows else [], start=-len(rows)):
        sums += torch.tensor(row, dtype=torch.float64)
        if not math.isfinite(row[0]):
            names = ", ".join(Path(path).name for path in run.recent[back][1])
            raise cli.RunError(
                f"the loss is {row[0]} in epoch {progress.epoch + 1}, step {progress.step + back + 1}, on {names}; "
                f"{last_good(run.state)}a smaller --learning_rate"
            )
    run.recent.clear()


def last_good(state: RunState) -> str:
    """How to go on after a failure, for the end of an error's text."""
    last = state.path("last")
    return f"go on from {last} with --resume and " if state.owns_names and last.is_file() else "start again with "


def train_one_epoch(run: Training) -> tuple[float, float, float]:
    """Trains from the step where the run stands to the end of the epoch.

    Returns:
        Loss and Dice, averaged over the images of the whole epoch, each as it was when its step began; images a second.

    Raises:
        Interrupted: a signal came to any process; the position inside the epoch is in the progress.
        PeerLostError: another process is gone; likewise.
        RunError: the loss is not finite.
    """
    state, progress, team = run.state, run.state.progress, run.team
    run.order.epoch, run.order.start = progress.epoch, progress.step
    # What was done before a resume is the first process's to count.
    before = progress.sums if team.first and progress.sums is not None else torch.zeros(3, dtype=torch.float64)
    run.sums = sums = before.clone()
    run.forward.train()
    title = f"epoch {progress.epoch + 1}/{progress.planned_epochs}"
    bar = tqdm(desc=title, total=run.order.steps, initial=progress.step, unit="step", leave=False, disable=None)
    began, looked = time.perf_counter() - progress.seconds, time.monotonic()
    with bar:
        for batch in run.train_loader:
            with team.peers_needed():
                run.recent.append((training_step(run, batch), batch["path"]))
            progress.step += 1
            progress.seconds = time.perf_counter() - began
            due = time.monotonic() - state.last_save > 60 * state.args.checkpoint_minutes
            signum, due = team.largest(run.stop.signum, int(due and team.first))
            # On a GPU the figures are looked at once a second, so that it never runs out of steps to do.
            if signum or due or run.precision.device.type == "cpu" or time.monotonic() - looked > 1:
                fetch_figures(run, sums)
                looked = time.monotonic()
            if bar.update() and sums[2]:  # true where the bar has just been drawn
                bar.set_postfix(loss=f"{sums[0] / sums[2]:.4f}", dice=f"{sums[1] / sums[2]:.4f}", refresh=False)
            if signum or due:
                progress.sums = team.total(sums)
            if signum:
                raise cli.Interrupted(signum)
            if due:
                state.save()
    fetch_figures(run, sums)
    progress.seconds = time.perf_counter() - began
    progress.sums = team.total(sums)
    loss, dice, images = progress.sums.tolist()
    return loss / images, dice / images, images / progress.seconds


def run_epoch(run: Training) -> dict:
    """Trains and validates one epoch, saves, logs. Returns the row of the log."""
    state, progress, args = run.state, run.state.progress, run.state.args
    train_loss, train_dice, rate = train_one_epoch(run)
    learning_rate = state.optimizer.param_groups[0]["lr"]
    start = time.perf_counter()
    run.team.average_statistics(state.model)
    used = state.model  # and saved to be used
    if state.average:
        used = state.average.model
        run.team.take_statistics(used)
    # Several processes are never between the same two batches here: they finish, and stop after the epoch.
    check = run.stop.check if run.team.size == 1 else lambda: None
    counts, val_loss = measure(used, run.valid_loader, run.precision, run.loss_fn, check, "validating", run.team)
    seconds = progress.seconds + time.perf_counter() - start
    val_dice = summarize(counts)["dice"]
    figures = [float(f"{x:.8g}") for x in (train_loss, train_dice, val_loss, val_dice, learning_rate)]
    row = [progress.run_id, progress.epoch + 1, *figures, round(seconds, 3), round(rate, 2)]
    progress.history.append(dict(zip(LOG_COLUMNS, row)))

    if args.scheduler == "plateau":
        state.scheduler.step(val_dice)
    progress.epoch, progress.step, progress.sums, progress.seconds = progress.epoch + 1, 0, None, 0.0
    kinds = []
    if val_dice > progress.best_dice:
        progress.best_dice, progress.best_epoch = val_dice, progress.epoch
        kinds.append("best")
    if args.save_every and progress.epoch % args.save_every == 0:
        kinds.append(progress.epoch)
    state.save(*kinds)
    state.write_log()
    return progress.history[-1]


def train(run: Training, resume_line: str) -> None:
    """Runs the epochs that are left; on a signal, or when another process is lost, saves where it stands."""
    state, progress = run.state, run.state.progress
    try:
        while progress.epoch < progress.planned_epochs:
            row = run_epoch(run)
            print(
                f"epoch {row['epoch']:>3}/{progress.planned_epochs}  "
                f"train loss {row['train_loss']:.4f} dice {row['train_dice']:.4f}  "
                f"valid loss {row['val_loss']:.4f} dice {row['val_dice']:.4f}  lr {row['learning_rate']:.1e}  "
                f"{row['seconds']:.1f} s, {row['images_per_second']:.1f} images/s"
                f"{'  best' if progress.best_epoch == row['epoch'] else ''}",
                flush=True,
            )
            (signum,) = run.team.largest(run.stop.signum)
            if signum and progress.epoch < progress.planned_epochs:
                raise cli.Interrupted(signum)
    except (cli.Interrupted, PeerLostError) as reason:
        if isinstance(reason, PeerLostError):
            progress.sums = own_figures_for_all(run)
        state.save()
        print(f"Stopped in epoch {progress.epoch + 1} after step {progress.step}; saved {state.path('last')}.")
        print(f"To go on: {resume_line}", flush=True)
        if isinstance(reason, cli.Interrupted):
            run.team.wait()  # the others stay until all is saved: torchrun ends a job when one process ends
        raise


def own_figures_for_all(run: Training) -> torch.Tensor:
    """This process's figures of the epoch so far, scaled to the images of all, when the others can't be asked."""
    if run.sums is None or not run.sums[2]:
        return torch.zeros(3, dtype=torch.float64)
    images = sum(run.order.batch_length(step) for step in range(run.state.progress.step))
    return run.sums * (images / run.sums[2])
