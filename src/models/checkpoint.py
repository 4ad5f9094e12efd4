"""Checkpoints: what they hold, saving, loading, finding them, and rebuilding the network."""

import dataclasses
import hashlib
import os
import pickle
import re
import shutil
import types
import typing
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from models.base import SegmentationModel
from models.build import build_model
from models.names import ALIASES, DEFAULT_MODEL, DENOISING, MODELS
from models.task import Task, task_of
from runtime.errors import CheckpointError, RunError, UsageError, first_line
from runtime.files import atomic_write, sync_folder

PUBLISHED = "pets.pth"  # the network that comes with this program; see docs/model_card.md
FORMAT, FORMAT_VERSION = "pet-segmentation checkpoint", 1
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # it becomes part of file names
Plain = None | bool | int | float | str | list  # what settings and states of torch's objects consist of
Weights = dict[str, torch.Tensor]


# -------------------------------------------------------------------------------------------------------- what it holds


@dataclass(kw_only=True)
class DataRecord:
    """Which images a network was trained on.

    Args:
        split: see `Dataset.split`, and so are seed, fold and groups.
        fingerprints: of each part; see `data.layout.fingerprint`.
        train_names: the training images.
        seen_names: images that initial weights or a teacher were trained on, or that were learned without masks.
    """

    split: str
    seed: int
    fold: list[int] | None = None
    groups: dict[str, str] | None = None
    fingerprints: dict[str, str]
    train_names: list[str]
    seen_names: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Progress:
    """Where a run stands.

    Args:
        run_id: names the run in logs and files.
        planned_epochs: in all.
        epoch: finished ones.
        step: finished ones of the current epoch.
        sums: over these steps, float64 (K,); see `no_totals` in training/loop.py.
        seconds: spent on them.
        best_score: valid Dice, or the loss times -1 where there is no Dice.
        best_epoch: that had it.
        history: a row of the log per epoch.
        resumed: after which epochs.
        patient_from: the epoch after which --patience counts at the earliest.
    """

    run_id: str
    planned_epochs: int
    epoch: int = 0
    step: int = 0
    sums: torch.Tensor | None = None
    seconds: float = 0.0
    best_score: float | None = None
    best_epoch: int = 0
    history: list[dict[str, Plain]] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    patient_from: int = 0

    def is_over(self, patience: int) -> bool:
        """Whether no epoch is left, or the last one was validated and none of the last `patience` was the best.

        Patience of 0 is endless. It is counted from the epoch in which more epochs were asked for.
        """
        validated = bool(self.history) and self.history[-1]["val_loss"] is not None
        tired = 0 < patience <= self.epoch - max(self.best_epoch, self.patient_from) and validated
        return self.epoch >= self.planned_epochs or tired


@dataclass(kw_only=True)
class TrainingState:
    """What only a run that resumes needs.

    Args:
        settings: the flags that define the run and stand nowhere else in the checkpoint.
        optimizer: its state, and so are scheduler and scaler.
        random_state: of torch's global generator.
        trained_weights: where the checkpoint's are a moving average (--ema), those that the optimizer trains.
        updates: of that average.
    """

    settings: dict[str, Plain]
    optimizer: dict
    scheduler: dict | None
    scaler: dict
    random_state: torch.Tensor
    trained_weights: Weights | None = None
    updates: int = 0


