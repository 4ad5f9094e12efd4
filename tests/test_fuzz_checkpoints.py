"""Hostile checkpoints through every reader: each works, or is refused in one line.

Each has one entry changed, a changed pickle with right checksums, or damaged bytes.
"""

import collections
import contextlib
import copy
import io
import os
import random
import shutil
import time
import zipfile
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from evaluation import evaluate
from evaluation.config import EvalConfig
from models.checkpoint import load_checkpoint, read_progress
from models.weights import load_encoder_weights
from runtime.cli import explain
from runtime.distributed import SINGLE_PROCESS
from stubs import CPU
from training import setup
from training.resolve import resumed_config

OF_RESUME = ("training", "progress", "terms")  # that no other reads
DELETE = object()


class Case(NamedTuple):
    """A checkpoint with one entry changed, by the keys that lead to it; the value DELETE removes it."""

    name: str
    path: tuple
    value: Any


def odd_values() -> dict[str, Any]:
    """Values of every kind, by name; each is right for few entries or for none."""
    attributed, small, state = collections.OrderedDict(a=1), torch.zeros(3), torch.get_rng_state()
    attributed.items = 5
    numbers = [None, True, 0, 1, -1, 64, 10**18, 10**80, 0.5, -0.5, 1e308, float("nan"), float("inf"), 1j]
    texts = ["", "a", "../a", "a\n\x1b[2J\0", "a\udcff", "(" * 2000, "x{9999999999}", "1" * 5000, "x" * 10**5, "0" * 64]
    texts += ["a,b", "1,99", "near", "keep", "stem", "unet", "official", "test", "transformer", "trimap", "denoising"]
    others = [b"a", [], [1], [[[]]], ["a", "b"], [1, 2], [1.0, 99.0], [None] * 101, (1,), {}, {"a": 1}, {1}, object()]
    values = {f"{type(value).__name__} {value!r}"[:40]: value for value in [*numbers, *texts, *others]}
    return values | {
        "attributes": attributed,
        "empty tensor": torch.zeros(0),
        "scalar": torch.tensor(1.0),
        "tensor of three": small + 1,
        "tensor of six": torch.ones(6, dtype=torch.float64),
        "half": small.half(),
        "whole": small.long(),
        "complex": small.cfloat(),
        "negative view": small.cfloat().conj().imag,
        "bytes": torch.arange(len(state)).to(torch.uint8),
        "strided": state.repeat(2)[::2],
        "nan": small * float("nan"),
        "sparse": small.to_sparse(),
        "expanded": small[:1].expand(10**6, 10**6),
        "overlapping": torch.zeros(64).as_strided((8, 8), (1, 1)),
        "gradient": small.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(small),
    }


def single_cases(content, path=()) -> Iterator[Case]:
    """A case for every value in the place of every entry of a checkpoint, or of its part at a path."""
    values, where = odd_values(), ".".join(map(str, path))
    if path:
        yield Case(f"{where}: missing", path, DELETE)
        yield from (Case(f"{where}: {name}", path, value) for name, value in values.items())
    if isinstance(content, list) and content:
        yield from single_cases(content[-1], (*path, len(content) - 1))
    elif isinstance(content, dict):
        keys = [key for key in ("extra", 7, *values.values()) if isinstance(key, Hashable) and type(key) is not object]
        yield from (Case(f"{where}: extra entry {key!r}"[:60], (*path, key), 1) for key in keys)
        keys = list(content)
        few = keys if len(keys) < 20 or path == ("training", "settings") else keys[:1] + keys[-1:]
        for key in few:
            yield from single_cases(content[key], (*path, key))


def edited(content: dict, case: Case) -> dict:
    """The checkpoint of a case; what is not changed is shared."""
    made = place = copy.copy(content)
    *path, last = case.path
    for key in path:
        place[key] = copy.copy(place[key])
        place = place[key]
    if case.value is DELETE:
        del place[last]
    else:
        place[last] = case.value
    return made


