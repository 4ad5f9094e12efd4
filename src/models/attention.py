"""Attention at the end of each decoder step, and self-attention behind the bottleneck: (N, C, H, W) to the same."""

import math

import torch
from torch import nn


class SqueezeExcitation(nn.Module):
    """Channel attention (Hu et al., 2018: https://arxiv.org/abs/1709.01507)."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(4, channels // 16)
        self.gate = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x.mean(dim=(2, 3), keepdim=True)).sigmoid()


class ConvBlockAttention(nn.Module):
    """Channel attention, then spatial attention: CBAM (Woo et al., 2018: https://arxiv.org/abs/1807.06521)."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = SqueezeExcitation(channels).gate
        self.places = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, most = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
        x = x * (self.channels(mean) + self.channels(most)).sigmoid()
        places = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * self.places(places).sigmoid()


def sine_positions(channels: int, height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Sine positions, float32 (channels, height, width), half of the channels for each direction, as in DETR.

    Carion et al., 2020: https://arxiv.org/abs/2005.12872
    """
    frequencies = torch.exp(torch.arange(channels // 4, device=device) * (-4 * math.log(10_000) / channels))
    rows, columns = (torch.arange(side, device=device)[:, None] * frequencies for side in (height, width))
    waves = [torch.cat([angles.sin(), angles.cos()], dim=1) for angles in (rows, columns)]
    spread = waves[0][:, None].expand(-1, width, -1), waves[1][None].expand(height, -1, -1)
    return torch.cat(spread, dim=-1).permute(2, 0, 1)


class TransformerBottleneck(nn.Module):
    """Self-attention among all pixels of the deepest features, as in TransUNet: two encoder layers.

    Vaswani et al., 2017; Chen et al., 2021: https://arxiv.org/abs/2102.04306
    """

    def __init__(self, channels: int):
        super().__init__()
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(channels, 8, 4 * channels, **options) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = (x + sine_positions(*x.shape[1:], x.device).to(x.dtype)).flatten(2).transpose(1, 2)
        for layer in self.layers:
            places = layer(places)
        return places.transpose(1, 2).view(x.shape)


# Blocks at the end of decoder steps, and behind the bottleneck, for features of so many channels.
ATTENTION = {"none": nn.Identity, "se": SqueezeExcitation, "cbam": ConvBlockAttention, "transformer": nn.Identity}
SELF_ATTENTION = {**dict.fromkeys(ATTENTION, nn.Identity), "transformer": TransformerBottleneck}
