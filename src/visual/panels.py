"""Panels: the image, the ground truth where there is one, and the prediction, side by side under a title."""

import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from data.image_io import rgb_profile
from data.pixels import shown
from models.task import BACKGROUND, IGNORED, TASKS, Task
from runtime.files import atomic_write

HEIGHT, MARGIN, TITLE, CAPTION = 256, 12, 34, 24  # pixels


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # DejaVu comes with matplotlib and knows far more alphabets than Pillow's own font: file names are in any language.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _palette(colors: Sequence[tuple[int, int, int]]) -> list[int]:
    """Of 256 colors: those of the classes, black, and white for what is left out."""
    rest = [(0, 0, 0)] * (IGNORED - len(colors))
    return [level for color in (*colors, *rest, (255, 255, 255)) for level in color]


def _part(array: np.ndarray, size: tuple[int, int], task: Task) -> Image.Image:
    """An image (H, W, 3), or a label map (H, W) in its task's colors, at this width and height."""
    if array.ndim == 3:
        return Image.fromarray(array).resize(size, Image.Resampling.BILINEAR)
    labels = Image.fromarray(array).resize(size, Image.Resampling.NEAREST)
    labels.putpalette(_palette(task.colors))
    return labels.convert("RGB")


def mask_image(labels: np.ndarray, task: Task) -> Image.Image:
    """A label map (H, W) as an image: 255 for the pet, or numbers of named classes with a palette."""
    if not task.classes:
        return Image.fromarray((labels != BACKGROUND) * np.uint8(255))
    image = Image.fromarray(labels)
    image.putpalette(_palette(task.colors))
    return image


def trimap_image(labels: np.ndarray) -> Image.Image:
    """A label map (H, W) as a trimap file: 1 = pet, 2 = background, 3 = border."""
    return Image.fromarray(np.array([2, 1, 3], np.uint8)[labels])


def _legend_places(task: Task, width: int) -> list[tuple[float, int]]:
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
    """Composes a panel.

    Args:
        image: (H, W, C), as the network sees it.
        prediction: label map of the task, uint8 (H, W).
        truth: likewise, of any task, or None: then the panel has two parts.
        title: stands above, shortened in the middle where it is too long.
        task: gives the colors, and the legend where its classes have names.

    Returns:
        An RGB image; each part is 256 pixels high and as wide as the image's shape asks.
    """
    truth = None if truth is None else task.visible(truth)
    parts = [("image", shown(image)), ("ground truth", truth), ("prediction", prediction)]
    parts = [(name, array) for name, array in parts if array is not None]
    width = min(3 * HEIGHT, max(HEIGHT // 3, round(HEIGHT * image.shape[1] / image.shape[0])))
    across = MARGIN + len(parts) * (width + MARGIN)
    legend = _legend_places(task, across)
    below = TITLE + HEIGHT + CAPTION
    size = (across, below + CAPTION * (1 + legend[-1][1] if legend else 0))
    panel = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(panel)
    draw.text((size[0] / 2, TITLE / 2), _fit(title, size[0] - 2 * MARGIN), "black", _font(17), anchor="mm")
    for i, (name, array) in enumerate(parts):
        left = MARGIN + i * (width + MARGIN)
        panel.paste(_part(array, (width, HEIGHT), task), (left, TITLE))
        draw.text((left + width / 2, below - CAPTION / 2), name, "black", _font(13), anchor="mm")
    for number, (left, line) in enumerate(legend):
        y = below + (line + 0.5) * CAPTION
        draw.rectangle((left, y - 6, left + 12, y + 6), fill=task.colors[number], outline="gray")
        draw.text((left + 18, y), task.classes[number], "black", _font(13), anchor="lm")
    return panel


def with_profile(cutout: np.ndarray, path: Path) -> Image.Image:
    """A cutout (H, W, 4) of an image file as an image, which keeps the file's ICC profile when it is saved."""
    image = Image.fromarray(cutout)
    image.info["icc_profile"] = rgb_profile(path)
    return image


def write_png(image: Image.Image, path: Path) -> None:
    """Writes an image atomically, in half the time of Pillow's own settings."""
    with atomic_write(path, "wb", sync=False) as file:
        image.save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)


def _fit(title: str, width: int) -> str:
    title = "".join(letter if letter.isprintable() else "?" for letter in title)
    if _font(17).getlength(title) <= width:
        return title
    half = len(title) // 2
    while half > 1 and _font(17).getlength(f"{title[:half]}…{title[-half:]}") > width:
        half -= 1
    return f"{title[:half]}…{title[-half:]}"


def sixteen_bits(logits: torch.Tensor) -> np.ndarray:
    """Logits (H, W), which are overwritten, to probabilities as uint16 of 0 to 65535."""
    return logits.sigmoid_().mul_(65535).round_().numpy().astype(np.uint16)


def draw_outline(image: np.ndarray, mask: np.ndarray, color=(255, 0, 255)) -> np.ndarray:
    """Draws the outline of a mask (H, W) on a copy of an image (H, W, C), as people see it.

    It is a pixel wide to either side of the edge, and a 400th of the shorter side on images larger than 400 pixels.
    """
    mask, edge = mask != 0, np.zeros(mask.shape, bool)
    down, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    reach, step = min(mask.shape) // 400 - 1, 1
    while reach > 0:  # a mask grows by 1, 2, 4, ... pixels to all sides
        step = min(step, reach)
        for axis in (edge, edge.T):
            axis[step:] |= axis[:-step]
            axis[:-step] |= axis[step:]
        reach, step = reach - step, 2 * step
    drawn = np.array(shown(image))
    drawn[edge] = color
    return drawn
