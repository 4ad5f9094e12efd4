"""Curves: plot_dice_curve.py as a process, and TensorBoard."""

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import TINY, assert_one_error, copy_run, log_rows, rows, run_ok, run_script
from training.state import LOG_COLUMNS
from visual.curves import read_runs, resumed_after


def test_plot_of_one_model_and_of_both(trained, tmp_path):
    folder = copy_run(trained, tmp_path)
    assert "Drew tiny:" in run_ok("plot_dice_curve.py", cwd=folder)
    first = (folder / "logs/dice_score_comparison.png").read_bytes()
    run = "r,{},0.5,{},0.5,{},1e-4,1,1"
    lines = [",".join(LOG_COLUMNS), *(run.format(epoch, 0.1 * epoch, 0.09 * epoch) for epoch in range(1, 8))]
    (folder / "logs/unet_training_log.csv").write_text("\n".join(lines) + "\n")
    assert "Drew UNet and tiny:" in run_ok("plot_dice_curve.py", cwd=folder)
    picture = Image.open(folder / "logs/dice_score_comparison.png")
    assert (folder / "logs/dice_score_comparison.png").read_bytes() != first
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    for red, green, blue in ((44, 160, 44), (31, 119, 180)):  # tiny and UNet
        assert (np.abs(pixels - [red, green, blue]).sum(1) < 12).sum() > 200


def test_plot_of_chosen_curves_and_runs(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=folder)
    (first,) = {row["run_id"] for row in rows(folder / "logs/tiny_training_log.csv")}
    log = (folder / "logs/tiny_training_log.csv").read_text().replace(first, "another")
    (folder / "logs/tiny_training_log_another.csv").write_text(log)
    # Rows of the same run that an older state left behind: of every epoch there is one, in order.
    text = (folder / "logs/tiny_training_log.csv").read_text()
    (folder / "logs/tiny_training_log_more.csv").write_text(text.replace(",0.", ",1."))
    epochs, scores = read_runs(folder / "logs")[first].points("val_dice")
    assert epochs == [1, 2, 3]
    assert max(scores) <= 1
    plain = run_ok("plot_dice_curve.py", cwd=folder)
    one = Image.open(folder / "logs/dice_score_comparison.png").size
    assert "another" not in plain
    kinds = ("--curves", "dice,loss,learning_rate")
    said = run_ok("plot_dice_curve.py", *kinds, "--runs", first, "another", cwd=folder)
    assert f"tiny {first} and tiny another" in said
    width, height = Image.open(folder / "logs/dice_score_comparison.png").size
    assert (width, height > 2 * one[1]) == (one[0], True)
    assert_one_error(run_script("plot_dice_curve.py", "--runs", "none", cwd=folder), "no log in logs has a run none")
    assert_one_error(run_script("plot_dice_curve.py", "--curves", "speed", cwd=folder), "no curve is called 'speed'")


def test_plot_marks_where_a_run_was_resumed(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    for _ in range(2):
        run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=folder)
    run_id = rows(folder / "logs/tiny_training_log.csv")[0]["run_id"]
    assert resumed_after(folder / "saved_models", "tiny", run_id) == [2, 3]
    assert resumed_after(folder / "saved_models", "tiny", "another") == []
    run_ok("train.py", "--data_path", shared_dataset, "--epochs", 1, *TINY, cwd=folder)  # and renames the first
    assert resumed_after(folder / "saved_models", "tiny", run_id) == [2, 3]


def test_plot_needs_a_training_log(tmp_path):
    assert_one_error(run_script("plot_dice_curve.py", cwd=tmp_path), "no training log in logs")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/unet_training_log.csv").write_text("a,b\n1,2\n")
    assert_one_error(run_script("plot_dice_curve.py", cwd=tmp_path), "unet_training_log.csv is no training log")


def test_a_board_changes_no_run_and_has_its_curves_without_doubles_after_a_resume(tmp_path, trained, shared_dataset):
    data, first = ("--data_path", shared_dataset), ("--resume", "saved_models/first.pth")
    run_ok("train.py", *data, *TINY, "--epochs", 1, "--tensorboard", cwd=tmp_path)
    (tmp_path / "saved_models/first.pth").write_bytes((tmp_path / "saved_models/tiny_last.pth").read_bytes())
    run_ok("train.py", *data, "--resume", "--epochs", 2, "--tensorboard", cwd=tmp_path)
    assert [row["val_loss"] for row in log_rows(tmp_path)[:2]] == [row["val_loss"] for row in log_rows(trained)]
    run_ok("train.py", *data, *first, "--epochs", 2, "--learning_rate", 1e-3, "--tensorboard", cwd=tmp_path)
    rows = log_rows(tmp_path)
    (folder,) = (tmp_path / "logs/tensorboard").iterdir()
    assert folder.name == rows[0]["run_id"]
    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["scalars"]) == set(LOG_COLUMNS[2:])
    for name in LOG_COLUMNS[2:]:
        points = events.Scalars(name)
        assert [point.step for point in points] == [1, 2, 3]
        assert [point.value for point in points] == pytest.approx([float(row[name]) for row in rows], rel=1e-5)
    assert len(events.Tags()["images"]) == 4
    for name in events.Tags()["images"]:
        assert [image.step for image in events.Images(name)] == [1, 2, 3]
        assert (events.Images(name)[0].width, events.Images(name)[0].height) == (3 * 268 + 12, 314)