@dataclass(kw_only=True)
class Checkpoint:
    """A network, how it came about, and where its run stands. It is saved as a dict of the same names.

    Args:
        model_name: and `config` are how `build_model` rebuilds the network.
        weights: its state dict; mean and standard deviation of the normalisation are in it.
        image_size: side of the square that images are resized to.
        window: see `data.view.View`.
        encoder_start: what the encoder's weights were before training, in words.
        terms: by name, what a resumed run must find again: fingerprints of a teacher's weights and of images.
        training: None in a checkpoint that can't be resumed.
    """

    model_name: str
    config: dict[str, Plain]
    weights: Weights
    image_size: int
    window: list[float] | None
    data: DataRecord
    encoder_start: str
    progress: Progress
    terms: dict[str, dict[str, Plain]] = field(default_factory=dict)
    training: TrainingState | None = None

    def __post_init__(self):
        self.encoder_start = "".join(c if c.isprintable() else "?" for c in self.encoder_start)  # a file's name
        require(self.model_name in MODELS, "model_name")
        require(16 <= self.image_size <= 4096, "image_size")
        require(type(self.channels) is int and 1 <= self.channels <= 100, "config.in_channels")
        require(
            self.window is None or (len(self.window) == 2 and 0 <= self.window[0] < self.window[1] <= 100), "window"
        )
        fold = self.data.fold or [1, 2]
        require(len(fold) == 2 and 1 <= fold[0] <= fold[1] <= 100, "data.fold")
        require(self.data.seed < 2**32, "data.seed")
        require(RUN_ID.fullmatch(self.progress.run_id) is not None, "progress.run_id")

    @property
    def channels(self) -> int:
        """Of the images."""
        return self.config.get("in_channels", 3)

    @property
    def task(self) -> Task:
        """What the network has learned. Raises ValueError: there is no such task."""
        return task_of(self.config.get("out_channels", 1), self.config.get("classes"), self.channels)

    def seen_names(self) -> set[str]:
        """Names of the images that the network, its initial weights or its teacher learned from; without folders, too."""
        names = {*self.data.train_names, *self.data.seen_names}
        return names | {name.rpartition("/")[2] for name in names}

    def without_training(self) -> "Checkpoint":
        """The same without what only a resume needs."""
        progress = self.progress
        kept = Progress(
            run_id=progress.run_id,
            planned_epochs=progress.planned_epochs,
            best_score=progress.best_score,
            best_epoch=progress.best_epoch,
        )
        return dataclasses.replace(self, progress=kept, training=None)

    def build(self, path) -> SegmentationModel:
        """The network with its weights, in evaluation mode on the CPU.

        Raises:
            UsageError: it does not segment.
            CheckpointError: the weights don't fit the network.
        """
        try:
            if self.task.name == DENOISING:
                raise UsageError(
                    f"{path} was pre-trained by denoising and can't segment yet; give it to train.py as --init"
                )
            model = build_model(self.model_name, **self.config)
            model.load_state_dict(self.weights)
        except (RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path}: its weights do not fit the network it names ({first_line(error)}); use another one"
            ) from None
        return model.eval()

    def give_weights(self, model: SegmentationModel, path) -> str:
        """Gives a network the weights, but for the head if that has learned another task.

        Returns:
            What the network starts from, in words.

        Raises:
            CheckpointError: they don't fit.
        """
        same = self.task.name == model.task.name
        head = {} if same else {key: value for key, value in model.state_dict().items() if key.startswith("head.")}
        try:
            model.load_state_dict({**self.weights, **head})
        except RuntimeError as error:
            raise CheckpointError(
                f"{path}: its weights do not fit the network it names ({first_line(error)}); use another one"
            ) from None
        return f"from {Path(path).name}, like {'the whole network' if same else 'all but the head'}"

    def fingerprint(self) -> str:
        """SHA-256 over the weights: tells whether two files hold the same network."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            digest.update(name.encode())
            digest.update(self.weights[name].contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def require(condition: bool, place: str) -> None:
    """Raises ValueError: the value at this place is impossible."""
    if not condition:
        raise ValueError(f"{place} has an impossible value")


def parse(hint, value, place: str):
    """A value from a file as an object of an annotated type; dicts become the dataclasses that they were.

    Raises:
        ValueError: it is of another type, a negative int, or a weight that is not finite.
    """
    options = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        if value is None and types.NoneType in options:
            return None
        kind = next(
            (o for o in options if type(value) is (typing.get_origin(o) or o) or dataclasses.is_dataclass(o)), None
        )
        require(kind is not None, place)
        return parse(kind, value, place)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        require(type(value) is dict and value.keys() == hints.keys(), place)
        return hint(**{name: parse(kind, value[name], f"{place}.{name}".lstrip(".")) for name, kind in hints.items()})
    kind = typing.get_origin(hint) or hint
    if kind is float and type(value) is int:
        value = float(value)
    if kind is torch.Tensor:
        require(is_sound(value), place)
        return value
    require(type(value) is kind, place)
    if kind is int:
        require(0 <= value < 1 << 40, place)
    elif kind is list:
        return [parse(options[0] if options else Plain, item, place) for item in value]
    elif kind is dict and options:
        require(all(type(key) is options[0] for key in value), place)
        return {key: parse(options[1], item, f"{place}.{key}") for key, item in value.items()}
    return value


def is_sound(value) -> bool:
    """Whether this is a tensor of finite values that all lie in the file: none is repeated to make it larger."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
        and bool(torch.isfinite(value).all())
    )


