"""Kills training runs at random moments and proves that nothing is lost.

    python tools/torture.py --kills 40

For each kind of run and number of workers one run is trained without a break. Then runs with the same flags are
killed, by SIGKILL, SIGTERM or SIGINT, many of them while a file is being written (`slow_writes.py` makes writing slow,
in the test alone), and resumed each time in a new process until they are done. After every kill all checkpoints must be
whole; at the end weights, optimizer, history, best checkpoint and log must equal those of the unbroken run,
bit for bit (but for the columns of time).
"""

import argparse
import csv
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "src"))

from models.checkpoint import load_checkpoint  # noqa: E402
from sample_pets import draw_sample_dataset  # noqa: E402  the path must be set first

PYTHON = [sys.executable]  # what runs a script
PUBLISHED = HERE.parent / "saved_models/pets.pth"
# The kinds of runs, by their flags beside those of all: everything that is random or holds a state of its own is on.
KINDS = {
    "resnet34_unet": "--model_name resnet34_unet --image_size 96 --augment_uncertain",
    "unet": "--model_name unet --distort all,cutmix",
    "growing": "--model_name unet_small --image_size 96 --sizes 64:2",
    "teacher": f"--model_name unet_small --classes trimap --teacher {shlex.quote(str(PUBLISHED))}",
    "unlabeled": "--model_name unet_small --train_fraction 0.5 --unlabeled rest",
    "three classes": "--model_name unet_small --classes trimap --patience 9 --scheduler plateau",
}
STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
MUST_DIFFER = ("run_id", "seconds", "images_per_second", "resumed")


def saving(minutes: float, keep: int) -> str:
    """Code that runs a script, its first argument, with a save this often and a checkpoint kept of these epochs."""
    return f"""
import runpy, sys
sys.path.insert(0, {str(HERE.parent / "src")!r})
from training import config
config.CHECKPOINT_MINUTES, config.KEEP_EVERY = {minutes}, {keep}
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def command(data: Path, kind: str, workers: int, epochs: int) -> tuple[list, list]:
    """Flags of any start, and those that make a new run."""
    any_start = ["--data_path", data, "--num_workers", workers]
    if workers:
        any_start += ["--no-cache"]  # from the cache the run would read by itself
    new = [
        *("--recipe", "strong", "--epochs", epochs, "--image_size", 64, "--batch_size", 4, "--learning_rate", "1e-3"),
        *("--encoder_weights", "none", *shlex.split(KINDS[kind])),
    ]
    return any_start, new


def start(flags: tuple[list, list], folder: Path, slow: bool) -> subprocess.Popen:
    """Starts the run in `folder`, or goes on with it; in a session of its own, which a signal reaches with workers."""
    script = HERE / "slow_writes.py" if slow else HERE.parent / "src/train.py"
    any_start, new = flags
    resumes = any(folder.glob("saved_models/*_last.pth"))
    words = [*any_start, *(["--resume"] if resumes else new)]
    return subprocess.Popen(
        [*PYTHON, "-c", saving(0.02, 2), str(script), *map(str, words)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Waits for a run that must succeed."""
    said, errors = process.communicate(timeout=900)
    if process.returncode:
        raise AssertionError(f"a run ended with {process.returncode}:\n{said}\n{errors}")
    return said


def kill_once(flags: tuple[list, list], folder: Path, rng: random.Random) -> tuple[bool, str]:
    """Starts or resumes the run and kills it at a random moment.

    Returns:
        Whether the kill came before the run was done, and the signal's name.
    """
    process = start(flags, folder, slow=True)
    for line in process.stdout:
        if line.startswith(("Run", "This run is complete")):
            break
    time.sleep(rng.choice([rng.uniform(0, 1), rng.uniform(0, 6)]))
    signum = rng.choice(list(STATUS))
    whole_group = rng.random() < 0.5  # a terminal and a cluster signal the workers as well
    if process.poll() is None:
        (os.killpg if whole_group else os.kill)(process.pid, signum)
    _, errors = process.communicate(timeout=120)
    if process.returncode == 0:
        return False, ""
    if process.returncode != STATUS[signum]:
        raise AssertionError(f"{signal.Signals(signum).name} gave status {process.returncode}:\n{errors}")
    if "Traceback" in errors:
        raise AssertionError(errors)
    return True, signal.Signals(signum).name


