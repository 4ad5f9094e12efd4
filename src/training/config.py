"""The settings of train.py: one field per flag, and the recipes.

To add a flag, add a field. A setting that a run must keep on --resume is FIXED, one that may change is CHANGEABLE; both
are saved in the checkpoint.
"""

import argparse
import dataclasses
import re

from data.names import CHANGES, GROUPINGS, SPLITS, STRENGTHS, change_names, size_plan
from models.names import ATTENTION, DECODERS, DEFAULT_MODEL, DENOISING, TASKS, class_names, known_model
from runtime.options import (
    CommonConfig,
    changeable,
    fixed,
    fraction_or_one,
    fraction_or_zero,
    option,
    positive_number,
    whole_number,
)

LESS_MEMORY = "a smaller --batch_size, or the same with --accumulate 2"
LOSSES = ("bce", "dice", "bce_dice", "focal", "tversky", "focal_tversky")  # of training/losses.py
WEIGHT_DECAY = 0.01  # of AdamW
CHECKPOINT_MINUTES = 10.0  # a run is also saved this often within an epoch
KEEP_EVERY = 5  # the checkpoint of every fifth epoch is kept


def class_weights(text: str) -> str:
    """Accepts `auto`, or weights above 0 with commas."""
    for word in text.split(",") if text != "auto" else ():
        positive_number(word)
    return text


def fold(text: str) -> str:
    """Accepts `I/K`: a fold and their number."""
    match = re.fullmatch(r"([1-9]\d?)/([1-9]\d?)", text)
    if not match or int(match[1]) > int(match[2]) or match[2] == "1":
        raise argparse.ArgumentTypeError(f"{text!r} is no fold such as 1/5, the first of five")
    return text


