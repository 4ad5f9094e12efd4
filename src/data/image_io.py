"""Reading images, trimaps and masks from files."""

import contextlib
import importlib
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from data.names import ARRAY, HEIF, HIDDEN, IMAGE_SUFFIXES, OTHER_PHOTOGRAPHS
from data.pixels import array_pixels, image_pixels
from models.task import IGNORED
from runtime.errors import DatasetError, first_line, note

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF") + ("HEIF",) * bool(HEIF)  # by content; no others
if HEIF:
    importlib.import_module("pillow_heif").register_heif_opener()
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # profiles and notes of 64 MB, not of 1 MB
ORIENTATION = 0x0112  # EXIF tag
FROM_TRIMAP = np.array([0, 1, 0, 2], np.uint8)  # pet, background, border: the values of files to those of label maps
SHAPE_TOLERANCE = 0.02  # by how much width / height of a mask may differ from that of its image


def _load_array(path) -> np.ndarray | None:
    """The array of a file of `numpy.save`, mapped, not read; None of other files. Raises DatasetError: it is none."""
    if Path(path).suffix.lower() != ARRAY:
        return None
    with _readable(path, "an array"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise DatasetError(f"{path} holds several arrays; save one with numpy.save")
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "buif":
        raise DatasetError(f"{path} holds an array of shape {array.shape} and type {array.dtype}, not an image")
    return array


@contextlib.contextmanager
def _readable(path, what: str) -> Iterator[None]:
    try:
        yield
    except (DatasetError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  Pillow and NumPy raise nearly anything on broken files
        advice = OTHER_PHOTOGRAPHS.get(Path(path).suffix.lower(), "replace the file")
        raise DatasetError(f"{path} can't be read as {what} ({first_line(error)}); {advice}") from None


@contextlib.contextmanager
def _opened(path, what: str = "an image") -> Iterator[Image.Image]:
    """An image file of one of FORMATS, whatever it is called. What fails within is a DatasetError that names it."""
    with _readable(path, what), Image.open(path, formats=FORMATS) as image:
        if image.format == "TIFF":
            with contextlib.suppress(Exception):  # there is no second page, or it is broken
                image.seek(1)
                note("Of several pages the first is taken in {}.", path)
            image.seek(0)
        yield image


def only_images(files: Iterable[Path]) -> list[Path]:
    """The images among files, by ending or, where that says nothing, by content; hidden ones are left out."""
    images = []
    for file in files:
        suffix = file.suffix.lower()
        known = suffix in IMAGE_SUFFIXES
        if not known and suffix in ("", *OTHER_PHOTOGRAPHS):
            with contextlib.suppress(Exception), Image.open(file, formats=FORMATS):
                known = True
        if known and not HIDDEN.match(file.name):
            images.append(file)
        elif not known and suffix in OTHER_PHOTOGRAPHS:
            note(f"WARNING: {suffix} can't be read and is left out; {OTHER_PHOTOGRAPHS[suffix]}: {{}}.", file)
    return images


def read_image(
    path, size: tuple[int, int] | None = None, upright: bool = False, channels: int = 3, own_range: bool = False
) -> np.ndarray:
    """Reads an image of any mode as RGB, uint8 (H, W, 3); or as uint16 (H, W, C) of another number of channels.

    Its content decides the format, not its name (four .jpg files of the dataset are PNGs). It is resized to a width and
    height, bilinear with antialiasing; `upright` turns it as its EXIF orientation says; of `own_range` see
    `array_pixels`. Raises DatasetError: it can't be read, or has another number of channels.
    """
    if (array := _load_array(path)) is not None:
        return array_pixels(array, channels, size, path, own_range)
    with _opened(path) as image:
        if size is not None and channels == 3:
            # Lets the JPEG decoder skip detail that the resize would average away.
            image.draft("RGB", size[::-1] if _turned(image, upright) else size)
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        return image_pixels(image, channels, size, path, own_range)


def rgb_profile(path) -> bytes | None:
    """The ICC profile of an image in RGB. Raises DatasetError: it can't be read as an image."""
    if _load_array(path) is not None:
        return None
    with _opened(path) as image:
        profile = image.info.get("icc_profile") or b""
        return profile if profile[16:20] == b"RGB " else None


def read_header(path, upright: bool = False) -> tuple[str, tuple[int, int], bool]:
    """Format and mode of an image, width and height as stored, and whether `upright` turns it by a quarter.

    Raises DatasetError: it can't be read as an image.
    """
    if (array := _load_array(path)) is not None:
        return f"NumPy {array.dtype}", array.shape[1::-1], False
    with _opened(path) as image:
        return f"{image.format} {image.mode}", image.size, _turned(image, upright)


def _turned(image: Image.Image, upright: bool) -> bool:
    return upright and image.getexif().get(ORIENTATION, 1) > 4


def image_size_of(path, upright: bool = False) -> tuple[int, int]:
    """Width and height of an image, from the first bytes of its file. Raises DatasetError: it is no image."""
    _, size, turned = read_header(path, upright)
    return size[::-1] if turned else size


def shown_size(image_path: Path, mask_path: Path, mask_size: tuple[int, int], binary_mask: bool):
    """How an image is shown beside its mask, of this width and height: width, height, and whether EXIF turns it.

    Beside a mask, not a trimap, the image is turned upright, as people saw it when they drew it, and the mask may be
    smaller or larger, if its shape is that of the image. Raises DatasetError: it has another one.
    """
    _, size, turned = read_header(image_path, upright=binary_mask)
    views = [(size[::-1], True), (size, False)] if turned else [(size, binary_mask)]
    ratio = mask_size[0] / mask_size[1]
    similar = [view for view in views if binary_mask and abs(view[0][0] / view[0][1] / ratio - 1) <= SHAPE_TOLERANCE]
    for shown, upright in [view for view in views if view[0] == mask_size] + similar:
        return *shown, upright
    sizes = "{}x{} but its mask {} is {}x{}".format(*size, mask_path, *mask_size)
    raise DatasetError(f"{image_path} is {sizes}; they must have the same {'shape' if binary_mask else 'size'}")


def nearest(values: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """A label map (H, W) at this width and height; None keeps its own."""
    if size is None or size == values.shape[::-1]:
        return values
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST))


def read_trimap(path) -> np.ndarray:
    """Reads a trimap of 1 = pet, 2 = background, 3 = border as a label map, uint8 (H, W); see models/task.py."""
    values = _read_values(path, "trimap")
    if values.ndim != 2 or values.dtype != np.uint8:
        raise DatasetError(f"{path} is no trimap: expected one channel of 8 bits, got an array of shape {values.shape}")
    if values.min() < 1 or values.max() > 3:
        shown = ", ".join(map(str, np.unique(values)[:6]))
        raise DatasetError(f"{path} is no trimap: it holds {shown}; a trimap holds 1 (pet), 2 (background), 3 (border)")
    return FROM_TRIMAP[values]


def read_mask(path, threshold: float | str | None = None) -> np.ndarray:
    """Reads a mask of two values, in an image of any mode, as a label map of 0 and 1, uint8 (H, W).

    Black is background and the other value is pet; in a palette without black, index 0 is background. Alpha counts
    where the colors are all one, or no mask. Soft edges are divided in the middle. With a threshold, pet is brighter;
    with `auto` masks of other values than two get the threshold that without it the error names.
    """
    values = np.nan_to_num(_read_values(path, "mask"))
    planes, alpha = [values], None
    if values.ndim == 3 and values.shape[2] in (2, 4):
        colors, alpha = values[..., :3] if values.shape[2] == 4 else values[..., 0], values[..., -1]
        planes = [colors, alpha] if np.ptp(alpha) else [colors]
        planes = planes[-1:] if (colors == colors[0, 0]).all() else planes
    if threshold in (None, "auto"):
        for plane in planes:
            if (labels := _two_sides(plane, path)) is not None:
                if plane is alpha:
                    note("The alpha channel is the mask in {}.", path)
                return labels.astype(np.uint8)
        limit, error = _diagnose(path, planes[0])
        if threshold is None or limit is None:
            raise error
        threshold = limit
    return (np.atleast_3d(planes[0]).max(axis=2) > threshold).astype(np.uint8)


def _codes_and_levels(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A number for each pixel, its value or 0xrrggbb, and all that occur, sorted. Masks can be large."""
    codes = values if values.ndim == 2 else sum(values[..., c].astype(np.int32) << 16 - 8 * c for c in range(3))
    return codes, np.unique(codes, return_counts=True)[0]  # without counts it hashes, 20 times as slow on photographs


def _two_sides(values: np.ndarray, path) -> np.ndarray | None:
    """Where a mask, gray (H, W) or colors (H, W, C), is pet; None where it has other values than two or soft edges."""
    codes, levels = _codes_and_levels(values)
    if len(levels) <= 2:
        return codes != 0 if len(levels) < 2 or levels[0] == 0 else None
    gray = np.atleast_3d(values).max(axis=2)
    top = next((top for top in (1, 255, 65535) if gray.max() <= top), 0)
    if not top or gray.min() < 0 or (values.ndim == 3 and (np.ptp(values, axis=2) > 8).any()):
        return None
    white, dark = (gray > top - top / 4).mean(), ((gray > 0) & (gray < top / 4)).mean()
    # Where more is dark, that may be pet, as in a mask of 0, 1 and 2; noise is only around what is white.
    seen = white > dark or (white > 0 and read_header(path)[0].startswith(("JPEG", "MPO", "WEBP")))
    if not seen or 1 - white - dark - (gray == 0).mean() > 0.1:
        return None
    note("Gray levels are divided in the middle, those above are pet, in {}.", path)
    return gray > top / 2


def _diagnose(path, values: np.ndarray) -> tuple[float | None, DatasetError]:
    """Above which value all could be pet, if any is known; and what a mask holds, with the command that mends it."""
    levels, colored = _codes_and_levels(values)[1], values.ndim == 3
    count, low, high = len(levels), float(levels[0]), float(levels[-1])
    numbered = values.dtype.kind in "bui" and levels[levels < IGNORED].max(initial=0) < max(64, 2 * count)
    limit = 127.0 if colored or 127 < high < 256 else high / 2
    option, advice = "--threshold auto", f"what is above {limit:g} becomes pet"
    if count == 2 or (colored and low and count <= IGNORED):
        limit, option = (None, "--label_map FILE") if colored else (low, option)
        advice = f"none is {'black' if colored else 0}, so which one is background? "
        advice += "make it that" if colored else f"{low:g} becomes it"
    elif count <= IGNORED if colored else numbered:
        limit, advice = 0.0, f"all but {'black' if colored else 0} become pet"
        if not colored or read_header(path)[0].endswith(" P"):
            advice = f"classes get names with --classes FILE, or {advice}"
    if not colored and levels.tolist() == [1, 2, 3]:
        text = f"{path} is a trimap, no mask of two values; put trimaps into `annotations/trimaps`"
        return None, DatasetError(text)
    shown = ", ".join(f"#{v:06x}" if colored else f"{v:g}" for v in levels[:6]) + ", ..." * (count > 6)
    text = f"{path} is no mask of two values: it holds {count} {'colors' if colored else 'values'}, {shown}"
    return limit, DatasetError(f"{text}; {advice} with `{_convert(path)} {option}`")


def _convert(path) -> str:
    """The command that converts the masks in the folder of this one, which may lie in a subfolder."""
    masks = next((folder for folder in Path(path).parents if folder.name == "masks"), Path(path).parent)
    places = [shlex.quote(str(p)) for p in (masks, masks.parent / "images", masks.parent / "converted")]
    return "python tools/convert_masks.py --annotations {} --images {} --output {}".format(*places)


def read_class_mask(path, classes: tuple[str, ...]) -> np.ndarray:
    """Reads a mask whose values, or indices of its palette, are numbers of classes or 255, as a label map (H, W)."""
    values = _read_values(path, "class mask")
    if values.ndim == 3 and values.shape[2] > 2 and not np.ptp(values[..., :3], axis=2).any():
        values = values[..., 0]  # gray, saved as RGB
    if values.ndim != 2 or values.dtype.kind not in "bui":
        text = f"{path} is no mask of classes: expected one channel of whole numbers; colors become numbers with"
        raise DatasetError(f"{text} `{_convert(path)} --classes --label_map FILE`")
    unnamed = values[((values < 0) | (values >= len(classes))) & (values != IGNORED)]
    if len(unnamed):
        text = f"{path} holds the value {unnamed.min()}, but --classes names {len(classes)} classes, from 0 on"
        raise DatasetError(f"{text}; name it, or write {IGNORED} for pixels to leave out")
    return values.astype(np.uint8)


def _read_values(path, what: str) -> np.ndarray:
    if (array := _load_array(path)) is not None:
        if array.shape[2:] not in ((), (1,)):
            raise DatasetError(f"{path} holds an array of shape {array.shape}; save a {what} of height x width")
        return np.asarray(array).reshape(array.shape[:2])
    with _opened(path, f"a {what}") as image:
        if image.mode != "P" or what != "mask":
            return np.asarray(image.convert("RGB") if image.mode == "CMYK" else image)
        # A palette: its colors, unless none of them is black; then its indices, of which 0 is background.
        colors, indices = np.asarray(image.convert("RGB")), np.asarray(image)
        return indices if colors.any(axis=2).all() else colors
