"""Trains and scores the experiments: the data behind REPORT.md.

    python study/runner.py --data_path dataset --list
    python study/runner.py --data_path dataset --seeds 1 2 3 --experiments "recipes/*"

Every run is a process of train.py in a folder of its own below --out, with its output, its log and, until it is scored,
its checkpoints. Stop the study at any time; the same command resumes it. Two of them may share one --out: they don't
do the same run. Test images are scored at the end, with the epoch that is best for the validation images and with the
last. A run whose flags or recipe have changed since it was done is done again.
"""

import argparse
import contextlib
import fnmatch
import hashlib
import json
import platform
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
from data.index import find_root
from data.names import MODES
from data.splits import split_samples
from evaluation.metrics import COUNTS, summarize
from experiments import ROOT, SMP
from runtime.device import get_device
from runtime.files import lock_file, read_rows, write_rows
from train import build_parser
from training.config import TrainConfig

TABLE = ROOT / "study/results/study.csv"
DATA = "whole set"  # what the table calls the images
PYTHON = [sys.executable]  # what runs a script
FIXED = "--split official --encoder_weights none --save_every 0"


class Run(NamedTuple):
    """One training."""

    experiment: str  # group/name
    flags: str
    seed: int
    folder: Path

    @property
    def settings(self) -> str:
        """The settings of the flags and their recipe that are not train.py's defaults."""
        if self.flags.startswith(SMP):
            return self.flags
        config = TrainConfig.from_flags(build_parser().parse_overrides(shlex.split(self.flags)))
        unset = {**vars(TrainConfig()), "recipe": config.recipe, "epochs": None}
        return " ".join(f"{name}={value}" for name, value in sorted(vars(config).items()) if value != unset[name])

    @property
    def epochs(self) -> int:
        """The planned ones."""
        words = self.flags.split()
        return int(words[words.index("--epochs") + 1])

    @property
    def is_done(self) -> bool:
        """Whether the table has it."""
        return any(row["settings"] == self.settings for row in read_rows(TABLE) if self.matches(row))

    def matches(self, row: dict) -> bool:
        """Whether a row of the table is of this experiment and seed, whatever its settings."""
        return (row["data"], row["experiment"], row["seed"]) == (DATA, self.experiment, str(self.seed))


def list_runs(patterns: list[str], seeds: list[int], out: Path) -> list[Run]:
    """The runs of these experiments; all experiments of a seed come before the next seed."""
    runs = []
    for seed in seeds:
        for group, members in experiments.EXPERIMENTS.items():
            for name, flags in members.items():
                run = Run(f"{group}/{name}", flags, seed, Path())
                if any(fnmatch.fnmatch(run.experiment, pattern) for pattern in patterns):
                    digest = hashlib.sha256(f"{run.experiment} {run.settings}".encode()).hexdigest()[:8]
                    runs.append(run._replace(folder=out / f"{digest}-s{seed}"))
    return runs


def call(run: Run, *command) -> None:
    """Runs a script of this project and appends its output to the run's. A signal is passed on and waited for.

    Raises:
        RuntimeError: it failed.
    """
    with (run.folder / "output.txt").open("a") as output:
        output.write(f"$ {shlex.join(map(str, command))}\n")
        output.flush()
        words = [*PYTHON, *map(str, command)]
        process = subprocess.Popen(words, stdout=output, stderr=output, cwd=ROOT, start_new_session=True)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    if status:
        raise RuntimeError(f"status {status}, see {run.folder / 'output.txt'}")


def read_history(run: Run) -> list[dict]:
    """The rows of a run's training log, or of smp_recipe.py's record; none where there is no such file."""
    if run.flags.startswith(SMP):
        record = run.folder / "result.json"
        return json.loads(record.read_text())["history"] if record.is_file() else []
    return [row for log in run.folder.glob("*_training_log.csv") for row in read_rows(log)]


