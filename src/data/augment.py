"""Augmentation: drawn per sample as pure functions of (seed, epoch, name), applied to whole batches on the device."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from data.dataset import ImageDataset, as_keys
from data.distortions import STRONGEST, apply_distortions, draw_distortions, resample
from data.names import STRENGTHS
from models.task import BACKGROUND
from runtime.device import copy_to_device
from runtime.seeding import AUGMENTATION, sample_rng

DISTORTED = {"light": 0.5, "medium": 1.0, "strong": STRONGEST}  # how strong distortions are, at most
IDENTITY = np.eye(2, 3, dtype=np.float32)
MIXED = 0.5  # share of the images that mixing changes


def draw_augmentation(
    rng: np.random.Generator, degrees: float = 10.0, min_scale: float = 0.8, max_scale: float = 1.0
) -> np.ndarray:
    """Draws a rotation, a horizontal flip, a scaled crop, or any combination of them, as float32 (2, 3).

    The matrix takes output to input coordinates, both from -1 to 1 across the image. A scale is the crop's side as a
    share of the image's; above 1 the image shrinks and its mirror images surround it.
    """
    combination = int(rng.integers(1, 8))
    angle = math.radians(rng.uniform(-degrees, degrees)) * (combination & 1)
    mirror = -1.0 if combination & 2 else 1.0
    scale = rng.uniform(min_scale, max_scale) if combination & 4 else 1.0
    shift = rng.uniform(-1, 1, size=2) * (1 - scale)  # a crop of this scale anywhere inside the image
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    return np.array([[mirror * cos, -sin, shift[0]], [mirror * sin, cos, shift[1]]], dtype=np.float32)


def draw_colors(rng: np.random.Generator, strength: float = 0.25) -> np.ndarray:
    """Draws factors of brightness, contrast and saturation, float32 (3,), each within 1 +- strength."""
    return rng.uniform(1 - strength, 1 + strength, size=3).astype(np.float32)


def augment_dataset(dataset, num_augmentations: int = 3, seed: int = 42, color_jitter=False):
    """Every image of a training set, and `num_augmentations` variants of it that are the same in every epoch."""
    return AugmentedDataset(dataset, seed, num_augmentations, color_jitter)


@dataclass(eq=False, repr=False)
class AugmentedDataset(Dataset):
    """The n samples of a dataset and `variants` * n fixed variants of them (bulk); 0 varies the n anew every epoch.

    A sample gains `affine`, float32 (2, 3); with `color_jitter` `colors`, float32 (3,); with `distort`, names of
    DISTORTIONS with commas, `distortions`, float32 (K,), and `seeds`. `augment_batch` applies them to whole batches.
    """

    dataset: ImageDataset
    seed: int = 42
    variants: int = 0
    color_jitter: bool = False
    strength: str = "medium"
    distort: str = ""

    def __post_init__(self):
        self.decodes = self.dataset.decodes

    def __len__(self) -> int:
        return len(self.dataset) * (1 + self.variants)

    __getitem__ = ImageDataset.__getitem__

    def read_batch(self, keys: list) -> dict:
        """A whole batch; see ImageDataset."""
        keys = as_keys(keys)
        batch = self.dataset.read_batch([(epoch, index % len(self.dataset)) for epoch, index in keys])
        draws = [self._draw(epoch, index) for epoch, index in keys]
        return batch | {name: torch.from_numpy(np.stack([draw[name] for draw in draws])) for name in draws[0]}

    def _draw(self, epoch: int, index: int) -> dict:
        variant, source = divmod(index, len(self.dataset))
        original, version = self.variants and not variant, max(0, variant - 1) if self.variants else epoch
        rng = sample_rng(self.seed, version, self.dataset.samples[source].name, AUGMENTATION)
        stays = original if self.variants else rng.random() < 1 / 8  # the eighth combination: nothing is changed
        drawn = {"affine": IDENTITY if stays else draw_augmentation(rng, *STRENGTHS[self.strength])}
        colors = draw_colors(rng)  # also where they are not used: the distortions come after them
        if self.color_jitter:
            drawn["colors"] = np.ones_like(colors) if original else colors
        if self.distort:
            amounts = draw_distortions(rng, self.distort, DISTORTED[self.strength])
            drawn |= {"distortions": np.zeros_like(amounts) if original else amounts, "seeds": rng.integers(2**62)}
        return drawn


def apply_augmentations(
    image: torch.Tensor, mask: torch.Tensor, affine: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Applies what `draw_augmentation` drew, (2, 3), to an image (C, H, W) and its mask (1, H, W), or to batches."""
    if image.ndim == 3:
        images, masks = apply_augmentations(image[None], mask[None], affine[None])
        return images[0], masks[0]
    if image.device.type != "cpu":
        return _warp(image, mask, affine)
    # On a CPU in small portions, which stay in its caches.
    images, masks = torch.empty(image.shape), torch.empty(mask.shape, dtype=torch.uint8)
    for i in range(0, len(image), portion := 2 * torch.get_num_threads()):
        part = slice(i, i + portion)
        images[part], masks[part] = _warp(image[part], mask[part], affine[part])
    return images, masks


