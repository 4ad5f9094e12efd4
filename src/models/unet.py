"""UNet (Ronneberger, Fischer, Brox, 2015: https://arxiv.org/abs/1505.04597) with batch norm and padded convolutions."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.attention import ATTENTION, SELF_ATTENTION
from models.base import SegmentationModel, init_weights


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Twice 3x3 convolution, batch norm, ReLU: (N, in_channels, H, W) to (N, out_channels, H, W)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),  # batch norm adds a bias
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class UpBlock(nn.Module):
    """A decoder step: doubles height and width, joins the skip, convolves twice, applies attention."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, attention: str = "none"):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.conv = double_conv(out_channels + skip_channels, out_channels)
        self.attention = ATTENTION[attention](out_channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """x (N, in_channels, H, W) and skip (N, skip_channels, 2H, 2W) to (N, out_channels, 2H, 2W)."""
        first, *rest = self.conv
        # A convolution of concatenated features is the sum of a convolution of each: the concatenation, the largest
        # tensor of the network, is neither made nor kept for the backward pass.
        skip_weight, up_weight = first.weight[:, : skip.shape[1]], first.weight[:, skip.shape[1] :]
        x = F.conv2d(skip, skip_weight, padding=1) + F.conv2d(self.up(x), up_weight, padding=1)
        for layer in rest:
            x = layer(x)
        return self.attention(x)


class MaxPool(nn.MaxPool2d):
    """2x2 max-pooling that computes the indices of the maxima again in the backward pass.

    In int64 they would take as many bytes as the features themselves in bf16.
    """

    def __init__(self):
        super().__init__(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        return checkpoint(super().forward, x, use_reentrant=False, preserve_rng_state=False)


class UNet(SegmentationModel):
    """Five levels of 64 to 1024 channels as published, max-pooling down, transposed convolutions up; 31 M weights."""

    stride = 16
    widths = (64, 128, 256, 512, 1024)  # channels of the levels, from full resolution down

    def build(self, attention: str, decoder: str) -> None:
        widths = self.widths
        self.stem = double_conv(self.in_channels, widths[0])
        self.downs = nn.ModuleList(double_conv(a, b) for a, b in zip(widths, widths[1:]))
        self.pool = MaxPool()
        self.self_attention = SELF_ATTENTION[attention](widths[-1])
        self.ups = nn.ModuleList(UpBlock(b, a, a, attention) for a, b in reversed(list(zip(widths, widths[1:]))))
        self.head = nn.Conv2d(widths[0], self.task.out_channels, 1)
        init_weights(self)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(self.pool(x))
        x = self.self_attention(x)
        for up in self.ups:
            x = up(x, skips.pop())
        return self.head(x)


class UNetSmall(UNet):
    """A UNet for processors: 2.3 M parameters, a fifth of the work of ResNet34-UNet.

    It works at half resolution: the first convolution sees squares of four pixels as twelve channels, the last gives
    the logits of four pixels (sub-pixel convolution, Shi et al., 2016: https://arxiv.org/abs/1609.05158).
    """

    stride = 32
    widths = (24, 48, 96, 152, 208)  # from half resolution down

    def build(self, attention: str, decoder: str) -> None:
        super().build(attention, decoder)
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), *double_conv(4 * self.in_channels, self.widths[0]))
        self.head = nn.Sequential(nn.Conv2d(self.widths[0], 4 * self.task.out_channels, 1), nn.PixelShuffle(2))
        for part in (self.stem, self.head):
            init_weights(part)
