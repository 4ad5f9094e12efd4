"""Checkpoints: saving, loading, finding them, and rebuilding the model.

A checkpoint is a dict of tensors and plain values; `models.schema` says what each may be:

    format, format_version   what this file is, and which version of these entries
    model                    name and config: how `build_model` rebuilds the network
    weights                  the state dict to use; mean and standard deviation of the normalisation are in it
    average                  where weights are a moving average (--ema): the trained ones, and the number of updates
    preprocessing            image_size, the side of the square that images are resized to; channels and window
    data                     split, seed, fold, groups, fingerprint of each part, names of the training images, and of
                             those that initial weights or a teacher were trained on (seen_names)
    encoder_start            what the encoder's weights were before training
    settings                 the flags that define the run
    progress                 run id, epoch, step, running sums, history, best score
    terms                    by name, what a resumed run must find again: fingerprints of a teacher's weights and of
                             images without masks
    optimizer, scheduler, scaler, random_state

A checkpoint without training state has no average and no settings, and nothing from optimizer on.
"""

import hashlib
import os
import pickle
import re
import shutil
import warnings
import zipfile
from pathlib import Path

import torch

from models.base import SegmentationModel
from models.build import build_model
from models.names import ALIASES, DEFAULT_MODEL, DENOISING, MODELS
from models.schema import find_problem
from models.task import Task, task_of
from runtime.errors import CheckpointError, RunError, UsageError, first_line
from runtime.files import atomic_write, sync_folder

PUBLISHED = "pets.pth"  # the network that comes with this program; see docs/model_card.md
FORMAT, FORMAT_VERSION = "pet-segmentation checkpoint", 1


# ------------------------------------------------------------------------------------------------------- save and load


def save_checkpoint(content: dict, paths: list[Path]) -> None:
    """Writes one checkpoint under several names, in the order given, each of them atomically.

    Args:
        content: as described at the top of this file, without the two format entries.
        paths: in one folder. The first is written, the others are links to it (copies where the file system has no
            links): a file is only ever replaced, never changed, so they stay independent.

    Raises:
        RunError: a weight is not finite; nothing is written.
        OSError: the disk is full, or the like; the old files stay.
    """
    broken = [k for k, v in content["weights"].items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise RunError(
            f"{len(broken)} weights are not finite ({broken[0]}, ...), so nothing was saved; the last good checkpoint "
            f"is still in {paths[-1].parent}: go on from it with --resume and a smaller --learning_rate"
        )
    with atomic_write(paths[0], "wb") as file:
        try:
            head = {"format": FORMAT, "format_version": FORMAT_VERSION}
            torch.save({**head, **content, "weights": dict(content["weights"])}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's archive writer hides the file system's error
                raise error.__context__ from None
            raise
    for path in paths[1:]:
        link_checkpoint(paths[0], path)


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


def load_checkpoint(path) -> dict:
    """Reads a checkpoint onto the CPU, after verifying its checksums and before anything is built from it.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, of another program or version, holds more than
            tensors and plain values, or an entry is of another type or size than train.py writes.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; {_alternatives(path)}")
    content = _read(path, verify=True)
    if type(content) is not dict or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a file of another program; use a checkpoint that train.py made")
    version = content.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is of another version of this program (its format is not {FORMAT_VERSION}); use that version, or "
            "train again"
        )
    problem = find_problem(content)
    if not problem and content["model"]["config"].get("in_channels", 3) != content["preprocessing"]["channels"]:
        problem = "model.config.in_channels contradicts preprocessing.channels"
    if problem:
        raise CheckpointError(f"{path} is malformed: {problem}; use another checkpoint, or train again")
    content["encoder_start"] = "".join(c if c.isprintable() else "?" for c in content["encoder_start"])  # a file's name
    return content


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
    there = sorted((p for p in path.parent.glob("*.pth") if p != path), key=lambda p: -p.stat().st_mtime)
    there = [p for p in there if p.name.startswith(model)] or there
    if not there:
        return "train one with `python src/train.py`"
    return f"in {path.parent} there is {', '.join(p.name for p in there[:6])}{', ...' if len(there) > 6 else ''}"


# ------------------------------------------------------------------------------------------------- names and networks


def checkpoint_path(save_dir, model_name: str, kind: str | int) -> Path:
    """The file of a model's checkpoint: kind is `best`, `last` or the number of an epoch."""
    return Path(save_dir) / f"{model_name}_{kind if isinstance(kind, str) else f'epoch_{kind:03d}'}.pth"


def find_checkpoint(save_dir, model_name: str | None, kind: str) -> Path:
    """The `best` or `last` checkpoint of a model; of the newest one where no model is named.

    Where no model is named and none has a best one, it is the published one, if the folder has that.
    """
    if model_name is not None:
        return checkpoint_path(save_dir, model_name, kind)
    there = [p for p in (checkpoint_path(save_dir, name, kind) for name in MODELS) if p.is_file()]
    if not there and kind == "best" and (published := Path(save_dir) / PUBLISHED).is_file():
        return published
    return max(there, key=lambda p: p.stat().st_mtime) if there else checkpoint_path(save_dir, DEFAULT_MODEL, kind)


def build_from_checkpoint(content: dict, path) -> SegmentationModel:
    """The network that a checkpoint describes, with its weights, in evaluation mode on the CPU.

    Raises:
        UsageError: it does not segment.
        CheckpointError: the weights don't fit the network.
    """
    try:
        if task_of_checkpoint(content).name == DENOISING:
            raise UsageError(
                f"{path} was pre-trained by denoising and can't segment yet; give it to train.py as --init"
            )
        model = build_model(content["model"]["name"], **content["model"]["config"])
        model.load_state_dict(dict(content["weights"]))
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its weights do not fit the network it names ({first_line(error)}); use another one"
        ) from None
    return model.eval()


def take_weights(model: SegmentationModel, content: dict, path) -> str:
    """Gives a network the weights of a checkpoint, but for the head if that has learned another task.

    Returns:
        What the network starts from, in words.

    Raises:
        CheckpointError: they don't fit.
    """
    same = task_of_checkpoint(content).name == model.task.name
    head = {} if same else {key: value for key, value in model.state_dict().items() if key.startswith("head.")}
    try:
        model.load_state_dict({**content["weights"], **head})
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: its weights do not fit the network it names ({first_line(error)}); use another one"
        ) from None
    return f"from {Path(path).name}, like {'the whole network' if same else 'all but the head'}"


