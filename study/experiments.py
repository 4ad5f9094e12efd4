"""The trainings of the study, in groups, each with the flags that are not train.py's defaults.

Scripts in this folder import this file first: it makes src and benchmarks importable.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

SMP = "smp_recipe.py"  # stands before flags for this script instead of train.py
SMALL, UNET = "--image_size 128", "--image_size 96 --model_name unet"

EXPERIMENTS: dict[str, dict[str, str]] = {
    # ResNet34-UNet; 33,120 images seen by each.
    "recipes": {
        "strong": f"{SMALL} --recipe strong --epochs 10",
        "smp": f"{SMP} {SMALL} --epochs 10",
        "report": f"{SMALL} --epochs 10",
    },
    "recipes, 20 epochs": {
        "strong": f"{SMALL} --recipe strong --epochs 20",
        "smp": f"{SMP} {SMALL} --epochs 20",
    },
    "recipes, UNet": {
        "strong": f"{UNET} --recipe strong --epochs 10",
        "smp": f"{UNET} --loss dice --scheduler cosine --learning_rate 2e-4 --batch_size 16 --epochs 10",
    },
    # For the claims of the reports.
    "networks": {"resnet34_unet": "--image_size 96 --epochs 10", "unet": f"{UNET} --epochs 10"},
    "augmentation": {
        "off": "--image_size 96 --epochs 12",
        "3 variants": "--image_size 96 --augment --epochs 3",  # an epoch is four passes over the images
    },
    "scheduler": {
        "plateau": "--image_size 96 --epochs 20",
        "none": "--image_size 96 --epochs 20 --scheduler none",
    },
    # One thing is changed in the strong recipe; scored on validation images alone.
    "choice": {
        "as it is": f"{SMALL} --recipe strong --epochs 10",
        "--decoder plain": f"{SMALL} --recipe strong --epochs 10 --decoder plain",
        "--progressive off": f"{SMALL} --recipe strong --epochs 10 --progressive off",
        "--augment off": f"{SMALL} --recipe strong --epochs 10 --augment off",
        "--ema 0": f"{SMALL} --recipe strong --epochs 10 --ema 0",
        "--learning_rate 2e-3": f"{SMALL} --recipe strong --epochs 10 --learning_rate 2e-3",
        "--batch_size 8": f"{SMALL} --recipe strong --epochs 10 --batch_size 8",
        "--loss dice": f"{SMALL} --recipe strong --epochs 10 --loss dice",
        "--mix cutmix": f"{SMALL} --recipe strong --epochs 10 --mix cutmix",
    },
}
