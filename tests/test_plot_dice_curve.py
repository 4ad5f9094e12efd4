"""plot_dice_curve.py as a process."""

import numpy as np
from PIL import Image

from helpers import TINY, assert_one_error, copy_run, rows, run_ok, run_script
from visual.curves import read_runs, resumed_after

LOG_HEADER = "run_id,epoch,train_loss,train_dice,val_loss,val_dice,learning_rate,seconds,images_per_second"


def test_plot_of_one_model_and_of_both(trained, tmp_path):
    folder = copy_run(trained, tmp_path)
    assert "Drew tiny:" in run_ok("plot_dice_curve.py", cwd=folder)
    first = (folder / "logs/dice_score_comparison.png").read_bytes()
    run = "r,{},0.5,{},0.5,{},1e-4,1,1"
    lines = [LOG_HEADER, *(run.format(epoch, 0.1 * epoch, 0.09 * epoch) for epoch in range(1, 8))]
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
