"""Reading images, trimaps and masks from files."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data.names import ARRAY
from data.pixels import array_pixels, image_pixels
from models.task import IGNORED
from runtime.errors import DatasetError, first_line

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")  # by content; other decoders of Pillow never run
ORIENTATION = 0x0112  # EXIF tag
FROM_TRIMAP = np.array([0, 1, 0, 2], np.uint8)  # pet, background, border: the values of files to those of label maps
SAID: set[str] = set()  # what was said once in this process
NEAR_END = 64  # gray levels from black or white on that still count as either
SHAPE_TOLERANCE = 0.02  # by how much width / height of a mask may differ from that of its image


def _is_array(path) -> bool:
    return Path(path).suffix.lower() == ARRAY


def _load_array(path) -> np.ndarray:
    """The array of a file of `numpy.save`, mapped, not read. Raises DatasetError: it is none, or holds objects."""
    with _readable(path, "an array"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise DatasetError(f"{path} holds several arrays; save one with numpy.save")
    return array


@contextlib.contextmanager
def _readable(path, what: str) -> Iterator[None]:
    try:
        yield
    except (DatasetError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  Pillow and NumPy raise nearly anything on broken files
        raise DatasetError(f"{path} can't be read as {what} ({first_line(error)}); replace the file") from None


@contextlib.contextmanager
def _opened(path, what: str = "an image") -> Iterator[Image.Image]:
    """An image file of one of FORMATS, whatever it is called. What fails within is a DatasetError that names it."""
    with _readable(path, what), Image.open(path, formats=FORMATS) as image:
        yield image


def read_image(
    path, size: tuple[int, int] | None = None, upright: bool = False, channels: int = 3, own_range: bool = False
) -> np.ndarray:
    """Reads an image of any mode as RGB, uint8 (H, W, 3); or as uint16 (H, W, C) of another number of channels.

    Its content decides the format, not its name (four .jpg files of the dataset are PNGs). It is resized to a width and
    height, bilinear with antialiasing; `upright` turns it as its EXIF orientation says; of `own_range` see
    `array_pixels`. Raises DatasetError: it can't be read, or has another number of channels.
    """
    if _is_array(path):
        return array_pixels(_load_array(path), channels, size, path, own_range)
    with _opened(path) as image:
        if size is not None and channels == 3:
            # Lets the JPEG decoder skip detail that the resize would average away.
            image.draft("RGB", size[::-1] if _turned(image, upright) else size)
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        return image_pixels(image, channels, size, path, own_range)


def rgb_profile(path) -> bytes | None:
    """The ICC profile of an image in RGB. Raises DatasetError: it can't be read as an image."""
    if _is_array(path):
        return None
    with _opened(path) as image:
        profile = image.info.get("icc_profile") or b""
        return profile if profile[16:20] == b"RGB " else None


def describe_image(path) -> str:
    """Format and mode of an image file. Raises DatasetError: it can't be read as an image."""
    if _is_array(path):
        return f"NumPy {_load_array(path).dtype}"
    with _opened(path) as image:
        return f"{image.format} {image.mode}"


def _stored_size(path, upright: bool) -> tuple[tuple[int, int], bool]:
    """Width and height of an image as stored, and whether its EXIF orientation turns it by a quarter."""
    if _is_array(path):
        shape = _load_array(path).shape
        if len(shape) not in (2, 3) or 0 in shape:
            raise DatasetError(f"{path} holds an array of shape {shape}, not an image")
        return shape[1::-1], False
    with _opened(path) as image:
        return image.size, _turned(image, upright)


def _turned(image: Image.Image, upright: bool) -> bool:
    return upright and image.getexif().get(ORIENTATION, 1) > 4


def image_size_of(path, upright: bool = False) -> tuple[int, int]:
    """Width and height of an image, from the first bytes of its file. Raises DatasetError: it is no image."""
    size, turned = _stored_size(path, upright)
    return size[::-1] if turned else size


def shown_size(image_path: Path, mask_path: Path, mask_size: tuple[int, int], binary_mask: bool):
    """How an image is shown beside its mask, of this width and height: width, height, and whether EXIF turns it.

    Beside a mask, not a trimap, the image is turned upright, as people saw it when they drew it, and the mask may be
    smaller or larger, if its shape is that of the image. Raises DatasetError: it has another one.
    """
    size, quarter_turn = _stored_size(image_path, binary_mask)
    views = [(size[::-1], True), (size, False)] if quarter_turn else [(size, binary_mask)]
    ratio = mask_size[0] / mask_size[1]
    similar = [view for view in views if binary_mask and abs(view[0][0] / view[0][1] / ratio - 1) <= SHAPE_TOLERANCE]
    for shown, upright in [view for view in views if view[0] == mask_size] + similar:
        return *shown, upright
    raise DatasetError(
        f"{image_path} is {size[0]}x{size[1]} but its mask {mask_path} is {mask_size[0]}x{mask_size[1]}; "
        f"they must have the same {'shape' if binary_mask else 'size'}"
    )


