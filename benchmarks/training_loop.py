"""What it costs that a run can be stopped and killed: the loop of train.py against the same steps in a bare loop.

    python benchmarks/training_loop.py --data_path dataset

Both train the same network on the same batches, in turn, several rounds in one run. Ours counts, checks for signals and
the clock at every step and saves as it does after an epoch (finite, synced, renamed); the bare one does nothing between
its steps and saves with plain torch.save.
"""

import csv
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import train  # noqa: E402  the path must be set first
import utils  # noqa: E402


def bare_epoch(run: train.Training, file: Path) -> None:
    """The steps of an epoch and a save, without anything that makes them safe."""
    state = run.state
    state.model.train()
    run.order.start = 0
    for batch in run.train_loader:
        logits = state.model(batch["image"].to(run.device))
        loss = run.loss_fn(logits, batch["mask"].to(run.device))
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), max_norm=1.0)
        state.optimizer.step()
    torch.save({"weights": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}, file)


def our_epoch(run: train.Training) -> None:
    """The same as train.py does it, without validation."""
    train.train_one_epoch(run)
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
    with tempfile.TemporaryDirectory() as scratch:
        args.save_dir = args.log_dir = scratch
        run, _, _ = train.prepare(args, given)
        seconds = {"bare": [], "ours": []}
        for _ in range(args.rounds + 1):
            for name in seconds:
                start = time.perf_counter()
                bare_epoch(run, Path(scratch) / "bare.pth") if name == "bare" else our_epoch(run)
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, taken in seconds.items():
        taken = sorted(taken[1:])  # the first round warms up
        rows.append(
            {
                "loop": name,
                "seconds": round(statistics.median(taken), 2),
                "lowest": round(taken[0], 2),
                "highest": round(taken[-1], 2),
                "n": len(taken),
                "ratio": round(statistics.median(taken) / statistics.median(seconds["bare"][1:]), 4),
                "steps": run.order.steps,
                "setting": f"{args.model_name}, {args.image_size}x{args.image_size}, batch {args.batch_size}",
                "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, {run.device}",
                "versions": f"torch {torch.__version__}",
            }
        )
        print(" | ".join(f"{key} {value}" for key, value in rows[-1].items()))
    with utils.atomic_write(ROOT / "benchmarks/results/training_loop.csv") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
