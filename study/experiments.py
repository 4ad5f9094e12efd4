"""The trainings of the study, in groups, each with the flags that are not train.py's defaults.

Scripts in this folder import this file first: it makes src and benchmarks importable.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

SMP = "smp_recipe.py"  # stands before flags for this script instead of train.py
SMALL, UNET = "--image_size 128", "--image_size 96 --model_name unet"
STRONG = f"{SMALL} --recipe strong"
RESNET34 = f"{STRONG} --model_name resnet34_unet --decoder plain"
FEW = f"{STRONG} --batch_size 8 --model_name unet_small"  # about 2,000 steps
LITE0 = f"{STRONG} --model_name efficientnet_lite0_unet --encoder_weights imagenet"
SMP_LITE0 = f"{SMP} {SMALL} --encoder timm-tf_efficientnet_lite0"
PRETRAINED = "saved_models/pretrained/unet_small_best.pth"

EXPERIMENTS: dict[str, dict[str, str]] = {
    # ResNet34-UNet; 33,120 images seen by each.
    "recipes": {
        "strong": f"{STRONG} --epochs 10",
        "smp": f"{SMP} {SMALL} --epochs 10",
        "report": f"{SMALL} --epochs 10",
    },
    "recipes, 20 epochs": {
        "strong": f"{STRONG} --epochs 20",
        "smp": f"{SMP} {SMALL} --epochs 20",
    },
    "recipes, UNet": {
        "strong": f"{UNET} --recipe strong --epochs 10",
        "smp": f"{UNET} --loss dice --scheduler cosine --learning_rate 2e-4 --batch_size 16 --epochs 10",
    },
    # From the same ImageNet weights; to be run alone on a machine.
    "time to Dice": {
        "ours, float32": f"{LITE0} --epochs 8 --amp off",
        "smp, float32": f"{SMP_LITE0} --epochs 10 --amp off",
        "ours, bf16": f"{LITE0} --epochs 8",
        "smp, bf16": f"{SMP_LITE0} --epochs 10",
    },
    # Each for about 20 minutes of one core; one seed, so no claims.
    "encoders, 20 minutes": {
        "resnet18": f"{STRONG} --model_name resnet18_unet --epochs 10",
        "resnet34": f"{RESNET34} --epochs 7",
        "resnet34, transformer": f"{RESNET34} --attention transformer --epochs 7",
        "mobilenet_v3_large": f"{STRONG} --model_name mobilenet_v3_large_unet --epochs 11",
        "efficientnet_b0": f"{STRONG} --model_name efficientnet_b0_unet --epochs 8",
        "convnext_tiny": f"{STRONG} --model_name convnext_tiny_unet --epochs 5",
        "swin_t": f"{STRONG} --model_name swin_t_unet --epochs 4",
    },
    # A part of the masks, alone and with the other training images as unlabeled ones.
    # "pre-trained" needs: src/pretrain.py --data_path dataset --split official --model_name unet_small --image_size 128
    # --epochs 10
    "5 % of the masks": {
        "alone": f"{FEW} --train_fraction 0.05 --epochs 96 --validate_every 12",
        "--unlabeled rest": f"{FEW} --train_fraction 0.05 --epochs 96 --validate_every 12 --unlabeled rest",
        "pre-trained": f"{FEW} --train_fraction 0.05 --epochs 96 --validate_every 12 --init {PRETRAINED}",
        "all masks, as many steps": f"{FEW} --epochs 5",
    },
    "5 % of the masks, twice the steps": {
        "alone": f"{FEW} --train_fraction 0.05 --epochs 192 --validate_every 24",
        "--unlabeled rest": f"{FEW} --train_fraction 0.05 --epochs 192 --validate_every 24 --unlabeled rest",
    },
    "1 % of the masks": {
        "alone": f"{FEW} --train_fraction 0.01 --epochs 400 --validate_every 50",
        "--unlabeled rest": f"{FEW} --train_fraction 0.01 --epochs 400 --validate_every 50 --unlabeled rest",
    },
    "10 % of the masks": {
        "alone": f"{FEW} --train_fraction 0.1 --epochs 48 --validate_every 6",
        "--unlabeled rest": f"{FEW} --train_fraction 0.1 --epochs 48 --validate_every 6 --unlabeled rest",
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
        "as it is": f"{STRONG} --epochs 10",
        "--decoder plain": f"{STRONG} --epochs 10 --decoder plain",
        "--progressive off": f"{STRONG} --epochs 10 --progressive off",
        "--augment off": f"{STRONG} --epochs 10 --augment off",
        "--ema 0": f"{STRONG} --epochs 10 --ema 0",
        "--learning_rate 2e-3": f"{STRONG} --epochs 10 --learning_rate 2e-3",
        "--batch_size 8": f"{STRONG} --epochs 10 --batch_size 8",
        "--loss dice": f"{STRONG} --epochs 10 --loss dice",
        "--mix cutmix": f"{STRONG} --epochs 10 --mix cutmix",
    },
}
