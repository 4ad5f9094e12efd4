"""Datasets that the tests make for themselves, and the scripts as real processes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SRC = Path(__file__).resolve().parent.parent / "src"
PYTHON = [sys.executable, str(Path(__file__).with_name("tiny.py"))]  # runs a script with the tiny network


def make_dataset(root: Path, count: int = 40, breeds: int = 4, size: tuple[int, int] = (80, 64)) -> Path:
    """A dataset in the pets' layout: light discs on dark noise; `size` is (width, height)."""
    (root / "images").mkdir(parents=True)
    (root / "annotations/trimaps").mkdir(parents=True)
    rows = []
    width, height = size
    y, x = np.mgrid[:height, :width]
    for i in range(count):
        rng = np.random.default_rng([7, i])
        distance = np.hypot(x - rng.uniform(0.3, 0.7) * width, y - rng.uniform(0.3, 0.7) * height)
        radius = rng.uniform(0.2, 0.35) * height
        trimap = np.where(distance < radius - 2, 1, np.where(distance > radius + 2, 2, 3)).astype(np.uint8)
        pixels = rng.integers(0, 90, size=(height, width, 3)) + 150 * (distance < radius)[..., None]
        name = f"{'Cat' if i % breeds < breeds // 2 else 'dog'}{i % breeds}_{i}"
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"images/{name}.jpg", quality=95)
        Image.fromarray(trimap).save(root / f"annotations/trimaps/{name}.png")
        rows.append(f"{name} {i % breeds + 1} {1 if name[0] == 'C' else 2} 1")
    write_list(root, "list", ["#Image CLASS-ID SPECIES BREED ID", *rows])
    write_list(root, "trainval", [row for i, row in enumerate(rows) if i % 3])
    write_list(root, "test", rows[::3])
    return root


def write_list(root: Path, name: str, rows: list[str]) -> None:
    """Writes annotations/<name>.txt."""
    (root / f"annotations/{name}.txt").write_text("\n".join(rows) + "\n")


class Zygote:
    """The process that `run_script` has its processes forked from; started when it is first needed."""

    process = None

    @classmethod
    def run(cls, script: Path, args: list[str], cwd: Path, processes: int = 1) -> subprocess.CompletedProcess:
        if cls.process is None:
            cls.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("zygote.py"))],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        with tempfile.TemporaryDirectory() as scratch:
            files = {name: f"{scratch}/{name}" for name in ("stdout", "stderr")}
            request = {"script": str(script), "args": args, "cwd": str(cwd), "processes": processes, **files}
            print(json.dumps(request), file=cls.process.stdin, flush=True)
            status = int(cls.process.stdout.readline())
            said, errors = (Path(files[name]).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess([script, *args], status, said, errors)


def run_script(script: str, *args, cwd: Path, env=None) -> subprocess.CompletedProcess:
    """Runs src/<script> as a user does, in a process of its own, with its files under `cwd`.

    One thread, because the machine may have few cores and a second test process on them.
    """
    args = list(map(str, args))
    if env is None and hasattr(os, "fork"):
        return Zygote.run(SRC / script, args, cwd)
    return subprocess.run(
        [*PYTHON, str(SRC / script), *args],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
    )


def run_ok(script: str, *args, cwd: Path) -> str:
    """Runs a script that must succeed; returns what it printed on stdout."""
    return expect_success(run_script(script, *args, cwd=cwd))


def expect_success(done: subprocess.CompletedProcess) -> str:
    """What a process that must have succeeded printed on stdout."""
    assert done.returncode == 0, f"{done.args} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def assert_one_error(done: subprocess.CompletedProcess, *words: str, status: int = 2) -> None:
    """The contract for bad input: the status, ONE error line on stderr that holds these words, no traceback."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == status, f"status {done.returncode}:\n{done.stderr}"
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: "), done.stderr
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"


# Flags of the shortest sensible training.
TINY = ("--image_size", 64, "--encoder_weights", "none", "--learning_rate", "3e-2")


def copy_run(trained: Path, folder: Path, pattern: str = "*") -> Path:
    """Puts a run's files into another folder; of checkpoints links: don't write into them.

    Returns:
        The other folder.
    """
    for part in ("saved_models", "logs"):
        (folder / part).mkdir(parents=True)
        for file in (trained / part).glob(f"tiny_{pattern}"):
            (os.link if file.suffix == ".pth" else shutil.copy)(file, folder / part / file.name)
    return folder
