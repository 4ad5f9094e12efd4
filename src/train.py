"""Trains a network.

python src/train.py --data_path dataset --model_name unet --epochs 10
python src/train.py --model_name unet --resume --epochs 2
"""

import argparse
import collections
import difflib
import math
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

import cli
import utils
from averaging import WeightAverage
from batches import EpochOrder, make_loader, share_batches
from checkpoint import load_checkpoint, load_encoder_weights
from dataset_check import warn_if_inverted
from distributed import ALONE, Team, join
from download import download
from engine import TARGETS, Training, possible_sides, train
from losses import LOSSES
from models import ALIASES, ATTENTION, DEFAULT_MODEL, MODELS, build_model
from oxford_pet import (
    MODES,
    SPLITS,
    OxfordPetDataset,
    describe_layout,
    find_root,
    fingerprint,
    load_dataset,
    split_pets,
)
from pictures import DatasetError
from pixel_cache import open_cache
from precision import choose_precision
from recipes import DEFAULT_RECIPE, RECIPES, apply_recipe
from run_state import (
    RunState,
    claim_names,
    resume_source,
    settle_flags,
    start_progress,
)

LESS_MEMORY = "a smaller --batch_size, or the same with --accumulate 2 or --checkpoint_activations"


def build_parser() -> cli.Parser:
    """Flags of train.py."""
    parser = cli.Parser(prog="train.py", description="Train UNet or ResNet34-UNet to segment pets.")
    data = cli.add_data_flags(parser, batch_size=8)
    flag = data.add_argument
    flag("--download", action="store_true", help="fetch the dataset first where it is missing")
    flag("--split", choices=SPLITS, default=SPLITS[0], help="which images are which")
    flag("--image_size", type=cli.whole_number(64, 4096), default=256, metavar="PX", help="side of the network's input")
    flag(
        "--augment",
        nargs="?",
        const="bulk",
        choices=["bulk", "online", "off"],
        help="enlarge the training set with fixed variants (bulk, also without a word), or vary it anew every epoch",
    )
    variants = cli.whole_number(1, 100)
    flag("--num_augmentations", type=variants, default=3, metavar="N", help="variants an image, in bulk")
    flag("--augment_strength", choices=list(utils.STRENGTHS), help="how far it rotates and scales")
    on_or_off = {"action": argparse.BooleanOptionalAction, "default": False}
    flag("--color_jitter", **on_or_off, help="with --augment: vary brightness, contrast and saturation too")
    share = {"nargs": "?", "const": 0.34, "type": cli.share_or_none, "metavar": "SHARE"}
    flag("--multi_scale", **share, help="train at sides that vary by up to this share of --image_size")
    flag("--mix", choices=["none", "paste", "cutmix"], help="onto half the pictures put another's pet, or part of it")
    flag("--train_fraction", type=cli.part, default=1.0, metavar="P", help="train on this part of the pictures")
    flag("--augment_uncertain", action="store_true", help="border pixels become pet or background at random")

    cli.add_cache_flag(data)

    flag = parser.add_argument_group("model and optimisation").add_argument
    flag("--model_name", "--model_type", default=DEFAULT_MODEL, metavar="NAME", help="unet or resnet34_unet")
    flag("--encoder_weights", default="auto", metavar="auto|imagenet|none|FILE", help="what the encoder starts from")
    flag("--attention", choices=list(ATTENTION), help="at the end of each step of the decoder")
    flag("--classes", choices=list(TARGETS), default="binary", help="pet and background, or pet, background and border")
    flag("--recipe", choices=list(RECIPES), default=DEFAULT_RECIPE, help="what the flags are that are not given")
    flag("--epochs", "-e", type=cli.whole_number(1, 10**5), metavar="N", help="with --resume: N more")
    flag("--learning_rate", "-lr", type=cli.positive_number, metavar="LR", help="of the optimizer")
    flag("--loss", choices=list(LOSSES), help="what is minimised")
    flag("--optimizer", choices=["adam", "adamw"], help="adamw shrinks weights by --weight_decay")
    flag("--weight_decay", type=cli.share_or_none, metavar="W", help="of adamw")
    average = {"nargs": "?", "const": 0.99, "type": cli.share_or_none, "metavar": "DECAY"}
    flag("--ema", **average, help="use a moving average of the weights")
    flag(
        "--scheduler",
        choices=["plateau", "cosine", "none"],
        help="plateau: x0.5 after 3 epochs without a better valid Dice; cosine: warm-up, then down to 0",
    )
    flag("--seed", type=cli.whole_number(0, 2**32 - 1), default=42, metavar="N", help="of everything random")

    flag = parser.add_argument_group("run").add_argument
    flag("--resume", nargs="?", const=True, metavar="FILE", help="go on with a run, from <model>_last.pth or FILE")
    flag("--save_every", type=cli.whole_number(0), default=5, metavar="N", help="keep every N-th epoch; 0 keeps none")
    flag("--deterministic", action="store_true", help="let torch use only algorithms that always give the same bits")
    minutes = "--checkpoint_minutes"
    flag(minutes, type=cli.positive_number, default=10.0, metavar="M", help="also save this often in mid-epoch")

    flag = cli.add_device_flags(parser).add_argument
    flag("--accumulate", type=cli.whole_number(1), default=1, metavar="N", help="compute each step in N pieces")
    flag("--checkpoint_activations", **on_or_off, help="keep fewer features for the way back: less memory, slower")
    flag("--compile", **on_or_off, help="let torch.compile fuse the network first (minutes; needs a C++ compiler)")
    cli.add_folder_flags(parser)
    parser.set_defaults(**RECIPES[DEFAULT_RECIPE])
    return parser


