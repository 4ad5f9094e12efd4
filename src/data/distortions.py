"""Distortions that --distort names. A new one is a function, a row in DISTORTIONS, and a name in data/names.py.

Each takes images (N, C, H, W), float in 0..255, targets (N, 1, H, W), how strong it is for each image, float (N,) above
0, about 1 for medium strength, and a generator of random numbers for each, on the CPU. It returns images and targets.
"""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from runtime.device import copy_to_device

Pair = tuple[torch.Tensor, torch.Tensor]
Generators = list[torch.Generator]
APPLIED = 0.3  # share of the images that each named distortion changes
STRONGEST = 1.5


def resample(images: torch.Tensor, masks: torch.Tensor, grid: torch.Tensor) -> Pair:
    """Images, bilinear, and masks, nearest neighbour, at a grid (N, H, W, 2); outside are their mirror images."""
    options = {"padding_mode": "reflection", "align_corners": False}
    moved = F.grid_sample(images.float(), grid, mode="bilinear", **options)
    return moved, F.grid_sample(masks.float(), grid, mode="nearest", **options).to(torch.uint8)


def _normal(shape: tuple, generators: Generators, device: torch.device) -> torch.Tensor:
    """Normal random numbers, (N, *shape): each image's are its own on every device and in every batch."""
    return copy_to_device(torch.stack([torch.randn(shape, generator=g) for g in generators]), device)


def elastic(images: torch.Tensor, targets: torch.Tensor, amounts: torch.Tensor, generators: Generators) -> Pair:
    """Bends the image smoothly, by shifts at a grid of 5x5 points, as UNet was trained (Ronneberger et al., 2015)."""
    size = images.shape[-2:]
    shifts = _normal((2, 5, 5), generators, images.device) * amounts.view(-1, 1, 1, 1) * 0.05
    shifts = F.interpolate(shifts, size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    y, x = ((torch.arange(side, device=images.device) * 2 + 1) / side - 1 for side in size)
    return resample(images, targets, torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1) + shifts)


def gamma(images: torch.Tensor, targets: torch.Tensor, amounts: torch.Tensor, generators: Generators) -> Pair:
    """Makes dark parts brighter or darker: raises values to a power of 0.6 to 1.65 at medium strength."""
    powers = torch.exp(_normal((), generators, images.device).clamp(-1, 1) * amounts * 0.5)
    return 255 * (images / 255).clamp(min=0) ** powers.view(-1, 1, 1, 1), targets


def blur(images: torch.Tensor, targets: torch.Tensor, amounts: torch.Tensor, generators: Generators) -> Pair:
    """Blurs by a Gaussian whose standard deviation is a hundredth of the shorter side at medium strength."""
    count, channels, height, width = images.shape
    sigma = amounts * min(height, width) / 100
    reach = max(1, int(3 * STRONGEST * min(height, width) / 100))
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None].clamp(min=1e-3)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    flat = F.pad(images.reshape(1, count * channels, height, width), [reach] * 4, mode="reflect")
    flat = F.conv2d(flat, kernel[:, :, None], groups=count * channels)
    return F.conv2d(flat, kernel[..., None], groups=count * channels).view(images.shape), targets


def noise(images: torch.Tensor, targets: torch.Tensor, amounts: torch.Tensor, generators: Generators) -> Pair:
    """Adds normal noise of standard deviation 15 of 255 at medium strength."""
    return images + _normal(images.shape[1:], generators, images.device) * amounts.view(-1, 1, 1, 1) * 15, targets


def jpeg(images: torch.Tensor, targets: torch.Tensor, amounts: torch.Tensor, generators: Generators) -> Pair:
    """Compresses RGB at quality 40 at medium strength; on the CPU, wherever the images are."""
    if images.shape[1] != 3:
        return images, targets
    compressed = []
    for image, amount in zip(images.clamp(0, 255).to(torch.uint8).cpu(), amounts.tolist()):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=max(10, round(90 - 50 * amount)))
        compressed.append(np.asarray(Image.open(file, formats=("JPEG",))).transpose(2, 0, 1))
    return copy_to_device(torch.from_numpy(np.stack(compressed)), images.device).float(), targets


def cutout(images: torch.Tensor, targets: torch.Tensor, amounts: torch.Tensor, generators: Generators) -> Pair:
    """Fills a square of 0.3 of the side at medium strength with the image's mean (DeVries, Taylor, 2017)."""
    size, device = images.shape[-2:], images.device
    centers = copy_to_device(torch.stack([torch.rand(2, generator=g) for g in generators]), device)
    inside = [
        (((torch.arange(side, device=device) + 0.5) / side - centers[:, axis, None]).abs() < 0.15 * amounts[:, None])
        for axis, side in enumerate(size)
    ]
    hole = (inside[0][:, :, None] & inside[1][:, None])[:, None]
    return torch.where(hole, images.mean(dim=(2, 3), keepdim=True), images), targets


DISTORTIONS = {distort.__name__: distort for distort in (elastic, gamma, blur, noise, jpeg, cutout)}


def draw_distortions(rng: np.random.Generator, names: str, strength: float) -> np.ndarray:
    """How strong each of DISTORTIONS is for an image, float32 (K,), at most `strength`; 0 for those not named."""
    named, applied = [name in names.split(",") for name in DISTORTIONS], rng.random(len(DISTORTIONS)) < APPLIED
    amounts = strength * rng.uniform(0.1, 1, len(DISTORTIONS))
    return np.where(applied & named, amounts, 0).astype(np.float32)


def apply_distortions(images: torch.Tensor, targets: torch.Tensor, amounts: torch.Tensor, seeds: torch.Tensor) -> Pair:
    """Distorts images (N, C, H, W), which become float32, and targets (N, 1, H, W), on their device.

    `amounts` (N, K), of `draw_distortions`, and `seeds` (N,), of each image's random numbers, are on the CPU.
    """
    images, targets = images.float().clone(), targets.clone()
    for number, distort in enumerate(DISTORTIONS.values()):
        rows = amounts[:, number].nonzero()[:, 0]
        if len(rows):
            generators = [torch.Generator().manual_seed(seed) for seed in (seeds[rows] + number).tolist()]
            at, strong = (copy_to_device(values, images.device) for values in (rows, amounts[rows, number]))
            images[at], targets[at] = distort(images[at], targets[at], strong, generators)
    return images.clamp_(0, 255), targets
