"""The networks by name. A new one is a class like UNet, a line here, and its name in models/names.py."""

from models.base import SegmentationModel
from models.efficientnet_lite import LITE
from models.encoders import EncoderUNet, LiteUNet
from models.names import ALIASES, ENCODERS
from models.resnet34_unet import ResNet34_UNet
from models.unet import UNet, UNetSmall

NETWORKS: dict[str, type[SegmentationModel]] = {
    "unet": UNet,
    "unet_small": UNetSmall,
    "resnet34_unet": ResNet34_UNet,
}
for encoder in ENCODERS:
    base = LiteUNet if encoder in LITE else EncoderUNet
    NETWORKS[f"{encoder}_unet"] = type(f"{encoder}_UNet", (base,), {"encoder_name": encoder})


def build_model(name: str, **config) -> SegmentationModel:
    """A network with freshly drawn weights; `config` are arguments of SegmentationModel. Raises ValueError."""
    name = ALIASES.get(name, name)
    if name not in NETWORKS:
        raise ValueError(f"no model is called {name!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[name](**config)
