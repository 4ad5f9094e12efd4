"""A run that version 1.0 left in the middle of its second epoch: every later version resumes it and scores it.

`python tests/test_frozen.py` made tests/frozen_1.0/ with version 1.0. It is never made anew.
"""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

import tiny
from helpers import SRC, log_rows, make_dataset, run_ok

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


class StopAfter:
    """Asks a run to stop after so many steps."""

    def __init__(self, steps: int):
        self.left = steps

    @property
    def signum(self) -> int:
        self.left -= 1
        return 15 * (self.left <= 0)

    def check(self) -> None:
        """The run is not asked while it validates."""


def make() -> None:
    """Draws the images, and trains the tiny network on them until it is stopped."""
    sys.path.insert(0, str(SRC))
    tiny.register(default=True)
    from runtime.errors import Interrupted
    from training.setup import prepare

    FROZEN.mkdir()
    os.chdir(FROZEN)
    make_dataset(Path("dataset"), count=11, breeds=2, size=(24, 20))
    flags = {"model_name": "tiny", "epochs": 2, "learning_rate": 0.03, "image_size": 64, "amp": "off"}
    flags |= {"encoder_weights": "none", "augment": "online", "optimizer": "adamw", "num_workers": 0, "cache": False}
    trainer, *_ = prepare(flags, torch.device("cpu"))
    trainer.stop = StopAfter(trainer.loader.sampler.steps + 2)  # it is also asked after an epoch
    with contextlib.suppress(Interrupted):
        trainer.train()
    Path("saved_models/tiny_best.pth").unlink()
    shutil.rmtree("dataset/.pixel_cache")
    for lock in Path().glob("*/.tiny.lock"):
        lock.unlink()


if __name__ == "__main__":
    make()
