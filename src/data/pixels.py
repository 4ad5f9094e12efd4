"""Pixels of any number of channels and any depth, from what a file holds to what a network sees.

That is 8-bit RGB, or else 16 bits a channel, which become floating point from 0 to 255 as a tensor.
"""

import numpy as np
import torch
from PIL import Image

from runtime.errors import DatasetError, note

FULL = 65535  # of 16 bits
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
LARGEST, LEAST = 1e37, 1e-30  # value, and range of values, that float32 can scale


def image_pixels(
    image: Image.Image, channels: int = 3, size: tuple[int, int] | None = None, path="the image", own_range=False
) -> np.ndarray:
    """An open image as `read_image` gives it. Raises ValueError: Pillow would lose its depth."""
    deep = image.mode[0] in "IF"  # 16 or 32 bits, or floating point
    if channels == 3 and not deep:
        if "transparency" in image.info:
            image = image.convert("RGBA")
        if image.mode != "RGB":  # else it would be a copy, and images can be large
            image = image.convert("RGB")
        return np.asarray(image if size is None else image.resize(size, Image.Resampling.BILINEAR))
    if len(image.getbands()) > 1 and any(";16" in str(tile[3]) for tile in image.tile):
        raise ValueError("16 bits a channel in color can't be read; save it as .npy")
    if not deep and image.mode not in ("L", "RGB", "RGBA"):
        gray = image.mode in ("1", "LA", "La") or (image.mode == "P" and getattr(image.palette, "mode", "") == "L")
        image = image.convert("L" if gray else "RGB")
    return array_pixels(np.asarray(image), channels, size, path, own_range)


@np.errstate(over="ignore", invalid="ignore")  # of values that float32 can't hold, which are clipped
def array_pixels(
    stored: np.ndarray, channels: int, size: tuple[int, int] | None, path, own_range: bool = False
) -> np.ndarray:
    """An array (H, W) or (H, W, C) of any type as `read_image` gives it.

    Of unsigned values of 8 and 16 bits black is 0 and white the largest of their type; of others they are the lowest
    and highest of the image, of three channels together, else of each. With `own_range` they are so for all types, and
    what is neither gray nor RGB becomes gray.
    """
    if stored.dtype == bool:
        stored = stored.astype(np.uint8) * 255
    if own_range and stored.shape[2:] not in ((), (1,), (3,)):
        stored = stored.mean(axis=2)
    values = _with_channels(np.atleast_3d(stored.astype(stored.dtype.newbyteorder("="), copy=False)), channels, path)
    shared, seen = _range(values, own_range, path) if channels == 3 else None, []
    for channel in np.moveaxis(values, 2, 0):
        low, high = shared or _range(channel, own_range, path)
        channel = np.nan_to_num(channel.astype(np.float32), nan=low)
        if size is not None and size != channel.shape[::-1]:
            channel = np.asarray(Image.fromarray(channel.clip(low, high)).resize(size, Image.Resampling.BILINEAR))
        scale = FULL / (high - low) if high - low > LEAST else 0.0
        seen.append(np.round((channel.clip(low, high) - low) * scale).astype(np.uint16))
    pixels = np.stack(seen, axis=-1).repeat(channels // len(seen), axis=2)
    return shown(pixels) if channels == 3 else pixels


def _with_channels(values: np.ndarray, channels: int, path) -> np.ndarray:
    """Values (H, W, C) of as many channels, or of one that is to be repeated."""
    present = values.shape[2]
    if present in (1, channels):
        return values
    if present in (3, 4) and channels in (1, 3):  # the fourth is alpha
        return values[..., :3] if channels == 3 else (values[..., :3] @ LUMA)[..., None]
    first = " (channels stand last)" if values.shape[0] == channels else ""
    raise DatasetError(f"{path} has {present} channels, not {channels}{first}; train with --channels {present}")


def _range(values: np.ndarray, own: bool, path) -> tuple[float, float]:
    """The values that become black and white."""
    if values.dtype in (np.uint8, np.uint16) and not own:
        return 0.0, float(np.iinfo(values.dtype).max)
    known = values[np.isfinite(values)].clip(-LARGEST, LARGEST) if values.dtype.kind == "f" else values
    # Nodata: an extreme value, not 0, of more than 0.1 % of the pixels, further from the rest than its whole range.
    for end in (known.max(), known.min()) if values.dtype.kind in "if" and known.size else ():
        rest = known[known != end].astype(np.float64)
        if end and 0 < rest.size < 0.999 * values.size and 0 < np.ptp(rest) < np.abs(rest - end).min():
            note("Extreme values apart from all others, taken for nodata, are left out of the range in {}.", path)
            known = rest
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


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
