"""Works through the queue of experiments.py: trains and scores each run, and adds its row to study.csv.

    python study/runner.py --data_path dataset --list
    python study/runner.py --data_path dataset

One run at a time, on one thread, at a low priority, so that it can go on beside other work. SIGTERM or Ctrl-C pauses
it; the same command continues where it was, but for smp_recipe.py, which starts again. A run is done when study.csv
has a row of its experiment and seed. Every run has a folder below --out, with its output, its log and, until it is
scored, its checkpoints. The epoch that is best for the validation images is scored on the test images.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the runs

import argparse
import fnmatch
import json
import platform
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import experiments
import measure
from data.dataset import Dataset
from data.names import MODES
from evaluation.metrics import COUNTS
from experiments import COMMON, RESULTS, ROOT, SMP
from runtime.files import append_rows, lock_file, read_rows

TABLE = RESULTS / "study.csv"
DATA = "whole set"  # what the table calls the images
PYTHON = [sys.executable]  # what runs a script


class Run(NamedTuple):
    """One training, and its scoring."""

    experiment: str  # group/arm
    flags: str
    minutes: int  # estimated
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.experiment}, seed {self.seed}"

    @property
    def history(self) -> list[dict]:
        """The rows of its training log."""
        return [row for log in self.folder.glob("*_training_log.csv") for row in read_rows(log)]


def list_runs(patterns: list[str], out: Path, table: Path) -> list[Run]:
    """The runs of the queue that match and that the table lacks; all arms of a seed come before the next seed."""
    done = {(row["experiment"], row["seed"]) for row in read_rows(table) if row["data"] == DATA}
    runs = [
        Run(name, flags, minutes, seed, out / re.sub("[^a-z0-9]+", "-", f"{name} s{seed}".lower()))
        for group, arms in experiments.QUEUE.items()
        for seed in (1, 2, 3)
        for arm, (minutes, flags) in arms.items()
        if any(fnmatch.fnmatch(name := f"{group}/{arm}", pattern) for pattern in patterns)
        and (seed == 1 or not {group, name} & {*experiments.ONE_SEED})
    ]
    return [run for run in runs if (run.experiment, str(run.seed)) not in done]


def code_version() -> str:
    """The commit of this code, with "-dirty" where there are uncommitted changes."""

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return ask("rev-parse", "--short", "HEAD") + "-dirty" * bool(ask("status", "--porcelain", "src", "study/*.py"))


def call(run: Run, *command) -> None:
    """Runs a script of this project and appends its output to the run's. SIGTERM is passed on and waited for."""
    with (run.folder / "output.txt").open("a") as output:
        output.write(f"$ {shlex.join(map(str, command))}\n")
        output.flush()
        words, streams = [*PYTHON, *map(str, command)], {"stdout": output, "stderr": output}
        process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, **streams)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    if status:
        raise RuntimeError(f"status {status}, see {run.folder / 'output.txt'}")


def training_command(run: Run, common: list) -> list | None:
    """The command that starts the training or goes on with it; None where it is complete."""
    if len(run.history) >= int(re.search(r"--epochs (\d+)", run.flags)[1]):
        return None
    flags = [*shlex.split(run.flags), "--seed", run.seed]
    if flags[0] == SMP:  # it starts again
        return [ROOT / "study" / SMP, *common, *flags[1:], "--out", run.folder]
    last = list(run.folder.glob("*_last.pth"))
    start = ["--resume", *last] if last else [*shlex.split(COMMON), *flags]
    return [ROOT / "src/train.py", *common, "--save_dir", run.folder, "--log_dir", run.folder, *start]


def train(run: Run, common: list) -> None:
    """Trains from the start, or resumes an interrupted run. Records processor time and versions of the code."""
    while (command := training_command(run, common)) is not None:
        done, version, before = len(run.history), code_version(), sum(os.times()[2:4])  # of child processes
        try:
            call(run, *command)
        finally:
            spent = round(sum(os.times()[2:4]) - before, 1)
            append_rows(run.folder / "sittings.csv", [{"commit": version, "seconds": spent}])
        if len(run.history) == done:
            raise RuntimeError(f"no epoch was added, see {run.folder / 'output.txt'}")


