"""Cutouts: in the border of a trimap, how much of a pixel is pet, and the pet's color without that of the background.

Alpha is a linear function of the color in every small window (Levin, Lischinski and Weiss, 2008:
https://doi.org/10.1109/TPAMI.2007.1177), so a guided filter leaves it nearly as it is (He, Sun and Tang, 2013:
https://doi.org/10.1109/TPAMI.2012.213). The best alpha is found by conjugate gradients, for which the filter takes the
place of a large sparse matrix (He, Sun and Tang, 2010: https://doi.org/10.1109/CVPR.2010.5539896).
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from models.task import BACKGROUND, BORDER, PET, Task

PIXELS = 500_000  # at which alpha is solved; larger images get their detail afterwards
CHUNK = 1_000_000  # pixels of the border that get it at a time
RADIUS, VARIANCE, STEPS = 2, 1e-6, 10  # of the guided filter, and of conjugate gradients on each scale
# How far in and out of an outline alpha is solved where no border is learned, as shares of what the network saw.
# Measured on the pets, whose masks contain a border of 0.03.
INNER, OUTER = 0.03, 0.0075
CONTACT = 0.02  # the same where a learned trimap has pet beside background, with no border between
FAR, NEAR = 90, 6  # radii of the means of colors


def matting_trimap(labels: np.ndarray, task: Task, tile: int | None = None) -> np.ndarray:
    """The trimap for `cut_out`, uint8 (H, W), from a label map (H, W) of a task at the image's own size.

    Where there is no border, a band at the outline takes its place. Its width is a share of what the network saw at
    once: a `tile` of so many pixels, or all of the image.
    """
    pet, side = labels != BACKGROUND, min(tile or max(labels.shape), 2 * min(labels.shape))
    if task.name == "trimap":
        touching = (_mean(labels == PET, 1) > 0) & (_mean(~pet, 1) > 0)
        return np.where(_mean(touching, round(CONTACT * side)) > 0, np.uint8(BORDER), labels)
    inner, outer = round(INNER * side), round(OUTER * side)
    inside = _mean(pet, inner) == 255
    # Parts that are too thin for this, and not near what is left, may be small animals.
    lost = pet & (_mean(inside, 2 * inner) == 0)
    inside |= lost & (_mean(pet, inner // 2) == 255)
    outside = _mean(pet, outer) == 0
    return np.where(inside, np.uint8(PET), np.where(outside, np.uint8(BACKGROUND), np.uint8(BORDER)))


def _mean(mask: np.ndarray, radius: int) -> np.ndarray:
    """Means over squares around each pixel, from 0 to 255: there all of a mask is set, here none."""
    return np.asarray(Image.fromarray(mask * np.uint8(255)).filter(ImageFilter.BoxBlur(radius)))


def cut_out(image: np.ndarray, trimap: np.ndarray, engine: str = "guided") -> np.ndarray:
    """Cuts the pet out: an image, uint8 (H, W, 3), to colors and alpha, uint8 (H, W, 4).

    The trimap, (H, W), is of PET, BACKGROUND and BORDER; without one of them, the border counts as pet. The engine is
    `guided`, or `pymatting`: alpha by PyMatting's closed form. The background is black, so that the file says nothing
    of it.
    """
    cutout = np.dstack([image, (trimap != BACKGROUND) * np.uint8(255)])
    cutout[trimap == BACKGROUND] = 0
    if all((trimap == value).any() for value in (PET, BACKGROUND, BORDER)):
        rows, columns = (_reach((trimap == BORDER).any(axis)) for axis in (1, 0))
        _solve_border(image[rows, columns], trimap[rows, columns], cutout[rows, columns], engine)
    return cutout


def _reach(used: np.ndarray) -> slice:
    """From the first to the last index that is used, and some more."""
    first, *_, last = np.flatnonzero(used).repeat(2)
    more = 8 + len(used) // 50
    return slice(max(0, first - more), last + 1 + more)


def _solve_border(image: np.ndarray, trimap: np.ndarray, cutout: np.ndarray, engine: str) -> None:
    """Writes colors and alpha into the border's pixels of a cutout."""
    height, width = trimap.shape
    scale = min(1.0, (PIXELS / trimap.size) ** 0.5)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small, pet, background = (
        torch.from_numpy(np.array(Image.fromarray(part).resize(size, Image.Resampling.BILINEAR)))
        for part in (image, *((trimap == value) * np.uint8(255) for value in (PET, BACKGROUND)))
    )
    colors, known = small.permute(2, 0, 1).double() / 255, (torch.stack([pet, background]) == 255).double()
    alpha = _solve(colors, known) if engine == "guided" else _closed_form(colors, known)
    slope = GuidedFilter(colors, 1e-4).lines(alpha)[:3]
    fields = torch.cat([alpha[None], slope, colors, *_fore_and_background(colors, alpha)]).float()
    border = np.flatnonzero(trimap == BORDER)
    for start in range(0, len(border), CHUNK):
        y, x = np.divmod(border[start : start + CHUNK], width)
        places = torch.from_numpy(np.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], axis=-1)).float()
        sampled = F.grid_sample(fields[None], places[None, None], padding_mode="border", align_corners=False)
        alpha, slope, blurred, fore, back = sampled[0, :, 0].split([1, 3, 3, 3, 3])
        color = torch.from_numpy(image[y, x]).T / 255
        alpha = (alpha + (slope * (color - blurred)).sum(0)).clamp(0, 1)
        fore = fore + alpha * (color - alpha * fore - (1 - alpha) * back)
        cutout[y, x] = torch.cat([fore, alpha]).clamp(0, 1).mul(255).round().byte().T


