"""UNet decoder on a ResNet34 encoder (He et al., 2016: https://arxiv.org/abs/1512.03385)."""

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from models.attention import build_self_attention
from models.base import SegmentationModel, init_weights, widen_input
from models.unet import UpBlock, double_conv


class ResNet34Encoder(ResNet):
    """torchvision's ResNet34 without its classification head, under torchvision's own key names.

    ImageNet weights load as they are (all keys but `fc.*`). From scratch, the last batch norm of every residual branch
    begins at zero, so that each block begins as the identity and the gradient reaches the stem.
    """

    widths = (64, 64, 128, 256, 512)  # channels of the features, at strides 2, 4, 8, 16, 32

    def __init__(self):
        super().__init__(BasicBlock, [3, 4, 6, 3], zero_init_residual=True)
        del self.avgpool, self.fc

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """x (N, 3, H, W) to five feature maps, (N, 64, H/2, W/2) to (N, 512, H/32, W/32)."""
        features = [self.relu(self.bn1(self.conv1(x)))]
        x = self.maxpool(features[0])
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features


class ResNet34_UNet(SegmentationModel):  # noqa: N801  the name that both reports use
    """ResNet34 encoder, bottleneck block, decoder with transposed convolutions and skips back to full resolution.

    The encoder has no features at full resolution. With the decoder `plain` the skip there is the normalised image
    itself: fur and whiskers are in the pixels. With `stem` it is 32 features of its own, as UNet has them, and the last
    step of the decoder has 32 channels instead of 16. Arguments: see SegmentationModel.
    """

    stride = 32
    decoders = ("plain", "stem")
    encoder_name = "resnet34"

    def __init__(
        self, out_channels: int = 1, attention: str = "none", decoder: str = "plain", classes=None, in_channels: int = 3
    ):
        super().__init__(out_channels, attention, decoder, classes, in_channels)
        self.encoder = ResNet34Encoder()
        widen_input(self.encoder, in_channels)
        s2, s4, s8, s16, s32 = self.encoder.widths
        skip, last = (in_channels, 16) if decoder == "plain" else (32, 32)
        self.stem = nn.Identity() if decoder == "plain" else double_conv(in_channels, skip)
        self.bottleneck = double_conv(s32, s32)
        self.self_attention = build_self_attention(attention, s32)
        self.ups = nn.ModuleList(
            [
                UpBlock(s32, s16, 256, attention),
                UpBlock(256, s8, 128, attention),
                UpBlock(128, s4, 64, attention),
                UpBlock(64, s2, 32, attention),
                UpBlock(32, skip, last, attention),
            ]
        )
        self.head = nn.Conv2d(last, self.task.out_channels, 1)
        for part in (self.stem, self.bottleneck, self.ups, self.head):
            init_weights(part)

    def blocks(self) -> list[nn.Module]:
        """See SegmentationModel.blocks."""
        encoder = self.encoder
        layers = [encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4]
        return [self.stem, *layers, self.bottleneck, self.self_attention, *self.ups]

    def body(self, x: torch.Tensor) -> torch.Tensor:
        """See SegmentationModel.body."""
        skips = [self.stem(x), *self.encoder(x)]
        x = self.self_attention(self.bottleneck(skips.pop()))
        for up in self.ups:
            x = up(x, skips.pop())
        return self.head(x)
