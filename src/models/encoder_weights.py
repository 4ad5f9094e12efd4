"""What an encoder starts from: ImageNet weights, a file, or nothing."""

import pickle
import re
import socket
import sys
import threading
import urllib.request
from pathlib import Path

import torch

from models.base import SegmentationModel
from models.checkpoint import DAMAGE
from runtime.errors import CheckpointError, first_line

CONNECT_SECONDS = 10  # how long `--encoder_weights auto` waits for the server of the ImageNet weights


def load_encoder_weights(model: SegmentationModel, source: str) -> str:
    """Loads the encoder's first weights.

    Args:
        model: a freshly built network.
        source: `none`; `imagenet`, torchvision's ResNet34 weights from torch's cache or the download; `auto`, the same
            if available, and else a warning; or a file with a state dict of torchvision's ResNet34.

    Returns:
        What the encoder starts from, in words, for the header and the checkpoint.

    Raises:
        CheckpointError: `imagenet` or a file is not available or doesn't fit.
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
                f"the ImageNet weights are not available ({error}); connect to the internet, or name a file"
            ) from None
        print(
            f"WARNING: the ImageNet weights are not available ({error}). The encoder starts FROM SCRATCH: expect a "
            "lower Dice. Say --encoder_weights none to mean it, or give a file.",
            file=sys.stderr,
        )
        return "from scratch (ImageNet weights not to be had)"
    return f"ImageNet ({weights.name})"


def _imagenet_weights() -> Path:
    """The file in torch's cache, downloaded where it is missing; gives up after CONNECT_SECONDS of silence."""
    from torchvision.models import ResNet34_Weights

    url = ResNet34_Weights.IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not file.is_file():
        _require_answer(url)
        file.parent.mkdir(parents=True, exist_ok=True)
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(CONNECT_SECONDS)  # torch's download itself would wait for ever
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=re.search(r"-([0-9a-f]+)\.pth", url)[1])
        finally:
            socket.setdefaulttimeout(timeout)
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
        why = "not only tensors are in it" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise CheckpointError(
            f"--encoder_weights: {file} can't be loaded into the encoder ({why}); it must be a state dict of "
            "torchvision's resnet34"
        ) from None
