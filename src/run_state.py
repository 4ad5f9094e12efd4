"""A training run's state: where it stands, how it is saved and taken up again, which files are its own."""

import contextlib
import os
import re
import secrets
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import cli
import utils
from checkpoint import checkpoint_path, find_checkpoint, load_checkpoint, run_id_of, save_checkpoint

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
# What a resumed run keeps: the flags that make it what it is, and those that may be changed on the way.
CHANGEABLE = (
    "learning_rate",
    "save_every",
    "checkpoint_minutes",
    "deterministic",
    "amp",
    "accumulate",
    "checkpoint_activations",
    "compile",
)
SETTINGS = (
    *CHANGEABLE,
    "model_name",
    "batch_size",
    "augment",
    "num_augmentations",
    "color_jitter",
    "augment_uncertain",
    "encoder_weights",
    "split",
    "image_size",
    "loss",
    "scheduler",
    "seed",
    "recipe",
    "optimizer",
    "weight_decay",
    "ema",
    "augment_strength",
    "multi_scale",
    "mix",
    "attention",
    "classes",
    "train_fraction",
)


@dataclass
class Progress:
    """Where a run stands. Plain values and one tensor: it goes into the checkpoint as it is."""

    run_id: str
    planned_epochs: int
    epoch: int = 0  # finished ones
    step: int = 0  # finished ones of the epoch under way
    sums: torch.Tensor | None = None  # of loss, Dice and images over these steps
    seconds: float = 0.0  # spent on them
    best_dice: float = -1.0
    best_epoch: int = 0
    history: list[dict] = field(default_factory=list)  # a row of the log per epoch
    resumed: list[int] = field(default_factory=list)  # after which epochs


class RunState:
    """Everything that a checkpoint must hold for a run to go on exactly where it was.

    Args:
        args: the flags, settled by `settle_flags`.
        model: the network on its device.
        average: of its weights, or None.
        optimizer: of its parameters.
        scheduler: of the learning rate, or None.
        scaler: of the loss, for fp16.
        data: what the checkpoint records of the data.
        encoder_start: in words, what the encoder started from.
        progress: where the run stands.
        claim: from `claim_names`, held as long as the run may write; None for a process that must not.
    """

    def __init__(
        self, args, model, average, optimizer, scheduler, scaler, data, encoder_start: str, progress: Progress, claim
    ):
        self.args, self.model, self.average = args, model, average
        self.optimizer, self.scheduler, self.scaler = optimizer, scheduler, scaler
        self.data, self.encoder_start, self.progress, self.claim = data, encoder_start, progress, claim
        self.last_save = time.monotonic()
        self.owns_names = False  # until the first save, the files under this model's names may be another run's

    def path(self, kind) -> Path:
        """Path of this run's checkpoint of a kind: best, last, or the number of an epoch."""
        return checkpoint_path(self.args.save_dir, self.args.model_name, kind)

    def save(self, *kinds) -> None:
        """Saves under the names of these kinds, and then as last."""
        if self.claim is None:
            return
        content = {
            "model": {"name": self.args.model_name, "config": self.model.config},
            "weights": (self.average or self).model.state_dict(),
            "preprocessing": {"image_size": self.args.image_size},
            "data": self.data,
            "encoder_start": self.encoder_start,
            "settings": {name: getattr(self.args, name) for name in SETTINGS},
            "progress": asdict(self.progress),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "scaler": self.scaler.state_dict(),
            "random_state": torch.get_rng_state(),
        }
        if self.average:
            content["average"] = {"updates": self.average.updates, "trained_weights": self.model.state_dict()}
        self.take_names()
        save_checkpoint(content, [self.path(kind) for kind in (*kinds, "last")])
        self.last_save = time.monotonic()

    def take_names(self) -> None:
        """Once, before the first write: moves files of other runs, or of a later state of this one, out of the way."""
        for moved in [] if self.owns_names else archive_files(self.args):
            print(f"An earlier file is now {moved}.", flush=True)
        self.owns_names = True

    def restore(self, content: dict, resumed_from: Path) -> None:
        """Takes over the state of a checkpoint."""
        self.owns_names = same_file(resumed_from, self.path("last"))
        average = content.get("average", {})
        self.model.load_state_dict(average.get("trained_weights", content["weights"]))
        if self.average:
            self.average.model.load_state_dict(content["weights"])
            self.average.updates = average["updates"]
        # Fused or not is what suits this device, not the one that the checkpoint is from; and before the state is
        # loaded, since that decides where its counts of steps must be.
        both = zip(content["optimizer"]["param_groups"], self.optimizer.param_groups)
        groups = [{**saved, "fused": here["fused"]} for saved, here in both]
        self.optimizer.load_state_dict({**content["optimizer"], "param_groups": groups})
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if value.shape == parameter.shape:  # the fused kernel takes it for granted that their layouts agree
                    state[name] = torch.empty_like(parameter).copy_(value)
        if content.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])
        if self.scheduler:
            self.scheduler.load_state_dict(content["scheduler"])
        torch.set_rng_state(content["random_state"])
        if self.args.learning_rate != content["settings"]["learning_rate"]:
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] = self.args.learning_rate
            if hasattr(self.scheduler, "lr_lambdas"):  # cosine: the new rate is the top of what is left of the curve
                self.scheduler.base_lrs = [self.args.learning_rate] * len(self.optimizer.param_groups)
                factor = self.scheduler.lr_lambdas[0](self.scheduler.last_epoch)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.args.learning_rate * factor

    def write_log(self) -> None:
        """Writes the log anew from the history that the checkpoint holds, so that the two can't disagree."""
        if self.claim is None:
            return
        log = Path(self.args.log_dir) / f"{self.args.model_name}_training_log.csv"
        utils.write_rows(log, self.progress.history, LOG_COLUMNS)