# What differs from the defaults, which are the values of both reports. Rows are for all runs, for those that start from
# scratch or from weights, and for one network; later rows win. The values are the best on validation images of what the
# study tried.
LONG = {"batch_size": 16, "learning_rate": 1e-3, "optimizer": "adamw", "scheduler": "cosine", "ema": 0.99}
RECIPES: dict[str, dict[str, dict]] = {
    "report": {},
    "strong": {
        "all": {**LONG, "loss": "bce_dice", "augment": "online", "augment_strength": "light"},
        "from scratch": {"epochs": 40, "sizes": "grow"},
        "from weights": {"epochs": 10},
        "resnet34_unet": {"decoder": "stem"},
    },
    DENOISING: {"all": LONG, "resnet34_unet": {"decoder": "stem"}},  # of pretrain.py
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(CommonConfig):
    """The settings of a training run."""

    model_name: str = fixed(
        DEFAULT_MODEL, "unet, unet_small, resnet34_unet, <encoder>_unet", known_model, metavar="NAME", group="most used"
    )
    epochs: int = option(10, "passes over the data; with --resume: N more", whole_number(1, 10**5), aliases=("-e",))
    learning_rate: float = changeable(
        1e-4, "initial learning rate, of cosine the peak", positive_number, aliases=("-lr", "--lr"), metavar="LR"
    )
    recipe: str = fixed("report", "preset for the flags that are not given", choices=("report", "strong"))
    augment: str = fixed(
        "off", "bulk: add variants of each image; online: vary all", choices=("bulk", "online", "off"), bare="bulk"
    )
    resume: str | None = option(None, "resume a run, from <model>_last.pth or FILE", bare="", metavar="FILE")

    split: str = fixed(SPLITS[0], "how the images are split into train, valid and test", choices=SPLITS, group="data")
    fold: str | None = fixed(
        None, "of K folds of all but the test images the I-th validates; files go into fold_I", fold, metavar="I/K"
    )
    groups: str = fixed(
        GROUPINGS[0],
        "what stays in one part: near copies, files of equal bytes, nothing; or groups: lines `name group`, a pattern",
        metavar="near|bytes|off|FILE|regex:R",
    )
    limit: int | None = fixed(None, "use so many of all images, for a quick try", whole_number(10), metavar="N")
    image_size: int = fixed(256, "side of the network's input", whole_number(64, 4096), metavar="PX")
    channels: int = fixed(3, "channels of the images; gray ones are repeated", whole_number(1, 100))
    classes: str = fixed("binary", "task; FILE: names of classes", class_names, metavar="|".join([*TASKS, "FILE"]))
    train_fraction: float = fixed(1.0, "train on this part of the images", fraction_or_one, metavar="P")
    unlabeled: str | None = changeable(
        None, "images without masks, with --ema; rest: those that --train_fraction leaves out", metavar="DIR|rest"
    )

    num_augmentations: int = fixed(3, "variants an image of --augment bulk", whole_number(1, 100), group="augmentation")
    augment_strength: str = fixed("medium", "how far it rotates, scales and distorts", choices=tuple(STRENGTHS))
    distort: str | None = fixed(
        None, f"with --augment: {', '.join(CHANGES)} or all, with commas", change_names, metavar="NAMES"
    )
    sizes: str = fixed(
        "fixed",
        "training sizes; grow: from half of --image_size; or SIDE:EPOCHS,... first",
        size_plan,
        metavar="PLAN",
    )
    augment_uncertain: bool = fixed(False, "make border pixels pet or background at random")

    encoder_weights: str = fixed(
        "auto", "start of the encoder; auto: ImageNet, else random", metavar="auto|imagenet|none|FILE", group="network"
    )
    encoder_lr_scale: float = fixed(
        1.0, "learning rate of the encoder, as a share of --learning_rate", fraction_or_one, metavar="SHARE"
    )
    freeze_encoder: int = fixed(0, "keep the encoder as it is for the first N epochs", whole_number(0))
    init: str | None = fixed(None, "start from the network and the weights of this checkpoint", metavar="FILE")
    teacher: str | None = changeable(None, "learn from this checkpoint's probabilities too", metavar="FILE")
    attention: str = fixed("none", "attention in the decoder; transformer: behind the bottleneck", choices=ATTENTION)
    decoder: str = fixed("plain", "decoder; stem: with features at full resolution", choices=DECODERS)

    loss: str = fixed("bce", "loss; bce: cross-entropy, bce_dice: plus Dice", choices=LOSSES, group="optimization")
    class_weights: str | None = fixed(
        None, "in the loss; binary: of the pet; auto: rare ones count more", class_weights, metavar="auto|W,W"
    )
    optimizer: str = fixed("adam", f"adamw decays weights by {WEIGHT_DECAY:g}", choices=("adam", "adamw"))
    ema: float = fixed(0.0, "moving average of the weights; alone: 0.99", fraction_or_zero, bare=0.99, metavar="DECAY")
    scheduler: str = fixed(
        "plateau", "plateau: by the valid Dice; cosine: warm-up, then down to 0", choices=("plateau", "cosine", "none")
    )
    seed: int = fixed(42, "seed of all random numbers", whole_number(0, 2**32 - 1))

    cache: bool = option(True, "keep decoded images in <dataset>/.pixel_cache", group="run")
    patience: int = changeable(0, "stop after N epochs without a better valid Dice", whole_number(0))
    tensorboard: bool = option(False, "write curves and panels for TensorBoard to <log_dir>/tensorboard")

    accumulate: int = changeable(1, "compute each batch in N parts, in less memory", whole_number(1), group="device")

    @property
    def changes(self) -> tuple[str, ...]:
        """The names of --distort."""
        return tuple(self.distort.split(",")) if self.distort else ()

    @property
    def fold_numbers(self) -> list[int] | None:
        """[I, K], for fold I of K; None without folds."""
        return [int(number) for number in self.fold.split("/")] if self.fold else None

    # torch is imported below and not above: flags are parsed before it, since it takes seconds.

    @property
    def task(self):
        """What is learned, a Task."""
        from models.task import task_named

        return task_named(self.classes, self.channels)

    @property
    def network(self) -> dict:
        """Arguments of the network's constructor."""
        options = {"attention": self.attention, "decoder": self.decoder, "in_channels": self.channels}
        return {**self.task.outputs, **options}

    @property
    def view(self):
        """What the network sees of the images, a View."""
        from data.view import View

        return View(self.image_size, "square", self.channels, self.task.classes)
