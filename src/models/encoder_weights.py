"""What an encoder starts from: ImageNet weights, a file, or nothing."""

import copy
import re
import sys
import zipfile
from pathlib import Path

import torch
from torchvision.models import get_model_weights

from models.base import SegmentationModel, fold_channels
from models.checkpoint import read_archive
from models.encoder_unet import HEAD
from runtime.errors import CheckpointError, first_line
from runtime.fetch import fetch

ANSWER_SECONDS = 10  # for the answer of the server of the ImageNet weights; then how long it may be silent


def load_encoder_weights(model: SegmentationModel, source: str) -> str:
    """Loads the encoder's first weights.

    Args:
        model: a freshly built network.
        source: `none`; `imagenet`, torchvision's default weights of this encoder, from torch's cache or the download;
            `auto`, the same if available, and else a warning; or a file with a state dict of torchvision's classifier.

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
        _fit_encoder(model, source)
        return f"from {Path(source).name}"
    try:
        weights = _imagenet_weights(name)
        _fit_encoder(model, weights)
    except (OSError, RuntimeError, CheckpointError) as error:
        if source == "imagenet":
            raise CheckpointError(
                f"the ImageNet weights are not available ({error}); connect to the internet, or name a file"
            ) from None
        print(
            f"WARNING: the ImageNet weights are not available ({error}). The encoder starts FROM SCRATCH: expect a "
            "lower Dice. Say --encoder_weights none to mean it, or give a file.",
            file=sys.stderr,
        )
        return "from scratch (ImageNet weights not to be had)"
    return f"ImageNet ({weights.name})"


def _imagenet_weights(name: str) -> Path:
    """The file in torch's cache, downloaded where it is missing."""
    url = get_model_weights(name).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        fetch(url, file, "sha256", re.search(r"-([0-9a-f]+)\.pth", url)[1], ANSWER_SECONDS)
    return file


def _fit_encoder(model: SegmentationModel, file) -> None:
    layers = len(getattr(model.encoder, "features", ()))

    def of_head(key: str) -> bool:
        part, number = [*key.split("."), ""][:2]
        return part in HEAD or (part == "features" and number.isdigit() and int(number) >= layers)

    try:
        content = read_archive(Path(file)) if zipfile.is_zipfile(file) else torch.load(file, "cpu", weights_only=True)
        weights = {key: value for key, value in content.items() if not of_head(key)}
        own = model.encoder.state_dict()
        first = next(key for key, value in own.items() if value.ndim == 4)
        if model.in_channels != 3 and weights[first].shape == (len(own[first]), 3, *own[first].shape[2:]):
            weights[first] = fold_channels(weights[first], model.in_channels)
        trial = copy.deepcopy(model.encoder)  # load_state_dict copies what fits before it raises
        trial.load_state_dict(weights)
        if not all(value.isfinite().all() for value in trial.state_dict().values()):
            raise ValueError("a weight is not finite")
        model.encoder.load_state_dict(weights)
    except Exception as error:  # noqa: BLE001  zipfile and torch raise anything on damaged files
        raise CheckpointError(
            f"--encoder_weights: {file} can't be loaded into the encoder ({first_line(error)}); it must be a state "
            f"dict of torchvision's {model.encoder_name}"
        ) from None
