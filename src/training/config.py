"""The settings of train.py: one field per flag, and the recipes.

To add a flag, add a field. A setting that a run must keep on --resume is FIXED, one that may change is CHANGEABLE; both
are saved in the checkpoint.
"""

import dataclasses
from pathlib import Path

import torch

from data.augment import AUTO, STRENGTHS, automatic_plan, planned_sizes, possible_sizes, size_plan
from data.distortions import DISTORTIONS, distortion_names
from data.pixels import Pixels, percentiles, pixels_of, window_of
from data.splits import SPLITS
from models import ATTENTION, DEFAULT_MODEL, MODELS
from models.checkpoint import task_of_checkpoint
from models.task import TASKS, DenoisingTask, Task, are_classes, class_names, task_named
from runtime.errors import CheckpointError, UsageError
from runtime.options import (
    FIXED,
    CommonConfig,
    cache_option,
    changeable,
    fixed,
    fraction,
    fraction_or_one,
    fraction_or_zero,
    is_valid,
    option,
    options_of,
    positive_number,
    regex,
    whole_number,
)
from training.losses import LOSSES


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
    DenoisingTask.name: {
        "all": {**LONG, "classes": DenoisingTask.name},
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
        "none", "se, cbam: in each decoder step; transformer: behind the bottleneck", choices=tuple(ATTENTION)
    )
    decoder: str = fixed(
        "plain", "stem: features at full resolution, of networks on an encoder", choices=("plain", "stem")
    )
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
    loss: str = fixed("bce", "what is minimized", choices=tuple(LOSSES))
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

    @property
    def network(self) -> dict:
        """Arguments of the network's constructor."""
        others = {} if self.decoder == "plain" else {"decoder": self.decoder}
        others |= {} if self.channels == 3 else {"in_channels": self.channels}
        return {**self.task.outputs, "attention": self.attention, **others}

    @property
    def pixels(self) -> Pixels:
        """Which values of the images the network sees."""
        return Pixels(self.channels, window_of(self.window))

    @property
    def preprocessing(self) -> dict:
        """What the checkpoint says of it."""
        window = list(self.pixels.window) if self.window else None
        return {"image_size": self.image_size, "channels": self.channels, "window": window}

    @property
    def task(self) -> Task:
        """What is learned."""
        return task_named(self.classes, self.channels)

    @property
    def denoises(self) -> bool:
        """Whether it is a run of pretrain.py."""
        return self.classes == DenoisingTask.name

    @property
    def variants(self) -> int:
        """Variants an image, with --augment bulk; else 0."""
        return self.num_augmentations if self.augment == "bulk" else 0

    def loss_weights(self, device: torch.device) -> torch.Tensor | None:
        """The weights of the classes, float32 (C,), or None."""
        if self.class_weights is None:
            return None
        return torch.tensor([float(word) for word in self.class_weights.split(",")], device=device)

    def settings(self) -> dict:
        """What the checkpoint keeps."""
        return {name: getattr(self, name) for name in saved_settings()}


def saved_settings() -> dict[str, str]:
    """The fields that a checkpoint keeps: FIXED or CHANGEABLE, by name."""
    return {name: made.resume for name, (made, _) in options_of(TrainConfig).items() if made.resume}


def check_settings(settings: dict, path: Path) -> None:
    """Raises CheckpointError where a checkpoint's settings are none that train.py could have saved."""
    differing = settings.keys() ^ saved_settings().keys()
    if differing:
        raise CheckpointError(f"{path} has other settings than this version ({min(differing)!r}); start a new run")
    for name, value in settings.items():
        if not is_valid(TrainConfig, name, value):
            raise CheckpointError(f"{path} is malformed: its setting {name} has an impossible value; use another one")


def _check_agreement(config: TrainConfig, content: dict, path: Path) -> None:
    """Raises CheckpointError where settings contradict other entries of the checkpoint."""
    model = content["model"]
    pairs = {
        "model_name": (config.model_name, model["name"]),
        "classes": (config.task.name, task_of_checkpoint(content).name),
        "attention": (config.attention, model["config"].get("attention", "none")),
        "decoder": (config.decoder, model["config"].get("decoder", "plain")),
        "image_size": (config.image_size, content["preprocessing"]["image_size"]),
        "channels": (config.pixels, pixels_of(content["preprocessing"])),
        "split": (config.split, content["data"]["split"]),
        "fold": (config.fold_of_folds, content["data"]["fold"]),
        "seed": (config.seed, content["data"]["seed"]),
    }
    for name, (a, b) in pairs.items():
        if a != b:
            raise CheckpointError(f"{path} is malformed: its setting {name} contradicts its content; use another one")
    if bool(config.ema) != (content.get("average") is not None):
        raise CheckpointError(f"{path} is malformed: its setting ema contradicts its content; use another one")


def restore_config(overrides: dict, content: dict, path: Path) -> TrainConfig:
    """The config of a resumed run: what the checkpoint says, and what the command line may change.

    Args:
        overrides: the flags on the command line.
        content: of the checkpoint.
        path: of the checkpoint.

    Raises:
        UsageError: the checkpoint can't be resumed, or a flag contradicts its settings.
    """
    if any(content.get(name) is None for name in ("settings", "optimizer", "scaler", "random_state")):
        raise UsageError(f"{path} holds a model but no training state, so it can't be resumed; name another")
    check_settings(content["settings"], path)
    kept = {}
    for name, kind in saved_settings().items():
        if kind == FIXED or name not in overrides:
            kept[name] = content["settings"][name]
    written_out = {name: kept[name] for name in ("class_weights", "progressive") if overrides.get(name) == "auto"}
    overrides = {**overrides, **{name: value for name, value in written_out.items() if value is not None}}
    differing = [
        f"{name} {value} (now {overrides[name]})" for name, value in kept.items() if overrides.get(name, value) != value
    ]
    if differing:
        raise UsageError(
            f"{path} was trained with {', '.join(differing)}; leave these flags out to resume, or start a new run "
            "without --resume"
        )
    config = TrainConfig(**{**overrides, **kept})
    _check_agreement(config, content, path)
    return config


