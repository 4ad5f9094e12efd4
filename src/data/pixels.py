"""Images of any number of channels and of any depth: 12 and 16 bits, floating point, NumPy's files.

What a network sees of them has 16 bits a channel, here and in the cache, and floating point from 0 to 255 as a tensor.
8-bit RGB, which most images are, is read by `data.image_io.read_image` and stays in bytes.
"""

import numpy as np
import torch
from PIL import Image, ImageOps

from runtime.errors import DatasetError

FULL = 65535  # of 16 bits
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
LARGEST, LEAST = 1e37, 1e-30  # value, and range of values, that float32 can scale


def window_of(text: str | None) -> tuple[float, float] | None:
    """The window that a value of `percentiles` means."""
    return text and tuple(float(word) for word in text.split(","))


@np.errstate(over="ignore", invalid="ignore")  # of values that float32 can't hold, which are clipped
def pixel_values(
    stored: np.ndarray, channels: int, window: tuple[float, float] | None, size: tuple[int, int] | None, path
) -> np.ndarray:
    """Stored values (H, W) or (H, W, C) of any type to what the network sees, uint16 (H, W, C).

    The window is one of all three channels together, or else each has its own. See View and `read_image`.

    Raises:
        DatasetError: it is no image, or has another number of channels.
    """
    if stored.ndim not in (2, 3) or 0 in stored.shape or stored.dtype.kind not in "buif":
        raise DatasetError(f"{path} holds an array of shape {stored.shape} and type {stored.dtype}, not an image")
    if stored.dtype == bool:
        stored = stored.astype(np.uint8) * 255
    values = _with_channels(np.atleast_3d(stored.astype(stored.dtype.newbyteorder("="), copy=False)), channels, path)
    shared, seen = _range(values, window) if channels == 3 else None, []
    for channel in np.moveaxis(values, 2, 0):
        low, high = shared or _range(channel, window)
        channel = np.nan_to_num(channel.astype(np.float32), nan=low)
        if size is not None and size != channel.shape[::-1]:
            channel = np.asarray(Image.fromarray(channel.clip(low, high)).resize(size, Image.Resampling.BILINEAR))
        scale = FULL / (high - low) if high - low > LEAST else 0.0
        seen.append(np.round((channel.clip(low, high) - low) * scale).astype(np.uint16))
    return np.stack(seen, axis=-1).repeat(channels // len(seen), axis=2)


def _with_channels(values: np.ndarray, channels: int, path) -> np.ndarray:
    """Values (H, W, C) of as many channels, or of one that is to be repeated."""
    present = values.shape[2]
    if present in (1, channels):
        return values
    if present in (3, 4) and channels in (1, 3):  # the fourth is alpha
        return values[..., :3] if channels == 3 else (values[..., :3] @ LUMA)[..., None]
    first = " (channels stand last)" if values.shape[0] == channels else ""
    raise DatasetError(
        f"{path} has {present} channels, but {channels} are wanted{first}; train with --channels {present}"
    )


def _range(values: np.ndarray, window: tuple[float, float] | None) -> tuple[float, float]:
    """The values that become black and white: the range of an unsigned type, or of the image's own values."""
    if window is None and values.dtype in (np.uint8, np.uint16):
        return 0.0, float(np.iinfo(values.dtype).max)
    known = values[np.isfinite(values)].clip(-LARGEST, LARGEST) if values.dtype.kind == "f" else values
    if not known.size:
        return 0.0, 1.0
    low, high = np.percentile(known, window or (0, 100))
    return float(low), float(high)


def stored_values(image: Image.Image, upright: bool) -> np.ndarray:
    """The values of an open image, (H, W) or (H, W, C), turned as its EXIF orientation says.

    Raises:
        ValueError: it is in color with 16 bits a channel, of which Pillow reads 8.
    """
    if len(image.getbands()) > 1 and any(";16" in str(tile[3]) for tile in image.tile):
        raise ValueError("16 bits a channel in color can't be read; save it as .npy")
    if upright:
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("1", "LA", "La") or (image.mode == "P" and getattr(image.palette, "mode", "") == "L"):
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "RGBA", "F") and image.mode[0] != "I":
        image = image.convert("RGB")
    return np.asarray(image)


def to_floats(values: np.ndarray) -> np.ndarray:
    """Values as the network takes them: bytes stay, those of 16 bits become float32 from 0 to 255."""
    return values if values.dtype == np.uint8 else values.astype(np.float32) / 257


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """An image (H, W, C) as the network takes it, (C, H, W)."""
    return torch.from_numpy(to_floats(np.ascontiguousarray(image.transpose(2, 0, 1))))


def shown(image: np.ndarray) -> np.ndarray:
    """An image (H, W, C) as people see it, uint8 (H, W, 3): the first three channels, or the first one in gray."""
    if image.shape[2] != 3:
        image = image[..., :3] if image.shape[2] > 3 else image[..., :1].repeat(3, axis=2)
    if image.dtype == np.uint16:
        return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return image if image.dtype == np.uint8 else image.clip(0, 255).astype(np.uint8)
