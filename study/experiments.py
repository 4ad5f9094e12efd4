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
    # ResNet34-UNet. All of a group see the same number of images.
    "recipes": {
        "report": f"{SMALL} --epochs 10",
        "strong": f"{SMALL} --recipe strong --epochs 10",
        "smp": f"{SMP} {SMALL} --epochs 10",
    },
    "longer": {
        "strong": f"{SMALL} --recipe strong --epochs 20",
        "smp": f"{SMP} {SMALL} --epochs 20",
    },
}