def with_network_of(config: TrainConfig, overrides: dict, content: dict) -> TrainConfig:
    """The config of a run that starts from a checkpoint's weights: with its network and, unless given, its size.

    Raises:
        UsageError: a flag contradicts the checkpoint.
    """
    network = content["model"]["config"]
    found = {
        "model_name": content["model"]["name"],
        "attention": network.get("attention", "none"),
        "decoder": network.get("decoder", "plain"),
    }
    pixels = pixels_of(content["preprocessing"])
    found |= {"channels": pixels.channels, "window": pixels.window and ",".join(map(repr, pixels.window))}
    differing = [f"{name} {value}" for name, value in found.items() if overrides.get(name, value) != value]
    if differing:
        raise UsageError(f"{config.init} has {', '.join(differing)}; leave these flags out, or use another file")
    size = overrides.get("image_size", content["preprocessing"]["image_size"])
    before = task_of_checkpoint(content).name
    keeps_task = "classes" not in overrides and before != DenoisingTask.name
    classes = before if keeps_task else config.classes
    return dataclasses.replace(config, **found, classes=classes, image_size=size)


def with_size_plan(config: TrainConfig) -> TrainConfig:
    """The config of a new run with its plan of sizes written out: epochs that --resume adds don't change it.

    Raises:
        UsageError: the plan leaves no epoch at full size.
    """
    plan = config.progressive
    if plan == "auto":
        plan = automatic_plan(config.image_size, MODELS[config.model_name].stride, config.epochs)
    least = 2 * MODELS[config.model_name].stride
    if min(planned_sizes(plan), default=least) < least:
        raise UsageError(f"--progressive {plan}: {config.model_name} needs sides of {least} pixels at least")
    if len(planned_sizes(plan)) >= config.epochs:
        raise UsageError(f"--progressive {plan} leaves no epoch at full size; plan fewer, or use a larger --epochs")
    return dataclasses.replace(config, progressive=plan)


def check_flags(config: TrainConfig, overrides: dict, processes: int) -> None:
    """Raises UsageError where flags contradict each other, or one would do nothing."""
    if config.compile and config.checkpoint_activations:
        raise UsageError("--compile can't be combined with --checkpoint_activations; leave one of them out")
    for name in ("color_jitter", "augment_strength", "distort"):
        if overrides.get(name) and not config.augments:
            raise UsageError(f"--{name} needs --augment bulk or online")
    if config.augment_strength == AUTO and (config.distort or config.color_jitter):
        raise UsageError("--augment_strength auto draws colors and distortions, too; leave their flags out")
    if config.group_regex and config.groups:
        raise UsageError("--group_regex and --groups say the same; leave one of them out")
    if config.init is not None and overrides.get("encoder_weights", "none") != "none":
        raise UsageError("--init brings the weights of the encoder, too; leave --encoder_weights out")
    if (config.freeze_encoder or config.encoder_lr_scale != 1) and MODELS[config.model_name].encoder_name is None:
        raise UsageError(f"{config.model_name} has no encoder: leave --freeze_encoder and --encoder_lr_scale out")
    if "fold" in overrides and not config.folds:
        raise UsageError("--fold needs --folds K")
    if config.fold > (config.folds or 1):
        raise UsageError(f"there is no fold {config.fold} of {config.folds or 1}; use --folds K and --fold I")
    if config.patience and config.scheduler == "cosine":
        raise UsageError("--patience would cut the plan of --scheduler cosine; use plateau or none with it")
    if "weight_decay" in overrides and config.optimizer != "adamw":
        raise UsageError("--weight_decay needs --optimizer adamw")
    decoders, stride = MODELS[config.model_name].decoders, MODELS[config.model_name].stride
    if config.decoder not in decoders:
        raise UsageError(f"{config.model_name} has no decoder {config.decoder}; it has {', '.join(decoders)}")
    if config.multi_scale and len(possible_sizes(config.image_size, stride, config.multi_scale)) == 1:
        share, size = config.multi_scale, config.image_size
        raise UsageError(f"no multiple of {stride} lies within {share:g} of {size}; use a larger --multi_scale")
    for name in ("unlabeled_batch", "unlabeled_weight", "confidence"):
        if name in overrides and config.unlabeled is None:
            raise UsageError(f"--{name} needs --unlabeled")
    if config.unlabeled is not None and not config.ema:
        raise UsageError("--unlabeled needs an average of the weights, which labels the images; add --ema")
    weights, channels = (config.class_weights or "auto").split(","), config.task.out_channels
    unweighted = config.loss in ("dice", "tversky", "focal_tversky")
    if config.class_weights and unweighted and (channels == 1 or weights == ["auto"]):
        raise UsageError(f"--class_weights {config.class_weights} would do nothing useful with --loss {config.loss}")
    if weights != ["auto"] and len(weights) != channels:
        raise UsageError(f"--class_weights: {config.classes} needs {channels} numbers, not {len(weights)}")
    if config.mix != "none" and config.batch_size < 2 * processes:
        raise UsageError("--mix needs two images in a process at a time; use a larger --batch_size")
    if config.classes != "binary" and config.augment_uncertain:
        raise UsageError(f"--augment_uncertain is not for --classes {config.classes}; leave one of them out")
