"""Runs that are stopped, killed, doubled or out of disk: nothing is lost, and a resumed run has the same bits."""

import os
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch

import torture
from helpers import (
    SRC,
    TINY,
    Script,
    assert_one_error,
    copy_run,
    expect_success,
    log_rows,
    make_dataset,
    run_ok,
    run_script,
    same,
)
from models.checkpoint import load_checkpoint

# The kinds of runs, by their flags: whatever is random or has a state of its own is on in one of them.
KINDS = {
    "online": "--augment online --augment_uncertain --epochs 2",
    "growing": "--recipe strong --image_size 96 --sizes grow --epochs 4 --batch_size 2",
    "averaged": "--recipe strong --image_size 96 --scheduler none --attention se --distort color --ema 0.9 --epochs 2",
    "frozen": "--recipe strong --model_name efficientnet_lite0_unet --freeze_encoder 2 --encoder_lr_scale 0.2 -e 4",
    "unlabeled": "--train_fraction 0.3 --unlabeled rest --ema --batch_size 4 --epochs 2",
    "classes": "--classes species --class_weights auto --augment online --distort paste --epochs 2",
    "student": "--teacher {trained}/saved_models/tiny_best.pth --image_size 96 --epochs 2",
    "denoising": "--batch_size 4 --epochs 2",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_that_is_resumed_equals_the_unbroken_one(tmp_path, shared_dataset, trained, kind):
    script = SRC / ("pretrain.py" if kind == "denoising" else "train.py")
    data, flags, contents = ("--data_path", shared_dataset), (*TINY, *KINDS[kind].format(trained=trained).split()), []
    for name, stops in (("whole", 0), ("parts", 2)):
        folder, words = tmp_path / name, flags
        for epoch in range(1, stops + 1):  # while the encoder is frozen, and the size is small, and at the end of that
            run = Script(script, (*data, *words), folder)
            run.wait_for(f"epoch   {epoch}/")
            run.send_signal(signal.SIGTERM)
            done = run.finish()
            assert done.returncode == 0 or f"To go on: python src/{script.name} --model_name" in done.stdout
            words = ("--resume",)
        run_ok(script, *data, *words, cwd=folder)
        (last,) = folder.glob("saved_models/**/*_last.pth")
        contents.append(torture.content(last))
    assert torture.differences(*contents) == []


def test_a_plan_of_sizes_stays(tmp_path, shared_dataset):
    flags = ("train.py", "--data_path", shared_dataset)
    run_ok(*flags, *TINY, "--image_size", 96, "--sizes", "grow", "--epochs", 2, cwd=tmp_path)
    run_ok(*flags, "--resume", "--epochs", 1, cwd=tmp_path)  # epochs that are added run at full size
    assert load_checkpoint(tmp_path / "saved_models/tiny_last.pth").training.settings["sizes"] == "64:1"
    assert_one_error(run_script(*flags, "--resume", "--sizes", "64:2", cwd=tmp_path), "sizes 64:1 (now 64:2)")
    run_ok(*flags, *TINY, "--sizes", "grow", "--epochs", 1, cwd=tmp_path)  # at 64 pixels nothing can grow
    assert "in epoch 2 of 2" in run_ok(*flags, "--sizes", "grow", "--resume", "--epochs", 1, cwd=tmp_path)


def test_a_frozen_encoder_stays_for_its_epochs(tmp_path, shared_dataset):
    flags = (SRC / "train.py", "--data_path", shared_dataset, "--model_name", "efficientnet_lite0_unet", "--epochs", 3)
    flags += ("--encoder_weights", "none", "--image_size", 64, "--freeze_encoder", 2, "--train_fraction", 0.5)
    expect_success(Script(torture.saving(10, 1), flags, tmp_path).finish())
    files = (tmp_path / f"saved_models/efficientnet_lite0_unet_epoch_00{n}.pth" for n in (1, 2, 3))
    epochs = [load_checkpoint(file).weights for file in files]
    first, second, third = ({k: v for k, v in epoch.items() if k.startswith("encoder.")} for epoch in epochs)
    assert same(first, second)
    assert not any(torch.equal(value, third[key]) for key, value in second.items() if key.endswith("weight"))
    done = run_script(*flags[:3], "--model_name", "unet", "--freeze_encoder", 1, cwd=tmp_path)
    assert_one_error(done, "unet has no encoder")


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_and_prints_how_to_resume(tmp_path, shared_dataset, signum, status):
    more = ("--device", "cpu", "--num_workers", 1, "--save_dir", "my runs/$x", "--no-cache")
    script = start(tmp_path, "--data_path", shared_dataset, "--epochs", 500, *TINY, *more, session=True)
    script.wait_for("epoch   2/500")
    os.killpg(script.pid, signum)  # which reaches the process that reads images as well
    done = script.finish()
    said = done.stdout
    assert (done.returncode, done.stderr) == (status, "")
    progress = load_checkpoint(tmp_path / "my runs/$x/tiny_last.pth").progress
    step, epoch = progress.step, progress.epoch
    assert f"Stopped in epoch {epoch + 1} after step {step}" in said
    resume = shlex.split(said.strip().splitlines()[-1].removeprefix("To go on: python src/train.py "))
    expected = ["--model_name", "tiny", "--data_path", str(shared_dataset), *map(str, more), "--resume"]
    assert resume == expected
    # It was under way for 500 epochs: with --epochs it ends one further on.
    said = run_ok("train.py", *resume, "--epochs", 1, cwd=tmp_path)
    assert f"in epoch {epoch + 1} of {epoch + 1} after step {step}" in said
    assert len(log_rows(tmp_path)) == epoch + 1


def start(folder: Path, *args, script=SRC / "train.py", **options) -> Script:
    """Starts train.py, or what runs it changed, and waits until it is about to train."""
    process = Script(script, args, folder, **options)
    process.wait_for("Run  ")
    return process


@pytest.mark.parametrize("apart", [(), ("--save_dir", "b")])  # the logs are in one folder all the same
def test_second_run_on_the_same_files_is_refused(tmp_path, shared_dataset, apart):
    flags = ("--data_path", shared_dataset, "--epochs", 500, *TINY)
    first = start(tmp_path, *flags)
    try:
        done = run_script("train.py", *flags, *apart, cwd=tmp_path)
        assert_one_error(done, f"another run (process {first.pid} on", "tiny", "--save_dir")
    finally:
        first.send_signal(signal.SIGKILL)
        first.finish()
    run_ok("train.py", "--data_path", shared_dataset, "--epochs", 1, *TINY, cwd=tmp_path)  # the claim died with it


def test_second_ctrl_c_ends_at_once(tmp_path, shared_dataset):
    run_ok("train.py", "--data_path", shared_dataset, "--epochs", 1, *TINY, cwd=tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved_models").glob("*.pth")}
    flags = ("--data_path", shared_dataset, "--resume", "--epochs", 500)
    process = start(tmp_path, *flags, script=SRC.parent / "tools/slow_writes.py")
    while process.poll() is None:  # signals that arrive within one operation of torch count as one
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert process.finish().returncode == -signal.SIGINT
    for name in before:
        load_checkpoint(tmp_path / "saved_models" / name)


def test_checkpoint_is_saved_within_an_epoch(tmp_path):
    few = make_dataset(tmp_path / "few", count=20)
    flags = ("--data_path", few, "--epochs", 500, "--batch_size", 2, *TINY)
    process = start(tmp_path, SRC / "train.py", *flags, script=torture.saving(0.001, 1))
    last = tmp_path / "saved_models/tiny_last.pth"
    process.wait_until(last.exists)
    process.send_signal(signal.SIGKILL)
    process.finish()
    progress = load_checkpoint(last).progress
    assert (progress.epoch, progress.history) == (0, [])
    assert progress.step >= 1
    assert progress.sums[2] == 2 * progress.step  # images so far
    said = run_ok("train.py", "--data_path", few, "--resume", "--epochs", 1, cwd=tmp_path)
    assert f"in epoch 1 of 1 after step {progress.step}" in said


def test_full_disk_keeps_the_old_checkpoint(tmp_path, trained, shared_dataset):
    copy_run(trained, tmp_path, "[lt]*")
    before = (tmp_path / "saved_models/tiny_last.pth").read_bytes()
    limits = {"RLIMIT_FSIZE": 20_000}  # bytes in a file: more than the log has, and less than a checkpoint
    flags = ("--data_path", shared_dataset, "--resume", "--epochs", 1)
    done = Script(SRC / "train.py", flags, tmp_path, limits=limits).finish()
    assert_one_error(done, "can't write", ".pth", "--resume", status=1)
    assert (tmp_path / "saved_models/tiny_last.pth").read_bytes() == before
    names = {p.name for p in (tmp_path / "saved_models").iterdir()}
    assert names == {"tiny_last.pth", ".tiny.lock"}


SLOW_TO_START = """
import runpy, time
from torch.utils.data._utils import signal_handling
set_up = signal_handling._set_worker_signal_handlers

def slow():  # in a process that reads images
    set_up()
    print("worker", flush=True)
    time.sleep(1)

signal_handling._set_worker_signal_handlers = slow
runpy.run_path({src!r} + "/train.py", run_name="__main__")
"""


def test_signal_to_all_processes_while_workers_start(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--epochs", 500, "--no-cache", "--num_workers", 2, *TINY)
    process = start(tmp_path, *flags, script=SLOW_TO_START.format(src=str(SRC)), session=True)
    process.wait_for("worker")
    os.killpg(process.pid, signal.SIGTERM)  # which reaches every process of the job
    done = process.finish()
    said = done.stdout
    assert (done.returncode, done.stderr) == (143, "")
    assert "Stopped in epoch 1" in said


STOPPED_IN_VALIDATION = """
import train
from runtime import cli
from runtime.errors import Interrupted
from training.terms import masks

def stopped(*args, **kwargs):
    raise Interrupted(15)

masks.validate = stopped
cli.run(train.main)
"""


def test_a_run_that_is_stopped_while_it_validates_goes_on_there(tmp_path, trained, shared_dataset):
    flags = ("--data_path", shared_dataset, "--epochs", 1, *TINY)
    assert Script(STOPPED_IN_VALIDATION, flags, tmp_path).finish().returncode == 143
    run_ok("train.py", "--data_path", shared_dataset, "--resume", cwd=tmp_path)
    rows = log_rows(tmp_path)[0], log_rows(trained)[0]
    assert all(rows[0][column] == rows[1][column] for column in ("train_loss", "train_dice", "val_loss", "val_dice"))