def _box(values: torch.Tensor, radius: int) -> torch.Tensor:
    """Sums over squares around each pixel, (..., H, W); beyond the image's edge is zero."""
    sums = F.pad(values, (radius + 1, radius, radius + 1, radius)).cumsum(-1).cumsum(-2)
    side = 2 * radius + 1
    sums = sums[..., side:, :] - sums[..., :-side, :]
    return sums[..., side:] - sums[..., :-side]


class GuidedFilter:
    """The guided filter of an image (3, H, W) for values of 0 to 1."""

    def __init__(self, image: torch.Tensor, variance: float = VARIANCE):
        self.image, self.count = image, _box(torch.ones_like(image[:1]), RADIUS)
        self.mean = _box(image, RADIUS) / self.count
        products = _box(image[:, None] * image, RADIUS) / self.count - self.mean[:, None] * self.mean
        spread = products.permute(2, 3, 0, 1) + variance * torch.eye(3, dtype=image.dtype)
        self.inverse = torch.linalg.inv(spread).permute(2, 3, 0, 1).contiguous()

    def lines(self, values: torch.Tensor) -> torch.Tensor:
        """Slopes and offset, (4, H, W), of the linear functions of the color that are nearest to values (H, W)."""
        mean, *products = _box(torch.cat([values[None], self.image * values]), RADIUS) / self.count
        slopes = (self.inverse * (torch.stack(products) - self.mean * mean)).sum(1)
        offset = mean - (slopes * self.mean).sum(0)
        return _box(torch.cat([slopes, offset[None]]), RADIUS) / self.count

    def residual(self, values: torch.Tensor) -> torch.Tensor:
        """What the filter takes off, (H, W), times the windows of each pixel: the matting Laplacian's product."""
        *slopes, offset = self.lines(values)
        return (values - (torch.stack(slopes) * self.image).sum(0) - offset) * self.count[0]


def _solve(image: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Alpha (H, W) of an image (3, H, W) from the shares of known pet and background, (2, H, W): coarse to fine."""
    unknown = (known < 0.999).all(dim=0)
    guess = torch.full_like(known[0], 0.5)
    if min(guess.shape) >= 48:
        half = [side // 2 for side in guess.shape]
        coarse = _solve(*(F.interpolate(x[None], half, mode="bilinear", antialias=True)[0] for x in (image, known)))
        guess = F.interpolate(coarse[None, None], guess.shape, mode="bilinear")[0, 0]
    alpha = torch.where(unknown, guess, known[0].round())
    laplacian = GuidedFilter(image).residual
    error = -laplacian(alpha) * unknown
    direction, size = error, (error * error).sum()
    for _ in range(STEPS):
        if size < 1e-9:
            break
        product = laplacian(direction) * unknown
        step = size / (direction * product).sum()
        alpha, error = alpha + step * direction, error - step * product
        before, size = size, (error * error).sum()
        direction = error + size / before * direction
    return alpha.clamp(0, 1)


def _closed_form(image: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """The same by PyMatting (Germer et al., 2020: https://github.com/pymatting/pymatting)."""
    from pymatting import estimate_alpha_cf, ichol

    preconditioner = functools.partial(ichol, shifts=[0.001, 0.01, 0.1, 1.0])  # 0 often fails, which it prints
    trimap = torch.where((known < 0.999).all(dim=0), 0.5, known[0])
    alpha = estimate_alpha_cf(image.permute(1, 2, 0).numpy(), trimap.numpy(), preconditioner=preconditioner)
    return torch.from_numpy(alpha)


def _fore_and_background(image: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Colors of pet and background around each pixel, (3, H, W) each (Forte, 2021: https://arxiv.org/abs/2006.14970)."""
    fore, back = image, image
    for radius in (FAR, NEAR):
        color = fore
        mean_fore = _box(color * alpha, radius) / (_box(alpha, radius) + 1e-5)
        back = _box(back * (1 - alpha), radius) / (_box(1 - alpha, radius) + 1e-5)
        fore = (mean_fore + alpha * (image - alpha * mean_fore - (1 - alpha) * back)).clamp(0, 1)
    return mean_fore, back
