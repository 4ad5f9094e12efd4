"""From flags, and a checkpoint that a run resumes or starts from, to the settings of the run."""

from pathlib import Path

from data.names import automatic_plan, planned_sizes
from models.build import NETWORKS
from models.checkpoint import Checkpoint
from models.names import DEFAULT_MODEL, DENOISING
from runtime.errors import CheckpointError, UsageError
from runtime.options import FIXED, is_valid
from training.config import IN_CHECKPOINT, RECIPES, TrainConfig, saved_settings


def new_config(flags: dict, pretrained: bool, initial: Checkpoint | None) -> TrainConfig:
    """The settings of a new run: flags, then the network of --init, then the recipe for its start, then the defaults.

    `pretrained` is whether it starts from weights. Raises UsageError: a flag contradicts the checkpoint of --init.
    """
    network = settings_of_network(initial) if initial else {}
    differing = [
        f"{name} {value}"
        for name, value in network.items()
        if name not in ("image_size", "classes") and flags.get(name, value) != value
    ]
    if differing:
        raise UsageError(f"{flags['init']} has {', '.join(differing)}; leave these flags out, or use another file")
    flags = {name: value for name, value in network.items() if value != DENOISING} | flags
    recipe = RECIPES[DENOISING if flags.get("classes") == DENOISING else flags.get("recipe", "report")]
    rows = ("all", "from weights" if pretrained else "from scratch", flags.get("model_name", DEFAULT_MODEL))
    values = {name: value for row in rows for name, value in recipe.get(row, {}).items()} | flags
    if values.get("sizes") == "grow":  # written out: epochs that --resume adds don't change it
        plain = TrainConfig(**values)
        stride = NETWORKS[plain.model_name].stride
        values["sizes"] = automatic_plan(plain.image_size, stride, plain.epochs) or "fixed"
    return TrainConfig(**values)


def settings_of_network(checkpoint: Checkpoint) -> dict:
    """The settings that say what a checkpoint's network is and sees."""
    config = checkpoint.config
    return {
        "model_name": checkpoint.model_name,
        "attention": config.get("attention", "none"),
        "decoder": config.get("decoder", "plain"),
        "classes": checkpoint.task.name,
        "channels": checkpoint.channels,
        "image_size": checkpoint.image_size,
    }


def resumed_config(flags: dict, checkpoint: Checkpoint, path: Path) -> TrainConfig:
    """The settings of a resumed run: what the checkpoint says, and what the command line may change.

    Raises UsageError: it can't be resumed, its settings are none of this version, or a flag contradicts them.
    """
    if checkpoint.training is None:
        raise UsageError(f"{path} holds a model but no training state; start a new run from it with --init")
    data, kinds = checkpoint.data, saved_settings()
    saved = checkpoint.training.settings | settings_of_network(checkpoint)
    saved |= {"split": data.split, "seed": data.seed, "limit": data.limit}
    saved["fold"] = data.fold and "/".join(map(str, data.fold))
    unequal = saved.keys() ^ kinds.keys()
    if unequal:
        raise CheckpointError(f"{path} has other settings than this version ({min(unequal)!r}); start a new run")
    for name, value in saved.items():
        if not is_valid(TrainConfig, name, value):
            raise CheckpointError(f"{path} is malformed: its setting {name} has an impossible value; use another one")
    if flags.get("sizes") == "grow" and ":" in saved["sizes"]:
        flags = {**flags, "sizes": saved["sizes"]}
    differing = [
        f"{name} {saved[name]} (now {value})"
        for name, value in flags.items()
        if kinds.get(name) == FIXED and value != saved[name]
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
    """Raises UsageError where flags contradict each other, or one would do nothing. Terms check their own."""
    c, name, network = config, config.model_name, NETWORKS[config.model_name]
    sizes, least, decoders = planned_sizes(c.sizes), 2 * network.stride, ", ".join(network.decoders)
    has_weights = flags.get("encoder_weights", "none") != "none"
    of_encoder = network.encoder_name is None and (c.freeze_encoder or c.encoder_lr_scale != 1)
    never_full = len(sizes) >= c.epochs and "resume" not in flags
    pairs = {"paste", "cutmix"} & {*c.changes} and c.batch_size < 2 * processes
    uncertain = c.augment_uncertain and c.classes != "binary"
    rules = [
        (not c.augments and flags.get("augment_strength"), "--augment_strength needs --augment bulk or online"),
        (not c.augments and flags.get("distort"), "--distort needs --augment bulk or online"),
        (not c.variants and "num_augmentations" in flags, "--num_augmentations needs --augment bulk"),
        (c.init and has_weights, "--init brings the weights of the encoder, too; leave --encoder_weights out"),
        (of_encoder, f"{name} has no encoder: leave --freeze_encoder and --encoder_lr_scale out"),
        (c.patience and c.scheduler == "cosine", "--patience would cut the plan of --scheduler cosine; leave it out"),
        (c.decoder not in network.decoders, f"{name} has no decoder {c.decoder}; it has {decoders}"),
        (min(sizes, default=least) < least, f"--sizes {c.sizes}: {name} needs sides of {least} pixels at least"),
        (never_full, f"--sizes {c.sizes} leaves no epoch at full size; plan fewer, or use a larger --epochs"),
        (pairs, "--distort paste and cutmix need two images in a process at a time; use a larger --batch_size"),
        (uncertain, f"--augment_uncertain and --classes {c.classes} can't be combined; leave one of them out"),
    ]
    for broken, message in rules:
        if broken:
            raise UsageError(message)