def with_pickle(data: bytes, change) -> bytes:
    """A file of torch.save whose pickle is what `change` makes of it, with right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            entry = zipfile.ZipInfo(name)
            new.writestr(entry, change(old.read(name)) if name.endswith("data.pkl") else old.read(name))
            entry.external_attr = 0
    return file.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file with flipped bits, cut off, or with a part zeroed, moved, doubled or left out."""
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    end = min(end, start + rng.choice((1, 8, 64, 512, len(data))))
    place = rng.randrange(len(data) + 1)
    flipped = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    part = data[start:end]
    return rng.choice(
        (
            bytes(flipped),
            data[:start],
            data[:start] + bytes(len(part)) + data[end:],
            data[:start] + data[end:],
            data[:place] + part + data[place:],
            data[:place] + part + data[place + len(part) :],
        )
    )


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


class Encoder(torch.nn.Module):
    """The part of a network that takes weights."""

    encoder_name = "resnet18"

    def __init__(self, channels: int):
        super().__init__()
        self.in_channels, self.encoder = channels, torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 3))


def train(data, file: Path, flag: str) -> None:
    shutil.rmtree("out", ignore_errors=True)
    Path("out").mkdir()
    for kind in ("last", "best"):
        os.link(file, f"out/tiny_{kind}.pth")
    flags = {"data_path": str(data), "num_workers": 0, "save_dir": "out", "log_dir": "out", "epochs": 1}
    setup.run({**flags, flag: "out/tiny_last.pth"}, CPU, SINGLE_PROCESS)


def score(data, file: Path) -> None:
    config = EvalConfig(data_path=str(data), num_workers=0, log_dir="out", model_path=[str(file)])
    evaluate.evaluate(config, SINGLE_PROCESS)


READERS = {
    "--resume": lambda data, file: train(data, file, "resume"),
    "--init": lambda data, file: train(data, file, "init"),
    "--model_path": score,
    "--encoder_weights": lambda _, file: [load_encoder_weights(Encoder(channels), Path(file)) for channels in (3, 1)],
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


@pytest.mark.parametrize("share", [0.01, pytest.param(1, marks=pytest.mark.long)])
def test_checkpoints_with_wrong_entries_are_refused_or_work(content, shared_dataset, folder, share):
    cases, file, works, tried = list(single_cases(content)), Path("case.pth"), collections.Counter(), 0
    for case in random.Random(0).sample(cases, round(share * len(cases))):
        with contextlib.suppress(TypeError):  # what can't be saved
            torch.save(edited(content, case), file)
            tried += 1
            loaded = attempt(case.name, load_checkpoint, file)
            if loaded and case.name.startswith("training.settings"):
                loaded = attempt(case.name, resumed_config, {}, *loaded, file)
            works[case.path] += loaded is not None
            if loaded and works[case.path] <= 3:  # values of one entry that are all right work alike
                for reader in ["--resume"] if case.path[0] in OF_RESUME else READERS:
                    attempt(f"{case.name}, {reader}", READERS[reader], shared_dataset, file)
    print(f"{tried} checkpoints, of which {works.total()} load")  # seen with pytest -s
    assert 0 < works.total() < tried / 2


def test_encoder_weights_with_wrong_entries_are_refused_or_work(folder):
    good = {name: value.clone() for name, value in Encoder(3).encoder.state_dict().items()}
    contents = [(case.name, edited(good, case)) for case in single_cases(good)]
    for name, content in [*contents, *odd_values().items()]:
        with contextlib.suppress(TypeError):  # what can't be saved
            torch.save(content, "w.pth")
            attempt(name, READERS["--encoder_weights"], None, "w.pth")
    torch.save(good, "w.pth")
    READERS["--encoder_weights"](None, "w.pth")


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.long)])
def test_damaged_files_and_changed_pickles_are_refused_or_work(content, folder, count, pickled):
    rng, file = random.Random(count), Path("case.pth")
    torch.save(content, file)
    good, expected = file.read_bytes(), load_checkpoint(file)
    for number in range(count):
        # With right checksums a changed pickle may be another checkpoint.
        file.write_bytes(with_pickle(good, lambda raw: damaged(raw, rng)) if pickled else damaged(good, rng))
        loaded = attempt(f"damage {number}", load_checkpoint, file)
        if loaded and not pickled:
            assert (loaded[0].fingerprint(), loaded[0].data) == (expected.fingerprint(), expected.data)
        attempt(f"damage {number}", read_progress, file)
        if loaded is None and number % 10 == 0:
            attempt(f"damage {number}", READERS["--encoder_weights"], None, file)
