"""Losses on logits. Each takes logits and masks (N, 1, H, W), masks 0 or 1, and returns a scalar."""

import torch
import torch.nn.functional as F


def bce_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, averaged over pixels and images."""
    return F.binary_cross_entropy_with_logits(logits.float(), masks.float())


def dice_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """1 - soft Dice of each image, averaged over images (V-Net: https://arxiv.org/abs/1606.04797).

    One pixel is added above and below the line, so that an image without a pet costs little where little is predicted,
    and the gradient stays finite.
    """
    probabilities, masks = logits.float().sigmoid(), masks.float()
    overlap = (probabilities * masks).sum(dim=(1, 2, 3))
    total = probabilities.sum(dim=(1, 2, 3)) + masks.sum(dim=(1, 2, 3))
    return (1 - (2 * overlap + 1) / (total + 1)).mean()


def bce_dice_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The sum of both: cross-entropy's steady gradient and Dice's care for small pets."""
    return bce_loss(logits, masks) + dice_loss(logits, masks)


LOSSES = {"bce": bce_loss, "dice": dice_loss, "bce_dice": bce_dice_loss}