# -------------------------------------------------------------------------------------------------------- save and load


def save_checkpoint(checkpoint: Checkpoint, paths: list[Path]) -> None:
    """Writes one checkpoint under several names, in the order given, each of them atomically.

    Args:
        checkpoint: what to write.
        paths: in one folder. The first is written, the others are links to it (copies where the file system has no
            links): a file is only ever replaced, never changed, so they stay independent.

    Raises:
        RunError: a weight is not finite; nothing is written.
        OSError: the disk is full, or the like; the old files stay.
    """
    broken = [k for k, v in checkpoint.weights.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise RunError(
            f"{len(broken)} weights are not finite ({broken[0]}, ...), so nothing was saved; the last good checkpoint "
            f"is still in {paths[-1].parent}: go on from it with --resume and a smaller --learning_rate"
        )
    with atomic_write(paths[0], "wb") as file:
        try:
            torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **_as_dict(checkpoint)}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's archive writer hides the file system's error
                raise error.__context__ from None
            raise
    for path in paths[1:]:
        link_checkpoint(paths[0], path)


def _as_dict(record) -> dict:
    """A dataclass, and those in it, as dicts; dataclasses.asdict would copy every tensor."""
    return {k: _as_dict(v) if dataclasses.is_dataclass(v) else v for k, v in vars(record).items()}


