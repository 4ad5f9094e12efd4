"""The networks by name. A new one is a class like UNet, a line here, and its name in models/names.py."""

from models.base import SegmentationModel
from models.encoders import ENCODER_UNETS
from models.names import ALIASES
from models.resnet34_unet import ResNet34_UNet
from models.unet import UNet, UNetSmall

NETWORKS: dict[str, type[SegmentationModel]] = {
    "unet": UNet,
    "unet_small": UNetSmall,
    "resnet34_unet": ResNet34_UNet,
    **ENCODER_UNETS,
}


def build_model(name: str, **config) -> SegmentationModel:
    """Builds a network with freshly drawn weights.

    Args:
        name: a key of NETWORKS or ALIASES.
        **config: arguments of the network's constructor, such as `out_channels` and `attention`.

    Raises:
        ValueError: no model or attention has that name, or nothing has that many channels.
    """
    name = ALIASES.get(name, name)
    if name not in NETWORKS:
        raise ValueError(f"no model is called {name!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[name](**config)
