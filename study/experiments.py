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

SCRATCH, IMAGENET = "--encoder_weights none", "--encoder_weights imagenet"
LITE0 = "--model_name efficientnet_lite0_unet"
SMP_LITE0 = f"{SMP} --image_size 128 --encoder timm-tf_efficientnet_lite0"
FIVE = f"--image_size 96 {LITE0} {IMAGENET} --epochs 5"
BASE = f"{FIVE} --batch_size 16 --optimizer adamw --learning_rate 1e-3 --scheduler cosine"  # of the strong recipe
STRONG = "--image_size 96 --recipe strong"
# Report B trains 10 epochs, then twice 2 more with --resume, at a fixed rate.
REPORT_B = "--image_size 96 --batch_size 8 --learning_rate 1e-4 --scheduler none --epochs 10+2+2"
REPORT_A = f"--image_size 96 --batch_size 8 --learning_rate 1e-4 --model_name resnet34_unet {SCRATCH}"

# Group, arm, estimated minutes of one core with scoring, flags.
QUEUE: dict[str, dict[str, tuple[int, str]]] = {
    "time to Dice": {
        "`--recipe strong`": (28, f"--image_size 128 --recipe strong {LITE0} {IMAGENET} --epochs 8"),
        "segmentation_models.pytorch's recipe": (38, f"{SMP_LITE0} --epochs 10"),
        "segmentation_models.pytorch's recipe, float32": (50, f"{SMP_LITE0} --epochs 10 --amp off"),
    },
    # Each but the last is one change to the first.
    "choice, Lite0": {
        "plain": (14, f"{BASE} --loss bce"),
        "`--loss dice`": (11, f"{BASE} --loss dice"),
        "`--loss bce_dice`": (11, f"{BASE} --loss bce_dice"),
        "light augmentation": (11, f"{BASE} --augment online --augment_strength light"),
        "medium augmentation": (11, f"{BASE} --augment online --augment_strength medium"),
        "growing sizes": (9, f"{BASE} --sizes grow"),
        "`--recipe strong`": (14, f"{FIVE} --recipe strong"),
    },
    # Each is one change to `--recipe strong` above; what is best on the validation images becomes the recipe.
    "recipe from weights, Lite0": {
        "encoder at a tenth of the rate": (9, f"{FIVE} --recipe strong --encoder_lr_scale 0.1"),
        "rate 5e-4": (9, f"{FIVE} --recipe strong --learning_rate 5e-4"),
        "rate 2e-3": (9, f"{FIVE} --recipe strong --learning_rate 2e-3"),
        "average 0.999": (9, f"{FIVE} --recipe strong --ema 0.999"),
        "growing sizes": (8, f"{FIVE} --recipe strong --sizes grow"),
    },
    # As many epochs as fit into the same minutes.
    "encoders, ImageNet": {
        "lite0": (21, f"{STRONG} {LITE0} {IMAGENET} --epochs 10"),
        "lite0 from scratch": (21, f"{STRONG} {LITE0} {SCRATCH} --sizes fixed --epochs 10"),
        "lite1": (21, f"{STRONG} --model_name efficientnet_lite1_unet {IMAGENET} --epochs 8"),
        "lite2": (21, f"{STRONG} --model_name efficientnet_lite2_unet {IMAGENET} --epochs 7"),
    },
    "report B": {
        "resnet34_unet": (38, f"{REPORT_B} --model_name resnet34_unet {SCRATCH}"),
        "efficientnet_lite0_unet": (28, f"{REPORT_B} {LITE0} {IMAGENET}"),
        "unet": (125, f"{REPORT_B} --model_name unet {SCRATCH}"),
    },
    # 20 passes over the images each: an epoch with 3 variants is four passes.
    "report A": {
        "plain": (50, f"{REPORT_A} --epochs 20"),
        "3 variants": (50, f"{REPORT_A} --augment bulk --num_augmentations 3 --epochs 5"),
        "fixed rate": (50, f"{REPORT_A} --scheduler none --epochs 20"),
    },
}
ONE_SEED = ("encoders, ImageNet", "time to Dice", "recipe from weights, Lite0")  # groups; the others have three
WITH_TTA = ("choice, Lite0/plain", "choice, Lite0/`--recipe strong`")  # are scored with --tta, too