def link_checkpoint(source: Path, path: Path) -> None:
    """Puts a checkpoint under another name as well, atomically: a link, or a copy where there are no links."""
    temporary = path.with_name(f".{path.name}.link.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        with source.open("rb") as original, atomic_write(path, "wb") as copy:
            shutil.copyfileobj(original, copy)
    else:
        temporary.replace(path)
        sync_folder(path.parent)


def load_checkpoint(path) -> Checkpoint:
    """Reads a checkpoint onto the CPU, after verifying its checksums and before anything is built from it.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, of another program or version, holds more than
            tensors and plain values, or an entry is of another type than train.py writes.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; {_alternatives(path)}")
    content = _read(path, verify=True)
    if type(content) is not dict or content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is a file of another program; use a checkpoint that train.py made")
    if content.pop("format_version", None) != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is of another version of this program (its format is not {FORMAT_VERSION}); use that version, or "
            "train again"
        )
    try:
        checkpoint = parse(Checkpoint, content, "")
        _ = checkpoint.task  # raises where the config names none
        return checkpoint
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is malformed: {first_line(error)}; use another checkpoint, or train again"
        ) from None


def _read(path: Path, verify: bool):
    """The content of a checkpoint's file; see `read_archive`. Raises CheckpointError: see `load_checkpoint`."""
    try:
        return read_archive(path, verify)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: {error}; use a checkpoint of train.py") from None
    except Exception as error:  # noqa: BLE001  zipfile and torch raise anything on damaged files
        raise CheckpointError(
            f"{path} is truncated, damaged, or no checkpoint ({first_line(error)}); {_alternatives(path)}"
        ) from None


def read_archive(path: Path, verify: bool = True):
    """The content of a file of torch.save, on the CPU.

    Args:
        path: of the file.
        verify: compare its checksums first, which torch writes and does not read; else the file is mapped.

    Raises:
        UnpicklingError: it holds more than tensors and plain values.
        Exception: it is damaged, or no such file.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise zipfile.BadZipFile("its entries are larger than the file")
        if any(entry.external_attr for entry in entries):  # torch would read a folder as a tensor of what is in memory
            raise zipfile.BadZipFile("an entry is no file")
        damaged = archive.testzip() if verify else None
        if damaged:
            raise zipfile.BadZipFile(f"checksum of {damaged} is wrong")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of odd files
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=not verify)
        except pickle.UnpicklingError:  # its message says how to load the file all the same
            raise pickle.UnpicklingError("it holds more than tensors and plain values") from None


def _alternatives(path: Path) -> str:
    """What to use instead of a checkpoint that is missing or damaged: of the same model where there is any."""
    model = re.sub(r"_(best|last|epoch_\d+).*", "_", path.stem)
    files = sorted((p for p in path.parent.glob("*.pth") if p != path), key=lambda p: -p.stat().st_mtime)
    files = [p for p in files if p.name.startswith(model)] or files
    if not files:
        return "train one with `python src/train.py`"
    return f"in {path.parent} there is {', '.join(p.name for p in files[:6])}{', ...' if len(files) > 6 else ''}"


# --------------------------------------------------------------------------------------------------------- finding them


def checkpoint_path(save_dir, model_name: str, kind: str | int) -> Path:
    """The file of a model's checkpoint: kind is `best`, `last` or the number of an epoch."""
    return Path(save_dir) / f"{model_name}_{kind if isinstance(kind, str) else f'epoch_{kind:03d}'}.pth"


def find_checkpoint(save_dir, model_name: str | None, kind: str) -> Path:
    """The `best` or `last` checkpoint of a model; of the newest one where no model is named.

    Where no model is named and none has a best one, it is the published one, if the folder has that.
    """
    if model_name is not None:
        return checkpoint_path(save_dir, model_name, kind)
    files = [p for p in (checkpoint_path(save_dir, name, kind) for name in MODELS) if p.is_file()]
    if not files and kind == "best" and (published := Path(save_dir) / PUBLISHED).is_file():
        return published
    return max(files, key=lambda p: p.stat().st_mtime) if files else checkpoint_path(save_dir, DEFAULT_MODEL, kind)


def open_checkpoint(
    model_path: str | None, model_name: str | None, save_dir: str
) -> tuple[SegmentationModel, Checkpoint, Path]:
    """A network in evaluation mode, its checkpoint and the path, as users name them.

    Args:
        model_path: of the checkpoint; None for the best one of a model in `save_dir`.
        model_name: must agree with the file; None agrees with any.
        save_dir: folder of checkpoints.

    Raises:
        UsageError: there is no such model, or the name contradicts the file; see also `load_checkpoint`.
    """
    name = ALIASES.get(model_name, model_name)
    if name is not None and name not in MODELS:
        raise UsageError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
    path = Path(model_path or find_checkpoint(save_dir, name, "best"))
    if model_path is None and path.name == PUBLISHED:
        print(f"{save_dir} has no *_best.pth of your own; using {path}, which comes with this program.", flush=True)
    checkpoint = load_checkpoint(path)
    if name not in (None, checkpoint.model_name):
        raise UsageError(
            f"{path} holds a {checkpoint.model_name}, but --model_name says {name}; leave the flag out, or name "
            "another file"
        )
    return checkpoint.build(path), checkpoint, path


def read_progress(path: Path) -> Progress | None:
    """The progress of a checkpoint, without reading its weights; None where it is missing, damaged, or not ours."""
    if not path.is_file() or path.suffix != ".pth":
        return None
    try:
        content = _read(path, verify=False)
        return parse(Progress, content["progress"] if type(content) is dict else None, "progress")
    except (CheckpointError, ValueError, LookupError):
        return None


def resumed_after(save_dir, model_name: str, run_id: str) -> list[int]:
    """After which epochs a run was resumed, as far as a checkpoint of it is still there."""
    for path in (checkpoint_path(save_dir, model_name, "last"), Path(save_dir) / f"{model_name}_last_{run_id}.pth"):
        progress = read_progress(path)
        if progress is not None and progress.run_id == run_id:
            return progress.resumed
    return []
