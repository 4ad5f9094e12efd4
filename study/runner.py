"""Trains and scores the experiments: the data behind REPORT.md.

    python study/runner.py --data_path dataset --list
    python study/runner.py --data_path dataset --image_size 96 --seeds 1 2 3 --experiments "recipes/*"

Every run is a process of train.py in a folder of its own below --out, with its output, its log and, until it is scored,
its checkpoints. Stop the study at any time and start it again: interrupted runs are resumed (those of smp_recipe.py
start again), finished ones are left alone. Each has a row in study/results/study.csv, from which study/report.py makes
REPORT.md.

With --validation_only nothing is scored on the test images: use it to choose between settings. (It skips smp_recipe.py,
where there is nothing to choose.) A later call without it scores what was trained. A row is identified by its settings,
those of the recipe and of the flags together, so a run that several experiments share is trained once.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

import experiments
import measure
from data.index import find_root
from data.splits import MODES, split_samples
from evaluation.metrics import COUNTS, summarize
from experiments import ROOT, SMP
from runtime.device import get_device
from runtime.files import lock_file, read_rows, write_rows
from train import build_parser
from training.config import TrainConfig

TABLE = ROOT / "study/results/study.csv"
KEY = ("settings", "seed", "image_size", "data", "pictures", "split", "encoder_weights")  # identifies a row
PYTHON = [sys.executable]  # what runs a script
PROCESSES: set[subprocess.Popen] = set()  # of runs
STOP = threading.Event()  # start no more of them
NAMES = {7349: "whole set", 1035: "partial set"}  # by number of images
LAST = 5  # epochs at the end that are averaged: with few validation images a single one says little


class Run(NamedTuple):
    """One training."""

    experiment: str  # group/name of the first that uses it
    flags: str
    settings: str
    seed: int
    folder: Path

    @property
    def epochs(self) -> int:
        words = self.flags.split()
        return int(words[words.index("--epochs") + 1])


def settings_of(flags: str) -> str:
    """The settings of these flags and their recipe that are not train.py's defaults."""
    if flags.startswith(SMP):
        return flags
    config = TrainConfig.from_flags(build_parser().parse_overrides(shlex.split(flags)))
    unset = {**vars(TrainConfig()), "recipe": config.recipe, "epochs": None}
    return " ".join(f"{name}={value}" for name, value in sorted(vars(config).items()) if value != unset[name])


def list_runs(args) -> list[Run]:
    """The runs that were asked for, each once; all experiments of a seed come before the next seed."""
    named: dict[str, list[str]] = {}  # experiments by their settings
    flags: dict[str, str] = {}
    for group, members in experiments.EXPERIMENTS.items():
        for name, words in members.items():
            settings = settings_of(words)
            named.setdefault(settings, []).append(f"{group}/{name}")
            flags.setdefault(settings, words)
    wanted = [
        settings
        for settings, names in named.items()
        if any(fnmatch.fnmatch(name, pattern) for name in names for pattern in args.experiments)
    ]
    if args.encoder_weights != "none" or args.validation_only:  # it starts from scratch and scores, always
        wanted = [settings for settings in wanted if not settings.startswith(SMP)]
    runs = []
    for seed in args.seeds:
        for settings in wanted:
            made_of = (settings, args.image_size, args.data_name, args.pictures, args.split, args.encoder_weights)
            digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:8]
            folder = args.out / f"{digest}-s{seed}"  # independent of the experiment's name
            runs.append(Run(named[settings][0], flags[settings], settings, seed, folder))
    return runs