def score(run: Run, common: list, kind: str = "best") -> tuple[dict, list[dict]]:
    """Scores of the test images, and a row for each; `tta` is with test-time augmentation."""
    report = run.folder / kind
    if not (report / "scores.json").is_file():  # smp_recipe.py has written them
        (path,) = run.folder.glob("*_best.pth")
        flags = ["--model_path", path, "--log_dir", run.folder, "--num_workers", 1, "--report", report]
        call(run, ROOT / "src/evaluate.py", *common, *flags, *["--tta"] * (kind == "tta"))
    return json.loads((report / "scores.json").read_text()), read_rows(report / "images.csv")


def do(run: Run, args, images: str) -> None:
    """Trains and scores a run, and adds its row."""
    common = ["--data_path", args.data_path, "--device", "cpu"]
    run.folder.mkdir(parents=True, exist_ok=True)
    train(run, common)
    history, sittings = run.history, read_rows(run.folder / "sittings.csv")
    scores, rows = score(run, common)
    valid = [float(row["val_dice"]) for row in history]
    seconds = np.cumsum([float(row["seconds"]) for row in history])
    spent = seconds[-1] if SMP in run.flags else sum(float(row["seconds"]) for row in sittings)  # SMP logs its own
    minutes = seconds / seconds[-1] * spent / 60
    tta = score(run, common, "tta")[0]["dataset_dice"] if run.experiment in experiments.WITH_TTA else ""
    row = {
        "experiment": run.experiment,
        "settings": run.flags,
        "seed": run.seed,
        "data": DATA,
        "images": images,
        "epochs": len(history),
        "best_epoch": int(np.argmax(valid)) + 1,
        "test_dice": round(scores["dice"], 6),
        "test_dataset_dice": round(scores["dataset_dice"], 6),
        "test_dataset_dice_tta": tta,
        "minutes": " ".join(f"{x:.2f}" for x in minutes),  # of one core, until the end of each epoch
        "machine": measure.machine(torch.device("cpu")),
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        "commit": " ".join(dict.fromkeys(row["commit"] for row in sittings)),
        "valid_curve": " ".join(f"{x:.4f}" for x in valid),
        "train_curve": " ".join(f"{float(row.get('train_dice', 'nan')):.4f}" for row in history),
        "test_pixels": ";".join(" ".join(row[name] for name in COUNTS[:3]) for row in rows),
    }
    append_rows(args.table, [row])
    print(f"{run}: test Dice {row['test_dice']}, {minutes[-1]:.0f} minutes", flush=True)
    for checkpoint in run.folder.glob("*.pth"):
        checkpoint.unlink()


def main() -> None:
    """Does the runs that are not done yet. One that fails is reported, and the queue continues."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, default=Path("dataset"))
    parser.add_argument("--experiments", nargs="+", default=["*"], metavar="PATTERN", help='such as "choice*"')
    parser.add_argument("--out", type=Path, default=ROOT / "study/runs", help="folder of the runs")
    parser.add_argument("--table", type=Path, default=TABLE, help="where the rows go")
    parser.add_argument("--list", action="store_true", help="print what is still to be done")
    args = parser.parse_args()
    args.data_path = args.data_path.resolve()
    runs, failed = list_runs(args.experiments, args.out.resolve(), args.table), False
    if args.list:
        for run in runs:
            print(f"{run}, {run.minutes} minutes: {run.flags}")
        print(f"{len(runs)} runs, about {sum(run.minutes for run in runs) / 60:.1f} hours of one core")
        return
    os.nice(10)
    parts = Dataset(args.data_path).split("official")
    images = " ".join(str(len(getattr(parts, mode))) for mode in MODES)
    for signum in (signal.SIGINT, signal.SIGTERM):  # in background jobs of a shell the first is ignored otherwise
        signal.signal(signum, signal.default_int_handler)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        with lock_file(args.out / "lock", wait=False):
            for run in runs:
                try:
                    do(run, args, images)
                except Exception as error:  # noqa: BLE001
                    failed = True
                    print(f"failed: {run}: {error!r}", file=sys.stderr, flush=True)
    except BlockingIOError:
        sys.exit(f"error: another runner works in {args.out}; wait for it, or name another --out")
    except KeyboardInterrupt:
        print("Paused; the same command continues from here.", flush=True)
        sys.exit(130)
    sys.exit(failed)


if __name__ == "__main__":
    main()
