"""Fixtures: datasets, and a run that many tests look at."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import runtime.errors
import tiny
from helpers import TINY, make_dataset, run_ok, write_own

tiny.register()


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture
def dataset(tmp_path) -> Path:
    """A small dataset of its own for a test that changes it."""
    return make_dataset(tmp_path / "dataset")


@pytest.fixture(scope="session")
def shared_dataset(tmp_path_factory) -> Path:
    """A small dataset that no test changes."""
    return make_dataset(tmp_path_factory.mktemp("shared") / "dataset")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, shared_dataset) -> Iterator[Path]:
    """A folder with saved_models/ and logs/ of a tiny network trained for two epochs on `shared_dataset`."""
    folder = tmp_path_factory.mktemp("trained")
    run_ok("train.py", "--data_path", shared_dataset, "--epochs", 2, *TINY, cwd=folder)
    written = {file: file.stat().st_mtime_ns for file in folder.glob("*/[!.]*")}
    yield folder
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*/[!.]*")} == written, "a test has changed it"


@pytest.fixture
def own(tmp_path):
    return write_own(tmp_path / "own")


@pytest.fixture(scope="session")
def shared_own(tmp_path_factory):
    return write_own(tmp_path_factory.mktemp("own") / "my pictures")


@pytest.fixture(scope="session")
def model_flags(trained) -> tuple:
    return "--model_path", trained / "saved_models/tiny_best.pth"


@pytest.fixture
def notes(capsys, monkeypatch):
    """What was noted of the files that were read."""
    monkeypatch.setattr(runtime.errors, "NOTED", {})
    monkeypatch.setattr(runtime.errors, "SAID", set())

    def read() -> str:
        runtime.errors.say_notes()
        return capsys.readouterr().out

    return read
