"""What survives a power failure: contents are on the disk before names, old names before new files take them."""

import os
from pathlib import Path

import pytest

import export
from helpers import copy_run
from runtime.files import append_rows
from training.config import TrainConfig
from training.state import archive_previous_run


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """What is synced to the disk, and what gets a new name, in order."""
    done, fsync, rename, replace = [], os.fsync, Path.rename, Path.replace

    def noting_fsync(handle) -> None:
        status = os.fstat(handle)
        done.extend(f"sync {path.name}" for path in watched() if os.path.samestat(path.stat(), status))
        fsync(handle)

    def watched() -> list[Path]:
        return [Path.cwd(), *Path.cwd().rglob("*")]

    def noting(call):
        return lambda path, target: (done.append(f"{path.name} -> {Path(target).name}"), call(path, target))[1]

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "rename", noting(rename))
    monkeypatch.setattr(Path, "replace", noting(replace))
    return done


def test_a_log_is_replaced_as_a_whole(tmp_path, monkeypatch, calls):
    monkeypatch.chdir(tmp_path)
    append_rows("log.csv", [{"a": 1}])
    written, renamed, folder = calls
    assert written.removeprefix("sync ") + " -> log.csv" == renamed
    assert folder == f"sync {tmp_path.name}"


def test_the_archive_of_an_older_run_is_synced(trained, tmp_path, monkeypatch, calls):
    run = copy_run(trained, tmp_path / "run")
    monkeypatch.chdir(run)
    archive_previous_run(TrainConfig(model_name="tiny", save_dir="saved_models", log_dir="logs"))
    assert any("-> tiny_training_log_" in call for call in calls)
    assert {*calls[-2:]} == {"sync saved_models", "sync logs"}


def test_exports_are_synced(trained, tmp_path, monkeypatch, calls):
    run = copy_run(trained, tmp_path / "run")
    monkeypatch.chdir(run)
    export.main(["--model_path", "saved_models/tiny_best.pth", "--formats", "weights", "--output_path", "."])
    name = next(run.glob("*.pth")).name
    assert calls[-3:] == [f"sync {name}", f"{name} -> {name}", "sync run"]
