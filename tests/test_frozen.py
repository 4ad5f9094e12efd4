"""A run that version 1.0 left in the middle of its second epoch: every later version resumes it and scores it.

It is in tests/frozen_1.0/, and is never made anew.
"""

import json
import shutil
from pathlib import Path

import pytest

from helpers import log_rows, run_ok

FROZEN = Path(__file__).with_name("frozen_1.0")


def scores(cwd: Path) -> dict:
    flags = ("--data_path", "dataset", "--num_workers", 0, "--amp", "off", "--log_dir", "scored")
    run_ok("evaluate.py", *flags, "--model_path", "saved_models/tiny_last.pth", "--json", "scores.json", cwd=cwd)
    return json.loads((cwd / "scores.json").read_text())


def test_run_of_version_1_is_scored_and_resumed(tmp_path):
    shutil.copytree(FROZEN, tmp_path, dirs_exist_ok=True)
    assert scores(tmp_path)["dice"] == pytest.approx(0.4588, abs=1e-3)
    flags = ("--data_path", "dataset", "--num_workers", 0, "--resume")
    assert "in epoch 2 of 2 after step 1" in run_ok("train.py", *flags, cwd=tmp_path)
    first, second = log_rows(tmp_path)
    assert (first["train_loss"], first["val_dice"]) == ("0.73043012", "0.53265417")
    assert float(second["train_loss"]) == pytest.approx(0.478775, abs=1e-3)
    assert scores(tmp_path)["dice"] == pytest.approx(0.6225, abs=1e-3)
