"""The networks by name. A new one is a class like these, and a line in MODELS."""

from models.attention import ATTENTION
from models.base import SegmentationModel, decisions, pet_logits, trimaps_of
from models.resnet34_unet import ResNet34_UNet
from models.unet import UNet, double_conv

MODELS = {"unet": UNet, "resnet34_unet": ResNet34_UNet}
ALIASES = {"resnet": "resnet34_unet"}  # report B's short name
DEFAULT_MODEL = "resnet34_unet"

__all__ = [
    "ALIASES",
    "ATTENTION",
    "DEFAULT_MODEL",
    "MODELS",
    "ResNet34_UNet",
    "SegmentationModel",
    "UNet",
    "build_model",
    "decisions",
    "double_conv",
    "pet_logits",
    "trimaps_of",
]


def build_model(name: str, **config) -> SegmentationModel:
    """Builds a network with freshly drawn weights.

    Args:
        name: a key of MODELS or ALIASES.
        **config: what the network's constructor takes, such as `out_channels` and `attention`.

    Raises:
        ValueError: no model or attention has that name.
    """
    name = ALIASES.get(name, name)
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name](**config)
