"""UNet (Ronneberger, Fischer, Brox, 2015: https://arxiv.org/abs/1505.04597) with batch norm and padded convolutions."""

import torch
from torch import nn

from models.base import SegmentationModel, init_weights


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Twice 3x3 convolution, batch norm, ReLU: (N, in_channels, H, W) to (N, out_channels, H, W)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),  # batch norm brings the bias
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class UpBlock(nn.Module):
    """One step up of a decoder: doubles height and width, joins the encoder's features, convolves twice."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.conv = double_conv(out_channels + skip_channels, out_channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """x (N, in_channels, H, W) and skip (N, skip_channels, 2H, 2W) to (N, out_channels, 2H, 2W)."""
        return self.conv(torch.cat([skip, self.up(x)], dim=1))


class UNet(SegmentationModel):
    """The classic: five levels of 64 to 1024 channels, max-pooling down, transposed convolutions up, 31 M parameters.

    Args:
        out_channels: channels of the logits; 1 for pet against background.
    """

    stride = 16

    def __init__(self, out_channels: int = 1):
        super().__init__(out_channels)
        widths = (64, 128, 256, 512, 1024)
        self.stem = double_conv(3, widths[0])
        self.downs = nn.ModuleList(double_conv(a, b) for a, b in zip(widths, widths[1:]))
        self.pool = nn.MaxPool2d(2)
        self.ups = nn.ModuleList(UpBlock(b, a, a) for a, b in reversed(list(zip(widths, widths[1:]))))
        self.head = nn.Conv2d(widths[0], out_channels, 1)
        init_weights(self)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        """See SegmentationModel.body."""
        x = self.stem(x)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(self.pool(x))
        for up in self.ups:
            x = up(x, skips.pop())
        return self.head(x)