def resume_source(args, given: dict) -> Path | None:
    """The checkpoint that --resume means; None for a new run."""
    if args.resume is None:
        return None
    if args.resume is not True:
        return Path(args.resume)
    return find_checkpoint(args.save_dir, args.model_name if "model_name" in given else None, "last")


def settle_flags(args, given: dict, unset: dict, content: dict, path: Path) -> None:
    """Puts a resumed run's own settings into `args`.

    Args:
        args: the flags.
        given: only those on the command line.
        unset: the flags as they are when none is given.
        content: of the checkpoint.
        path: of the checkpoint.

    Raises:
        UsageError: the checkpoint can't be resumed, or a flag on the command line differs from its settings.
    """
    if not {"settings", "progress", "optimizer", "scheduler", "random_state"} <= set(content):
        raise cli.UsageError(
            f"{path} holds a model but no state of training, so no run can go on from it; name another"
        )
    # What an older checkpoint says nothing of, was as it is today without a flag.
    settings = {**{name: unset[name] for name in SETTINGS if name not in CHANGEABLE}, **content["settings"]}
    kept = [name for name in SETTINGS if name in settings and not (name in CHANGEABLE and name in given)]
    differing = [
        f"{name} {settings[name]} (now {given[name]})"
        for name in kept
        if given.get(name, settings[name]) != settings[name]
    ]
    if differing:
        raise cli.UsageError(
            f"{path} was trained with {', '.join(differing)}; leave these flags out to go on, or start a new run "
            "without --resume"
        )
    for name in kept:
        setattr(args, name, settings[name])


def start_progress(args, given: dict, content: dict | None, resumed_from: Path | None) -> Progress:
    """A new run's beginning, or where the resumed one stands; --epochs are then epochs more.

    A best score counts only where its checkpoint stands beside the one that is resumed: else the next epoch is the best
    so far and writes one.
    """
    if content is None:
        return Progress(f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}", args.epochs)
    progress = Progress(**content["progress"])
    progress.resumed = [*progress.resumed, progress.epoch]
    if "epochs" in given:
        progress.planned_epochs = progress.epoch + args.epochs
    progress.best_dice, progress.best_epoch = -1.0, 0
    if same_file(resumed_from, checkpoint_path(args.save_dir, args.model_name, "last")):
        best = checkpoint_path(args.save_dir, args.model_name, "best")
        try:
            record = load_checkpoint(best).get("progress", {}) if best.is_file() else {}
        except cli.UsageError as error:
            print(f"WARNING: {error}. The next epoch becomes the best.", file=sys.stderr)
            record = {}
        # A kill between the writing of best and last leaves a best that is an epoch ahead: the score never falls back.
        if record.get("run_id") == progress.run_id:
            progress.best_dice, progress.best_epoch = record["best_dice"], record["best_epoch"]
    return progress


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths lead to one file that is there."""
    return a.is_file() and b.is_file() and a.resolve() == b.resolve()


def claim_names(args) -> contextlib.ExitStack:
    """Makes this process the only one that writes the files of this model, and sweeps what a killed one left half done.

    Returns:
        The claim. It lasts until it is closed or the process ends, however it ends.

    Raises:
        UsageError: another run has the claim.
    """
    claim = contextlib.ExitStack()
    for folder in {Path(args.save_dir).resolve(), Path(args.log_dir).resolve()}:
        path = folder / f".{args.model_name}.lock"
        try:
            file = claim.enter_context(utils.lock_file(path, wait=False))
        except BlockingIOError:
            raise cli.UsageError(
                f"another run ({path.read_text().strip() or 'just starting'}) is writing files of {args.model_name} in "
                f"{folder}; wait until it ends, or give this one a --save_dir and a --log_dir of its own"
            ) from None
        except OSError as error:
            raise cli.UsageError(
                f"{path} can't be locked ({error.strerror}), so two runs could write the same files; name folders on "
                "another disk with --save_dir and --log_dir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    for folder, name in ((args.save_dir, args.model_name), (args.log_dir, f"{args.model_name}_training_log.csv")):
        for leftover in Path(folder).glob(f".{name}*.tmp"):
            leftover.unlink(missing_ok=True)
    return claim


def run_files(args) -> list[Path]:
    """The files under the names that a run of this model writes."""
    saved = Path(args.save_dir)
    kinds = [checkpoint_path(saved, args.model_name, kind) for kind in ("best", "last")]
    epochs = [p for p in saved.glob(f"{args.model_name}_epoch_*.pth") if re.search(r"_epoch_\d+$", p.stem)]
    log = Path(args.log_dir) / f"{args.model_name}_training_log.csv"
    return [p for p in (*kinds, *sorted(epochs), log) if p.is_file()]


def archive_files(args) -> list[Path]:
    """Renames the files under the names of a model so that each carries the id of the run that wrote it.

    Returns:
        The new names. None of them was there before.
    """
    moved = []
    for path in run_files(args):
        rows = []
        if path.suffix == ".csv":
            with contextlib.suppress(cli.UsageError):  # whoever changed it by hand, it is only to be renamed
                rows = utils.read_rows(path)
        owner = (rows[0].get("run_id") if rows else run_id_of(path)) or time.strftime(
            "unknown-%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime)
        )
        target, number = path.with_name(f"{path.stem}_{owner}{path.suffix}"), 1
        while target.exists():
            number += 1
            target = path.with_name(f"{path.stem}_{owner}-{number}{path.suffix}")
        moved.append(path.rename(target))
    return moved
