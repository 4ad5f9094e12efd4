"""From flags, and a checkpoint that a run resumes or starts from, to the settings of the run."""

from pathlib import Path

from data.names import MIXES, automatic_plan, planned_sizes
from models.build import NETWORKS
from models.checkpoint import Checkpoint
from models.names import DEFAULT_MODEL, DENOISING
from runtime.errors import CheckpointError, UsageError
from runtime.options import FIXED, is_valid, options_of
from training.config import RECIPES, TrainConfig

# Settings that a checkpoint has as entries of its own, and checks itself: those of the network and of the data.
IN_CHECKPOINT = ("model_name", "attention", "decoder", "classes", "channels", "image_size")
IN_CHECKPOINT += ("split", "seed", "fold", "limit")


def new_config(flags: dict, pretrained: bool, initial: Checkpoint | None) -> TrainConfig:
    """The settings of a new run: flags, then the network of --init, then the recipe for its start, then the defaults.

    `pretrained` is whether it starts from weights. Raises UsageError: a flag contradicts the checkpoint of --init.
    """
    network = settings_of_network(initial) if initial else {}
    refuse_differing(flags["init"] if initial else "", network, flags, {*network} - {"image_size", "classes"})
    flags = {name: value for name, value in network.items() if value != DENOISING} | flags
    recipe = RECIPES[DENOISING if flags.get("classes") == DENOISING else flags.get("recipe", "report")]
    rows = ("all", "from weights" if pretrained else "from scratch", flags.get("model_name", DEFAULT_MODEL))
    values = {name: value for row in rows for name, value in recipe.get(row, {}).items()} | flags
    if values.get("sizes") == "grow":  # written out: epochs that --resume adds don't change it
        plain = TrainConfig(**values)
        stride = NETWORKS[plain.model_name].stride
        values["sizes"] = automatic_plan(plain.image_size, stride, plain.epochs) or "grow"
    return TrainConfig(**values)


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
        if name not in IN_CHECKPOINT and not is_valid(TrainConfig, name, value):
            raise CheckpointError(f"{path} is malformed: its setting {name} has an impossible value; use another one")
    if flags.get("sizes") == "grow" and ":" in saved["sizes"]:
        flags = {**flags, "sizes": saved["sizes"]}
    refuse_differing(path, saved, flags, {name for name, kind in kinds.items() if kind == FIXED})
    return TrainConfig(**saved | flags)


def settings_of_network(checkpoint: Checkpoint) -> dict:
    """The settings that say what a checkpoint's network is and sees."""
    return {
        "model_name": checkpoint.model_name,
        "attention": checkpoint.config.get("attention", "none"),
        "decoder": checkpoint.config.get("decoder", "plain"),
        "classes": checkpoint.task.name,
        "channels": checkpoint.channels,
        "image_size": checkpoint.image_size,
    }


def refuse_differing(path, saved: dict, flags: dict, names: set[str]) -> None:
    """Raises UsageError where flags of these names differ from what a checkpoint says."""
    differing = [name for name, value in flags.items() if name in names and value != saved[name]]
    if differing:
        facts = ", ".join(f"{name} {saved[name]} (now {flags[name]})" for name in differing)
        raise UsageError(f"{path} has {facts}; leave out {', '.join(f'--{name}' for name in differing)}")


def saved_settings() -> dict[str, str]:
    """The fields that a checkpoint keeps: FIXED or CHANGEABLE, by name."""
    return {name: flag.resume for name, (flag, _) in options_of(TrainConfig).items() if flag.resume}


def settings_to_save(config: TrainConfig) -> dict:
    """What the checkpoint keeps as settings."""
    return {name: getattr(config, name) for name in saved_settings() if name not in IN_CHECKPOINT}


def check_flags(config: TrainConfig, flags: dict, processes: int) -> None:
    """Raises UsageError where flags contradict each other, or one would do nothing. Terms check their own."""
    c, name, network = config, config.model_name, NETWORKS[config.model_name]
    sizes, least, decoders = planned_sizes(c.sizes), 2 * network.stride, ", ".join(network.decoders)
    has_weights = flags.get("encoder_weights", "none") != "none"
    of_encoder = network.encoder_name is None and (c.freeze_encoder or c.encoder_lr_scale != 1)
    pairs = {*MIXES} & {*c.changes} and c.batch_size < 2 * processes
    off, bulk = c.augment == "off", c.augment == "bulk"
    uncertain = c.augment_uncertain and c.classes != "binary"
    rules = [
        (off and "augment_strength" in flags, "--augment_strength needs --augment bulk or online"),
        (off and flags.get("distort"), "--distort needs --augment bulk or online"),
        (not bulk and "num_augmentations" in flags, "--num_augmentations needs --augment bulk"),
        (c.init and has_weights, "--init brings the weights of the encoder, too; leave --encoder_weights out"),
        (of_encoder, f"{name} has no encoder: leave --freeze_encoder and --encoder_lr_scale out"),
        (c.patience and c.scheduler == "cosine", "--patience would cut the plan of --scheduler cosine; leave it out"),
        (c.decoder not in network.decoders, f"{name} has no decoder {c.decoder}; it has {decoders}"),
        (min(sizes, default=least) < least, f"--sizes {c.sizes}: {name} needs sides of {least} pixels at least"),
        (
            len(sizes) >= c.epochs and "resume" not in flags,
            f"--sizes {c.sizes} leaves no epoch at full size; plan fewer, or use a larger --epochs",
        ),
        (pairs, "--distort paste and cutmix need two images in a process at a time; use a larger --batch_size"),
        (uncertain, f"--augment_uncertain and --classes {c.classes} can't be combined; leave one of them out"),
    ]
    for broken, message in rules:
        if broken:
            raise UsageError(message)