def without_training_state(content: dict) -> dict:
    """A checkpoint's content without what only a resume needs."""
    kept = {name: content[name] for name in ("model", "weights", "preprocessing", "data", "encoder_start", "terms")}
    known = ("run_id", "planned_epochs", "best_score", "best_epoch")
    return {**kept, "progress": {name: content["progress"][name] for name in known}}


def task_of_checkpoint(content: dict) -> Task:
    """What the network of a checkpoint has learned."""
    config = content["model"]["config"]
    return task_of(config.get("out_channels", 1), config.get("classes"), config.get("in_channels", 3))


def seen_names(content: dict) -> set[str]:
    """Names of the images that a network, its initial weights or its teacher were trained on, also without folders."""
    names = {*content["data"]["train_names"], *content["data"]["seen_names"]}
    return names | {name.rpartition("/")[2] for name in names}


def weights_fingerprint(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names and values: tells whether two files hold the same network."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def open_checkpoint(
    model_path: str | None, model_name: str | None, save_dir: str
) -> tuple[SegmentationModel, dict, Path]:
    """The model, the checkpoint's content and its path, as users name them.

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
    content = load_checkpoint(path)
    inside = content["model"]["name"]
    if name not in (None, inside):
        raise UsageError(
            f"{path} holds a {inside}, but --model_name says {name}; leave the flag out, or name another file"
        )
    return build_from_checkpoint(content, path), content, path


# -------------------------------------------------------------------------------------------------------- run records


def run_id_of(path: Path) -> str | None:
    """The id of the run that wrote a checkpoint; None for any other file."""
    return _progress_of(path).get("run_id") if path.suffix == ".pth" else None


def resumed_after(save_dir, model_name: str, run_id: str) -> list[int]:
    """After which epochs a run was resumed, as far as a checkpoint of it is still there."""
    for path in (checkpoint_path(save_dir, model_name, "last"), Path(save_dir) / f"{model_name}_last_{run_id}.pth"):
        progress = _progress_of(path)
        if progress.get("run_id") == run_id:
            return progress.get("resumed") or []
    return []


def _progress_of(path: Path) -> dict:
    """A checkpoint's progress, without reading its weights; empty where it is missing, damaged, or not ours."""
    if not path.is_file():
        return {}
    try:
        content = _read(path, verify=False)
    except CheckpointError:
        return {}
    return {} if type(content) is not dict or find_problem(content, "progress") else content["progress"]
