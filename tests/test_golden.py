"""Figures on record: other tests compare runs with each other, so a shift of all of them shows only here."""

import json
import shutil
from pathlib import Path

import pytest

from helpers import TINY, log_rows, rows, run_ok

COLUMNS = ("train_loss", "train_dice", "val_loss", "val_dice")
OPTIONS = ("--loss", "bce_dice", "--optimizer", "adamw", "--scheduler", "cosine", "--ema", 0.99, "--sizes", "64:1")
OPTIONS += ("--augment", "online", "--distort", "color,cutmix")
# Model and flags; the columns of each epoch; Dice, dataset IoU and outline F of the test images at their own size.
GOLDEN = {
    "tiny, all options": (
        ("tiny", *OPTIONS, "--epochs", 3, *TINY, "--image_size", 96),
        [[1.1741, 0.6413, 4.4709, 0.4169], [0.7695, 0.9268, 0.8156, 0.9026], [0.6754, 0.9304, 0.5979, 0.9555]],
        [0.9546, 0.9146, 0.9930],
    ),
    "tiny, three classes": (
        ("tiny", "--classes", "trimap", "--epochs", 2, "--augment", *TINY),
        [[0.2988, 0.8845, 0.0752, 0.9832], [0.0530, 0.9803, 0.0323, 0.9864]],
        [0.9912, 0.9823, 1.0],
    ),
    "resnet34_unet": (
        ("resnet34_unet", "--epochs", 2, *TINY, "--learning_rate", "1e-3"),
        [[0.4631, 0.3367, 0.3558, 0.7895], [0.2742, 0.855, 0.2525, 0.8767]],
        [0.8559, 0.753, 0.4762],
    ),
    # After two steps the running statistics of its batch norms are far off, and so would be what is validated.
    "unet": (
        ("unet", "--epochs", 1, "--train_fraction", 0.5, *TINY, "--learning_rate", "1e-3"),
        [[0.6448, 0.5283]],
        [],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_curves_and_scores_are_those_on_record(name, shared_dataset, tmp_path):
    (model, *flags), epochs, scores = GOLDEN[name]
    run_ok("train.py", "--data_path", shared_dataset, "--model_name", model, "--amp", "off", *flags, cwd=tmp_path)
    for row, expected in zip(rows(tmp_path / f"logs/{model}_training_log.csv"), epochs, strict=True):
        assert [float(row[column]) for column in COLUMNS[: len(expected)]] == pytest.approx(expected, abs=5e-3)
    if scores:
        flags = ("--data_path", shared_dataset, "--amp", "off", "--original_size", "--json", "scores.json")
        run_ok("evaluate.py", *flags, cwd=tmp_path)
        report = json.loads((tmp_path / "scores.json").read_text())
        figures = [report[name] for name in ("dice", "dataset_iou", "boundary_f")]
        assert figures == pytest.approx(scores, abs=2e-2)


# A run that version 1.0 left in the middle of its second epoch: every later version resumes it. It is never made anew.
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
