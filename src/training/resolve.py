"""From flags, and a checkpoint that a run resumes or starts from, to the settings of the run."""

from pathlib import Path

from data.names import automatic_plan, planned_sizes, possible_sizes
from models.build import NETWORKS
from models.checkpoint import Checkpoint
from models.names import DEFAULT_MODEL, DENOISING
from runtime.errors import CheckpointError, UsageError
from runtime.options import FIXED, is_valid
from training.config import IN_CHECKPOINT, RECIPES, TrainConfig, saved_settings


def new_config(flags: dict, pretrained: bool, initial: Checkpoint | None) -> TrainConfig:
    """The settings of a new run: flags, then the network of --init, then the recipe for its start, then the defaults.

    Args:
        flags: those on the command line, by name.
        pretrained: the run starts from weights.
        initial: the checkpoint of --init.

    Raises:
        UsageError: a flag contradicts that checkpoint, or the plan of sizes leaves no epoch at full size.
    """
    network = {}
    if initial is not None:
        network = settings_of_network(initial)
        differing = [
            f"{name} {value}"
            for name, value in network.items()
            if name not in ("image_size", "classes") and flags.get(name, value) != value
        ]
        if differing:
            raise UsageError(f"{flags['init']} has {', '.join(differing)}; leave these flags out, or use another file")
        if network["classes"] == DENOISING:
            del network["classes"]
    flags = {**network, **flags}
    recipe = DENOISING if flags.get("classes") == DENOISING else flags.get("recipe", "report")
    values: dict = {}
    for row in ("all", "from weights" if pretrained else "from scratch", flags.get("model_name", DEFAULT_MODEL)):
        values |= RECIPES[recipe].get(row, {})
    values |= flags
    if values.get("sizes") == "grow":  # written out: epochs that --resume adds don't change it
        plain = TrainConfig(**values)
        stride = NETWORKS[plain.model_name].stride
        values["sizes"] = automatic_plan(plain.image_size, stride, plain.epochs) or "fixed"
    return TrainConfig(**values)


def settings_of_network(checkpoint: Checkpoint) -> dict:
    """The settings that say what a checkpoint's network is and sees."""
    config, window = checkpoint.config, checkpoint.window
    return {
        "model_name": checkpoint.model_name,
        "attention": config.get("attention", "none"),
        "decoder": config.get("decoder", "plain"),
        "classes": checkpoint.task.name,
        "channels": checkpoint.channels,
        "window": window and ",".join(map(repr, window)),
        "image_size": checkpoint.image_size,
    }


def resumed_config(flags: dict, checkpoint: Checkpoint, path: Path) -> TrainConfig:
    """The settings of a resumed run: what the checkpoint says, and what the command line may change.

    Raises:
        UsageError: the checkpoint can't be resumed, or a flag contradicts its settings.
        CheckpointError: its settings are none that train.py could have saved.
    """
    if checkpoint.training is None:
        raise UsageError(f"{path} holds a model but no training state, so it can't be resumed; name another")
    data, fold = checkpoint.data, checkpoint.data.fold
    saved = {
        **checkpoint.training.settings,
        **settings_of_network(checkpoint),
        "split": data.split,
        "seed": data.seed,
        "fold": fold and f"{fold[0]}/{fold[1]}",
    }
    unequal = saved.keys() ^ saved_settings().keys()
    if unequal:
        raise CheckpointError(f"{path} has other settings than this version ({min(unequal)!r}); start a new run")
    for name, value in saved.items():
        if not is_valid(TrainConfig, name, value):
            raise CheckpointError(f"{path} is malformed: its setting {name} has an impossible value; use another one")
    if bool(saved["ema"]) != (checkpoint.training.trained_weights is not None):
        raise CheckpointError(f"{path} is malformed: its setting ema contradicts its weights; use another one")
    flags = {
        name: value for name, value in flags.items() if (name, value) != ("sizes", "grow") or ":" not in saved[name]
    }
    differing = [
        f"{name} {saved[name]} (now {value})"
        for name, value in flags.items()
        if saved_settings().get(name) == FIXED and value != saved[name]
    ]
    if differing:
        raise UsageError(
            f"{path} was trained with {', '.join(differing)}; leave these flags out to resume, or start a new run "
            "without --resume"
        )
    return TrainConfig(**{**saved, **flags})


def settings_to_save(config: TrainConfig) -> dict:
    """What the checkpoint keeps as settings."""
    return {name: getattr(config, name) for name in saved_settings() if name not in IN_CHECKPOINT}


def check_flags(config: TrainConfig, flags: dict, processes: int) -> None:
    """Raises UsageError where flags contradict each other, or one would do nothing."""
    network = NETWORKS[config.model_name]
    sizes, least = planned_sizes(config.sizes), 2 * network.stride
    weights, channels = (config.class_weights or "auto").split(","), config.task.out_channels
    unweighted = config.loss in ("dice", "tversky", "focal_tversky")
    rules = {
        "--compile can't be combined with --checkpoint_activations; leave one of them out": (
            config.compile and config.checkpoint_activations
        ),
        "--augment_strength needs --augment bulk or online": flags.get("augment_strength") and not config.augments,
        "--distort needs --augment bulk or online": flags.get("distort") and not config.augments,
        "--augment_strength auto draws colors and distortions, too; leave --distort out": (
            config.augment_strength == "auto" and config.distort
        ),
        "--init brings the weights of the encoder, too; leave --encoder_weights out": (
            config.init is not None and flags.get("encoder_weights", "none") != "none"
        ),
        f"{config.model_name} has no encoder: leave --freeze_encoder and --encoder_lr_scale out": (
            (config.freeze_encoder or config.encoder_lr_scale != 1) and network.encoder_name is None
        ),
        "--patience would cut the plan of --scheduler cosine; use plateau or none with it": (
            config.patience and config.scheduler == "cosine"
        ),
        f"{config.model_name} has no decoder {config.decoder}; it has {', '.join(network.decoders)}": (
            config.decoder not in network.decoders
        ),
        f"--sizes {config.sizes}: {config.model_name} needs sides of {least} pixels at least": (
            min(sizes, default=least) < least
        ),
        f"--sizes {config.sizes} leaves no epoch at full size; plan fewer, or use a larger --epochs": (
            "resume" not in flags and len(sizes) >= config.epochs
        ),
        f"--sizes vary: no multiple of {network.stride} lies within a third of {config.image_size}; use fixed": (
            config.sizes == "vary" and len(possible_sizes(config.image_size, network.stride)) == 1
        ),
        "--unlabeled needs an average of the weights, which labels the images; add --ema": (
            config.unlabeled is not None and not config.ema
        ),
        f"--class_weights {config.class_weights} would do nothing useful with --loss {config.loss}": (
            config.class_weights and unweighted and (channels == 1 or weights == ["auto"])
        ),
        f"--class_weights: {config.classes} needs {channels} numbers, not {len(weights)}": (
            weights != ["auto"] and len(weights) != channels
        ),
        "--distort paste and cutmix need two images in a process at a time; use a larger --batch_size": (
            {"paste", "cutmix"} & {*config.changes} and config.batch_size < 2 * processes
        ),
        f"--augment_uncertain is not for --classes {config.classes}; leave one of them out": (
            config.classes != "binary" and config.augment_uncertain
        ),
    }
    for message, broken in rules.items():
        if broken:
            raise UsageError(message)
