"""Attention blocks for decoders."""

import torch
from torch import nn


class SqueezeExcitation(nn.Module):
    """Channel attention (Hu et al., 2018: https://arxiv.org/abs/1709.01507).

    Args:
        channels: of the features.
        reduction: of the hidden layer, which has at least 4 channels.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        hidden = max(4, channels // reduction)
        self.gate = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, C, H, W) to the same shape."""
        return x * self.gate(x.mean(dim=(2, 3), keepdim=True)).sigmoid()


class ConvBlockAttention(nn.Module):
    """Channel attention, then spatial attention: CBAM (Woo et al., 2018: https://arxiv.org/abs/1807.06521)."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.channels = SqueezeExcitation(channels, reduction).gate
        self.places = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, C, H, W) to the same shape."""
        mean, most = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
        x = x * (self.channels(mean) + self.channels(most)).sigmoid()
        places = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * self.places(places).sigmoid()


ATTENTION = {"none": nn.Identity, "se": SqueezeExcitation, "cbam": ConvBlockAttention}


def build_attention(name: str, channels: int) -> nn.Module:
    """The block of that name, for features with so many channels.

    Raises:
        ValueError: no attention has that name.
    """
    if name not in ATTENTION:
        raise ValueError(f"no attention is called {name!r}; there are {', '.join(ATTENTION)}")
    return ATTENTION[name](channels)
