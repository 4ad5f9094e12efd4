"""Names and small values of the data's flags. Imports nothing heavy."""

import argparse
import importlib.util
import itertools
import re

ARRAY = ".npy"  # of numpy.save
HEIF = {".heic", ".heif"} if importlib.util.find_spec("pillow_heif") else set()
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ARRAY}
IMAGE_SUFFIXES |= HEIF
OTHER_PHOTOGRAPHS = dict.fromkeys((".jp2", ".dng", ".cr2", ".nef", ".arw", ".svg"), "save it as PNG")  # and what to do
OTHER_PHOTOGRAPHS |= {} if HEIF else dict.fromkeys((".heic", ".heif"), "run `pip install pillow-heif`")
HIDDEN = re.compile(r"\.(?!\.)")  # how the names of hidden files and folders begin: with one dot, not with two
MASK_ENDING = re.compile(r"[_-](masks?|labels?|seg)([_-]?\d+)?$", re.IGNORECASE)  # in one folder with the images
MODES = ("train", "valid", "test")
SUBSETS = (*MODES, "all")
SPLITS = ("80-10-10", "official")
GROUPINGS = ("near", "bytes", "off")  # which copies are kept in one part
# How strong augmentation is: the largest rotation in degrees, and the sides of the crop as shares of the image's.
STRENGTHS = {"light": (8.0, 0.85, 1.0), "medium": (10.0, 0.8, 1.0), "strong": (20.0, 0.6, 1.1)}
DISTORTIONS = ("elastic", "gamma", "blur", "noise", "jpeg", "cutout")  # each changes three images in ten
MIXES = ("paste", "cutmix")  # each puts part of another image onto half of the images
CHANGES = ("color", *DISTORTIONS, *MIXES)  # color: brightness, contrast and saturation of every image


def change_names(text: str) -> str:
    """Names of CHANGES with commas, in the table's order; `all` means all but MIXES, of which one may be given."""
    names = {word.strip() for word in text.split(",")}
    if "all" in names:
        names = names - {"all"} | {"color", *DISTORTIONS}
    for name in names:
        if name not in CHANGES:
            raise argparse.ArgumentTypeError(f"no distortion is called {name!r}; there are {', '.join(CHANGES)}, all")
    if names >= {*MIXES}:
        raise argparse.ArgumentTypeError(f"{' and '.join(MIXES)} exclude each other")
    return ",".join(name for name in CHANGES if name in names)


def size_plan(text: str) -> str:
    """Accepts `fixed`, `grow`, or a plan that `planned_sizes` reads."""
    if text not in ("fixed", "grow"):
        sizes = planned_sizes(text) if re.fullmatch(r"\d{2,4}:\d{1,5}(,\d{2,4}:\d{1,5}){0,99}", text) else []
        if not sizes or not all(16 <= side <= 4096 for side in sizes):
            raise argparse.ArgumentTypeError(f"{text!r} is no plan of sizes, such as grow or 64:10,96:5")
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
