"""Trains a network.

python src/train.py --data_path dataset --model_name unet --epochs 10
python src/train.py --model_name unet --resume --epochs 2
"""

import argparse
import difflib
import math
import shlex
import sys
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from torch.utils.data import Dataset

import cli
import utils
from batches import EpochOrder, make_loader, share_batches
from checkpoint import load_checkpoint, load_encoder_weights
from dataset_check import warn_if_inverted
from distributed import ALONE, Team, join
from download import download
from engine import Training, train
from losses import LOSSES
from models import ALIASES, DEFAULT_MODEL, MODELS, build_model
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
        choices=["bulk", "online"],
        help="enlarge the training set with fixed variants (bulk, also without a word), or vary it anew every epoch",
    )
    variants = cli.whole_number(1, 100)
    flag("--num_augmentations", type=variants, default=3, metavar="N", help="variants an image, in bulk")
    flag("--color_jitter", action="store_true", help="with --augment: vary brightness, contrast and saturation too")
    flag("--augment_uncertain", action="store_true", help="border pixels become pet or background at random")

    cli.add_cache_flag(data)

    flag = parser.add_argument_group("model and optimisation").add_argument
    flag("--model_name", "--model_type", default=DEFAULT_MODEL, metavar="NAME", help="unet or resnet34_unet")
    flag("--encoder_weights", default="auto", metavar="auto|imagenet|none|FILE", help="what the encoder starts from")
    flag("--epochs", "-e", type=cli.whole_number(1, 10**5), default=10, metavar="N", help="with --resume: N more")
    flag("--learning_rate", "-lr", type=cli.positive_number, default=1e-4, metavar="LR", help="of Adam")
    flag("--loss", choices=list(LOSSES), default="bce", help="what is minimised")
    flag(
        "--scheduler",
        choices=["plateau", "cosine", "none"],
        default="plateau",
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
    saves = {"action": argparse.BooleanOptionalAction, "default": False}
    flag("--checkpoint_activations", **saves, help="keep fewer features for the way back: less memory, slower")
    flag("--compile", **saves, help="let torch.compile fuse the network first (minutes; needs a C++ compiler)")
    cli.add_folder_flags(parser)
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
    if args.augment == "bulk":
        return utils.augment_dataset(dataset, args.num_augmentations, args.seed, args.color_jitter)
    return utils.AugmentedDataset(dataset, args.seed, 0, args.color_jitter) if args.augment == "online" else dataset


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


def open_data(args, content: Optional[dict], path: Optional[Path]):
    """The three parts, and what the checkpoint records of them.

    Raises:
        UsageError: the run that is resumed had other pictures.
    """
    root = find_root(args.data_path)
    split = split_pets(root, args.split, args.seed)
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
    warn_if_inverted([mask[0].numpy() for mask in train_set.__getitems__(looked_at)["mask"]], root)
    return train_set, valid_set, test_set, data


def print_header(run: Training, parts: list[OxfordPetDataset], resumed_from: Optional[Path]) -> None:
    """Device, model, data, plan: what a reader of the output wants to know later."""
    state, args, progress = run.state, run.state.args, run.state.progress
    count = sum(p.numel() for p in state.model.parameters())
    bulk = f"bulk x{args.num_augmentations} ({len(run.train_loader.dataset):,} samples)"
    augment = bulk if args.augment == "bulk" else args.augment or "off"
    augment += " with colour jitter" if args.color_jitter else ""
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
    print(f"Model   {args.model_name}, {count:,} parameters, encoder {state.encoder_start}")
    print(f"Data    {parts[0].root} ({describe_layout(parts[0].root)}), split {args.split}: {sizes}; ", end="")
    cached = "cached" if parts[0].records else "not cached"
    print(f"{args.image_size}x{args.image_size}, {cached}, augment {augment}")
    print(
        f"Plan    {args.loss}, Adam {args.learning_rate:g}, {args.scheduler}, batch {args.batch_size}, "
        f"{run.order.steps} steps an epoch, seed {args.seed}"
    )
    print(f"Run     {progress.run_id}: {where}", flush=True)


def load_run(args, given: dict) -> tuple[Optional[Path], Optional[dict], int]:
    """The checkpoint that the run resumes from: path, content, when it was written; nothing for a new run."""
    path = resume_source(args, given)
    return (None, None, 0) if path is None else (path, load_checkpoint(path), path.stat().st_mtime_ns)


def prepare(args, given: dict, device: torch.device, team: Team = ALONE):
    """Everything before the first step, a new run's or a resumed one's.

    Returns:
        The Training, the three parts of the dataset, and the path of the checkpoint that is resumed, or None.
    """
    resumed_from, content, written = team.tell(load_run(args, given) if team.first else None)
    if content is not None:
        settle_flags(args, given, content, resumed_from)
    if args.compile and args.checkpoint_activations:
        raise cli.UsageError("--compile frees activations in its own way; leave --checkpoint_activations out")
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
    model = build_model(args.model_name)
    if content is not None:
        start = content["encoder_start"]
    else:  # the others get the first one's weights
        start = load_encoder_weights(model, args.encoder_weights) if team.first else ""
    if args.checkpoint_activations:
        model.checkpoint_activations()
    fused = device.type in ("cpu", "cuda")  # one pass over all parameters: half the time of a step of Adam on the CPU
    optimizer = torch.optim.Adam(precision.place(model).parameters(), lr=args.learning_rate, fused=fused)
    train_set = augmented(args, parts[0])
    order = EpochOrder(len(train_set), args.batch_size, args.seed, team)
    progress = start_progress(args, given, content, resumed_from)
    scheduler = build_scheduler(args, optimizer, progress.planned_epochs * order.steps)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype == torch.float16)
    state = RunState(args, model, optimizer, scheduler, scaler, data, start, progress, claim)
    if content is not None:
        state.restore(content, resumed_from)
    forward = team.wrap(model)
    batches = share_batches(parts[1], args.batch_size, team)
    training = Training(
        state=state,
        forward=torch.compile(forward) if args.compile else forward,
        order=order,
        train_loader=make_loader(train_set, device, args.num_workers, batch_sampler=order),
        valid_loader=make_loader(parts[1], device, args.num_workers, batch_sampler=batches),
        loss_fn=LOSSES[args.loss],
        precision=precision,
        team=team,
        stop=cli.StopRequest(patient=team.size > 1),
    )
    return training, parts, resumed_from


def main(argv=None) -> None:
    """Reads the flags and runs."""
    args, given = build_parser().parse_given(argv)
    if args.color_jitter and not args.augment and args.resume is None:
        raise cli.UsageError("--color_jitter varies what --augment makes; give --augment bulk or online as well")
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
