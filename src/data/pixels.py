"""Images of any number of channels and of any depth: 12 and 16 bits, floating point, NumPy's files.

What a network sees of them has 16 bits a channel, here and in the cache, and floating point from 0 to 255 as a tensor.
8-bit RGB, which most images are, is read by `data.image_io.read_image` and stays in bytes.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from runtime.errors import DatasetError

FULL = 65535  # of 16 bits
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


class Pixels(NamedTuple):
    """Which values of an image a network sees.

    Args:
        channels: of the image. Gray images are repeated, color ones become gray where that is 1.
        window: percentiles of the image's values that become black and white; None takes the range of its type.
    """

    channels: int = 3
    window: tuple[float, float] | None = None

    @property
    def dtype(self) -> type:
        """Of images and of the cache."""
        return np.uint8 if self == RGB else np.uint16


RGB = Pixels()


def pixels_of(preprocessing: dict) -> Pixels:
    """What a checkpoint's preprocessing says."""
    window = preprocessing.get("window")
    return Pixels(preprocessing.get("channels") or 3, window and tuple(window))


def pixel_values(stored: np.ndarray, pixels: Pixels, size: tuple[int, int] | None, path) -> np.ndarray:
    """Stored values to what the network sees, uint16 (H, W, C).

    Args:
        stored: (H, W) or (H, W, C), of any type.
        pixels: see there.
        size: width and height, bilinear with antialiasing; None keeps the size.
        path: named in errors.

    Raises:
        DatasetError: it is no image, or has another number of channels.
    """
    if stored.ndim not in (2, 3) or 0 in stored.shape or stored.dtype.kind not in "buif":
        raise DatasetError(f"{path} holds an array of shape {stored.shape} and type {stored.dtype}, not an image")
    values = _with_channels(np.atleast_3d(stored), pixels.channels, path)
    low, high = _range(values, pixels.window, stored.dtype)
    values = (np.clip(np.nan_to_num(values, copy=False, nan=low), low, high) - low) * (FULL / max(high - low, 1e-12))
    if size is not None and size != values.shape[1::-1]:
        channels = (Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(values, -1, 0))
        values = np.stack([np.asarray(c.resize(size, Image.Resampling.BILINEAR)) for c in channels], axis=-1)
    return np.round(values).astype(np.uint16)


def _with_channels(values: np.ndarray, channels: int, path) -> np.ndarray:
    """Values (H, W, C) as float64 of this number of channels."""
    found = values.shape[2]
    values = values.astype(np.float64)
    if found == channels:
        return values
    if found == 1:
        return values.repeat(channels, axis=2)
    if found in (3, 4) and channels in (1, 3):  # the fourth is alpha
        return values[..., :3] if channels == 3 else (values[..., :3] @ LUMA)[..., None]
    raise DatasetError(f"{path} has {found} channels, not {channels}; use --channels {found}")


def _range(values: np.ndarray, window: tuple[float, float] | None, dtype: np.dtype) -> tuple[float, float]:
    """The values that become black and white: the range of an unsigned type, or of the image's own values."""
    if window is None and dtype in (np.uint8, np.uint16):
        return 0.0, float(np.iinfo(dtype).max)
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    return tuple(np.percentile(known, window or (0, 100)))


def load_array(path) -> np.ndarray:
    """The array of a file of `numpy.save`, mapped, not read.

    Raises:
        DatasetError: the file is none, or holds objects.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path} can't be read as an array ({error}); replace the file") from None


def stored_values(image: Image.Image, upright: bool) -> np.ndarray:
    """The values of an open image, (H, W) or (H, W, C), turned as its EXIF orientation says."""
    if upright:
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode not in ("L", "RGB", "RGBA", "F") and image.mode[0] != "I":
        image = image.convert("RGB")
    return np.asarray(image)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """An image (H, W, C) as the network takes it, (C, H, W): bytes, or of 16 bits float32 from 0 to 255."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    return torch.from_numpy(planes if planes.dtype == np.uint8 else planes.astype(np.float32) / 257)


def shown(image: np.ndarray) -> np.ndarray:
    """An image (H, W, C) as people see it, uint8 (H, W, 3): the first three channels, or the first one in gray."""
    if image.shape[2] != 3:
        image = image[..., :3] if image.shape[2] > 3 else image[..., :1].repeat(3, axis=2)
    if image.dtype == np.uint16:
        return (image // 257).astype(np.uint8)
    return image if image.dtype == np.uint8 else image.clip(0, 255).astype(np.uint8)
