"""Semi-supervised training: the averaged network labels images that have no masks, and the network learns from it.

FixMatch (Sohn et al., 2020: https://arxiv.org/abs/2001.07685) for pixels, the base of UniMatch (Yang et al., 2023:
https://arxiv.org/abs/2208.09910): labels come from weakly augmented images, those of confident pixels alone count, and
they are learned on strongly augmented ones: turned, scaled and colored further, and half of them with a rectangle of
another image.
"""

from typing import NamedTuple

import torch

from data.augment import BatchAugmentation, apply_augmentations, apply_colors, mix, resize_batch
from data.distortions import apply_distortions
from evaluation.metrics import image_dice, score_counts
from evaluation.predictor import Predictor
from models.task import Task
from runtime.device import copy_to_device
from runtime.seeding import UNLABELED, step_rng


class PseudoLabeled(NamedTuple):
    """Strongly augmented images and what is to be learned of them.

    Args:
        images: (N, 3, H, W) in 0..255.
        labels: one-hot, float (N, C, H, W).
        confident: pixels that count, bool (N, 1, H, W).
        weight: how much each image counts in the loss.
    """

    images: torch.Tensor
    labels: torch.Tensor
    confident: torch.Tensor
    weight: float = 1.0

    def tensor_split(self, pieces: int) -> list["PseudoLabeled"]:
        """In so many pieces: some may have no image."""
        return [PseudoLabeled(*part, self.weight) for part in zip(*(t.tensor_split(pieces) for t in self[:3]))]

    def loss(self, logits: torch.Tensor, task: Task) -> torch.Tensor:
        """Cross-entropy of the confident pixels, over all pixels of an image; the sum over images, times the weight."""
        pixels = task.cross_entropy(logits.float(), self.labels, None, "none") * self.confident
        return self.weight * pixels.flatten(1).mean(1).sum()


@torch.no_grad()
def pseudo_label(
    batch: dict, predictor: Predictor, how: BatchAugmentation, confidence: float, epoch: int, step: int
) -> tuple[PseudoLabeled, torch.Tensor]:
    """Labels the images of `WithUnlabeled`.

    Args:
        batch: the entry `unlabeled`.
        predictor: of the averaged network.
        how: what is done to whole batches; of it sizes are used here.
        confidence: probability of the likeliest class from which on a pixel counts.
        epoch: finished epochs.
        step: finished steps of the epoch.

    Returns:
        What is to be learned, and float (3,): sums over the images of the share of confident pixels and of the pseudo
        labels' Dice (0 where masks are not known), and the number of images.
    """
    task, device = predictor.task, predictor.precision.device
    images = copy_to_device(batch["image"], device)
    known = task.target in batch
    targets = (
        copy_to_device(batch[task.target], device) if known else torch.zeros_like(images[:, :1], dtype=torch.uint8)
    )
    images, targets = apply_augmentations(images, targets, copy_to_device(batch["affine"], device))
    images, targets = resize_batch(images, targets, how, epoch, step)
    predictor.model.eval()
    logits = predictor.logits(images)
    labels, likeliest = task.most_likely(task.probabilities(logits))
    confident = likeliest >= confidence
    dice = torch.zeros_like(likeliest[:, 0, 0, 0])
    if known:
        dice = image_dice(score_counts(task, task.decision_logits(logits), targets))
    shares = confident.float().mean(dim=(1, 2, 3))
    sums = torch.stack([shares.sum(), dice.sum(), shares.new_tensor(len(shares))])
    together = torch.cat([labels, confident.to(labels.dtype)], dim=1).to(torch.uint8)
    images, together = apply_augmentations(images, together, copy_to_device(batch["strong_affine"], device))
    images = apply_colors(images, copy_to_device(batch["colors"], device))
    images, _ = apply_distortions(images, targets, batch["distortions"], batch["seeds"])
    images, together = mix(images, together, "cutmix", 0.5, step_rng(how.seed, epoch, step, UNLABELED), task)
    return PseudoLabeled(images, together[:, :-1].float(), together[:, -1:] > 0), sums
