"""Checkpoints of earlier versions can be resumed, scored and used."""

import os
import shutil
import subprocess
import sys

import pytest

from helpers import SRC, rows, run_ok

VERSIONS = ["8cc16f8"]  # commits; one for each release in CHANGELOG.md
ROOT = SRC.parent


@pytest.fixture(scope="module", params=VERSIONS)
def old(request, tmp_path_factory, shared_dataset):
    """A folder with a run of an earlier version, one epoch of ResNet34-UNet."""
    folder = tmp_path_factory.mktemp("old")
    code = subprocess.run(["git", "archive", request.param, "src"], cwd=ROOT, capture_output=True)
    if code.returncode:
        pytest.skip(f"there is no commit {request.param} in this copy")
    subprocess.run(["tar", "-x"], input=code.stdout, cwd=folder, check=True)
    flags = ["--data_path", str(shared_dataset), "--epochs", "1", "--image_size", "64", "--encoder_weights", "none"]
    command = [sys.executable, "src/train.py", *flags, "--recipe", "strong"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on(old, shared_dataset, tmp_path):
    for name in ("saved_models", "logs"):
        shutil.copytree(old / name, tmp_path / name)
    data = ("--data_path", shared_dataset)
    said = run_ok("evaluate.py", *data, "--subset", "valid", "--csv", "valid.csv", cwd=tmp_path)
    assert "RESNET34_UNET valid Dice score" in said
    (before,) = rows(old / "logs/resnet34_unet_training_log.csv")
    dice = [float(row["dice"]) for row in rows(tmp_path / "valid.csv")]
    assert sum(dice) / len(dice) == pytest.approx(float(before["val_dice"]), abs=1e-4)
    run_ok("inference.py", *data, "--output_path", "out", cwd=tmp_path)
    assert len(list((tmp_path / "out").glob("*_panel.png"))) == 4
    run_ok("train.py", *data, "--resume", "--epochs", 1, cwd=tmp_path)
    table = rows(tmp_path / "logs/resnet34_unet_training_log.csv")
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert table[0]["train_loss"] == before["train_loss"]
