"""The settings of train.py: one field per flag, and the recipes.

To add a flag, add a field. A setting that a run must keep on --resume is FIXED, one that may change is CHANGEABLE; both
are saved in the checkpoint.
"""

import dataclasses

from data.names import AUTO, DISTORTIONS, SPLITS, STRENGTHS, distortion_names, percentiles, size_plan
from models.names import ATTENTION, DECODERS, DEFAULT_MODEL, DENOISING, TASKS, are_classes, class_names
from runtime.options import (
    CommonConfig,
    cache_option,
    changeable,
    fixed,
    fraction,
    fraction_or_one,
    fraction_or_zero,
    option,
    options_of,
    positive_number,
    regex,
    whole_number,
)

LESS_MEMORY = "a smaller --batch_size, or the same with --accumulate 2 or --checkpoint_activations"
LOSSES = ("bce", "dice", "bce_dice", "focal", "tversky", "focal_tversky")  # of training/losses.py


def class_weights(text: str) -> str:
    """Returns `auto` or weights above 0 with commas. Raises argparse.ArgumentTypeError: it is neither."""
    if text != "auto":
        for word in text.split(","):
            positive_number(word)
    return text


# Recipes: what differs from the defaults, which are the values of both reports: their Adam, learning rate and loss,
# batches of report B and the scheduler of report A. Rows are for all runs, for those that start from scratch or from
# weights, and for one network; later rows win. The values are the best on validation images of what the study tried.
LONG = {"batch_size": 16, "learning_rate": 1e-3, "optimizer": "adamw", "scheduler": "cosine", "ema": 0.99}
RECIPES: dict[str, dict[str, dict]] = {
    "report": {},
    "strong": {
        "all": {**LONG, "loss": "bce_dice", "augment": "online", "augment_strength": "light"},
        "from scratch": {"epochs": 40, "progressive": "auto"},
        "from weights": {"epochs": 10},
        "resnet34_unet": {"decoder": "stem"},
    },
    # Of pretrain.py.
    DENOISING: {
        "all": {**LONG, "classes": DENOISING},
        "resnet34_unet": {"decoder": "stem"},
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(CommonConfig):
    """The settings of a training run."""

    download: bool = option(False, "fetch the dataset first where it is missing", group="data")
    split: str = fixed(SPLITS[0], "how the images are split into train, valid and test", choices=SPLITS)
    folds: int | None = fixed(
        None,
        "divide all but the test images into K folds; files go into <save_dir>/fold_I",
        whole_number(2, 100),
        metavar="K",
    )
    fold: int = fixed(1, "the fold of --folds that validates, from 1 on", whole_number(1, 100), metavar="I")
    group_regex: str | None = fixed(
        None, "images of one group stay in one part; the group is what this finds in the name", regex, metavar="REGEX"
    )
    groups: str | None = fixed(
        None, "a file with lines of `name group`; images of one group stay in one part", metavar="FILE"
    )
    image_size: int = fixed(256, "side of the network's input", whole_number(64, 4096), metavar="PX")
    channels: int = fixed(3, "of the images; gray ones are repeated", whole_number(1, 100), metavar="N")
    window: str | None = fixed(
        None,
        "percentiles of an image's values that become black and white; by default the range of their type",
        percentiles,
        metavar="P,P",
    )
    augment: str | None = fixed(
        None,
        "enlarge the training set with fixed variants (bulk, also without a word), or vary it anew every epoch",
        choices=("bulk", "online", "off"),
        bare="bulk",
    )
    num_augmentations: int = fixed(3, "variants per image, in bulk", whole_number(1, 100), metavar="N")
    augment_strength: str = fixed(
        "medium",
        "how far augmentation rotates, scales and distorts; auto: one operation an image",
        choices=(*STRENGTHS, AUTO),
    )
    distort: str | None = fixed(
        None,
        f"with --augment: distort three images in ten, each by {', '.join(DISTORTIONS)}, or all",
        distortion_names,
        metavar="NAMES",
    )
    color_jitter: bool = fixed(False, "with --augment: vary brightness, contrast and saturation too")
    multi_scale: float = fixed(
        0.0,
        "train at sizes that vary by up to this share of --image_size; 0.34 without a number",
        fraction_or_zero,
        bare=0.34,
        metavar="SHARE",
    )
    progressive: str | None = fixed(
        None,
        "train at other sizes first: SIDE:EPOCHS,... or off; the flag alone plans from half of --image_size upwards",
        size_plan,
        bare="auto",
        metavar="PLAN",
    )
    mix: str = fixed(
        "none",
        "paste the pet or a rectangle of another image onto half of them",
        choices=("none", "paste", "cutmix"),
    )
    train_fraction: float = fixed(1.0, "train on this part of the images", fraction_or_one, metavar="P")
    unlabeled: str | None = fixed(
        None,
        "learn from images without masks too: of a folder, or rest: those that --train_fraction leaves out",
        metavar="DIR|rest",
    )
    unlabeled_batch: int | None = fixed(
        None, "images without masks a step; by default as many as --batch_size", whole_number(1), metavar="N"
    )
    unlabeled_weight: float = fixed(1.0, "how much they count in the loss", positive_number, metavar="W")
    confidence: float = fixed(0.95, "probability from which on a pixel of them counts", fraction, metavar="P")
    augment_uncertain: bool = fixed(False, "border pixels become pet or background at random")
    cache: str = cache_option()

    model_name: str = fixed(
        DEFAULT_MODEL,
        "unet, unet_small, resnet34_unet, or <encoder>_unet with an encoder of docs/training.md",
        aliases=("--model_type",),
        metavar="NAME",
        group="model and optimization",
    )
    encoder_weights: str = fixed("auto", "what the encoder starts from", metavar="auto|imagenet|none|FILE")
    encoder_lr_scale: float = fixed(
        1.0, "learning rate of the encoder, as a share of --learning_rate", fraction_or_one, metavar="SHARE"
    )
    freeze_encoder: int = fixed(
        0, "keep the encoder as it is for the first N epochs of the run", whole_number(0), metavar="N"
    )
    init: str | None = fixed(
        None,
        "start from the weights of this checkpoint, with its network; with other --classes its head is drawn anew",
        metavar="FILE",
    )
    teacher: str | None = changeable(None, "learn from this checkpoint's probabilities too", metavar="FILE")
    attention: str = fixed(
        "none", "se, cbam: in each decoder step; transformer: behind the bottleneck", choices=ATTENTION
    )
    decoder: str = fixed("plain", "stem: features at full resolution, of networks on an encoder", choices=DECODERS)
    classes: str = fixed(
        "binary",
        f"what is learned: {', '.join(TASKS)}, or the names of classes, a file with one in a line or with commas",
        class_names,
        metavar="|".join([*TASKS, "FILE"]),
        saved=are_classes,
    )
    recipe: str = fixed("report", "values of the flags that are not given", choices=tuple(RECIPES))
    epochs: int = option(
        10, "passes over the data; with --resume: N more", whole_number(1, 10**5), aliases=("-e",), metavar="N"
    )
    learning_rate: float = changeable(
        1e-4, "step size of the optimizer", positive_number, aliases=("-lr", "--lr"), metavar="LR"
    )
    loss: str = fixed("bce", "what is minimized", choices=LOSSES)
    class_weights: str | None = fixed(
        None,
        "how much each class counts in the loss, with commas; of binary classes the pet's; auto: as rare as it is",
        class_weights,
        metavar="auto|W,W",
    )
    optimizer: str = fixed("adam", "adamw decays weights by --weight_decay", choices=("adam", "adamw"))
    weight_decay: float = fixed(0.01, "weight decay of AdamW", fraction_or_zero, metavar="W")
    ema: float = fixed(
        0.0,
        "use a moving average of the weights; the flag alone means 0.99",
        fraction_or_zero,
        bare=0.99,
        metavar="DECAY",
    )
    scheduler: str = fixed(
        "plateau",
        "plateau: half the rate after 3 epochs without a better valid Dice; cosine: warm-up, then down to 0",
        choices=("plateau", "cosine", "none"),
    )
    seed: int = fixed(42, "seed of all random numbers", whole_number(0, 2**32 - 1), metavar="N")

    resume: str | None = option(
        None, "resume a run, from <model>_last.pth or FILE", bare="", metavar="FILE", group="run"
    )
    validate_every: int = changeable(
        1, "validate, and save, after every N-th epoch and the last", whole_number(1), metavar="N"
    )
    patience: int = changeable(
        0, "stop after N epochs without a better valid Dice; 0 never does", whole_number(0), metavar="N"
    )
    save_every: int = changeable(5, "keep a checkpoint of every N-th epoch; 0 keeps none", whole_number(0), metavar="N")
    tensorboard: str | None = option(
        None, "write curves and panels for TensorBoard, by default to <log_dir>/tensorboard", bare="", metavar="DIR"
    )
    deterministic: bool = changeable(False, "only algorithms that always give the same bits")
    checkpoint_minutes: float = changeable(10.0, "also save this often within an epoch", positive_number, metavar="M")

    accumulate: int = changeable(1, "compute each step in N pieces", whole_number(1), metavar="N", group="device")
    checkpoint_activations: bool = changeable(False, "keep fewer features for the backward pass: less memory, slower")
    compile: bool = changeable(False, "let torch.compile fuse the network first (minutes; needs a C++ compiler)")

    @classmethod
    def from_flags(cls, overrides: dict, pretrained: bool = False) -> "TrainConfig":
        """The config of a new run: flags, then the recipe for its start, then the defaults."""
        values, start = {}, "from weights" if pretrained else "from scratch"
        for row in ("all", start, overrides.get("model_name", DEFAULT_MODEL)):
            values |= RECIPES[overrides.get("recipe", "report")].get(row, {})
        return cls(**{**values, **overrides})

    @property
    def augments(self) -> bool:
        """Whether samples are augmented."""
        return self.augment in ("bulk", "online")

    @property
    def fold_of_folds(self) -> list[int] | None:
        """[I, K], for fold I of K; None without folds."""
        return [self.fold, self.folds] if self.folds else None

    # torch is imported below and not above: flags are parsed before it, since it takes seconds.

    @property
    def network(self) -> dict:
        """Arguments of the network's constructor."""
        others = {} if self.decoder == "plain" else {"decoder": self.decoder}
        others |= {} if self.channels == 3 else {"in_channels": self.channels}
        return {**self.task.outputs, "attention": self.attention, **others}

    @property
    def pixels(self):
        """Which values of the images the network sees, a Pixels."""
        from data.pixels import Pixels, window_of

        return Pixels(self.channels, window_of(self.window))

    @property
    def preprocessing(self) -> dict:
        """What the checkpoint says of it."""
        window = list(self.pixels.window) if self.window else None
        return {"image_size": self.image_size, "channels": self.channels, "window": window}

    @property
    def task(self):
        """What is learned, a Task."""
        from models.task import task_named

        return task_named(self.classes, self.channels)

    @property
    def denoises(self) -> bool:
        """Whether it is a run of pretrain.py."""
        return self.classes == DENOISING

    @property
    def variants(self) -> int:
        """Variants an image, with --augment bulk; else 0."""
        return self.num_augmentations if self.augment == "bulk" else 0

    def settings(self) -> dict:
        """What the checkpoint keeps."""
        return {name: getattr(self, name) for name in saved_settings()}


def saved_settings() -> dict[str, str]:
    """The fields that a checkpoint keeps: FIXED or CHANGEABLE, by name."""
    return {name: made.resume for name, (made, _) in options_of(TrainConfig).items() if made.resume}