def call(command: list, run: Run, threads: int) -> None:
    """Runs a script of this project and appends its output to the run's.

    Raises:
        RuntimeError: it failed, or the study is being stopped.
    """
    if STOP.is_set():
        raise RuntimeError("stopped")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (run.folder / "output.txt").open("a") as output:
        output.write(f"$ {shlex.join(map(str, command))}\n")
        output.flush()
        process = subprocess.Popen(
            [*PYTHON, *map(str, command)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            start_new_session=True,  # so that a terminal's Ctrl-C comes only from `do_all`
        )
        PROCESSES.add(process)
        if STOP.is_set():  # `do_all` may not have seen this process
            process.send_signal(signal.SIGTERM)
        status = process.wait()
        PROCESSES.discard(process)
    if status:
        raise RuntimeError(f"status {status}, see {run.folder / 'output.txt'}")


def read_history(run: Run) -> list[dict]:
    """The rows of a run's training log, or of smp_recipe.py's record; none where there is no such file."""
    if run.flags.startswith(SMP):
        record = run.folder / "result.json"
        return json.loads(record.read_text())["history"] if record.is_file() else []
    logs = list(run.folder.glob("*_training_log.csv"))
    return read_rows(logs[0]) if logs else []


def code_version() -> str:
    """The commit of this code, with "-dirty" where there are uncommitted changes."""

    def ask(*words: str) -> str:
        try:
            return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        except OSError:  # no git here
            return ""

    changed = ask("status", "--porcelain", "--", "src", ":(glob)benchmarks/*.py", ":(glob)study/*.py")
    return (ask("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def train(run: Run, args) -> None:
    """Trains from the start, or resumes an interrupted run."""
    if len(read_history(run)) >= run.epochs:
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    common = ["--data_path", args.data_path, "--device", args.device]
    new = ["--split", args.split, "--image_size", args.image_size, "--seed", run.seed, *shlex.split(run.flags)]
    commits = run.folder / "commits.txt"  # all versions that trained it
    with commits.open("a+") as file:
        file.seek(0)
        if (version := code_version()) not in file.read().split():
            file.write(f"{version}\n")
    if run.flags.startswith(SMP):
        new.remove(SMP)
        call([ROOT / "study" / SMP, *common, *new, "--out", run.folder], run, args.threads)
        return
    folders = ["--save_dir", run.folder, "--log_dir", run.folder]
    last = list(run.folder.glob("*_last.pth"))
    if last:
        call([ROOT / "src/train.py", *common, *folders, "--resume", last[0]], run, args.threads)
    else:
        start = ["--encoder_weights", args.encoder_weights, "--save_every", 0]
        call([ROOT / "src/train.py", *common, *folders, *start, *new], run, args.threads)


def score(run: Run, args) -> dict[str, list[list[int]]]:
    """Pixels of every test image, counted as in `metrics.COUNTS`: best epoch, last, best with TTA."""
    if run.flags.startswith(SMP):
        return json.loads((run.folder / "result.json").read_text())["counts"]
    found = {}
    kinds = {"best": "best", "last": "last", **({"tta": "best"} if run.experiment.startswith("recipes/") else {})}
    for kind, checkpoint in kinds.items():
        file, checkpoints = run.folder / f"{kind}.csv", list(run.folder.glob(f"*_{checkpoint}.pth"))
        if not file.is_file():
            if not checkpoints:
                raise RuntimeError(f"the checkpoints of {run.folder} are gone; delete the folder to train again")
            common = ["--data_path", args.data_path, "--device", args.device, "--log_dir", run.folder]
            flags = ["--model_path", checkpoints[0], "--csv", file, *(["--tta"] if kind == "tta" else [])]
            call([ROOT / "src/evaluate.py", *common, *flags], run, args.threads)
        found[kind] = [[int(row[name]) for name in COUNTS] for row in read_rows(file)]
    return found


def row_of(run: Run, args, counts: dict) -> dict:
    """A run's row of the table."""
    history = read_history(run)
    valid = [float(row["val_dice"]) for row in history]
    best = max(range(len(valid)), key=lambda epoch: valid[epoch])
    trained = [float(row.get("train_dice", "nan")) for row in history]
    row = {
        "experiment": run.experiment,
        "settings": run.settings,
        "seed": run.seed,
        "data": args.data_name,
        "split": args.split,
        "pictures": args.pictures,
        "image_size": args.image_size,
        "encoder_weights": args.encoder_weights,
        "epochs": len(history),
        "best_epoch": best + 1,
        "valid_dice": round(valid[best], 6),
        f"valid_dice_last_{LAST}": round(sum(valid[-LAST:]) / len(valid[-LAST:]), 6),
        "test_dataset_dice": "",
        "test_dice": "",
        "test_dataset_dice_last_epoch": "",
        "test_dataset_dice_tta": "",
        "seconds_per_epoch": round(sorted(float(row["seconds"]) for row in history)[len(history) // 2], 2),
        "device": args.device,
        "machine": args.machine,
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        "commit": " ".join((run.folder / "commits.txt").read_text().split()),
        "valid_curve": " ".join(f"{x:.4f}" for x in valid),
        "train_curve": " ".join(f"{x:.4f}" for x in trained),
        "test_pixels": "",
    }
    if counts:
        scores = {kind: summarize(torch.tensor(rows)) for kind, rows in counts.items()}
        row["test_dataset_dice"] = round(scores["best"]["dataset_dice"], 6)
        row["test_dice"] = round(scores["best"]["dice"], 6)
        row["test_dataset_dice_last_epoch"] = round(scores["last"]["dataset_dice"], 6)
        row["test_dataset_dice_tta"] = round(scores["tta"]["dataset_dice"], 6) if "tta" in scores else ""
        row["test_pixels"] = ";".join(" ".join(map(str, image[:3])) for image in counts["best"])
    return row


def do(run: Run, args, lock: threading.Lock) -> None:
    """Trains and scores a run, and adds its row.

    Raises:
        RuntimeError: a script failed.
    """
    train(run, args)
    row = row_of(run, args, {} if args.validation_only else score(run, args))
    with lock, lock_file(TABLE.with_name(f".{TABLE.name}.lock"), wait=True):
        if is_done(run, args):  # by another process meanwhile
            return
        others = [other for other in read_rows(TABLE) if key_of(other) != key_of(row)]
        write_rows(TABLE, [*others, row], list(row))
        test = row["test_dataset_dice"] or "not scored"
        print(f"{run.experiment}, seed {run.seed}: valid Dice {row['valid_dice']}, test {test}", flush=True)
    for checkpoint in run.folder.glob("*.pth") if not (args.keep or args.validation_only) else ():
        checkpoint.unlink()


def attempt(run: Run, args, lock: threading.Lock) -> bool:
    """Does a run and returns whether it succeeded. An error is printed, and the other runs continue."""
    try:
        do(run, args, lock)
    except Exception as error:  # noqa: BLE001  in a thread it would be lost
        if not STOP.is_set():
            print(f"failed: {run.experiment}, seed {run.seed}: {error!r}", file=sys.stderr, flush=True)
        return False
    return True


def key_of(row: dict) -> tuple:
    """Identifies a row of the table."""
    return tuple(str(row[name]) for name in KEY)


def is_done(run: Run, args) -> bool:
    """Whether the table has everything that was asked for."""
    here = {"image_size": args.image_size, "data": args.data_name, "pictures": args.pictures, "split": args.split}
    wanted = key_of({"settings": run.settings, "seed": run.seed, "encoder_weights": args.encoder_weights, **here})
    rows = [row for row in read_rows(TABLE) if key_of(row) == wanted]
    return bool(rows) and bool(args.validation_only or rows[0]["test_dataset_dice"])


def main() -> None:
    """Does the runs that are not done yet."""
    args = read_flags()
    runs = [run for run in list_runs(args) if not is_done(run, args)]
    if args.list:
        for run in runs:
            print(f"{run.experiment:<40} seed {run.seed}: {run.flags}")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        with lock_file(args.out / "lock", wait=False):
            sys.exit(do_all(runs, args))
    except BlockingIOError:
        sys.exit(f"another study is using {args.out}; wait for it, or name another folder with --out")


def do_all(runs: list[Run], args) -> int:
    """Does these runs, --jobs at a time. Returns the exit status."""

    def stop(*_) -> None:
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):
        signum = getattr(signal, name, signal.SIGTERM)  # Windows has no SIGHUP
        if signal.getsignal(signum) != signal.SIG_IGN:  # nohup has it ignored
            signal.signal(signum, stop)
    lock = threading.Lock()
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(attempt, run, args, lock) for run in runs]
        try:
            succeeded = [future.result() for future in futures]
        except KeyboardInterrupt:
            STOP.set()
            for future in futures:
                future.cancel()
            for process in list(PROCESSES):
                process.send_signal(signal.SIGTERM)  # they save, and the pool waits for that
            print("Stopped; the same command continues from here.", flush=True)
            return 130
    return 0 if all(succeeded) else 1


def read_flags() -> argparse.Namespace:
    """The flags, and values derived from them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("--data_path", default="dataset")
    flag("--data_name", help="name of the data in the table; by default its folder's")
    flag("--split", default="official")
    flag("--encoder_weights", default="none")
    flag("--image_size", type=int, default=96)
    flag("--seeds", type=int, nargs="+", default=[1, 2, 3])
    flag("--experiments", nargs="+", default=["*"], metavar="PATTERN", help='such as "recipes/*"')
    flag("--device", default="auto")
    flag("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    flag("--out", type=Path, default=Path("study/runs"), help="folder of the runs")
    flag("--validation_only", action="store_true", help="don't score on the test images")
    flag("--keep", action="store_true", help="keep checkpoints after scoring")
    flag("--list", action="store_true", help="print what would be done")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.data_path = Path(args.data_path).resolve()
    if args.jobs < 1:
        parser.error("--jobs must be 1 at least")
    args.threads = max(1, torch.get_num_threads() // args.jobs)
    torch.set_num_threads(args.threads)
    parts = split_samples(find_root(args.data_path), args.split)
    counts = [len(getattr(parts, mode)) for mode in MODES]
    args.pictures = " ".join(map(str, counts))
    args.data_name = args.data_name or NAMES.get(sum(counts), args.data_path.name)
    args.machine = measure.machine(get_device(args.device))
    return args


if __name__ == "__main__":
    main()
