"""Names and small values of the data's flags. Imports nothing heavy."""

import argparse
import itertools
import math
import re

ARRAY = ".npy"  # of numpy.save
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ARRAY}
OTHER_PHOTOGRAPHS = {".heic", ".heif", ".avif", ".jp2", ".dng", ".cr2", ".nef", ".arw", ".svg"}  # are not read
MODES = ("train", "valid", "test")
SUBSETS = (*MODES, "all")
SPLITS = ("80-10-10", "official")
# How strong augmentation is: the largest rotation in degrees, and the sides of the crop as shares of the image's.
STRENGTHS = {"light": (8.0, 0.85, 1.0), "medium": (10.0, 0.8, 1.0), "strong": (20.0, 0.6, 1.1)}
AUTO = "auto"  # the strength of one operation an image; see `AugmentedDataset`
DISTORTIONS = ("elastic", "gamma", "blur", "noise", "jpeg", "cutout")  # each changes three images in ten
MIXES = ("paste", "cutmix")  # each puts part of another image onto half of the images
CHANGES = ("color", *DISTORTIONS, *MIXES)  # color: brightness, contrast and saturation of every image


def change_names(text: str) -> str:
    """Names of CHANGES with commas, in the table's order; `all` means all but MIXES, of which one may be given.

    Raises:
        argparse.ArgumentTypeError: there is no such change.
    """
    words = [word.strip() for word in text.split(",")]
    names = {*words} - {"all"} | ({"color", *DISTORTIONS} if "all" in words else set())
    for name in names:
        if name not in CHANGES:
            raise argparse.ArgumentTypeError(f"no distortion is called {name!r}; there are {', '.join(CHANGES)}, all")
    if names >= {*MIXES}:
        raise argparse.ArgumentTypeError(f"{' and '.join(MIXES)} exclude each other")
    return ",".join(name for name in CHANGES if name in names)


def percentiles(text: str) -> str:
    """Returns two percentiles with a comma. Raises argparse.ArgumentTypeError: it is none."""
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} must be two percentiles, such as 0.5,99.5")
    return f"{low!r},{high!r}"


def possible_sizes(size: int, stride: int, share: float = 0.34) -> list[int]:
    """Sizes within `share` of `size`: itself, and multiples of the stride, of which batch norm needs at least two."""
    first, last = math.ceil(size * (1 - share) / stride), math.floor(size * (1 + share) / stride)
    return sorted({size, *(stride * k for k in range(max(2, first), last + 1))})


def size_plan(text: str) -> str:
    """Returns a plan of sizes: `fixed`, `grow`, `vary` or as `planned_sizes` reads it.

    Raises:
        argparse.ArgumentTypeError: it is none of these.
    """
    if text not in ("fixed", "grow", "vary"):
        sizes = planned_sizes(text) if re.fullmatch(r"\d{2,4}:\d{1,5}(,\d{2,4}:\d{1,5}){0,99}", text) else []
        if not sizes or not all(16 <= side <= 4096 for side in sizes):
            raise argparse.ArgumentTypeError(f"{text!r} is no plan of sizes, such as grow, vary or 64:10,96:5")
    return text


def planned_sizes(text: str) -> list[int]:
    """The side of the training images in each of the first epochs: `64:2,96:1` is [64, 64, 96]."""
    runs = (map(int, run.split(":")) for run in text.split(",")) if ":" in text else ()
    return [side for side, epochs in runs for _ in range(epochs)]


def automatic_plan(size: int, stride: int, epochs: int) -> str | None:
    """A plan from half the size upwards for three quarters of the epochs; None where these are too few."""
    small = 3 * epochs // 4
    sides = [max(2 * stride, stride * round(size * (0.5 + 0.5 * e / small) / stride)) for e in range(small)]
    runs = [f"{side}:{len(list(group))}" for side, group in itertools.groupby(s for s in sides if s < size)]
    return ",".join(runs) or None
