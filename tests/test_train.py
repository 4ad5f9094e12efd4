"""train.py as a process."""

import re

import pytest
import torch

from helpers import TINY, assert_one_error, copy_run, log_rows, rows, run_ok, run_script
from models.checkpoint import load_checkpoint


def test_training_writes_checkpoints_and_log(trained):
    assert {path.name for path in (trained / "saved_models").glob("[!.]*")} == {"tiny_best.pth", "tiny_last.pth"}
    table = log_rows(trained)
    columns = "run_id,epoch,train_loss,train_dice,val_loss,val_dice,learning_rate,seconds,images_per_second"
    assert ",".join(table[0]) == columns
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert float(table[1]["train_loss"]) < float(table[0]["train_loss"])
    last = load_checkpoint(trained / "saved_models/tiny_last.pth")
    assert last.progress.history[1]["val_dice"] == float(table[1]["val_dice"])
    assert last.training.optimizer["state"][0]["step"] == 8  # two epochs of 32 images in batches of 8


def test_header_and_epoch_lines(tmp_path, shared_dataset):
    said = run_ok(
        *("train.py", "--data_path", shared_dataset, "--epochs", 1, "--augment", "--num_augmentations", 2, *TINY),
        *("--model_name", "resnet34_unet", "--learning_rate", "1e-3"),
        *("--augment_uncertain", "--split", "official"),
        cwd=tmp_path,
    )
    for words in (
        "Device  cpu",
        "Model   resnet34_unet, 29,070,513 parameters, encoder from scratch",
        "(Oxford-IIIT Pet layout), split official: 24 train, 2 valid, 14 test; cached",
        "Plan    batch_size 8, learning_rate 0.001, augment bulk, image_size 64, num_augmentations 2, augment",
        "optimizer adam, scheduler plateau, seed 42",
        "1 epoch of 9 steps",
    ):
        assert words in said
    assert re.search(r"epoch +1/1 +train loss \d\.\d+ dice \d\.\d+ +valid loss .* images/s +best", said)
    assert "Best valid Dice" in said.splitlines()[-1]


