"""Everything that touches a .pth file: saving, loading, finding, rebuilding the model, encoder weights.

A checkpoint is a dict of tensors and plain Python values:

    format, format_version   what this file is
    model                    name and config: how `build_model` rebuilds the network
    weights                  the state dict to use; mean and standard deviation of the normalisation are in it
    average                  where weights are a moving average (--ema): the trained ones, and how many steps it is of
    preprocessing            image_size, the side of the square that pictures are resized to
    data                     split, seed, fingerprint of each part, names of the training pictures
    encoder_start            what the encoder's weights were before training
    settings                 the flags that define the run
    progress                 run id, epoch, step, running sums, history, best score
    optimizer, scheduler, scaler, random_state
"""

import os
import pickle
import re
import shutil
import socket
import sys
import threading
import urllib.request
import zipfile
import zlib
from pathlib import Path

import torch

from cli import RunError, UsageError
from models import DEFAULT_MODEL, MODELS, SegmentationModel, build_model
from utils import atomic_write, sync_folder

FORMAT, FORMAT_VERSION = "pet-segmentation checkpoint", 2  # 1 knew no average
REQUIRED = ("model", "weights", "preprocessing", "data", "encoder_start")
# What zipfile and torch raise on files that are damaged, or something else altogether.
DAMAGE = (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError)
CONNECT_SECONDS = 10  # how long `--encoder_weights auto` waits for the server of the ImageNet weights


class CheckpointError(UsageError):
    """A checkpoint is missing, damaged, or not what it should be."""


# ------------------------------------------------------------------------------------------------------- save and load


def save_checkpoint(content: dict, paths: list[Path]) -> None:
    """Writes one checkpoint under several names, in the order given, each of them atomically.

    Args:
        content: as described at the top of this file, without the two format fields.
        paths: in one folder. The first is written, the others are links to it (copies where the file system has no
            links): a file is only ever replaced, never changed, so they can't disturb each other.

    Raises:
        RunError: a weight is not finite; nothing is written then.
        OSError: the disk is full, or the like; what was there before stays.
    """
    broken = [k for k, v in content["weights"].items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise RunError(
            f"{len(broken)} weights are not finite ({broken[0]}, ...), so nothing was saved; the last good checkpoint "
            f"is still in {paths[-1].parent}: go on from it with --resume and a smaller --learning_rate"
        )
    with atomic_write(paths[0], "wb") as file:
        try:
            torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's archive writer hides what the file system said
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
    """Reads a checkpoint onto the CPU, after verifying the checksum of every tensor in it.

    Only tensors and plain values are unpickled, so a file can't run code.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, of another program, of a newer version, or holds more
            than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; {_offer(path)}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch stores a CRC-32 with every tensor, but does not look at it itself
            # What it does look at beyond that, and reads wrongly where it is damaged, are these attributes.
            damaged = damaged or next(
                (i.filename for i in archive.infolist() if i.external_attr or i.compress_type), None
            )
        if damaged:
            raise CheckpointError(f"{path} is damaged (checksum of {damaged} is wrong); {_offer(path)}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is refused: it holds Python objects that could run code on loading; use a checkpoint of train.py"
        ) from None
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} is truncated, damaged, or no checkpoint ({_first_line(error)}); {_offer(path)}"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a file of another program; use a checkpoint that train.py made")
    if content.get("format_version", 0) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {content['format_version']}, this program reads {FORMAT_VERSION}; update it"
        )
    lacking = [key for key in REQUIRED if key not in content]
    if lacking:
        raise CheckpointError(f"{path} lacks {', '.join(lacking)}; train again, or use another checkpoint")
    return content


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _offer(path: Path) -> str:
    """What to use instead of a checkpoint that is missing or damaged: of the same model where there is any."""
    model = re.sub(r"_(best|last|epoch_\d+).*", "_", path.stem)
    there = sorted((p for p in path.parent.glob("*.pth") if p != path), key=lambda p: -p.stat().st_mtime)
    there = [p for p in there if p.name.startswith(model)] or there
    if not there:
        return "train one with `python src/train.py`"
    return f"in {path.parent} there is {', '.join(p.name for p in there[:6])}{', ...' if len(there) > 6 else ''}"


def checkpoint_path(save_dir, model_name: str, kind: str) -> Path:
    """The contract's file names: kind is `best`, `last` or the number of an epoch."""
    return Path(save_dir) / f"{model_name}_{kind if isinstance(kind, str) else f'epoch_{kind:03d}'}.pth"


def build_from_checkpoint(content: dict, path) -> SegmentationModel:
    """The network that a checkpoint describes, with its weights, in evaluation mode on the CPU.

    Raises:
        CheckpointError: the weights don't fit the network.
    """
    try:
        model = build_model(content["model"]["name"], **content["model"]["config"])
        model.load_state_dict(content["weights"])
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its weights do not fit the network it names ({_first_line(error)}); use another one"
        ) from None
    return model.eval()


