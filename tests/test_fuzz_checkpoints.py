"""Hostile checkpoints through every reader: each works, or is refused in one line.

Each has an odd entry, or damaged bytes.
"""

import collections
import copy
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from evaluation import evaluate
from evaluation.config import EvalConfig
from models.checkpoint import load_checkpoint, read_progress
from runtime.cli import explain
from runtime.distributed import SINGLE_PROCESS
from stubs import CPU
from training import setup
from training.resolve import resumed_config

OF_RESUME = ("training", "progress", "terms")  # that no other reads


def odd_values() -> list:
    """Values of every kind; each is right for few entries or for none."""
    small, state = torch.zeros(3), torch.get_rng_state()
    numbers = [None, True, 0, 1, -1, 64, 10**18, 10**80, 0.5, -0.5, 1e308, float("nan"), float("inf"), 1j]
    texts = ["", "a", "../a", "a\n\x1b[2J\0", "a\udcff", "(" * 2000, "x{9999999999}", "1" * 5000, "x" * 10**5, "0" * 64]
    texts += ["a,b", "1,99", "near", "keep", "stem", "unet", "official", "test", "transformer", "trimap", "denoising"]
    others = [b"a", [], [1], [[[]]], ["a", "b"], [1, 2], [1.0, 99.0], [None] * 101, (1,), {}, {"a": 1}, {1}]
    tensors = [torch.zeros(0), torch.tensor(1.0), small + 1, torch.ones(6, dtype=torch.float64), small.half()]
    tensors += [small.long(), small.cfloat(), small.cfloat().conj().imag, torch.arange(len(state)).to(torch.uint8)]
    tensors += [state.repeat(2)[::2], small * float("nan"), small.to_sparse(), small[:1].expand(10**6, 10**6)]
    tensors += [torch.zeros(64).as_strided((8, 8), (1, 1)), small.clone().requires_grad_(), torch.nn.Parameter(small)]
    return [*numbers, *texts, *others, *tensors]


def with_odd_entry(content: dict, rng: random.Random) -> tuple[dict, tuple]:
    """A checkpoint in which an entry is missing, odd, or one too many, and the keys that lead to it."""
    made = place = copy.copy(content)
    path = (rng.choice(list(place)),)
    while isinstance(place[path[-1]], dict) and place[path[-1]] and rng.random() < 0.9:
        place[path[-1]] = copy.copy(place[path[-1]])
        place = place[path[-1]]
        path = (*path, rng.choice(list(place)))
    kind = rng.random()
    if kind < 0.1:
        del place[path[-1]]
    elif kind < 0.2:
        place[rng.choice(("extra", 7, None, 0.5))] = 1
    else:
        place[path[-1]] = rng.choice(odd_values())
    return made, path


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file with flipped bits, cut off, or with a part zeroed, left out or doubled."""
    start = rng.randrange(len(data))
    part = data[start : start + rng.choice((1, 8, 64, 512, len(data)))]
    rest, flipped = data[start + len(part) :], bytearray(data)
    for _ in range(rng.randint(1, 8)):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    kinds = (flipped, data[:start], data[:start] + bytes(len(part)) + rest, data[:start] + rest)
    return bytes(rng.choice((*kinds, data[:start] + 2 * part + rest)))


@pytest.fixture
def content(trained) -> dict:
    """What a real checkpoint's file holds, with all that one may have, in the middle of an epoch."""
    content = torch.load(trained / "saved_models/tiny_last.pth", weights_only=True)
    training = content["training"]
    training |= {"updates": 3, "trained_weights": {name: value.clone() for name, value in content["weights"].items()}}
    training["settings"]["ema"] = 0.99
    content["progress"] |= {"step": 2, "sums": torch.tensor([9.0, 16.0, 16.0, 12.0]).double(), "seconds": 1.0}
    training["optimizer"]["state"] = {number: training["optimizer"]["state"][number] for number in (0, 1)}
    return content


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder, left with torch's global settings as they were."""
    monkeypatch.chdir(tmp_path)
    never = type("Never", (), {"signum": 0, "check": lambda self: None})
    monkeypatch.setattr(setup, "StopRequest", lambda **_: never())
    yield tmp_path
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, False


def train(data, file: Path, flag: str) -> None:
    shutil.rmtree("out", ignore_errors=True)
    Path("out").mkdir()
    for kind in ("last", "best"):
        os.link(file, f"out/tiny_{kind}.pth")
    flags = {"data_path": str(data), "num_workers": 0, "save_dir": "out", "log_dir": "out", "epochs": 1}
    setup.run({**flags, flag: "out/tiny_last.pth"}, CPU, SINGLE_PROCESS)


def score(data, file: Path) -> None:
    config = EvalConfig(data_path=str(data), num_workers=0, log_dir="out", model_path=[str(file)])
    evaluate.evaluate(config)


READERS = {
    "--resume": lambda data, file: train(data, file, "resume"),
    "--init": lambda data, file: train(data, file, "init"),
    "--model_path": score,
}


def attempt(name: str, read, *arguments) -> tuple | None:
    """What a reader returns, or None where it refuses; fails with the name of the case on a traceback."""
    start, result = time.process_time(), None
    try:
        result = (read(*arguments),)
    except Exception as error:  # noqa: BLE001  whatever it is
        assert explain(error, "")[0] is not None, f"{name}: {error!r}"
    assert time.process_time() - start < 20, name
    return result


@pytest.mark.parametrize("count", [100, pytest.param(3000, marks=pytest.mark.long)])
def test_checkpoints_with_odd_entries_are_refused_or_work(content, shared_dataset, folder, count):
    rng, file, works = random.Random(count), Path("case.pth"), collections.Counter()
    for number in range(count):
        made, path = with_odd_entry(content, rng)
        torch.save(made, file)
        loaded = attempt(f"{number}, {path}", load_checkpoint, file)
        if loaded and path[:2] == ("training", "settings"):
            loaded = attempt(f"{number}, {path}", resumed_config, {}, *loaded, file)
        works[path] += loaded is not None
        if loaded and works[path] <= 3:  # values of one entry that are all right work alike
            for reader in ["--resume"] if path[0] in OF_RESUME else READERS:
                attempt(f"{number}, {path}, {reader}", READERS[reader], shared_dataset, file)
    print(f"{works.total()} of {count} load")  # seen with pytest -s
    assert 0 < works.total() < count / 2


@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.long)])
def test_damaged_files_are_refused_or_hold_the_same(content, folder, count):
    rng, file = random.Random(count), Path("case.pth")
    few = {"head.bias": content["weights"]["head.bias"]}  # is quick to read
    torch.save({**content, "weights": few, "training": {**content["training"], "trained_weights": few}}, file)
    good, expected = file.read_bytes(), load_checkpoint(file)
    for number in range(count):
        file.write_bytes(damaged(good, rng))
        if loaded := attempt(f"damage {number}", load_checkpoint, file):
            assert (loaded[0].fingerprint(), loaded[0].data) == (expected.fingerprint(), expected.data)
        attempt(f"damage {number}", read_progress, file)
