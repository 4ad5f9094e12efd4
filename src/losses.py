"""Losses on logits. Each returns a scalar and takes

logits (N, 1, H, W) and masks (N, 1, H, W) of 0 and 1, for pet against background;
logits (N, 3, H, W) and trimaps (N, 1, H, W) of 1, 2 and 3, for pet, background and border.
"""

import torch
import torch.nn.functional as F


def bce_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, averaged over pixels and images: binary for one channel, of a softmax for three."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits.float(), target.float())
    # Of probabilities instead of classes: what torch has for these is not allowed under --deterministic on CUDA.
    return F.cross_entropy(logits.float(), classes_of(target))


def dice_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - soft Dice of each image and class, averaged over both (V-Net: https://arxiv.org/abs/1606.04797).

    One pixel is added above and below the line, so that an image without a pet costs little where little is predicted,
    and the gradient stays finite.
    """
    if logits.shape[1] == 1:
        probabilities, truth = logits.float().sigmoid(), target.float()
    else:
        probabilities = logits.float().softmax(dim=1)
        truth = classes_of(target)
    overlap = (probabilities * truth).sum(dim=(2, 3))
    total = probabilities.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    return (1 - (2 * overlap + 1) / (total + 1)).mean()


def classes_of(trimaps: torch.Tensor) -> torch.Tensor:
    """Trimaps (N, 1, H, W) of 1, 2 and 3 as float32 (N, 3, H, W) of 0 and 1."""
    return (trimaps == torch.arange(1, 4, device=trimaps.device).view(1, 3, 1, 1)).float()


def bce_dice_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The sum of both: cross-entropy's steady gradient and Dice's care for small pets."""
    return bce_loss(logits, target) + dice_loss(logits, target)


LOSSES = {"bce": bce_loss, "dice": dice_loss, "bce_dice": bce_dice_loss}