def find_checkpoint(save_dir, model_name: str | None, kind: str) -> Path:
    """The `best` or `last` checkpoint of a model; of the newest one where no model is named."""
    if model_name is not None:
        return checkpoint_path(save_dir, model_name, kind)
    there = [p for p in (checkpoint_path(save_dir, name, kind) for name in MODELS) if p.is_file()]
    return max(there, key=lambda p: p.stat().st_mtime) if there else checkpoint_path(save_dir, DEFAULT_MODEL, kind)


def run_id_of(path: Path) -> str | None:
    """The id of the run that wrote a checkpoint; None for any other file."""
    if path.suffix != ".pth":
        return None
    return _progress_of(path).get("run_id")


def resumed_after(save_dir, model_name: str, run_id: str) -> list[int]:
    """After which epochs a run was taken up again, as far as a checkpoint of it is still there."""
    for path in (checkpoint_path(save_dir, model_name, "last"), Path(save_dir) / f"{model_name}_last_{run_id}.pth"):
        progress = _progress_of(path)
        if progress.get("run_id") == run_id:
            return progress.get("resumed", [])
    return []


def _progress_of(path: Path) -> dict:
    """A checkpoint's progress, without reading its weights; empty where it is damaged, or not ours."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["progress"]
    except (*DAMAGE, pickle.UnpicklingError):
        return {}


# ------------------------------------------------------------------------------------------------------ encoder weights


def load_encoder_weights(model: SegmentationModel, source: str) -> str:
    """Gives the encoder its start.

    Args:
        model: a freshly built network.
        source: `none`; `imagenet`, torchvision's ResNet34 weights from torch's cache or the download; `auto`, the same
            where they can be had and else a warning; or a file with a state dict of torchvision's ResNet34.

    Returns:
        What the encoder starts from, in words, for the header and the checkpoint.

    Raises:
        CheckpointError: `imagenet` or a file can't be had or doesn't fit.
    """
    encoder = getattr(model, "encoder", None)
    if source == "none" or (source == "auto" and encoder is None):
        return "from scratch"
    if encoder is None:
        raise CheckpointError(f"{type(model).__name__} has no encoder that takes weights; use --encoder_weights none")
    if source not in ("auto", "imagenet"):
        _fit_encoder(encoder, source)
        return f"from {Path(source).name}"
    try:
        weights = _imagenet_weights()
        _fit_encoder(encoder, weights)
    except (OSError, RuntimeError, CheckpointError) as error:
        if source == "imagenet":
            raise CheckpointError(
                f"the ImageNet weights can't be had ({error}); connect to the internet, or name a file"
            ) from None
        print(
            f"WARNING: the ImageNet weights can't be had ({error}). The encoder starts FROM SCRATCH: expect a lower "
            "Dice. Say --encoder_weights none to mean it, or give a file.",
            file=sys.stderr,
        )
        return "from scratch (ImageNet weights not to be had)"
    return f"ImageNet ({weights.name})"


def _imagenet_weights() -> Path:
    """The file in torch's cache, downloaded where it is missing; no silence may last longer than CONNECT_SECONDS."""
    from torchvision.models import ResNet34_Weights

    url = ResNet34_Weights.IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not file.is_file():
        _require_answer(url)
        file.parent.mkdir(parents=True, exist_ok=True)
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(CONNECT_SECONDS)  # torch's download itself would wait for ever
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=re.search(r"-([0-9a-f]+)\.pth", url)[1])
        finally:
            socket.setdefaulttimeout(patience)
    return file


def _require_answer(url: str) -> None:
    # In a thread of its own, because a name that can't be resolved may block for minutes, beyond any socket's timeout.
    outcome: list[Exception | None] = []

    def ask():
        try:
            urllib.request.urlopen(url, timeout=CONNECT_SECONDS).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not outcome:
        raise TimeoutError(f"no answer from {url} within {CONNECT_SECONDS} seconds")
    if outcome[0] is not None:
        raise outcome[0]


def _fit_encoder(encoder: torch.nn.Module, file) -> None:
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        weights = {key: value for key, value in weights.items() if not key.startswith("fc.")}  # the classification head
        encoder.load_state_dict(weights)
    except (*DAMAGE, AttributeError, pickle.UnpicklingError) as error:
        why = "not only tensors are in it" if isinstance(error, pickle.UnpicklingError) else _first_line(error)
        raise CheckpointError(
            f"--encoder_weights: {file} can't be loaded into the encoder ({why}); it must be a state dict of "
            "torchvision's resnet34"
        ) from None
