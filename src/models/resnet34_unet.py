"""UNet decoder on a ResNet34 encoder (He et al., 2016: https://arxiv.org/abs/1512.03385)."""

from models.encoders import EncoderUNet


class ResNet34_UNet(EncoderUNet):  # noqa: N801  the name that both reports use
    """ResNet34 encoder, bottleneck block, decoder with transposed convolutions and skips back to full resolution.

    The encoder is torchvision's under its own key names: ImageNet weights load as they are. Arguments: see
    SegmentationModel.
    """

    encoder_name = "resnet34"
