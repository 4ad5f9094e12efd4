"""What it costs that a run can be stopped and killed: the loop of train.py against the same steps in a bare loop.

    python benchmarks/training_loop.py --data_path dataset

Both train the same network on the same batches, in turn, several rounds in one run. Ours counts, checks for signals and
the clock at every step and saves as it does after an epoch (finite, synced, renamed); the bare one does nothing between
its steps and saves with plain torch.save.
"""

import tempfile
from pathlib import Path

import torch

import measure
import train
import utils
from training.trainer import Trainer, train_one_epoch


def bare_epoch(run: Trainer, file: Path) -> None:
    """The steps of an epoch and a save, without anything that makes them safe."""
    state = run.state
    state.model.train()
    run.order.start = 0
    for batch in run.train_loader:
        with run.precision.autocast():
            logits = state.model(run.precision.move(batch["image"]))
        loss = run.loss_fn(logits, batch["mask"].to(run.precision.device))
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), max_norm=1.0)
        state.optimizer.step()
    torch.save({"weights": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}, file)


def our_epoch(run: Trainer) -> None:
    """The same as train.py does it, without validation."""
    train_one_epoch(run)
    progress = run.state.progress
    progress.step, progress.sums, progress.seconds = 0, None, 0.0
    run.state.save("best")


def main() -> None:
    """Prints both medians and their ratio, and writes them into benchmarks/results/training_loop.csv."""
    parser = train.build_parser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.set_defaults(image_size=128, encoder_weights="none", split="official")
    args, given = parser.parse_given()
    args.model_name = train.known_model(args.model_name)
    device = utils.get_device(args.device)
    with tempfile.TemporaryDirectory() as scratch:
        args.save_dir = args.log_dir = scratch
        run, _, _ = train.prepare(args, given, device)
        variants = {"bare": lambda: bare_epoch(run, Path(scratch) / "bare.pth"), "train.py": lambda: our_epoch(run)}
        seconds = measure.take_turns(variants, args.rounds, device)
    setting = {"model": args.model_name, "image_size": args.image_size, "batch_size": args.batch_size}
    rows = measure.rates(seconds, len(run.train_loader.dataset), "images", steps=run.order.steps)
    measure.report("training_loop", rows, device, **setting)


if __name__ == "__main__":
    main()
