"""Tiles: a network slides over an image that is larger than what it sees, with overlap and smooth weights.

As nnU-Net does it (Isensee et al., 2021: https://doi.org/10.1038/s41592-020-01008-z): tiles overlap by half, and the
middle of a tile counts more than its rim, where the network lacks context.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from data.pixels import to_tensor
from evaluation.predictor import Predictor

SPREAD = 1 / 8  # standard deviation of the weights, as a share of the tile's side
LEAST = 1e-3  # of the weights, so that a corner that one tile alone sees counts at all


def tile_starts(length: int, size: int) -> list[int]:
    """Where tiles of a side begin along a length: evenly spread, overlapping by half at least."""
    count = 1 + math.ceil(max(0, length - size) / (size // 2))
    return [round(x) for x in np.linspace(0, max(0, length - size), count)]


def tile_weights(size: int) -> torch.Tensor:
    """Weights of a tile's pixels, float32 (size, size), a Gaussian bell of height 1."""
    distance = (torch.arange(size) - (size - 1) / 2) / (SPREAD * size)
    bell = torch.exp(-0.5 * distance**2)
    return (bell[:, None] * bell).clamp(min=LEAST)


def predict_tiles(predictor: Predictor, image: np.ndarray, size: int, batch_size: int) -> torch.Tensor:
    """Decision logits of a whole image, float32 (D, H, W); see `tiled_decisions`."""
    return torch.cat([stripe for _, stripe in tiled_decisions(predictor, image, size, batch_size)], dim=1)


def tiled_decisions(
    predictor: Predictor, image: np.ndarray, size: int, batch_size: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Decision logits of a whole image at its own size, in stripes, so that memory holds one row of tiles.

    Args:
        predictor: its network is in evaluation mode.
        image: (H, W, C).
        size: side of the tiles.
        batch_size: tiles at a time.

    Yields:
        The first row of a stripe, and its decision logits, float32 (D, h, W) on the CPU, from top to bottom.
    """
    height, width = image.shape[:2]
    if height < size or width < size:  # the edge pixels are repeated
        image = np.pad(image, ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0)), mode="edge")
    tops, lefts = tile_starts(height, size), tile_starts(width, size)
    weights, sums = tile_weights(size), None
    for top, following in zip(tops, [*tops[1:], tops[-1] + size]):
        for first in range(0, len(lefts), batch_size):
            some = lefts[first : first + batch_size]
            tiles = torch.stack([to_tensor(image[top : top + size, left : left + size]) for left in some])
            found = predictor.predict(tiles).final.cpu()
            if sums is None:
                sums = torch.zeros(found.shape[1] + 1, size, image.shape[1])  # the last is of the weights
            for left, decision in zip(some, found):
                sums[:-1, :, left : left + size] += decision * weights
                sums[-1, :, left : left + size] += weights
        done = following - top
        yield top, (sums[:-1, :done] / sums[-1, :done])[:, : height - top, :width]
        sums = torch.cat([sums[:, done:], torch.zeros_like(sums[:, :done])], dim=1)
