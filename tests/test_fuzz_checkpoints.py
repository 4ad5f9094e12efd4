"""Hostile checkpoints through every reader: each works, or is refused in one line."""

import collections
import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from evaluation import evaluate
from evaluation.config import EvalConfig
from fuzz_checkpoints import Case, damaged, edited, odd_values, single_cases, with_pickle
from models.checkpoint import load_checkpoint, read_progress
from models.weights import load_encoder_weights
from runtime.cli import explain
from runtime.distributed import SINGLE_PROCESS
from stubs import CPU
from training import setup
from training.resolve import resumed_config

OF_RESUME = ("training", "progress", "terms")  # that no other reads
counts: collections.Counter = collections.Counter()


@pytest.fixture(scope="module")
def content(trained) -> dict:
    """What a real checkpoint's file holds, with all that one may have, in the middle of an epoch."""
    content = torch.load(trained / "saved_models/tiny_last.pth", weights_only=True)
    training = content["training"]
    training |= {"updates": 3, "trained_weights": {name: value.clone() for name, value in content["weights"].items()}}
    training["settings"]["ema"] = 0.99
    content["progress"] |= {"step": 2, "sums": torch.tensor([9.0, 16.0, 16.0, 12.0]).double(), "seconds": 1.0}
    training["optimizer"]["state"] = {number: training["optimizer"]["state"][number] for number in (0, 1)}
    return content


@pytest.fixture(scope="module")
def light(content) -> dict:
    """The same with few tensors: quick to read, and refused for the same reasons."""
    few = {name: content["weights"][name] for name in ("mean", "head.bias")}
    training = {**content["training"], "trained_weights": {name: value.clone() for name, value in few.items()}}
    return {**content, "weights": few, "training": training}


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


def train(data, **flags) -> None:
    flags = {"data_path": str(data), "num_workers": 0, "save_dir": "out", "log_dir": "out", "epochs": 1, **flags}
    setup.run(flags, CPU, SINGLE_PROCESS)


def resume(data, file: Path) -> None:
    for kind in ("last", "best"):
        os.link(file, f"out/tiny_{kind}.pth")
    train(data, resume="out/tiny_last.pth")


def score(data, **flags) -> None:
    evaluate.evaluate(EvalConfig(data_path=str(data), num_workers=0, log_dir="out", **flags))


READERS = {
    "--resume": resume,
    "--model_path": lambda data, file: score(data, model_path=[str(file)]),
    "--compare": lambda data, file: score(data, model_path=["good.pth"], compare=str(file)),
    "--init": lambda data, file: train(data, init=str(file)),
    "--teacher": lambda data, file: train(data, model_name="tiny", teacher=str(file), image_size=64),
    "--encoder_weights": lambda _, file: [load_encoder_weights(Encoder(channels), Path(file)) for channels in (3, 1)],
}


def attempt(name: str, reader: str, read, *arguments) -> tuple | None:
    """What a reader returns, or None where it refuses; fails with the name of the case on a traceback or a hang."""

    def hangs(*_):
        raise AssertionError("it hangs")

    before, start, result = signal.signal(signal.SIGALRM, hangs), time.process_time(), None
    signal.alarm(60)
    try:
        result = (read(*arguments),)
    except Exception as error:  # noqa: BLE001  whatever it is
        assert explain(error, "")[0] is not None, f"{name}, {reader}: {error!r}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - start < 20, name
    counts[reader, "refused" if result is None else "works"] += 1
    return result


def feed(case: Case, content: dict, light: dict, data) -> None:
    """Writes a checkpoint and reads it in every way; with few tensors as long as it is refused."""
    file = Path("case.pth")
    try:
        torch.save(edited(light, case), file)
    except TypeError:
        return  # it can't be saved
    loaded = attempt(case.name, "load", load_checkpoint, file)
    if loaded and case.name.startswith("training.settings"):
        loaded = attempt(case.name, "settings", resumed_config, {}, *loaded, file)
    field = case.name.partition(":")[0]
    counts[field] += loaded is not None
    if loaded is None or counts[field] > 3:  # values of one entry that are all right work alike
        return
    torch.save(edited(content, case), file)
    for reader in ["--resume"] if case.path[0] in OF_RESUME else READERS:
        shutil.rmtree("out", ignore_errors=True)
        Path("out").mkdir()
        attempt(case.name, reader, READERS[reader], data, file)


@pytest.mark.parametrize("share", [0.01, pytest.param(1, marks=pytest.mark.long)])
def test_checkpoints_with_wrong_entries_are_refused_or_work(content, light, shared_dataset, folder, share):
    torch.save(content, "good.pth")
    cases = list(single_cases(light))
    for case in random.Random(0).sample(cases, round(share * len(cases))):
        feed(case, content, light, shared_dataset)
    tried = {what: number for what, number in counts.items() if isinstance(what, tuple)}
    print(f"{len(cases)} entries, {tried}")  # seen with pytest -s
    assert tried["load", "refused"] and tried["load", "works"]


@pytest.mark.parametrize("archive", [True, pytest.param(False, marks=pytest.mark.long)])
def test_encoder_weights_with_wrong_entries_are_refused_or_work(folder, archive):
    good = {name: value.clone() for name, value in Encoder(3).encoder.state_dict().items()}
    contents = [(case.name, edited(good, case)) for case in single_cases(good)]
    for name, content in [*contents, *odd_values().items()]:
        with contextlib.suppress(TypeError):  # what can't be saved
            torch.save(content, "w.pth", _use_new_zipfile_serialization=archive)
            attempt(name, "--encoder_weights", READERS["--encoder_weights"], None, "w.pth")
    torch.save(good, "w.pth", _use_new_zipfile_serialization=archive)
    READERS["--encoder_weights"](None, "w.pth")


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.long)])
def test_damaged_files_and_changed_pickles_are_refused_or_work(light, folder, count, pickled):
    rng, file = random.Random(count), Path("case.pth")
    torch.save(light, file)
    good, expected = file.read_bytes(), load_checkpoint(file)
    for number in range(count):
        # With right checksums a changed pickle may be another checkpoint.
        file.write_bytes(with_pickle(good, lambda raw: damaged(raw, rng)) if pickled else damaged(good, rng))
        loaded = attempt(f"damage {number}", "damaged", load_checkpoint, file)
        if loaded and not pickled:
            assert (loaded[0].fingerprint(), loaded[0].data) == (expected.fingerprint(), expected.data)
        attempt(f"damage {number}", "progress", read_progress, file)
        if loaded is None and number % 10 == 0:
            attempt(f"damage {number}", "--encoder_weights", READERS["--encoder_weights"], None, file)
