"""Whole images in tiles at their own size.

Neighbouring tiles overlap by half, and the middle of a tile counts more than its rim, where the network lacks context.
"""

import math

import numpy as np
import torch

from data.pixels import to_tensor

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


def predict_tiles(predictor, image: np.ndarray, size: int, batch_size: int) -> torch.Tensor:
    """Decision logits, float32 (D, H, W) on the CPU, of a whole image (H, W, C); `size` is the side of the tiles."""
    height, width = image.shape[:2]
    if height < size or width < size:  # the edge pixels are repeated
        image = np.pad(image, ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0)), mode="edge")
    places = [(top, left) for top in tile_starts(height, size) for left in tile_starts(width, size)]
    weights, sums, total = tile_weights(size), None, torch.zeros(image.shape[:2])
    for first in range(0, len(places), batch_size):
        batch = places[first : first + batch_size]
        tiles = torch.stack([to_tensor(image[top : top + size, left : left + size]) for top, left in batch])
        for (top, left), decision in zip(batch, predictor.predict(tiles).final.cpu()):
            if sums is None:
                sums = torch.zeros(len(decision), *image.shape[:2])
            sums[:, top : top + size, left : left + size] += decision * weights
            total[top : top + size, left : left + size] += weights
    return sums.div_(total)[:, :height, :width]
