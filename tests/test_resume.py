"""Runs that are stopped, killed, doubled or out of disk: nothing is lost, and a resumed run has the same bits."""

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch

import torture
from helpers import (
    PYTHON,
    SRC,
    TINY,
    Script,
    assert_one_error,
    copy_run,
    log_rows,
    make_dataset,
    rows,
    run_ok,
    run_script,
    same,
)
from models.checkpoint import load_checkpoint


def test_resumed_run_equals_the_unbroken_one(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--augment", "online", "--augment_uncertain", *TINY)
    finals = []
    for name, first in (("whole", 2), ("parts", 1)):
        folder = tmp_path / name
        folder.mkdir()
        run_ok("train.py", *flags, "--epochs", first, cwd=folder)
        if first == 1:
            run_ok("train.py", *flags, "--resume", "--epochs", 1, cwd=folder)
        finals.append(torch.load(folder / "saved_models/tiny_last.pth", weights_only=True))
    whole, parts = finals
    assert all(torch.equal(value, parts["weights"][key]) for key, value in whole["weights"].items())
    states = (content["training"]["optimizer"]["state"].values() for content in finals)
    for a, b in zip(*states):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_progressive_run_stopped_twice_equals_the_unbroken_one(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, *TINY, "--image_size", 96, "--recipe", "strong", "--sizes", "grow")
    flags += ("--epochs", 4, "--batch_size", 2, "--validate_every", 2)
    contents = []
    for name in ("whole", "parts"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "parts":
            for epoch, words in ((1, flags), (2, ("--data_path", shared_dataset, "--resume"))):
                script = start(folder, *words)
                script.wait_for(f"epoch   {epoch}/4")
                script.send_signal(signal.SIGTERM)
                assert script.finish().returncode == 143
            flags = ("--data_path", shared_dataset, "--resume")
        said = run_ok("train.py", *flags, cwd=folder)
        assert "sizes 64:3" in said
        contents.append(torture.content(folder / "saved_models/tiny_last.pth"))
    assert torture.differences(*contents) == []
    table = log_rows(tmp_path / "parts")
    assert [row["val_dice"] != "" for row in table] == [False, True, False, True]
    assert "Drew tiny" in run_ok("plot_dice_curve.py", cwd=tmp_path / "parts")
    # Epochs that are added run at full size, and the plan can't be changed.
    run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=folder)
    assert load_checkpoint(folder / "saved_models/tiny_last.pth").training.settings["sizes"] == "64:3"
    done = run_script("train.py", "--data_path", shared_dataset, "--resume", "--sizes", "64:2", cwd=folder)
    assert_one_error(done, "sizes 64:3 (now 64:2)")


def test_frozen_encoder_stopped_twice_equals_the_unbroken_run(tmp_path, shared_dataset):
    """Stopped while the encoder is frozen, and after; its epochs are counted from the start of the run."""
    data = ("--data_path", shared_dataset)
    flags = (*data, "--model_name", "efficientnet_lite0_unet", "--encoder_weights", "none", "--image_size", 64)
    flags += ("--epochs", 4, "--batch_size", 4, "--freeze_encoder", 2, "--encoder_lr_scale", 0.2, "--recipe", "strong")
    contents = []
    for name in ("whole", "parts"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "parts":
            for epoch, words in ((1, flags), (3, (*data, "--resume"))):
                script = start(folder, *words)
                script.wait_for(f"epoch   {epoch}/4")
                script.send_signal(signal.SIGTERM)
                assert script.finish().returncode == 143
            flags = (*data, "--resume")
        Script(torture.saving(10, 1), (SRC / "train.py", *flags), folder).finish()
        contents.append(torture.content(folder / "saved_models/efficientnet_lite0_unet_last.pth"))
    assert torture.differences(*contents) == []
    epochs = [
        load_checkpoint(tmp_path / f"whole/saved_models/efficientnet_lite0_unet_epoch_00{n}.pth") for n in (1, 2, 3)
    ]
    encoders = [
        {key: value for key, value in checkpoint.training.trained_weights.items() if key.startswith("encoder.")}
        for checkpoint in epochs
    ]
    assert same(encoders[0], encoders[1])
    assert not any(torch.equal(value, encoders[2][key]) for key, value in encoders[1].items() if key.endswith("weight"))
    done = run_script("train.py", *data, "--model_name", "unet", "--freeze_encoder", 1, cwd=tmp_path)
    assert_one_error(done, "unet has no encoder")


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_and_prints_how_to_resume(tmp_path, shared_dataset, signum, status):
    script = start(tmp_path, "--data_path", shared_dataset, "--epochs", 500, *TINY)
    script.wait_for("epoch   2/500")
    script.send_signal(signum)
    done = script.finish()
    said = done.stdout
    assert (done.returncode, done.stderr) == (status, "")
    content = torch.load(tmp_path / "saved_models/tiny_last.pth", weights_only=True)
    step, epoch = content["progress"]["step"], content["progress"]["epoch"]
    assert f"Stopped in epoch {epoch + 1} after step {step}" in said
    resume = said.strip().splitlines()[-1].removeprefix("To go on: python src/train.py ").split()
    assert resume == ["--model_name", "tiny", "--data_path", str(shared_dataset), "--resume"]
    # It was under way for 500 epochs: with --epochs it ends one further on.
    said = run_ok("train.py", *resume, "--epochs", 1, cwd=tmp_path)
    assert f"in epoch {epoch + 1} of {epoch + 1} after step {step}" in said
    assert len(rows(tmp_path / "logs/tiny_training_log.csv")) == epoch + 1


def weights(folder: Path, kind: str = "last") -> dict:
    return load_checkpoint(folder / f"saved_models/tiny_{kind}.pth").weights


def test_seed_fixes_everything_for_any_number_of_workers(tmp_path, shared_dataset):
    same = ("--data_path", shared_dataset, "--epochs", 1, "--split", "official", *TINY)
    same += ("--augment", "online", "--augment_uncertain", "--no-cache")  # which would start no workers
    results = []
    for i, flags in enumerate([("--num_workers", 3), (), ("--seed", 6)]):
        folder = tmp_path / str(i)
        folder.mkdir()
        run_ok("train.py", *same, *flags, cwd=folder)
        results.append(weights(folder))
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())
    assert not torch.equal(results[0]["head.weight"], results[2]["head.weight"])


def start(folder: Path, *args, script=SRC / "train.py", **options) -> Script:
    """Starts train.py, or what runs it changed, and waits until it is about to train."""
    process = Script(script, args, folder, **options)
    process.wait_for("Run  ")
    return process


def test_second_run_on_the_same_files_is_refused(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--epochs", 500, *TINY)
    first = start(tmp_path, *flags)
    try:
        done = run_script("train.py", *flags, cwd=tmp_path)
        assert_one_error(done, f"another run (process {first.pid} on", "tiny", "--save_dir")
    finally:
        first.send_signal(signal.SIGKILL)
        first.finish()
    run_ok("train.py", "--data_path", shared_dataset, "--epochs", 1, *TINY, cwd=tmp_path)  # the claim died with it


def test_second_run_on_the_same_log_folder_is_refused(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--epochs", 500, *TINY)
    first = start(tmp_path, *flags, "--save_dir", "a")
    try:
        assert_one_error(run_script("train.py", *flags, "--save_dir", "b", cwd=tmp_path), "another run", "logs")
    finally:
        first.send_signal(signal.SIGKILL)
        first.finish()


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


def test_new_rate_on_resume_scales_the_rest_of_the_cosine(tmp_path, shared_dataset):
    flags = ("train.py", "--data_path", shared_dataset)
    run_ok(*flags, "--epochs", 1, "--scheduler", "cosine", *TINY, cwd=tmp_path)
    run_ok(*flags, "--resume", "--epochs", 2, "--learning_rate", "1e-6", cwd=tmp_path)
    rates = [float(row["learning_rate"]) for row in log_rows(tmp_path)]
    assert rates[1] <= 1e-6
    assert rates[2] < rates[1]


def test_resume_command_is_quoted_and_keeps_the_device(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--epochs", 500, *TINY, "--save_dir", "my runs/$x", "--device", "cpu")
    process = start(tmp_path, *flags, "--num_workers", 1)
    process.send_signal(signal.SIGTERM)
    said = process.finish().stdout
    words = shlex.split(said.strip().splitlines()[-1].removeprefix("To go on: python src/train.py "))
    assert words[words.index("--save_dir") + 1] == "my runs/$x"
    assert "--device cpu --num_workers 1 --resume" in " ".join(words)


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


SAVED_IN_MID_EPOCH_STOPPED_IN_VALIDATION = """
import train
from runtime import cli
from runtime.errors import Interrupted
from training.loop import Trainer
from training.terms import masks

step = Trainer.train_batch

def saving(run, batch):
    if run.state.progress.step == 1:
        run.state.last_save = -1e9  # a save is due
    return step(run, batch)

def stopped(*args, **kwargs):
    raise Interrupted(15)

Trainer.train_batch, masks.validate = saving, stopped
cli.run(train.main)
"""


def test_epoch_metrics_survive_a_save_and_a_stop_in_validation(tmp_path, shared_dataset):
    flags = ["--data_path", str(shared_dataset), "--epochs", "1", *map(str, TINY)]
    for name in ("stopped", "whole"):
        (tmp_path / name).mkdir()
    done = Script(SAVED_IN_MID_EPOCH_STOPPED_IN_VALIDATION, flags, tmp_path / "stopped").finish()
    assert done.returncode == 143
    run_ok("train.py", "--data_path", shared_dataset, "--resume", cwd=tmp_path / "stopped")
    run_ok("train.py", *flags, cwd=tmp_path / "whole")
    figures = [
        {key: row[key] for key in row if key not in ("run_id", "seconds", "images_per_second")}
        for name in ("stopped", "whole")
        for row in log_rows(tmp_path / name)
    ]
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_torture_in_short(capsys, monkeypatch):
    monkeypatch.setattr(torture, "PYTHON", PYTHON)
    monkeypatch.setattr(torture, "KINDS", {"tiny": "--model_name tiny --image_size 96 --augment online"})
    short = "--kills 1 --workers 2 --epochs 1 --count 12 --seed 1"
    status = torture.main(short.split())
    *_, table, verdict = capsys.readouterr().out.strip().splitlines()
    row = json.loads(table)
    assert status == 0, row
    assert row["kills"] == 1
    assert verdict.startswith("1 kills survived")
    assert verdict.endswith(" 0 corrupt files or differences")
