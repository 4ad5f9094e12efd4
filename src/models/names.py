"""Names of networks and of what they learn, for flags; models/build.py has the networks. Imports nothing heavy."""

import argparse
import difflib
import re
import sys
from pathlib import Path

ENCODERS = (
    *("resnet18", "resnet50", "resnext50_32x4d", "efficientnet_b0", "efficientnet_b3", "efficientnet_v2_s"),
    *("mobilenet_v3_large", "convnext_tiny", "swin_t"),
    *("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"),
)
MODELS = ["unet", "unet_small", "resnet34_unet", *(f"{name}_unet" for name in ENCODERS)]
ALIASES = {"resnet": "resnet34_unet"}  # report B's short name
DEFAULT_MODEL = "resnet34_unet"
ATTENTION = ("none", "se", "cbam", "transformer")
DECODERS = ("plain", "stem")
TASKS = ("binary", "trimap", "species")  # that --classes may name
DENOISING = "denoising"  # what pretrain.py learns
MAX_CLASSES = 200
SPECIES_CLASSES = ("background", "cat", "dog")  # of `species`


def known_model(text: str) -> str:
    """The full name of a model. Raises argparse.ArgumentTypeError: there is none."""
    if text in (*MODELS, *ALIASES):
        return ALIASES.get(text, text)
    (closest,) = difflib.get_close_matches(text, [*MODELS, *ALIASES], n=1, cutoff=0)
    raise argparse.ArgumentTypeError(
        f"no model is called {text!r}; the closest is {closest!r}, and there are {', '.join(MODELS)}"
    )


def model_or_default(text: str) -> str:
    """As `known_model`; for an unknown name it warns on stderr and returns the default, as report A asks."""
    try:
        return known_model(text)
    except argparse.ArgumentTypeError as error:
        print(f"WARNING: {error}. TRAINING {DEFAULT_MODEL} INSTEAD.", file=sys.stderr)
        return DEFAULT_MODEL


def are_class_names(names: list) -> bool:
    """Whether these are names of classes: 2 to MAX_CLASSES different ones of letters, digits, spaces and dashes."""
    well_formed = all(type(name) is str and re.fullmatch(r"\w[\w .+-]{0,39}", name) for name in names)
    return well_formed and 2 <= len(names) <= MAX_CLASSES and len(set(names)) == len(names)


def class_names(text: str) -> str:
    """What --classes means: one of TASKS, or names with commas, which may stand in a file, one in a line."""
    if text in TASKS:
        return text
    lines, place = text.split(","), text
    if len(lines) == 1:
        place = f"the file {text}"
        try:
            lines = filter(str.strip, Path(text).read_text(encoding="utf-8-sig").splitlines())
        except (OSError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(TASKS)}, and no file ({error})") from None
    names = [line.strip() for line in lines]
    if not are_class_names(names):
        limits = f"2 to {MAX_CLASSES} different names of letters, digits, spaces and dashes"
        raise argparse.ArgumentTypeError(f"{place} must give {limits}, the first of them that of the background")
    return "species" if tuple(names) == SPECIES_CLASSES else ",".join(names)
