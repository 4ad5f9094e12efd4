"""From flags, and a checkpoint that a run resumes or starts from, to the settings of the run."""

import dataclasses
from pathlib import Path

from data.names import AUTO, automatic_plan, planned_sizes, possible_sizes
from data.pixels import pixels_of
from models.build import NETWORKS
from models.checkpoint import task_of_checkpoint
from models.names import DENOISING
from runtime.errors import CheckpointError, UsageError
from runtime.options import FIXED, is_valid
from training.config import TrainConfig, saved_settings


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
        "fold": (config.fold_of_folds, content["data"].get("fold")),
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
    keeps_task = "classes" not in overrides and before != DENOISING
    classes = before if keeps_task else config.classes
    return dataclasses.replace(config, **found, classes=classes, image_size=size)


def with_size_plan(config: TrainConfig) -> TrainConfig:
    """The config of a new run with its plan of sizes written out: epochs that --resume adds don't change it.

    Raises:
        UsageError: the plan leaves no epoch at full size.
    """
    plan = config.progressive
    if plan == "auto":
        plan = automatic_plan(config.image_size, NETWORKS[config.model_name].stride, config.epochs)
    least = 2 * NETWORKS[config.model_name].stride
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
    if (config.freeze_encoder or config.encoder_lr_scale != 1) and NETWORKS[config.model_name].encoder_name is None:
        raise UsageError(f"{config.model_name} has no encoder: leave --freeze_encoder and --encoder_lr_scale out")
    if "fold" in overrides and not config.folds:
        raise UsageError("--fold needs --folds K")
    if config.fold > (config.folds or 1):
        raise UsageError(f"there is no fold {config.fold} of {config.folds or 1}; use --folds K and --fold I")
    if config.patience and config.scheduler == "cosine":
        raise UsageError("--patience would cut the plan of --scheduler cosine; use plateau or none with it")
    if "weight_decay" in overrides and config.optimizer != "adamw":
        raise UsageError("--weight_decay needs --optimizer adamw")
    decoders, stride = NETWORKS[config.model_name].decoders, NETWORKS[config.model_name].stride
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