def nearest(values: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """A label map (H, W) at this width and height; None keeps its own."""
    if size is None or size == values.shape[::-1]:
        return values
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST))


def read_labels(path, binary_mask: bool, classes: tuple[str, ...] = ()) -> np.ndarray:
    """Reads a trimap, a mask, or with `classes` a mask of classes as a label map, uint8 (H, W); see models/task.py."""
    if binary_mask and classes:
        return read_class_mask(path, classes)
    return (read_mask if binary_mask else read_trimap)(path)


def read_trimap(path) -> np.ndarray:
    """Reads a trimap of 1 = pet, 2 = background, 3 = border; see `read_labels`."""
    values = _read_values(path, "trimap")
    if values.ndim != 2 or values.dtype != np.uint8:
        raise DatasetError(f"{path} is no trimap: expected one channel of 8 bits, got an array of shape {values.shape}")
    if values.min() < 1 or values.max() > 3:
        levels = np.unique(values)
        named = ", ".join(map(str, levels[:6])) + (", ..." if len(levels) > 6 else "")
        raise DatasetError(
            f"{path} is no trimap: it holds the values {named}; only 1 (pet), 2 (background) and 3 (border) may occur"
        )
    return FROM_TRIMAP[values]


def read_mask(path) -> np.ndarray:
    """Reads a mask of two values, in an image of any mode, as a label map of 0 and 1; see `read_labels`.

    Black is background and the other value is pet; in a palette without black, index 0 is background. Alpha counts
    where the colors are all one. Gray levels that gather at black and white, as JPEG, soft brushes and resizing leave
    them, are divided in the middle, which is said once.
    """
    values = codes = _read_values(path, "mask")
    if values.ndim == 3:
        alpha = values.shape[2] in (2, 4)
        # A number for each color, from one channel after the other: masks can be large.
        codes = sum(values[..., c].astype(np.int32) << 8 * c for c in range(values.shape[2] - alpha))
        if alpha and (codes == codes.flat[0]).all() and np.ptp(values[..., -1]):
            codes = values[..., -1]
    levels = np.unique(codes, return_counts=True)[0]  # sorts; without counts it hashes, 20 times as slow on photographs
    if len(levels) > 2:
        gray = _gray_levels(values)
        if gray is None:
            raise DatasetError(
                f"{path} is no mask: it holds {len(levels)} values, and a mask has two, background 0 and pet; if they "
                "are numbers of classes, name these with --classes, else convert it with tools/convert_masks.py"
            )
        if "gray" not in SAID:
            SAID.add("gray")
            print(f"Masks such as {Path(path).name} have gray levels: those above 127 are pet.", file=sys.stderr)
        return (gray > 127).astype(np.uint8)
    if len(levels) == 2 and levels[0] != 0:
        raise DatasetError(f"{path} is no mask: of its two values none is 0, so which one is background? make that 0")
    return (codes != 0).astype(np.uint8)


def _gray_levels(values: np.ndarray) -> np.ndarray | None:
    """The gray levels (H, W) of a mask of 8 bits whose pixels are nearly all near black or white; None of others."""
    gray = values[..., 0] if values.ndim == 3 else values
    if values.dtype != np.uint8 or (values.ndim == 3 and (np.ptp(values[..., :3], axis=2) > 8).any()):
        return None
    white, dark = (gray > 255 - NEAR_END).mean(), ((gray > 0) & (gray < NEAR_END)).mean()
    between = ((gray >= NEAR_END) & (gray <= 255 - NEAR_END)).mean()
    return gray if between <= 0.1 and white > dark else None  # else its pet may be dark, as in a mask of 0, 1 and 2


def read_class_mask(path, classes: tuple[str, ...]) -> np.ndarray:
    """Reads a mask whose values, or indices of its palette, are the numbers of classes or 255; see `read_labels`."""
    values = _read_values(path, "class mask")
    if values.ndim != 2 or values.dtype not in (bool, np.uint8, np.uint16, np.int32):
        raise DatasetError(f"{path} is no mask of classes: expected one channel of whole numbers; save it as index PNG")
    unnamed = values[((values < 0) | (values >= len(classes))) & (values != IGNORED)]
    if len(unnamed):
        raise DatasetError(
            f"{path} holds the value {unnamed.min()}, but --classes names {len(classes)} classes, 0 to "
            f"{len(classes) - 1}; name it, or write {IGNORED} for pixels to leave out"
        )
    return values.astype(np.uint8)


def _read_values(path, what: str) -> np.ndarray:
    with _opened(path, f"a {what}") as image:
        if image.mode != "P" or what != "mask":
            return np.asarray(image)
        # A palette: its colors, unless none of them is black; then its indices, of which 0 is background.
        colors, indices = np.asarray(image.convert("RGB")), np.asarray(image)
        return indices if colors.any(axis=2).all() else colors