def corrupt_files(folder: Path) -> list[str]:
    """The checkpoints that can't be loaded."""
    broken = []
    for path in (folder / "saved_models").glob("*.pth"):
        try:
            load_checkpoint(path)
        except Exception as error:  # noqa: BLE001  whatever is wrong with it is what we came to see
            broken.append(f"{path.name}: {error}")
    return broken


def plain(value):
    """A checkpoint, or a row, without what must differ between two runs: id, times, where one was resumed."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in MUST_DIFFER}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def content(path: Path) -> dict:
    """What a checkpoint holds, without what must differ between two runs."""
    return plain(torch.load(path, weights_only=True))


def differences(a, b, where: str = "") -> list[str]:
    """Where two values differ; tensors are compared bit for bit."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [f"{where} (keys {sorted(map(str, a))} and {sorted(map(str, b))})"]
        return [d for key in a for d in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list):
        if not isinstance(b, list) or len(a) != len(b):
            return [f"{where} (lengths)"]
        return [d for i, pair in enumerate(zip(a, b)) for d in differences(*pair, f"{where}[{i}]")]
    return [] if a == b or (a != a and b != b) else [f"{where} ({a!r} and {b!r})"]


def compare(reference: Path, tortured: Path) -> list[str]:
    """Where the files of two runs differ, but for time."""
    different = []
    names = [sorted(p.name for p in (folder / "saved_models").glob("*.pth")) for folder in (reference, tortured)]
    if names[0] != names[1]:
        different.append(f"files {names[0]} and {names[1]}")
    leftovers = [p.name for folder in ("saved_models", "logs") for p in (tortured / folder).glob(".*.tmp")]
    different += [f"leftover {name}" for name in leftovers]
    for name in names[0]:
        contents = (content(folder / "saved_models" / name) for folder in (reference, tortured))
        different += [f"{name}{d}" for d in differences(*contents)]
    logs = []
    for folder in (reference, tortured):
        (log,) = folder.glob("logs/*_training_log.csv")
        with log.open(newline="") as file:
            logs.append([plain(row) for row in csv.DictReader(file)])
    return different + [f"log{d}" for d in differences(*logs)]


def torture(data: Path, kind: str, workers: int, kills: int, epochs: int, seed: int, folder: Path) -> dict:
    """Tortures runs of one kind until `kills` kills have been survived.

    Returns:
        A row of the table: kills by signal, runs, corrupt files, differences.
    """
    rng = random.Random(seed)
    flags = command(data, kind, workers, epochs)
    reference = folder / "reference"
    reference.mkdir(parents=True)
    finish(start(flags, reference, slow=False))
    row = {"kind": kind, "workers": workers, "kills": 0, "SIGKILL": 0, "SIGTERM": 0, "SIGINT": 0, "runs": 0}
    corrupt, different = [], []
    while row["kills"] < kills:
        victim = folder / f"victim_{row['runs']}"
        victim.mkdir()
        killed = True
        while killed and row["kills"] < kills:
            killed, name = kill_once(flags, victim, rng)
            if killed:
                row["kills"] += 1
                row[name] += 1
                corrupt += corrupt_files(victim)
                print(f"{kind}, {workers} workers: {row['kills']}/{kills} {name}", file=sys.stderr, flush=True)
        if killed:
            finish(start(flags, victim, slow=False))
        different += compare(reference, victim)
        row["runs"] += 1
        for path in (victim / "saved_models").iterdir():
            path.unlink()  # a third of a gigabyte each
    return {**row, "corrupt_files": corrupt, "differences": different}


def main(argv=None) -> int:
    """The command line. Ends with 1 where anything was corrupt or differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40, help="in all, shared out over the kinds of runs")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, metavar="KIND")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--count", type=int, default=40, help="of pictures")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments and signals")
    args = parser.parse_args(argv)
    pairs = [(kind, workers) for kind in args.kinds for workers in args.workers]
    print(f"seed {args.seed}", file=sys.stderr)
    rows = []
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        data = draw_sample_dataset(Path(scratch) / "dataset", count=args.count, side=64)
        for i, (kind, workers) in enumerate(pairs):
            kills = args.kills // len(pairs) + (i < args.kills % len(pairs))
            rows.append(
                torture(data, kind, workers, kills, args.epochs, args.seed + i, Path(scratch) / f"{kind}_{workers}")
            )
            print(json.dumps(rows[-1]), flush=True)
    killed = sum(row["kills"] for row in rows)
    bad = sum(len(row["corrupt_files"]) + len(row["differences"]) for row in rows)
    print(
        f"{killed} kills survived, {sum(row['runs'] for row in rows)} runs compared, {bad} corrupt files or differences"
    )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
