"""The queue of trainings: what study/runner.py works through, in order of worth.

Scripts in this folder import this file first: it makes src and benchmarks importable.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "study/results"
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

SMP = "smp_recipe.py"  # stands before flags for this script instead of train.py
COMMON = "--split official --num_workers 0"  # of every run of train.py

LITE0 = "--model_name efficientnet_lite0_unet --encoder_weights imagenet"
SMP_LITE0 = f"{SMP} --image_size 128 --encoder timm-tf_efficientnet_lite0"
FIVE = f"--image_size 96 {LITE0} --epochs 5"
BASE = f"{FIVE} --batch_size 16 --optimizer adamw --learning_rate 1e-3 --scheduler cosine"  # of the strong recipe
LIGHT = f"{BASE} --augment online --augment_strength light"
SMALL = "--image_size 64 --model_name unet_small --recipe strong --sizes fixed --classes trimap --epochs 4"

# Group, arm, estimated minutes of one core with scoring, flags.
QUEUE: dict[str, dict[str, tuple[int, str]]] = {
    "time to Dice": {
        "`--recipe strong`": (28, f"--image_size 128 --recipe strong {LITE0} --epochs 8"),
        "segmentation_models.pytorch's recipe": (38, f"{SMP_LITE0} --epochs 10"),
        "segmentation_models.pytorch's recipe, float32": (50, f"{SMP_LITE0} --epochs 10 --amp off"),
    },
    # Each but the last two is one change to the first.
    "choice, Lite0": {
        "plain": (14, f"{BASE} --loss bce"),
        "`--loss dice`": (11, f"{BASE} --loss dice"),
        "`--loss bce_dice`": (11, f"{BASE} --loss bce_dice"),
        "light augmentation": (11, LIGHT),
        "medium augmentation": (11, f"{BASE} --augment online --augment_strength medium"),
        "growing sizes": (9, f"{BASE} --sizes grow"),
        "`--amp off`": (18, f"{BASE} --amp off"),
        "light augmentation and color jitter": (11, f"{LIGHT} --distort color"),
        "`--recipe strong`": (14, f"{FIVE} --recipe strong"),
    },
    "teacher": {
        "alone": (6, SMALL),
        "with a teacher": (32, f"{SMALL} --teacher saved_models/pets.pth"),
    },
}
ONE_SEED = ("time to Dice", "choice, Lite0/`--amp off`")  # groups and arms; the others have three
WITH_TTA = ("choice, Lite0/plain", "choice, Lite0/`--recipe strong`")  # are scored with --tta, too