def known_model(name: str) -> str:
    """The model's full name; for an unknown one warns on stderr and gives the default (report A asks for that)."""
    name = ALIASES.get(name, name)
    if name in MODELS:
        return name
    close = difflib.get_close_matches(name, [*MODELS, *ALIASES], n=1, cutoff=0)[0]
    print(f"WARNING: NO MODEL IS CALLED {name!r}. The closest is {close!r}.", end=" ", file=sys.stderr)
    print(f"TRAINING {DEFAULT_MODEL} INSTEAD.", file=sys.stderr)
    return DEFAULT_MODEL


def augmented(args, dataset: OxfordPetDataset) -> Dataset:
    """The training set as --augment wants it."""
    if args.augment is None:
        return dataset
    variants = args.num_augmentations if args.augment == "bulk" else 0
    return utils.AugmentedDataset(dataset, args.seed, variants, args.color_jitter, args.augment_strength)


def share_of(pets: list, fraction: float, seed: int) -> list:
    """A part of the pictures at random, of every breed the same; a smaller part lies within a larger one."""
    order = np.random.default_rng(seed).permutation(len(pets)).tolist()
    size, seen, place = collections.Counter(pet.breed for pet in pets), collections.Counter(), {}
    for i in order:  # each picture's place in its breed, from 0 to 1
        seen[pets[i].breed] += 1
        place[i] = (seen[pets[i].breed] - 0.5) / size[pets[i].breed]
    kept = sorted(order, key=place.get)[: round(len(pets) * fraction)]
    return [pets[i] for i in sorted(kept)]


def build_optimizer(args, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Adam; or AdamW, which leaves norms and biases alone (as in He et al., 2019: https://arxiv.org/abs/1812.01187)."""
    # Fused is one pass over all parameters: half the time of a step of Adam on the CPU.
    options = {"lr": args.learning_rate, "fused": next(model.parameters()).device.type in ("cpu", "cuda")}
    if args.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), **options)
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, **options)


def build_scheduler(args, optimizer, total_steps: int):
    """The plan of the learning rate: plateau steps once an epoch, cosine once a step."""
    if args.scheduler == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=3, min_lr=1e-6)
    if args.scheduler == "cosine":
        warm_up = max(1, total_steps // 10)

        def factor(step: int) -> float:
            done = min(1.0, max(0, step - warm_up) / max(1, total_steps - warm_up))
            return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * done))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return None


def resume_line(args, team: Team = ALONE) -> str:
    """The command that goes on with this run."""
    launcher = team.launcher
    parser, words = build_parser(), [f"{launcher} src/train.py", f"--model_name {args.model_name}"]
    for name in ("data_path", "save_dir", "log_dir", "device", "num_workers", "cache"):
        if getattr(args, name) != parser.get_default(name):
            words.append(f"--{name} {shlex.quote(str(getattr(args, name)))}")
    return " ".join([*words, "--resume"])