def _warp(image: torch.Tensor, mask: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # F.affine_grid gives the same grid by a product of thin matrices, which takes ten times as long on a CPU.
    height, width = image.shape[-2:]
    x = (torch.arange(width, device=image.device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=image.device) * 2 + 1) / height - 1
    a = affine[:, :, :, None, None]
    grid = torch.stack([a[:, k, 0] * x + (a[:, k, 1] * y[:, None] + a[:, k, 2]) for k in (0, 1)], dim=-1)
    return resample(image, mask, grid)


def apply_colors(images: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """Images (N, C, H, W) in 0..255 with brightness, contrast and, of RGB, saturation times factors (N, 3), float32."""
    brightness, contrast, saturation = (colors[:, i, None, None, None] for i in range(3))
    images = images.float() * brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    if images.shape[1] != 3:
        return images.clamp(0, 255)
    red, green, blue = images.split(1, dim=1)
    gray = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    return (gray + (images - gray) * saturation).clamp(0, 255)


def augment_batch(batch: dict, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, C, S, S) in 0..255 and labels (N, 1, S, S) of a batch, on the device, with what was drawn applied."""
    images, labels = (copy_to_device(batch[name], device) for name in ("image", "labels"))
    if "affine" in batch:
        images, labels = apply_augmentations(images, labels, copy_to_device(batch["affine"], device))
    if "colors" in batch:
        images = apply_colors(images, copy_to_device(batch["colors"], device))
    if "distortions" in batch:
        images, labels = apply_distortions(images, labels, batch["distortions"], batch["seeds"])
    return images, labels


def _rectangles(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """A rectangle in each image, bool (N, 1, H, W), of a tenth to a half of its area."""
    inside = np.zeros((count, 1, height, width), bool)
    for mask in inside[:, 0]:
        area, shape = rng.uniform(0.1, 0.5), np.exp(rng.uniform(-0.5, 0.5))
        rows = min(height, round(height * (area * shape) ** 0.5))
        columns = min(width, round(width * (area / shape) ** 0.5))
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        mask[top : top + rows, left : left + columns] = True
    return inside


def mix(
    images: torch.Tensor, labels: torch.Tensor, kind: str, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Puts part of another image of the batch, and of its labels (N, K, H, W), onto about half of the images.

    It is the other image's pet with `paste` (Ghiasi et al., 2021: https://arxiv.org/abs/2012.07177), a rectangle of it
    with `cutmix` (Yun et al., 2019: https://arxiv.org/abs/1905.04899).
    """
    count, _, height, width = images.shape

    def on_device(array: np.ndarray) -> torch.Tensor:
        return copy_to_device(torch.from_numpy(array), images.device)

    other = on_device((np.arange(count) + rng.integers(1, max(2, count))) % count)
    mixed = on_device(rng.random((count, 1, 1, 1)) < MIXED)
    if kind == "paste":
        taken = (labels[:, :1] != BACKGROUND)[other] & mixed
    else:
        taken = on_device(_rectangles(rng, count, height, width)) & mixed
    return torch.where(taken, images[other], images), torch.where(taken, labels[other], labels)


def resize_batch(images: torch.Tensor, labels: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels as squares of this side."""
    if side == images.shape[-1]:
        return images, labels
    images = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    return images, F.interpolate(labels.float(), (side, side), mode="nearest-exact").to(torch.uint8)
