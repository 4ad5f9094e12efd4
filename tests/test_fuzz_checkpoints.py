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
from models.schema import find_problem

from evaluation import run as evaluation_run
from evaluation.config import EvalConfig
from fuzz_checkpoints import (
    Case,
    combined_cases,
    damaged,
    edited,
    hostile_archives,
    odd_values,
    single_cases,
    with_pickle,
)
from helpers import Script, assert_one_error, run_script
from models.checkpoint import load_checkpoint, run_id_of
from models.weights import load_encoder_weights
from runtime.cli import explain
from runtime.distributed import SINGLE_PROCESS
from training import setup
from training.config import TrainConfig
from training.resolve import restore_config

CPU = torch.device("cpu")
OF_RESUME = ("settings", "progress", "terms", "optimizer", "scheduler", "scaler", "random_state")  # that no other reads
counts: collections.Counter = collections.Counter()


@pytest.fixture(scope="module")
def content(trained) -> dict:
    """A real checkpoint with all that one may have, in the middle of an epoch."""
    made = load_checkpoint(trained / "saved_models/tiny_last.pth")
    weights = {name: value.clone() for name, value in made["weights"].items()}
    made["average"] = {"updates": 3, "trained_weights": weights}
    made["settings"]["ema"] = 0.99
    made["progress"] |= {"step": 2, "sums": torch.tensor([9.0, 16.0, 16.0, 12.0]).double(), "seconds": 1.0}
    made["optimizer"]["state"] = {number: made["optimizer"]["state"][number] for number in (0, 1)}
    return made


@pytest.fixture(scope="module")
def light(content) -> dict:
    """The same with few tensors: quick to read, and refused for the same reasons."""
    few = {name: content["weights"][name] for name in ("mean", "head.bias")}
    average = {"updates": 3, "trained_weights": {name: value.clone() for name, value in few.items()}}
    return {**content, "weights": few, "average": average}


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
    overrides = {"data_path": str(data), "num_workers": 0, "save_dir": "out", "log_dir": "out", "epochs": 1, **flags}
    setup.run(TrainConfig.from_flags(overrides), overrides, CPU, SINGLE_PROCESS)


def resume(data, file: Path) -> None:
    for kind in ("last", "best"):
        os.link(file, f"out/tiny_{kind}.pth")
    train(data, resume="out/tiny_last.pth", compile=False)


def score(data, **flags) -> None:
    evaluation_run.evaluate(EvalConfig(data_path=str(data), num_workers=0, log_dir="out", **flags), CPU, SINGLE_PROCESS)


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

    before, start, found = signal.signal(signal.SIGALRM, hangs), time.process_time(), None
    signal.alarm(60)
    try:
        found = (read(*arguments),)
    except Exception as error:  # noqa: BLE001  whatever it is
        assert explain(error, "")[0] is not None, f"{name}, {reader}: {error!r}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - start < 20, name
    counts[reader, "refused" if found is None else "works"] += 1
    return found


def feed(case: Case, content: dict, light: dict, data) -> None:
    """Writes a checkpoint and reads it in every way; with few tensors as long as it is refused."""
    file = Path("case.pth")
    try:
        torch.save(edited(light, case), file)
    except TypeError:
        return  # it can't be saved
    found = attempt(case.name, "load", load_checkpoint, file)
    if found and case.name.startswith("settings") and len(case.edits) == 1:
        found = attempt(case.name, "settings", restore_config, {}, *found, file)
    field = case.name.partition(":")[0]
    counts[field] += found is not None
    if found is None or counts[field] > 3:  # values of one entry that are all right work alike
        return
    torch.save(edited(content, case), file)
    for reader in ["--resume"] if all(path[0] in OF_RESUME for path, _ in case.edits) else READERS:
        shutil.rmtree("out", ignore_errors=True)
        Path("out").mkdir()
        attempt(case.name, reader, READERS[reader], data, file)


@pytest.mark.parametrize("share", [0.01, pytest.param(1, marks=pytest.mark.long)])
def test_checkpoints_with_wrong_entries_are_refused_or_work(content, light, shared_dataset, folder, share):
    torch.save(content, "good.pth")
    rng = random.Random(0)
    singles = list(single_cases(light))
    for case in singles if share == 1 else ():
        problem = find_problem(edited(light, case)) or ""
        assert len(problem) < 300 and problem.isprintable(), case.name
    some = rng.sample(singles, round(share * len(singles)))
    for case in [*some, *combined_cases(singles, len(some) // 10, rng)]:
        feed(case, content, light, shared_dataset)
    tried = {what: number for what, number in counts.items() if isinstance(what, tuple)}
    print(f"{len(singles)} entries, {tried}")  # seen with pytest -s
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


def equal(a, b) -> bool:
    """Whether two contents of checkpoints are the same."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.long)])
def test_damaged_files_are_refused_or_equal(light, folder, count):
    rng, file = random.Random(count), Path("case.pth")
    torch.save(light, file)
    good, expected = file.read_bytes(), load_checkpoint(file)
    for number in range(count):
        file.write_bytes(damaged(good, rng))
        found = attempt(f"damage {number}", "damaged", load_checkpoint, file)
        assert found is None or equal(*found, expected), number
        if number % 10 == 0:
            attempt(f"damage {number}", "--encoder_weights", READERS["--encoder_weights"], None, file)
            attempt(f"damage {number}", "run id", run_id_of, file)


@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.long)])
def test_changed_pickles_with_right_checksums_are_refused_or_work(light, folder, count):
    rng, file = random.Random(count), Path("case.pth")
    torch.save(light, file)
    good = file.read_bytes()
    for number in range(count):
        file.write_bytes(with_pickle(good, lambda raw: damaged(raw, rng)))
        found = attempt(f"pickle {number}", "changed pickle", load_checkpoint, file)
        attempt(f"pickle {number}", "run id", run_id_of, file)
        if found is None:
            attempt(f"pickle {number}", "--encoder_weights", READERS["--encoder_weights"], None, file)


READ_ALL = """
import resource
import sys
from pathlib import Path

from models.build import build_model
from models.checkpoint import load_checkpoint, run_id_of
from models.weights import load_encoder_weights
from runtime.errors import UsageError

network = build_model("resnet18_unet", in_channels=1)
for file in sorted(Path().glob("*.pth")):
    for read in (load_checkpoint, run_id_of, lambda file: load_encoder_weights(network, file)):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            read(file)
        except UsageError:
            pass
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        if taken > int(sys.argv[1]) + 4 * (file.stat().st_size >> 20):
            sys.exit(f"{file} takes {taken} MB")
"""


def test_hostile_archives_are_refused_before_memory_is_taken(folder):
    for name, data in hostile_archives().items():
        Path(f"{name}.pth").write_bytes(data)
    done = Script(READ_ALL, (30,), folder, limits={"RLIMIT_DATA": 2 << 30}).finish()
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_scripts_end_with_one_line(content, shared_dataset, folder):
    channels = Case("", ((("preprocessing", "channels"), 1),))
    six = Case("", ((("progress", "sums"), torch.ones(6).double()),))
    for name, case in (("channels", channels), ("six", six)):
        torch.save(edited(content, case), f"{name}.pth")
    flags = ("--data_path", shared_dataset)
    done = run_script("evaluate.py", *flags, "--model_path", "channels.pth", cwd=folder)
    assert_one_error(done, "in_channels contradicts")
    assert_one_error(run_script("train.py", *flags, "--resume", "six.pth", "--epochs", 1, cwd=folder), "has 6 numbers")
