"""Networks, what they learn, and their files. A new network is a class like UNet and a line in MODELS."""

from models.attention import ATTENTION
from models.base import SegmentationModel
from models.encoders import ENCODER_UNETS
from models.resnet34_unet import ResNet34_UNet
from models.unet import UNet, UNetSmall, double_conv

MODELS = {"unet": UNet, "unet_small": UNetSmall, "resnet34_unet": ResNet34_UNet, **ENCODER_UNETS}
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
    "UNetSmall",
    "build_model",
    "double_conv",
]


def build_model(name: str, **config) -> SegmentationModel:
    """Builds a network with freshly drawn weights.

    Args:
        name: a key of MODELS or ALIASES.
        **config: arguments of the network's constructor, such as `out_channels` and `attention`.

    Raises:
        ValueError: no model or attention has that name, or nothing has that many channels.
    """
    name = ALIASES.get(name, name)
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name](**config)
