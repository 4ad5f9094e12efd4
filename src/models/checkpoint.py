"""Checkpoints: what they hold, saving, loading, finding them, and rebuilding the network."""

import contextlib
import dataclasses
import hashlib
import io
import pickle
import re
import shlex
import types
import typing
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from models.base import SegmentationModel
from models.build import build_model
from models.names import ATTENTION, DECODERS, DEFAULT_MODEL, DENOISING, MODELS
from models.task import Task, task_of
from runtime.errors import CheckpointError, RunError, UsageError, first_line, plural
from runtime.files import atomic_write

# The network that comes with this program, and its folder; see docs/model_card.md.
PUBLISHED, HOME = "pets.pth", Path(__file__).resolve().parents[2] / "saved_models"
FORMAT, FORMAT_VERSION = "pet-segmentation checkpoint", 1
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # it becomes part of file names
Plain = None | bool | int | float | str | list  # what settings and states of torch's objects consist of
Weights = dict[str, torch.Tensor]


@dataclass(kw_only=True)
class DataRecord:
    """Which images a network was trained on. Groups and limit are those of `Dataset`, the others of its `split`."""

    split: str
    seed: int
    fold: list[int] | None = None
    groups: dict[str, str] | str | None = None  # None is `near`
    limit: int | None = None
    fingerprints: dict[str, str]  # by part; see `data.layout.fingerprint`
    train_names: list[str]
    seen_names: list[str] = field(default_factory=list)  # by initial weights or a teacher, or learned without masks


@dataclass(kw_only=True)
class Progress:
    """Where a run stands."""

    run_id: str  # names it in logs and files
    planned_epochs: int  # in all
    epoch: int = 0  # finished ones
    step: int = 0  # finished ones of the current epoch
    sums: torch.Tensor | None = None  # over these steps, float64 (K,); see training/step.py
    seconds: float = 0.0  # spent on them
    best_score: float | None = None  # valid Dice, or the loss times -1 where there is no Dice
    best_epoch: int = 0
    history: list[dict[str, Plain]] = field(default_factory=list)  # a row of the log per epoch
    resumed: list[int] = field(default_factory=list)  # after which epochs
    patient_from: int = 0  # the epoch after which --patience counts at the earliest

    def is_over(self, patience: int) -> bool:
        """Whether no epoch is left, or none of the last `patience` was the best.

        Patience of 0 is endless. It is counted from the epoch in which more epochs were asked for.
        """
        tired = 0 < patience <= self.epoch - max(self.best_epoch, self.patient_from)
        return self.epoch >= self.planned_epochs or tired


@dataclass(kw_only=True)
class TrainingState:
    """What only a run that resumes needs: its flags that stand nowhere else, and the states of torch's objects."""

    settings: dict[str, Plain]
    optimizer: dict
    scaler: dict
    random_state: torch.Tensor  # of torch's global generator
    trained_weights: Weights | None = None  # with --ema, whose averages are the checkpoint's weights
    updates: int = 0  # of these averages


