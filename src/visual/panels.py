"""Panels: the image, the ground truth where there is one, and the prediction, side by side under a title."""

import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torchvision.utils import make_grid

from data.image_io import rgb_profile
from data.pixels import shown
from models.task import BACKGROUND, IGNORED, PET, TASKS, Task
from runtime.files import atomic_write

HEIGHT, MARGIN, TITLE, CAPTION = 256, 12, 34, 24  # pixels


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # DejaVu comes with matplotlib and knows far more alphabets than Pillow's own font: file names are in any language.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _with_palette(labels: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> Image.Image:
    """A label map (H, W) in the colors of its classes; what is left out is white."""
    image = Image.fromarray(labels)
    rest = [(0, 0, 0)] * (IGNORED - len(colors))
    image.putpalette([level for color in (*colors, *rest, (255, 255, 255)) for level in color])
    return image


def mask_image(labels: np.ndarray, task: Task) -> Image.Image:
    """A label map (H, W) as an image: 255 for the pet, or numbers of named classes with a palette."""
    if task.classes:
        return _with_palette(labels, task.colors)
    return Image.fromarray((labels != BACKGROUND) * np.uint8(255))


def trimap_image(labels: np.ndarray) -> Image.Image:
    """A label map (H, W) as a trimap file: 1 = pet, 2 = background, 3 = border."""
    return Image.fromarray(np.array([2, 1, 3], np.uint8)[labels])


def _legend(task: Task, width: int) -> list[tuple[float, int]]:
    """Left edge and line of each class in a legend of this width."""
    places, left, line = [], MARGIN, 0
    for name in task.classes:
        length = _font(13).getlength(name) + 34
        if left > MARGIN and left + length > width:
            left, line = MARGIN, line + 1
        places.append((left, line))
        left += length
    return places


def draw_panel(
    image: np.ndarray, prediction: np.ndarray, truth: np.ndarray | None, title: str, task: Task = TASKS["binary"]
) -> Image.Image:
    """An RGB image of two or three parts, each 256 pixels high and as wide as the image's shape asks.

    Args:
        image: (H, W, C), as the network sees it.
        prediction: label map of the task, uint8 (H, W).
        truth: likewise, of any task, or None.
        title: stands above, shortened in the middle where it is too long.
        task: gives the colors, and the legend where its classes have names.
    """
    parts = {"image": Image.fromarray(shown(image))}
    if truth is not None:
        parts["ground truth"] = _with_palette(np.minimum(truth, PET) if task.out_channels == 1 else truth, task.colors)
    parts["prediction"] = _with_palette(prediction, task.colors)
    width = min(3 * HEIGHT, max(HEIGHT // 3, round(HEIGHT * image.shape[1] / image.shape[0])))
    across, below = MARGIN + len(parts) * (width + MARGIN), TITLE + HEIGHT + CAPTION
    legend = _legend(task, across)
    panel = Image.new("RGB", (across, below + CAPTION * (1 + legend[-1][1] if legend else 0)), "white")
    draw = ImageDraw.Draw(panel)
    draw.text((across / 2, TITLE / 2), _fit(title, across - 2 * MARGIN), "black", _font(17), anchor="mm")
    for i, (name, part) in enumerate(parts.items()):
        left = MARGIN + i * (width + MARGIN)
        filter = Image.Resampling.NEAREST if part.mode == "P" else Image.Resampling.BILINEAR
        panel.paste(part.resize((width, HEIGHT), filter).convert("RGB"), (left, TITLE))
        draw.text((left + width / 2, below - CAPTION / 2), name, "black", _font(13), anchor="mm")
    for name, color, (left, line) in zip(task.classes, task.colors, legend):
        y = below + (line + 0.5) * CAPTION
        draw.rectangle((left, y - 6, left + 12, y + 6), fill=color, outline="gray")
        draw.text((left + 18, y), name, "black", _font(13), anchor="lm")
    return panel


def _fit(title: str, width: int) -> str:
    title = "".join(letter if letter.isprintable() else "?" for letter in title)
    half, fitting = len(title) // 2, title
    while half > 1 and _font(17).getlength(fitting) > width:
        half -= 1
        fitting = f"{title[:half]}…{title[-half:]}"
    return fitting


def with_profile(cutout: np.ndarray, path: Path) -> Image.Image:
    """A cutout (H, W, 4) of an image file as an image, which keeps the file's ICC profile when it is saved."""
    image = Image.fromarray(cutout)
    image.info["icc_profile"] = rgb_profile(path)
    return image


def contact_sheet(images: list[np.ndarray], columns: int, gap: int) -> Image.Image:
    """Images (H, W, 3) of one size in rows, from left to right."""
    grid = make_grid(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), columns, gap, pad_value=255)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def write_png(image: Image.Image, path: Path) -> None:
    """Writes an image atomically, in half the time of Pillow's own settings."""
    with atomic_write(path, "wb", sync=False) as file:
        image.save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)


def sixteen_bits(logits: torch.Tensor) -> np.ndarray:
    """Logits (H, W), which are overwritten, to probabilities as uint16 of 0 to 65535."""
    return logits.sigmoid_().mul_(65535).round_().numpy().astype(np.uint16)


def draw_outline(image: np.ndarray, mask: np.ndarray, color=(255, 0, 255)) -> np.ndarray:
    """Draws the outline of a mask (H, W) on a copy of an image (H, W, C), as people see it.

    It is a pixel wide to either side of the edge, and a 400th of the shorter side on images larger than 400 pixels.
    """
    blur = ImageFilter.BoxBlur(max(1, min(mask.shape) // 400))
    inside = np.asarray(Image.fromarray((mask != 0) * np.uint8(255)).filter(blur))
    drawn = np.array(shown(image))
    drawn[(inside > 0) & (inside < 255)] = color
    return drawn