def test_resume_with_epochs_trains_more(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    before, best = log_rows(folder), load_checkpoint(folder / "saved_models/tiny_best.pth").progress.best_score
    said = run_ok("train.py", "--data_path", shared_dataset, "--model_name", "tiny", "--resume", "-e", 3, cwd=folder)
    assert "in epoch 3 of 5" in said
    assert (folder / "saved_models/tiny_epoch_005.pth").is_file()
    after = log_rows(folder)
    assert after[:2] == before
    assert [row["epoch"] for row in after] == ["1", "2", "3", "4", "5"]
    assert len({row["run_id"] for row in after}) == 1
    last = load_checkpoint(folder / "saved_models/tiny_last.pth")
    assert last.training.optimizer["state"][0]["step"] == 20
    assert last.progress.best_score >= best
    assert last.image_size == 64


def test_resume_takes_a_learning_rate_and_refuses_fixed_flags(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    flags = ("train.py", "--data_path", shared_dataset, "--resume")
    before = (folder / "saved_models/tiny_last.pth").read_bytes()
    done = run_script(*flags, "--batch_size", 4, "--image_size", 96, cwd=folder)
    assert_one_error(done, "batch_size 8 (now 4)", "image_size 64 (now 96)", "leave out --batch_size, --image_size")
    assert_one_error(run_script(*flags, "--split", "official", cwd=folder), "split 80-10-10 (now official)")
    assert_one_error(run_script(*flags, "--model_name", "unet", cwd=folder), "no checkpoint", "tiny_last.pth")
    assert (folder / "saved_models/tiny_last.pth").read_bytes() == before
    run_ok(*flags, "--epochs", 1, "--learning_rate", "5e-5", cwd=folder)
    assert log_rows(folder)[2]["learning_rate"] == "5e-05"


def test_seeds_begin_with_other_weights(tmp_path, shared_dataset):
    weights = []
    for seed in (5, 6):
        run_ok("train.py", "--data_path", shared_dataset, "-e", 1, *TINY, "--seed", seed, cwd=tmp_path / str(seed))
        weights.append(load_checkpoint(tmp_path / f"{seed}/saved_models/tiny_last.pth").weights["head.weight"])
    assert (weights[0] - weights[1]).abs().max() > 0.1  # more than an epoch changes


def test_unknown_model_warns_and_trains_the_default(tmp_path, shared_dataset):
    done = run_script("train.py", "--data_path", shared_dataset, "--model_type", "unte", "-e", 1, *TINY, cwd=tmp_path)
    assert done.returncode == 0
    assert "'unte'" in done.stderr
    assert "'unet'" in done.stderr
    assert (tmp_path / "saved_models/tiny_best.pth").is_file()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--image_size 17", "argument --image_size: 17 is not between 64 and 4096"),
        ("--loss hinge", "bce_dice"),
        ("--fold 6/5", "'6/5' is no fold"),
        ("--device cuda", "cuda is not available here"),
        ("--resume nowhere.pth", "no checkpoint nowhere.pth"),
        ("--save_dir file", "can't write to the folder file"),
        ("--log_dir file/logs", "can't write to the folder file/logs"),
        ("--augment_strength strong", "--augment_strength needs --augment bulk or online"),
        ("--recipe strong --augment off --distort blur", "--distort needs --augment"),
        ("--sizes 32:1", "tiny needs sides of 64 pixels at least"),
        ("--augment --distort cutmix --batch_size 1", "--distort paste and cutmix need two images"),
        ("--decoder stem", "tiny has no decoder stem; it has plain"),
        ("--class_weights 1,2", "binary needs 1 numbers, not 2"),
        ("--scheduler cosine --patience 2", "--patience would cut the plan of --scheduler cosine"),
        ("--train_fraction 0.001", "leaves no image to train on"),
        ("--unlabeled nowhere --ema", "the folder nowhere does not exist"),
    ],
)
def test_runs_that_can_not_be_are_one_error_line(tmp_path, shared_dataset, flags, words):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    (tmp_path / "file").write_text("no folder")
    done = run_script("train.py", "--data_path", shared_dataset, *TINY, *flags.split(), cwd=tmp_path)
    assert_one_error(done, words)
    assert not list(tmp_path.glob("*/*.pth"))


def test_patience_ends_a_run_and_survives_a_resume(tmp_path, shared_dataset):
    data = ("--data_path", shared_dataset)
    # At this rate nothing changes but running averages: the first or second epoch is the best.
    flags = (*data, *TINY, "--learning_rate", 1e-30, "--scheduler", "none", "--epochs", 40, "--patience", 2)
    said = run_ok("train.py", *flags, cwd=tmp_path)
    assert "No better valid Dice in 2 epochs: stopped after" in said
    done = log_rows(tmp_path)
    dice = [float(row["val_dice"]) for row in done]
    assert len(done) == dice.index(max(dice)) + 3 < 40
    assert "This run is complete" in run_ok("train.py", *data, "--resume", cwd=tmp_path)
    apart = ("--save_dir", "apart", "--log_dir", "apart")  # where no best is known: patience begins anew
    run_ok("train.py", *data, "--resume", tmp_path / "saved_models/tiny_last.pth", *apart, cwd=tmp_path)
    assert len(rows(tmp_path / "apart/tiny_training_log.csv")) >= len(done) + 3
    run_ok("train.py", *data, "--resume", "--patience", 3, cwd=tmp_path)
    assert len(log_rows(tmp_path)) == len(done) + 1
    run_ok("train.py", *data, "--resume", "--epochs", 9, "--patience", 2, cwd=tmp_path)
    assert len(log_rows(tmp_path)) == len(done) + 3  # counted anew