def open_data(args, content: dict | None, path: Path | None):
    """The three parts, and what the checkpoint records of them.

    Raises:
        UsageError: the run that is resumed had other pictures.
    """
    root = find_root(args.data_path)
    split = split_pets(root, args.split, args.seed)
    if args.train_fraction < 1:
        split = split._replace(train=share_of(split.train, args.train_fraction, args.seed))
        if not split.train:
            raise cli.UsageError(f"--train_fraction {args.train_fraction:g} leaves no picture to train on; use more")
    if args.classes == "trimap" and any(pet.own for pet in split.train):
        raise cli.UsageError(f"--classes trimap needs trimaps, but {root} has masks without a border; leave it out")
    data = {
        "split": args.split,
        "seed": args.seed,
        "fingerprints": {mode: fingerprint(getattr(split, mode)) for mode in MODES},
        "train_names": [pet.name for pet in split.train],
    }
    if content is not None and content["data"]["fingerprints"] != data["fingerprints"]:
        raise cli.UsageError(
            f"{path} was trained on other pictures ({len(content['data']['train_names'])} for training, now "
            f"{len(split.train)}): the dataset in {root} has changed; use the same one, or start a new run"
        )
    if split.moved:
        print(f"{split.moved} copies of pictures in other parts were moved into training.")
    records = open_cache(root, args.image_size) if args.cache == "on" else None
    options = {"split": split, "seed": args.seed, "image_size": args.image_size, "records": records}
    train_set = load_dataset(root, "train", augment_uncertain=args.augment_uncertain, **options)
    valid_set, test_set = (load_dataset(root, mode, **options) for mode in ("valid", "test"))
    looked_at = np.linspace(0, len(train_set) - 1, min(64, len(train_set))).astype(int).tolist()
    warn_if_inverted([mask[0].numpy() for mask in train_set.read_batch(looked_at)["mask"]], root)
    return train_set, valid_set, test_set, data


def print_header(run: Training, parts: list[OxfordPetDataset], resumed_from: Path | None) -> None:
    """Device, model, data, plan: what a reader of the output wants to know later."""
    state, args, progress = run.state, run.state.args, run.state.progress
    count = sum(p.numel() for p in state.model.parameters())
    bulk = f"bulk x{args.num_augmentations} ({len(parts[0]) * (1 + args.num_augmentations):,} samples)"
    augment = bulk if args.augment == "bulk" else args.augment or "off"
    if args.augment:
        augment += f", {args.augment_strength}{', colour jitter' if args.color_jitter else ''}"
    if args.mix != "none":
        augment += f", {args.mix}"
    if args.multi_scale:
        augment += f", sides within {args.multi_scale:.0%}"
    sizes = ", ".join(f"{len(part):,} {part.mode}" for part in parts)
    where = f"{progress.planned_epochs} epochs"
    if resumed_from is not None:
        where = (
            f"resumes from {resumed_from} in epoch {progress.epoch + 1} of {progress.planned_epochs} after step "
            f"{progress.step}; best valid Dice {progress.best_dice:.4f} in epoch {progress.best_epoch}"
        )
    computing = f"{run.precision}{', compiled' if args.compile else ''}, torch {torch.__version__}"
    processes = f"{run.team.size} processes of " if run.team.size > 1 else ""
    print(f"Device  {run.precision.device} ({processes}{torch.get_num_threads()} threads), {computing}")
    attention = "" if args.attention == "none" else f", attention {args.attention}"
    classes = ", three classes" if args.classes == "trimap" else ""
    print(f"Model   {args.model_name}{attention}{classes}, {count:,} parameters, encoder {state.encoder_start}")
    print(f"Data    {parts[0].root} ({describe_layout(parts[0].root)}), split {args.split}: {sizes}; ", end="")
    cached = "cached" if parts[0].records else "not cached"
    print(f"{args.image_size}x{args.image_size}, {cached}, augment {augment}")
    optimizer = "Adam" if args.optimizer == "adam" else f"AdamW (decay {args.weight_decay:g})"
    average = f", average {args.ema:g}" if args.ema else ""
    print(
        f"Plan    recipe {args.recipe}: {args.loss}, {optimizer} {args.learning_rate:g}, {args.scheduler}{average}, "
        f"batch {args.batch_size}, {run.order.steps} steps an epoch, seed {args.seed}"
    )
    print(f"Run     {progress.run_id}: {where}", flush=True)


def load_run(args, given: dict) -> tuple[Path | None, dict | None, int]:
    """The checkpoint that the run resumes from: path, content, when it was written; nothing for a new run."""
    path = resume_source(args, given)
    return (None, None, 0) if path is None else (path, load_checkpoint(path), path.stat().st_mtime_ns)


def check_together(args, given: dict, team: Team) -> None:
    """Raises UsageError where flags contradict each other, or one would do nothing."""
    if args.compile and args.checkpoint_activations:
        raise cli.UsageError("--compile frees activations in its own way; leave --checkpoint_activations out")
    for name in ("color_jitter", "augment_strength"):
        if given.get(name) and not args.augment:
            raise cli.UsageError(f"--{name} is about what --augment makes; give --augment bulk or online as well")
    if "weight_decay" in given and args.optimizer != "adamw":
        raise cli.UsageError("--weight_decay is of AdamW; give --optimizer adamw as well")
    stride = MODELS[args.model_name].stride
    if args.multi_scale and len(possible_sides(args.image_size, stride, args.multi_scale)) == 1:
        raise cli.UsageError(
            f"no multiple of {stride} lies within {args.multi_scale:g} of {args.image_size}; use a larger --multi_scale"
        )
    if args.mix != "none" and args.batch_size < 2 * team.size:
        raise cli.UsageError("--mix needs two pictures in a process at a time; use a larger --batch_size")
    if args.classes == "trimap" and args.augment_uncertain:
        raise cli.UsageError("--augment_uncertain has no border, and --classes trimap learns it; leave one of them out")


