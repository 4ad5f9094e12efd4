"""Datasets that the tests make for themselves, and the scripts as real processes."""

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

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


class Script:
    """A script of src/, or some code, in processes of their own: forks of zygote.py, which starts on first use.

    Args:
        script: its path, or code where it has several lines.
        args: its arguments.
        cwd: where it runs.
        processes: how many, as torchrun would start them.
        session: whether it gets a session of its own, to which os.killpg can send signals.
        limits: of resources by name, as in the module `resource`.
    """

    zygote = None

    def __init__(self, script, args, cwd: Path, processes=1, session=False, limits: dict | None = None):
        if not hasattr(os, "fork"):
            pytest.skip("needs fork")
        if Script.zygote is None:
            Script.zygote = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("zygote.py"))],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        cwd.mkdir(parents=True, exist_ok=True)
        self.args, self.folder = [script, *map(str, args)], tempfile.TemporaryDirectory()
        self.stdout, self.stderr = (Path(self.folder.name) / name for name in ("stdout", "stderr"))
        self.stdout.touch()
        what = {"script": None, "code": script} if "\n" in str(script) else {"script": str(script)}
        request = {**what, "args": self.args[1:], "cwd": str(cwd), "processes": processes, "session": session}
        self.pids = self._ask({**request, "limits": limits, "stdout": str(self.stdout), "stderr": str(self.stderr)})
        self.pid, self.ends = self.pids[0], {}

    @staticmethod
    def _ask(request: dict):
        print(json.dumps(request), file=Script.zygote.stdin, flush=True)
        return json.loads(Script.zygote.stdout.readline())

    def poll(self, block: bool = False) -> int | None:
        """The status of the first process that failed, or 0; None while one is running."""
        for pid in self.pids:
            if self.ends.get(pid) is None:
                self.ends[pid] = self._ask({"wait": pid, "block": block})
        if None in self.ends.values():
            return None
        return next(filter(None, self.ends.values()), 0)

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Returns when these words stand on stdout, or the script has ended."""
        self.wait_until(lambda: words in self.stdout.read_text() or self.poll() is not None, seconds)

    @staticmethod
    def wait_until(condition, seconds: float = 60) -> None:
        """Returns when a condition is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "timed out"
            time.sleep(0.01)

    def send_signal(self, signum: int) -> None:
        """To the first process, if it is still running."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def finish(self) -> subprocess.CompletedProcess:
        """Waits for its end."""
        status = self.poll(block=True)
        return subprocess.CompletedProcess(self.args, status, self.stdout.read_text(), self.stderr.read_text())


def run_script(script: str, *args, cwd: Path) -> subprocess.CompletedProcess:
    """Runs src/<script> as a user does, in a process of its own, with its files under `cwd`.

    One thread, because the machine may have few cores and a second test process on them.
    """
    if hasattr(os, "fork"):
        return Script(SRC / script, args, cwd).finish()
    cwd.mkdir(parents=True, exist_ok=True)
    environment, command = {**os.environ, "OMP_NUM_THREADS": "1"}, [*PYTHON, str(SRC / script), *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


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


@contextlib.contextmanager
def serving(handler) -> Iterator[str]:
    """The address of a server on this machine that answers as a class of request handlers does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def log_rows(folder: Path, kind: str = "training") -> list[dict]:
    """The rows of a log of the tiny network."""
    return rows(folder / f"logs/tiny_{kind}_log.csv")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def scene(width: int = 90, height: int = 60) -> Image.Image:
    """A light disc off the middle, on dark ground: what the trained model knows."""
    image = Image.new("RGB", (width, height), (30, 40, 50))
    ImageDraw.Draw(image).ellipse([width * 0.1, height * 0.2, width * 0.5, height * 0.8], fill=(210, 200, 190))
    return image


def write_scenes(folder: Path, *names: str) -> None:
    """Writes that image under these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        scene().save(folder / name)


def turned() -> Image.Exif:
    """What a camera says that was held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def disc(i: int, width: int = 60, height: int = 44):
    """A picture of a light disc on dark noise, and its mask (H, W) of bool."""
    rng = np.random.default_rng([3, i])
    y, x = np.mgrid[:height, :width]
    mask = np.hypot(x - rng.uniform(0.35, 0.65) * width, y - rng.uniform(0.4, 0.6) * height) < 0.3 * height
    pixels = rng.integers(0, 90, (height, width, 3)) + 150 * mask[..., None]
    return pixels.astype(np.uint8), mask


def as_palette(mask, colours):
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    image.putpalette(colours)
    return image


# How people save masks.
WRITERS = {
    "0/1": lambda m: Image.fromarray(m.astype(np.uint8)),
    "0/255": lambda m: Image.fromarray(m.astype(np.uint8) * 255),
    "1 bit": lambda m: Image.fromarray(m.astype(np.uint8) * 255).convert("1"),
    "16 bits": lambda m: Image.fromarray(m.astype(np.uint16) * 65535),
    "RGB": lambda m: Image.fromarray(m[..., None] * np.uint8([255, 0, 0])),
    "RGBA": lambda m: Image.fromarray(np.dstack([m[..., None] * np.uint8([9, 9, 9]), np.full(m.shape, 255, np.uint8)])),
    "alpha alone": lambda m: Image.fromarray(np.dstack([np.zeros((*m.shape, 3), np.uint8), m.astype(np.uint8) * 255])),
    "gray and alpha": lambda m: Image.fromarray(np.dstack([m * np.uint8(200), np.full(m.shape, 255, np.uint8)])),
    "palette": lambda m: as_palette(m, [0, 0, 0, 128, 0, 0]),
    "palette with black at index 1": lambda m: as_palette(~m, [255, 255, 0, 0, 0, 0]),
    "palette without black": lambda m: as_palette(m, [10, 200, 10, 128, 0, 0]),
}


def write_own(root, count=40):
    """A folder as people have them: pictures of many modes and endings, masks of many kinds."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    kinds = [kind for kind in WRITERS if kind != "palette with black at index 1"]
    for i in range(count):
        pixels, mask = disc(i, 60 + i, 44 + i % 7)
        image = Image.fromarray(pixels)
        mode, ending = [("RGB", "jpg"), ("L", "png"), ("RGBA", "png"), ("RGB", "webp"), ("CMYK", "tif"), ("P", "gif")][
            i % 6
        ]
        image.convert(mode).save(root / f"images/photo {i}.{ending}")
        WRITERS[kinds[i % len(kinds)]](mask).save(root / f"masks/photo {i}.png")
    return root


def save(path, array, **options):
    Image.fromarray(np.asarray(array)).save(path, **options)