def code_version() -> str:
    """The commit of this code, with "-dirty" where there are uncommitted changes."""

    def ask(*words: str) -> str:
        try:
            return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        except OSError:  # no git here
            return ""

    changed = ask("status", "--porcelain", "--", "src", ":(glob)benchmarks/*.py", ":(glob)study/*.py")
    return (ask("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def train(run: Run, common: list) -> None:
    """Trains from the start, or resumes an interrupted run."""
    if len(read_history(run)) >= run.epochs:
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    commits = run.folder / "commits.txt"  # all versions that trained it
    with commits.open("a+") as file:
        file.seek(0)
        if (version := code_version()) not in file.read().split():
            file.write(f"{version}\n")
    script, *flags = shlex.split(run.flags if run.flags.startswith(SMP) else f"train.py {FIXED} {run.flags}")
    flags += ["--seed", run.seed]
    if script == SMP:
        call(run, ROOT / "study" / SMP, *common, *flags, "--out", run.folder)
        return
    last = list(run.folder.glob("*_last.pth"))
    start = ["--resume", last[0]] if last else flags
    call(run, ROOT / "src/train.py", *common, "--save_dir", run.folder, "--log_dir", run.folder, *start)


def score(run: Run, common: list) -> dict[str, list[list[int]]]:
    """Pixels of every test image, counted as in `metrics.COUNTS`: best epoch, last, best with TTA."""
    if run.flags.startswith(SMP):
        return json.loads((run.folder / "result.json").read_text())["counts"]
    found = {}
    for kind, checkpoint in {"best": "best", "last": "last", "tta": "best"}.items():
        if kind == "tta" and not run.experiment.startswith("recipes/"):
            continue
        file = run.folder / f"{kind}.csv"
        if not file.is_file():
            (path,) = run.folder.glob(f"*_{checkpoint}.pth")
            flags = ["--model_path", path, "--log_dir", run.folder, "--csv", file]
            call(run, ROOT / "src/evaluate.py", *common, *flags, *(["--tta"] if kind == "tta" else []))
        found[kind] = [[int(row[name]) for name in COUNTS] for row in read_rows(file)]
    return found


def row_of(run: Run, images: str, machine: str, counts: dict) -> dict:
    """A run's row of the table."""
    history = read_history(run)
    valid = [float(row["val_dice"] or "nan") for row in history]  # empty in epochs without validation
    scores = {kind: summarize(torch.tensor(rows)) for kind, rows in counts.items()}

    def scored(kind: str, name: str):
        return round(scores[kind][name], 6) if kind in scores else ""

    return {
        "experiment": run.experiment,
        "settings": run.settings,
        "seed": run.seed,
        "data": DATA,
        "images": images,
        "epochs": len(history),
        "best_epoch": int(np.nanargmax(valid)) + 1,
        "test_dice": scored("best", "dice"),
        "test_dataset_dice": scored("best", "dataset_dice"),
        "test_dataset_dice_last_epoch": scored("last", "dataset_dice"),
        "test_dataset_dice_tta": scored("tta", "dataset_dice"),
        "seconds_per_epoch": round(sorted(float(row["seconds"]) for row in history)[len(history) // 2], 2),
        "machine": machine,
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        "commit": " ".join((run.folder / "commits.txt").read_text().split()),
        "valid_curve": " ".join(f"{x:.4f}" for x in valid),
        "train_curve": " ".join(f"{float(row.get('train_dice', 'nan')):.4f}" for row in history),
        "test_pixels": ";".join(" ".join(map(str, image[:3])) for image in counts.get("best", [])),
    }


def do(run: Run, args, images: str, machine: str) -> None:
    """Trains and scores a run, and adds its row."""
    common = ["--data_path", args.data_path, "--device", args.device]
    train(run, common)
    validation_only = run.experiment.startswith("choice")
    row = row_of(run, images, machine, {} if validation_only else score(run, common))
    with lock_file(TABLE.with_name(f".{TABLE.name}.lock"), wait=True):
        if not run.is_done:  # by another process meanwhile
            write_rows(TABLE, [*(row for row in read_rows(TABLE) if not run.matches(row)), row], list(row))
    valid, test = max(row["valid_curve"].replace("nan", "").split()), row["test_dataset_dice"] or "not scored"
    print(f"{run.experiment}, seed {run.seed}: best valid Dice {valid}, test {test}", flush=True)
    for checkpoint in () if args.keep else run.folder.glob("*.pth"):
        checkpoint.unlink()


def main() -> None:
    """Does the runs that are not done yet. One that fails is reported, and the others continue."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, default=Path("dataset"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--experiments", nargs="+", default=["*"], metavar="PATTERN", help='such as "recipes/*"')
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "study/runs", help="folder of the runs")
    parser.add_argument("--keep", action="store_true", help="keep checkpoints after scoring")
    parser.add_argument("--list", action="store_true", help="print what would be done")
    args = parser.parse_args()
    args.data_path = args.data_path.resolve()
    runs = [run for run in list_runs(args.experiments, args.seeds, args.out.resolve()) if not run.is_done]
    if args.list:
        for run in runs:
            print(f"{run.experiment:<40} seed {run.seed}: {run.flags}")
        return
    parts = split_samples(find_root(args.data_path), "official")
    images = " ".join(str(len(getattr(parts, mode))) for mode in MODES)
    machine = measure.machine(get_device(args.device))
    for signum in (signal.SIGINT, signal.SIGTERM):  # in background jobs of a shell the first is ignored otherwise
        signal.signal(signum, signal.default_int_handler)
    failed = False
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(BlockingIOError), lock_file(run.folder / "lock", wait=False):  # else another does it
            try:
                do(run, args, images, machine)
            except KeyboardInterrupt:
                print("Stopped; the same command continues from here.", flush=True)
                sys.exit(130)
            except Exception as error:  # noqa: BLE001
                failed = True
                print(f"failed: {run.experiment}, seed {run.seed}: {error!r}", file=sys.stderr, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
