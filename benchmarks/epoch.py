"""Seconds of an epoch of 3,312 images: train.py's strong recipe by size, and segmentation_models.pytorch's example.

    python benchmarks/epoch.py --rounds 5
    python benchmarks/epoch.py --rounds 5 --model_name efficientnet_lite0_unet    # their encoder, too

All get the same bytes in memory and compute one after the other, in turns, in one run; REPORT.md's time to Dice is
computed from it. Steps of train.py are whole: augmentation, resizing, the step and the average of the weights.
"""

import torch

import measure
import peers
from data.augment import draw_augmentation
from models.build import build_model
from runtime.device import choose_precision, get_device
from runtime.seeding import sample_rng
from training.optim import ModelEMA
from training.resolve import new_config
from training.step import training_step

IMAGES, SIDE, BATCH = 3312, 128, 16
ENCODERS = {"resnet34_unet": "resnet34", "efficientnet_lite0_unet": "timm-tf_efficientnet_lite0"}  # theirs by ours


def our_step(batch: dict, model_name: str, side: int, amp: str, device: torch.device):
    """A step of the strong recipe at a size."""
    config = new_config({"recipe": "strong", "model_name": model_name, "sizes": f"{side}:1", "amp": amp}, True, None)
    precision = choose_precision(config.amp, device, SIDE)
    model = precision.to_device(build_model(config.model_name, **config.network))
    net, masks = measure.make_net(config, model, precision, BATCH)
    ema = ModelEMA(model, config.ema)

    def step() -> None:
        training_step(net, [masks], [masks.prepare(batch, None, 0, 0)])
        ema.update()

    return step


def main() -> None:
    """Prints a table and writes it into benchmarks/results/epoch_<model_name>.csv."""
    parser = measure.parser(__doc__, rounds=5)
    parser.add_argument("--model_name", choices=ENCODERS, default="resnet34_unet")
    args = parser.parse_args()
    device, name, encoder = get_device(args.device), args.model_name, ENCODERS[args.model_name]
    affines = [draw_augmentation(sample_rng(0, 0, str(i), 0)) for i in range(BATCH)]
    batch = {
        "image": torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8),
        "labels": torch.randint(0, 2, (BATCH, 1, SIDE, SIDE), dtype=torch.uint8),
        "affine": torch.stack([torch.from_numpy(one) for one in affines]),
    }
    theirs = peers.smp_step(peers.SmpUnet(encoder), device)
    bf16 = peers.smp_step(peers.SmpUnet(encoder), device, torch.channels_last, True)
    steps = {
        ("smp", SIDE): lambda: theirs(batch["image"], batch["labels"]),
        ("smp, channels last, bf16", SIDE): lambda: bf16(batch["image"], batch["labels"]),
        ("strong, float32", SIDE): our_step(batch, name, SIDE, "off", device),
        **{("strong", side): our_step(batch, name, side, "auto", device) for side in (64, 96, 128)},
    }
    rows = measure.rates(measure.take_turns(steps, args.rounds, device), BATCH, "images")
    for row in rows:
        row["variant"], row["image_size"] = row["variant"]
        row["seconds_per_epoch"] = round(IMAGES / row["images_per_second"], 1)
    measure.report(f"epoch_{name}", rows, device, batch_size=BATCH)


if __name__ == "__main__":
    main()