@dataclass(kw_only=True)
class Checkpoint:
    """A network, how it came about, and where its run stands. It is saved as a dict of the same names."""

    model_name: str
    config: dict[str, Plain]  # arguments of the network's constructor
    weights: Weights  # with mean and standard deviation of the normalisation
    image_size: int  # side of the square that images are resized to
    data: DataRecord
    encoder_start: str  # what the encoder's weights were before training, in words
    progress: Progress
    terms: dict[str, dict[str, Plain]] = field(default_factory=dict)  # by name, what a resumed run must give again
    training: TrainingState | None = None  # None where the run can't be resumed

    def __post_init__(self):
        fold, sums = self.data.fold or [1, 2], self.progress.sums
        require(self.model_name in MODELS, "model_name")
        require(16 <= self.image_size <= 4096, "image_size")
        require(self.config.get("attention", "none") in ATTENTION, "config.attention")
        require(self.config.get("decoder", "plain") in DECODERS, "config.decoder")
        require(type(self.channels) is int and 1 <= self.channels <= 100, "config.in_channels")
        require(len(fold) == 2 and 1 <= fold[0] <= fold[1] <= 100, "data.fold")
        require(RUN_ID.fullmatch(self.progress.run_id) is not None, "progress.run_id")
        require(sums is None or (sums.ndim == 1 and len(sums) > 1 and sums.dtype == torch.float64), "progress.sums")
        _ = self.task  # which raises where there is none

    @property
    def channels(self) -> int:
        return self.config.get("in_channels", 3)

    @property
    def task(self) -> Task:
        """What the network has learned."""
        return task_of(self.config.get("out_channels", 1), self.config.get("classes"), self.channels)

    def seen_names(self) -> set[str]:
        """The images that the network, its start or its teacher learned from, by name with and without folder."""
        names = {*self.data.train_names, *self.data.seen_names}
        return names | {name.rpartition("/")[2] for name in names}

    def without_training(self) -> "Checkpoint":
        """The same without what only a resume needs."""
        kept = ("run_id", "planned_epochs", "best_score", "best_epoch")
        progress = Progress(**{name: getattr(self.progress, name) for name in kept})
        return dataclasses.replace(self, progress=progress, training=None)

    def build(self, path) -> SegmentationModel:
        """The network with its weights, in evaluation mode on the CPU; the path is that of the file."""
        if self.task.name == DENOISING:
            raise UsageError(f"{path} was pre-trained and can't segment yet; give it to train.py as --init")
        with fitting(path):
            model = build_model(self.model_name, **self.config)
            model.load_state_dict(self.weights)
        return model.eval()

    def give_weights(self, model: SegmentationModel, path) -> str:
        """Gives a network the weights, but for the head of another task; returns in words what it starts from."""
        same = self.task.name == model.task.name
        head = {} if same else {key: value for key, value in model.state_dict().items() if key.startswith("head.")}
        with fitting(path):
            model.load_state_dict({**self.weights, **head})
        return f"from {Path(path).name}, like {'the whole network' if same else 'all but the head'}"

    def fingerprint(self) -> str:
        """SHA-256 over the weights: tells whether two files hold the same network."""
        digest = hashlib.sha256()
        for name, value in sorted(self.weights.items()):
            digest.update(name.encode())
            value = value.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
            digest.update(value.reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


@contextlib.contextmanager
def fitting(path):
    """Turns what building a network and loading weights raise into CheckpointError."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its weights do not fit the network ({first_line(error)}); use another"
        ) from None


def require(condition: bool, place: str) -> None:
    if not condition:
        raise ValueError(f"{place} has an impossible value")


def parse(hint, value, place: str = ""):
    """A value from a file as an object of an annotated type; dicts become the dataclasses that they were.

    Raises ValueError: it is of another type, too large or not finite; TypeError: an entry without a default is missing.
    """
    hints = typing.get_args(hint) if isinstance(hint, types.UnionType) else [hint]
    by_type = {dict if dataclasses.is_dataclass(h) else typing.get_origin(h) or h: h for h in hints}
    require(type(value) in by_type, place)
    hint = by_type[type(value)]
    arguments = typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        fields = typing.get_type_hints(hint)
        return hint(**{key: parse(fields.get(key), entry, f"{place}.{key}".strip(".")) for key, entry in value.items()})
    if hint is int:
        require(0 <= value < 1 << 40, place)
    elif hint is torch.Tensor:  # all its values must lie in the file: none is repeated to make it larger
        whole = value.layout == torch.strided and value.nbytes <= value.untyped_storage().nbytes()
        require(whole and bool(value.isfinite().all()), place)
    elif type(value) is list:
        return [parse(*arguments or [Plain], item, place) for item in value]
    elif type(value) is dict and arguments:
        require(all(type(key) is str for key in value), place)
        return {key: parse(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    return value


def save_checkpoint(checkpoint: Checkpoint, paths: list[Path]) -> None:
    """Writes one checkpoint under several names, in this order. Raises RunError: a weight is not finite."""
    broken = [name for name, value in checkpoint.weights.items() if not value.isfinite().all()]
    if broken:
        raise RunError(
            f"{plural(len(broken), 'weight')} not finite ({broken[0]}, ...), so nothing was saved; use a smaller "
            f"--learning_rate, with --resume if this run has a checkpoint in {paths[-1].parent} already"
        )
    content = io.BytesIO()  # torch's own writer of files hides the errors of the file system
    torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **plain(checkpoint)}, content)
    for path in paths:
        with atomic_write(path, "wb") as file:
            file.write(content.getbuffer())


def plain(value):
    """A dataclass, and those in it, as dicts; dataclasses.asdict would copy every tensor."""
    if dataclasses.is_dataclass(value):
        return {name: plain(entry) for name, entry in vars(value).items()}
    return dict(value) if isinstance(value, dict) else value  # a module's state dict is no plain one


def load_checkpoint(path, advice: str = "name another file") -> Checkpoint:
    """Reads a checkpoint onto the CPU, after verifying its checksums; the advice is for a missing or damaged one.

    Raises CheckpointError: the file is missing, damaged, of another program or version, or malformed.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    others = sorted(p.name for p in folder.glob("*.pth") if p != path)
    beside = f" (in {folder} there is {', '.join(others[:6])})" if others else ""
    if not path.is_file():
        what = f"{path} is a folder, no checkpoint" if folder is path else f"there is no checkpoint {path}"
        raise CheckpointError(f"{what}{beside}; {advice}")
    try:
        content = read_archive(path)
    except Exception as error:  # noqa: BLE001  zipfile and torch raise anything on damaged files
        raise CheckpointError(f"{path} is damaged, or no checkpoint ({first_line(error)}){beside}; {advice}") from None
    if type(content) is not dict or content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is a file of another program; use a checkpoint that train.py made")
    version = content.pop("format_version", None)
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(f"{path} is of another version of this program; use that version, or train again")
    try:
        return parse(Checkpoint, content)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is malformed: {first_line(error)}; use another checkpoint") from None


def read_archive(path: Path):
    """The content of a file of torch.save, on the CPU. Raises whatever a damaged file leads to."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise zipfile.BadZipFile("its entries are larger than the file")
        # torch looks at no checksums, and reads a folder as a tensor of whatever is in memory.
        damaged = next((entry.filename for entry in entries if entry.external_attr), None) or archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"checksum of {damaged} is wrong")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its message says how to load the file all the same
        raise pickle.UnpicklingError("it holds more than tensors and plain values") from None


def checkpoint_path(save_dir, model_name: str, kind: str | int) -> Path:
    """The file of a model's checkpoint: kind is `best`, `last` or the number of an epoch."""
    return Path(save_dir) / f"{model_name}_{kind if isinstance(kind, str) else f'epoch_{kind:03d}'}.pth"


def find_checkpoint(save_dir, model_name: str | None, kind: str) -> Path:
    """The `best` or `last` checkpoint of a model; of the newest one where no model is named.

    Where none has a best one, it is the published one, which the default folder stands for in any working directory.
    """
    if model_name is None:
        files = [p for p in (checkpoint_path(save_dir, name, kind) for name in MODELS) if p.is_file()]
        if files:
            return max(files, key=lambda p: p.stat().st_mtime)
        for folder in (Path(save_dir), *[HOME] * (str(save_dir) == HOME.name)):
            if kind == "best" and (folder / PUBLISHED).is_file():
                return folder / PUBLISHED
    return checkpoint_path(save_dir, model_name or DEFAULT_MODEL, kind)


def open_checkpoint(
    model_path: str | None, model_name: str | None, save_dir: str
) -> tuple[SegmentationModel, Checkpoint, Path]:
    """A network in evaluation mode, its checkpoint and the path: that given, or the best one in `save_dir`.

    Raises UsageError: the name contradicts the file; see also `load_checkpoint`.
    """
    if model_path is not None:
        path = Path(model_path)
        checkpoint = load_checkpoint(path)
    else:
        path = find_checkpoint(save_dir, model_name, "best")
        if path.name == PUBLISHED:
            print(f"{save_dir} has no *_best.pth of your own; using {path}, which comes with this program.", flush=True)
        command = "python src/train.py" + (f" --model_name {model_name}" if model_name else "")
        command += f" --save_dir {shlex.quote(str(save_dir))}" if str(save_dir) != HOME.name else ""
        other = HOME / PUBLISHED if model_name is None else "FILE"  # the published one need not be of that name
        checkpoint = load_checkpoint(path, f"train one with `{command}`, or name another with --model_path {other}")
    if model_name not in (None, checkpoint.model_name):
        raise UsageError(f"{path} holds a {checkpoint.model_name}, but --model_name says {model_name}; leave it out")
    return checkpoint.build(path), checkpoint, path


def read_progress(path: Path) -> Progress | None:
    """The progress of a checkpoint, without reading its weights; None where it is missing, damaged, or not ours."""
    try:
        return parse(Progress, torch.load(path, map_location="cpu", weights_only=True, mmap=True)["progress"])
    except Exception:  # noqa: BLE001  as in `load_checkpoint`
        return None
