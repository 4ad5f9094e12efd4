"""Panels: the picture, the ground truth where there is one, and the prediction, side by side under a title."""

import zlib
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils import atomic_write

PET_BLUE, BACKGROUND_ORANGE = (31, 119, 180), (255, 127, 14)  # as in report B's figure; told apart by the colour-blind
BORDER_DARK = (40, 40, 40)
HEIGHT, MARGIN, TITLE, CAPTION = 256, 12, 34, 24  # pixels


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # DejaVu comes with matplotlib and knows far more alphabets than Pillow's own font: file names are in any language.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _part(array: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """An image (H, W, 3), or a mask or trimap (H, W) in blue on orange, at this width and height."""
    if array.ndim == 3:
        return Image.fromarray(array).resize(size, Image.Resampling.BILINEAR)
    mask = Image.fromarray(array.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    mask.putpalette([*BACKGROUND_ORANGE, *PET_BLUE, *BACKGROUND_ORANGE, *BORDER_DARK])  # 2 and 3 are a trimap's
    return mask.convert("RGB")


def draw_panel(image: np.ndarray, prediction: np.ndarray, truth: np.ndarray | None, title: str) -> Image.Image:
    """Composes a panel.

    Args:
        image: uint8 (H, W, 3).
        prediction: mask (H, W) of 0 and 1, or trimap (H, W) of 1, 2 and 3.
        truth: likewise, or None: then the panel has two pictures.
        title: stands above, shortened in the middle where it is too long.

    Returns:
        An RGB picture; every part of it is 256 pixels high and as wide as the picture's shape asks.
    """
    parts = [("image", image), ("ground truth", truth), ("prediction", prediction)]
    parts = [(name, array) for name, array in parts if array is not None]
    width = min(3 * HEIGHT, max(HEIGHT // 3, round(HEIGHT * image.shape[1] / image.shape[0])))
    size = (MARGIN + len(parts) * (width + MARGIN), TITLE + HEIGHT + CAPTION)
    panel = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(panel)
    draw.text((size[0] / 2, TITLE / 2), _fit(title, size[0] - 2 * MARGIN), "black", _font(17), anchor="mm")
    for i, (name, array) in enumerate(parts):
        left = MARGIN + i * (width + MARGIN)
        panel.paste(_part(array, (width, HEIGHT)), (left, TITLE))
        draw.text((left + width / 2, TITLE + HEIGHT + CAPTION / 2), name, "black", _font(13), anchor="mm")
    return panel


def write_png(picture: Image.Image, path: Path) -> None:
    """Writes a picture in half the time of Pillow's own settings; it appears only when it is whole."""
    with atomic_write(path, "wb", sync=False) as file:
        picture.save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)


def _fit(title: str, width: int) -> str:
    title = "".join(letter if letter.isprintable() else "?" for letter in title)
    if _font(17).getlength(title) <= width:
        return title
    half = len(title) // 2
    while half > 1 and _font(17).getlength(f"{title[:half]}…{title[-half:]}") > width:
        half -= 1
    return f"{title[:half]}…{title[-half:]}"


def draw_outline(image: np.ndarray, mask: np.ndarray, colour=(255, 0, 255)) -> np.ndarray:
    """Draws the outline of a mask (H, W) on a copy of an image (H, W, 3).

    It is a pixel wide to either side of the edge, and a 400th of the shorter side on pictures larger than 400 pixels.
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
    drawn = image.copy()
    drawn[edge] = colour
    return drawn
