"""What differs between systems: locks, signals, worker processes that start afresh, folders that can't be synced."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest
import torch

from data.augment import AugmentedDataset
from data.loader import Batches, StepReader
from data.pets import load_dataset
from helpers import PYTHON, SRC, TINY, Script, run_ok
from models.checkpoint import load_checkpoint
from runtime.files import lock_file
from training.terms.denoise import NoisyDataset
from training.terms.fixmatch import UnlabeledBatches

HOLDS = """
from runtime.files import lock_file

with lock_file("lock", wait=True):
    print("held", flush=True)
    input()
"""
STOPS = """
import signal
import train
from runtime import cli
from training.loop import Trainer

step = Trainer.train_batch

def stopping(run, *args):
    if run.state.progress.step == 2:
        signal.raise_signal(signal.SIGINT)
    return step(run, *args)

Trainer.train_batch = stopping
cli.run(train.main)
"""


def test_a_lock_of_another_process_is_seen_until_it_ends(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [sys.executable, "-c", HOLDS]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), lock_file(tmp_path / "lock", wait=False):
            pass
        holder.kill()
        holder.wait()
        with lock_file(tmp_path / "lock", wait=False) as file:
            file.write("mine")


def test_ctrl_c_saves_where_the_run_stands(tmp_path, shared_dataset):
    flags = ["--data_path", str(shared_dataset), "--epochs", "2", *map(str, TINY)]
    if hasattr(os, "fork"):
        done = Script(STOPS, flags, tmp_path).finish()
    else:
        done = subprocess.run([*PYTHON, "-c", STOPS, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert load_checkpoint(tmp_path / "saved_models/tiny_last.pth").progress.step == 3
    assert "epoch   2/2" in run_ok("train.py", "--data_path", shared_dataset, "--resume", cwd=tmp_path)


def test_datasets_reach_processes_that_start_afresh(dataset):
    plain = load_dataset(dataset, "train", image_size=64, cache=True)
    sets = (plain, AugmentedDataset(plain, 3), NoisyDataset(plain, 3))
    reader = StepReader([*(Batches(one, 8, 3) for one in sets), UnlabeledBatches(plain, 3, 3, 4), None])
    theirs = pickle.loads(pickle.dumps(reader)).read_batch((1, 2))  # noqa: S301
    for one, other in zip(reader.read_batch((1, 2)), theirs):
        assert (one is other is None) or (torch.equal(one["image"], other["image"]) and one.keys() == other.keys())


def test_installing_the_project_brings_requirements_and_no_modules(tmp_path):
    pytest.importorskip("setuptools", "77")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(SRC.parent / name, tmp_path)
    shutil.copytree(SRC, tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist()}
        assert folder.endswith(".dist-info")
        assert b"Requires-Dist: torch>=" in archive.read(f"{folder}/METADATA")
