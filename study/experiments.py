"""The trainings of the study, in groups, each with the flags that are not train.py's defaults.

Scripts in this folder import this file first: it makes src and benchmarks importable.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

SMP = "smp_recipe.py"  # stands before flags for this script instead of train.py
START = "--loss bce_dice --optimizer adamw --learning_rate 8e-4 --scheduler cosine --ema 0.99 --augment online"


def with_changes(start: str, changes: dict[str, str]) -> dict[str, str]:
    """Flags alone, and with each of the changes added."""
    return {name: f"{start} {flags}".strip() for name, flags in {"as it is": "", **changes}.items()}


EXPERIMENTS: dict[str, dict[str, str]] = {
    "recipes": {
        "report": "--epochs 40",
        "report, augmented": "--augment --epochs 10",  # four times the images per epoch, so as many in all
        "strong": "--recipe strong --epochs 40",
        "smp": f"{SMP} --epochs 40",
    },
    # The candidates for the strong recipe: run with --validation_only.
    "choice": with_changes(
        f"{START} --epochs 20",
        {
            "batch 4": "--batch_size 4",
            "lighter augmentation": "--augment_strength light",
            "heavier augmentation and color jitter": "--augment_strength strong --color_jitter",
            "twice the learning rate": "--learning_rate 1.6e-3",
            "twenty times the decay": "--weight_decay 0.2",
            "pasted pets": "--mix paste",
            "CutMix": "--mix cutmix",
            "CBAM": "--attention cbam",
        },
    ),
    "choice, longer": {
        "color jitter": f"{START} --epochs 40 --color_jitter",
        "color jitter, heavier augmentation": f"{START} --epochs 40 --augment_strength strong --color_jitter",
        "color jitter, CutMix": f"{START} --epochs 40 --color_jitter --mix cutmix",
    },
    "ingredients": with_changes(
        f"{START} --epochs 10",
        {
            "BCE alone": "--loss bce",
            "Dice loss alone": "--loss dice",
            "no average": "--ema 0",
            "fixed learning rate": "--scheduler none",
            "no augmentation": "--augment off",
            "color jitter": "--color_jitter",
            "CutMix": "--mix cutmix",
            "SE": "--attention se",
            "CBAM": "--attention cbam",
            "sizes vary": "--multi_scale 0.34",
        },
    ),
    "networks": {"resnet34_unet": "--epochs 10", "unet": "--model_name unet --epochs 10"},
    "networks, strong recipe": {
        "resnet34_unet": "--recipe strong --epochs 40",
        "unet": "--recipe strong --epochs 40 --model_name unet",
    },
    # All see the same number of images (6 variants: 5 % more): an epoch with 3 variants is four passes over the images.
    "augmentation": {
        "off": "--epochs 20",
        "1 variant": "--augment --num_augmentations 1 --epochs 10",
        "3 variants": "--augment --num_augmentations 3 --epochs 5",
        "6 variants": "--augment --num_augmentations 6 --epochs 3",
    },
    "scheduler": {  # in fewer epochs plateau hardly ever acts
        "plateau": "--epochs 40",
        "none": "--scheduler none --epochs 40",
        "cosine": "--scheduler cosine --epochs 40",
    },
    "fraction": {
        f"{percent} %": f"{START} --epochs 10 --train_fraction {percent / 100:g}" for percent in (25, 50, 100)
    },
}
