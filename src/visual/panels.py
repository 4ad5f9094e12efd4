"""Panels: the image, the ground truth where there is one, and the prediction, side by side under a title."""

import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

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
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)], palette[IGNORED] = colors, 255
    image = Image.fromarray(labels)
    image.putpalette(palette.tobytes())
    return image


def mask_image(labels: np.ndarray, task: Task) -> Image.Image:
    """A label map (H, W) as an image: 255 for the pet, or numbers of named classes with a palette."""
    if task.classes:
        return _with_palette(labels, task.colors)
    return Image.fromarray((labels != BACKGROUND) * np.uint8(255))


def draw_panel(
    image: np.ndarray, prediction: np.ndarray, truth: np.ndarray | None, title: str, task: Task = TASKS["binary"]
) -> Image.Image:
    """Draws two or three parts, each 256 pixels high and as wide as the image's shape asks.

    The image, (H, W, C), is as the network sees it; prediction and ground truth are label maps of any size, uint8. The
    title is shortened in the middle where it is too long; a task whose classes have names gets a legend.
    """
    parts = {"image": Image.fromarray(shown(image))}
    if truth is not None:
        parts["ground truth"] = _with_palette(np.minimum(truth, PET) if task.out_channels == 1 else truth, task.colors)
    parts["prediction"] = _with_palette(prediction, task.colors)
    width = min(3 * HEIGHT, max(HEIGHT // 3, round(HEIGHT * image.shape[1] / image.shape[0])))
    across, below = MARGIN + len(parts) * (width + MARGIN), TITLE + HEIGHT + CAPTION
    cell = 34 + max(map(_font(13).getlength, task.classes), default=0)  # of the legend
    columns = max(1, int((across - MARGIN) // cell))
    panel = Image.new("RGB", (across, below + CAPTION * math.ceil(len(task.classes) / columns)), "white")
    draw = ImageDraw.Draw(panel)
    draw.text((across / 2, TITLE / 2), _fit(title, across - 2 * MARGIN), "black", _font(17), anchor="mm")
    for i, (name, part) in enumerate(parts.items()):
        left = MARGIN + i * (width + MARGIN)
        filter = Image.Resampling.NEAREST if part.mode == "P" else Image.Resampling.BILINEAR
        panel.paste(part.resize((width, HEIGHT), filter).convert("RGB"), (left, TITLE))
        draw.text((left + width / 2, below - CAPTION / 2), name, "black", _font(13), anchor="mm")
    for i, (name, color) in enumerate(zip(task.classes, task.colors)):
        left, y = MARGIN + i % columns * cell, below + (i // columns + 0.5) * CAPTION
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


def write_png(image: Image.Image, path: Path, icc_profile: bytes | None = None) -> None:
    """Writes an image atomically, in half the time of Pillow's own settings."""
    with atomic_write(path, "wb", sync=False) as file:
        image.save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE, icc_profile=icc_profile)


def draw_outline(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draws the magenta outline of a mask (H, W) on a copy of an image (H, W, C), as people see it.

    It is a pixel wide to either side of the edge, and a 400th of the shorter side on images larger than 400 pixels.
    """
    blur = ImageFilter.BoxBlur(max(1, min(mask.shape) // 400))
    inside = np.asarray(Image.fromarray((mask != 0) * np.uint8(255)).filter(blur))
    drawn = np.array(shown(image))
    drawn[(inside > 0) & (inside < 255)] = 255, 0, 255
    return drawn