def prepare(args, given: dict, device: torch.device, team: Team = ALONE):
    """Everything before the first step, a new run's or a resumed one's.

    Returns:
        The Training, the three parts of the dataset, and the path of the checkpoint that is resumed, or None.
    """
    resumed_from, content, written = team.tell(load_run(args, given) if team.first else None)
    if content is not None:
        settle_flags(args, given, vars(build_parser().parse_args([])), content, resumed_from)
    check_together(args, given, team)
    if args.download and team.first:
        cli.writable_folder(args.data_path)
        download(args.data_path)
    team.wait()  # the others wait for the download here
    *parts, data = open_data(args, content, resumed_from)
    claim = None
    if team.first:
        for folder in (args.save_dir, args.log_dir):
            cli.writable_folder(folder)
        claim = claim_names(args)
        if content is not None and resumed_from.stat().st_mtime_ns != written:
            raise cli.UsageError(f"another run has just written {resumed_from}; try again")

    utils.seed_everything(args.seed, args.deterministic)
    precision = choose_precision(args.amp, device, args.image_size)
    channels = 1 if args.classes == "binary" else 3
    model = build_model(args.model_name, out_channels=channels, attention=args.attention)
    if content is not None:
        start = content["encoder_start"]
    else:  # the others get the first one's weights
        start = load_encoder_weights(model, args.encoder_weights) if team.first else ""
    precision.place(model)
    average = WeightAverage(model, args.ema) if args.ema else None
    if args.checkpoint_activations:
        model.checkpoint_activations()
    optimizer = build_optimizer(args, model)
    train_set = augmented(args, parts[0])
    order = EpochOrder(len(train_set), args.batch_size, args.seed, team)
    progress = start_progress(args, given, content, resumed_from)
    scheduler = build_scheduler(args, optimizer, progress.planned_epochs * order.steps)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype == torch.float16)
    state = RunState(args, model, average, optimizer, scheduler, scaler, data, start, progress, claim)
    if content is not None:
        state.restore(content, resumed_from)
    forward = team.wrap(model)
    if average and content is None:
        average.model.load_state_dict(model.state_dict())  # of which the others have just got the first one's
    batches = share_batches(parts[1], args.batch_size, team)
    training = Training(
        state=state,
        forward=torch.compile(forward) if args.compile else forward,
        order=order,
        train_loader=make_loader(train_set, device, order, args.num_workers),
        valid_loader=make_loader(parts[1], device, batches, args.num_workers),
        loss_fn=LOSSES[args.loss],
        precision=precision,
        team=team,
        stop=cli.StopRequest(patient=team.size > 1),
    )
    return training, parts, resumed_from


def main(argv=None) -> None:
    """Reads the flags and runs."""
    args, given = build_parser().parse_given(argv)
    if args.augment == "off":
        args.augment = given["augment"] = None
    if args.resume is None:
        apply_recipe(args, given)
    if "model_name" in given:
        args.model_name = given["model_name"] = known_model(args.model_name)
    device = utils.get_device(args.device)
    with join(device) as team:
        run_training(args, given, device, team)


def run_training(args, given: dict, device: torch.device, team: Team) -> None:
    """Prepares, says what it is about to do, and does it, on one process or several."""
    run, parts, resumed_from = prepare(args, given, device, team)
    state, progress = run.state, run.state.progress
    print_header(run, parts, resumed_from)
    if progress.epoch >= progress.planned_epochs:
        source = "" if state.owns_names else f" {shlex.quote(str(resumed_from))}"
        if state.owns_names:
            state.write_log()  # it may have been killed before it did
        print(f"This run is complete. To train 5 more epochs: {resume_line(args, team)}{source} --epochs 5")
        return
    if resumed_from is not None:
        if not state.owns_names:
            state.save()  # from now on this is where the run stands
        state.write_log()
    train(run, resume_line(args, team))
    print(f"Best valid Dice {progress.best_dice:.4f} in epoch {progress.best_epoch}: {state.path('best')}")


if __name__ == "__main__":
    cli.run(main, DatasetError, out_of_memory=LESS_MEMORY)
