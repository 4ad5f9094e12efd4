"""Training pictures made of two: whole batches at once, on whatever device they are."""

import numpy as np
import torch

from pictures import BACKGROUND
from precision import to_device


def _rectangles(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """A rectangle for each picture, bool (N, 1, H, W), of a tenth to a half of its area, anywhere in it."""
    chosen = np.zeros((count, 1, height, width), bool)
    for mask in chosen[:, 0]:
        area, shape = rng.uniform(0.1, 0.5), np.exp(rng.uniform(-0.5, 0.5))
        rows = min(height, round(height * (area * shape) ** 0.5))
        columns = min(width, round(width * (area / shape) ** 0.5))
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        mask[top : top + rows, left : left + columns] = True
    return chosen


def mix(
    images: torch.Tensor, targets: torch.Tensor, kind: str, share: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Puts part of another picture of the batch onto some of the pictures, and of its target onto theirs.

    Args:
        images: (N, 3, H, W).
        targets: (N, 1, H, W), masks of 0 and 1 or trimaps of 1, 2 and 3.
        kind: `paste` puts the other picture's pet there (Ghiasi et al., 2021: https://arxiv.org/abs/2012.07177);
            `cutmix` a rectangle of it (Yun et al., 2019: https://arxiv.org/abs/1905.04899).
        share: of the pictures, about.
        rng: where the random numbers come from.

    Returns:
        New images and targets.
    """
    count, _, height, width = images.shape

    def there(array: np.ndarray) -> torch.Tensor:
        return to_device(torch.from_numpy(array), images.device)

    other = there((np.arange(count) + rng.integers(1, max(2, count))) % count)
    mixed = there(rng.random((count, 1, 1, 1)) < share)
    if kind == "paste":
        taken = ((targets != BACKGROUND) & (targets != 0))[other] & mixed
    else:
        taken = there(_rectangles(rng, count, height, width)) & mixed
    return torch.where(taken, images[other], images), torch.where(taken, targets[other], targets)
