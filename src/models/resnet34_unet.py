"""UNet decoder on a ResNet34 encoder (He et al., 2016: https://arxiv.org/abs/1512.03385)."""

from models.encoders import EncoderUNet


class ResNet34_UNet(EncoderUNet):  # noqa: N801  the name that both reports use
    """Torchvision's ResNet34 under its own key names, so that ImageNet weights load as they are; see EncoderUNet."""

    encoder_name = "resnet34"
