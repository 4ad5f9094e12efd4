"""Runs that are stopped, killed, doubled or out of disk: nothing is lost, and going on gives the same bits."""

import csv
import errno
import json
import os
import resource
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import torture
from helpers import PYTHON, SRC, TINY, assert_one_error, copy_run, make_dataset, run_ok, run_script
from models.checkpoint import load_checkpoint
from runtime import files
from runtime.errors import UsageError
from training.config import TrainConfig
from training.run_state import archive_previous_run, lock_run


def start(folder: Path, *args, program=(SRC / "train.py",), **options) -> subprocess.Popen:
    """Starts train.py, or what runs it changed, and waits until it is about to train."""
    process = subprocess.Popen(
        list(map(str, [*PYTHON, *program, *args])),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    while process.poll() is None and not process.stdout.readline().startswith("Run"):
        pass
    return process


def weights(folder: Path, kind: str = "last") -> dict:
    return load_checkpoint(folder / f"saved_models/tiny_{kind}.pth")["weights"]


def log_rows(folder: Path) -> list[dict]:
    with (folder / "logs/tiny_training_log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_seed_fixes_everything_and_the_number_of_workers_changes_nothing(tmp_path, shared_dataset):
    same = ("--data_path", shared_dataset, "--epochs", 1, "--split", "official", *TINY)
    same += ("--augment", "online", "--augment_uncertain", "--cache", "off")  # which would start no workers
    results = []
    for i, flags in enumerate([("--num_workers", 3, "--deterministic"), (), ("--seed", 6)]):
        folder = tmp_path / str(i)
        folder.mkdir()
        run_ok("train.py", *same, *flags, cwd=folder)
        results.append(weights(folder))
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())
    assert not torch.equal(results[0]["head.weight"], results[2]["head.weight"])


def test_a_second_run_on_the_same_files_does_not_start(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--epochs", 500, *TINY)
    first = start(tmp_path, *flags)
    try:
        done = run_script("train.py", *flags, cwd=tmp_path)
        assert_one_error(done, f"another run (process {first.pid} on", "tiny", "--save_dir")
    finally:
        first.kill()
        first.communicate()
    run_ok("train.py", "--data_path", shared_dataset, "--epochs", 1, *TINY, cwd=tmp_path)  # the claim died with it


def test_a_second_ctrl_c_leaves_at_once_with_files_intact(tmp_path, shared_dataset):
    run_ok("train.py", "--data_path", shared_dataset, "--epochs", 1, *TINY, cwd=tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved_models").glob("*.pth")}
    slow = (SRC.parent / "tools/slow_writes.py",)
    process = start(tmp_path, "--data_path", shared_dataset, "--resume", "--epochs", 500, program=slow)
    time.sleep(0.3)
    for _ in range(200):  # signals that arrive within one operation of torch count as one
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    for name in before:
        load_checkpoint(tmp_path / "saved_models" / name)


def test_saves_in_mid_epoch_by_the_clock(tmp_path):
    few = make_dataset(tmp_path / "few", count=20)
    flags = ("--data_path", few, "--epochs", 500, "--batch_size", 2, *TINY)
    process = start(tmp_path, *flags, "--checkpoint_minutes", "0.001")
    last = tmp_path / "saved_models/tiny_last.pth"
    deadline = time.monotonic() + 60
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    progress = load_checkpoint(last)["progress"]
    assert (progress["epoch"], progress["history"]) == (0, [])
    assert progress["step"] >= 1
    assert progress["sums"][2] == 2 * progress["step"]  # images so far
    said = run_ok("train.py", "--data_path", few, "--resume", "--epochs", 1, cwd=tmp_path)
    assert f"in epoch 1 of 1 after step {progress['step']}" in said


def test_a_full_disk_ends_with_one_line_and_the_old_checkpoint(tmp_path, trained, shared_dataset):
    copy_run(trained, tmp_path, "[lt]*")
    before = (tmp_path / "saved_models/tiny_last.pth").read_bytes()
    limit = 20_000  # bytes in a file: more than the log has, and less than a checkpoint

    process = start(
        tmp_path,
        *("--data_path", shared_dataset, "--resume", "--epochs", 1),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, errors = process.communicate(timeout=120)
    assert_one_error(
        subprocess.CompletedProcess([], process.returncode, "", errors), "can't write", ".pth", "--resume", status=1
    )
    assert (tmp_path / "saved_models/tiny_last.pth").read_bytes() == before
    names = {p.name for p in (tmp_path / "saved_models").iterdir()}
    assert names == {"tiny_last.pth", ".tiny.lock"}


def test_leftovers_of_a_kill_are_swept(tmp_path, shared_dataset):
    saved, logs = tmp_path / "saved_models", tmp_path / "logs"
    saved.mkdir()
    logs.mkdir()
    ours = [saved / ".tiny_last.pth.abc.tmp", saved / ".tiny_best.pth.link.tmp"]
    ours.append(logs / ".tiny_training_log.csv.abc.tmp")
    others = [saved / ".unet_last.pth.abc.tmp", logs / ".tiny_evaluation_log.csv.abc.tmp", saved / "mine.tmp"]
    for file in (*ours, *others):
        file.write_text("half")
    run_ok("train.py", "--data_path", shared_dataset, "--epochs", 1, *TINY, cwd=tmp_path)
    assert not any(file.exists() for file in ours)
    assert all(file.exists() for file in others)


@pytest.mark.parametrize("missing", [True, False])
def test_log_and_checkpoint_agree_after_a_kill_between_their_writes(tmp_path, trained, shared_dataset, missing):
    copy_run(trained, tmp_path, "[lt]*")
    log = tmp_path / "logs/tiny_training_log.csv"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:-1] if missing else [*lines, lines[-1].replace(",2,", ",3,", 1)]) + "\n")
    run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=tmp_path)
    assert [row["epoch"] for row in log_rows(tmp_path)] == ["1", "2", "3"]
    assert log.read_text().splitlines()[:3] == lines


def test_a_best_that_is_ahead_of_last_never_falls_back(tmp_path, trained, shared_dataset):
    # As after a kill between the two renames: best is from epoch 2, last from before it.
    best = torch.load(trained / "saved_models/tiny_best.pth", weights_only=True)
    copy_run(trained, tmp_path, "last*")
    best["progress"]["best_dice"], best["progress"]["best_epoch"] = 0.99, 2
    torch.save(best, tmp_path / "saved_models/tiny_best.pth")
    said = run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=tmp_path)
    assert "best valid Dice 0.9900 in epoch 2" in said
    assert load_checkpoint(tmp_path / "saved_models/tiny_best.pth")["progress"]["best_dice"] == 0.99


def test_a_damaged_last_is_named_and_others_are_offered(tmp_path, trained, shared_dataset):
    (tmp_path / "saved_models").mkdir()
    for file in (trained / "saved_models").glob("*.pth"):
        data = bytearray(file.read_bytes())
        if "last" in file.name:
            data[len(data) // 2] ^= 4
        (tmp_path / "saved_models" / file.name).write_bytes(data)
    done = run_script("train.py", "--data_path", shared_dataset, "--resume", cwd=tmp_path)
    assert_one_error(done, "tiny_last.pth is", "checksum", "there is tiny_best.pth")
    best = "saved_models/tiny_best.pth"
    said = run_ok("train.py", "--data_path", shared_dataset, "--resume", best, "--epochs", 1, cwd=tmp_path)
    assert f"from {best}" in said


def test_a_checkpoint_without_training_state_is_no_run_to_go_on_with(tmp_path, trained, shared_dataset):
    content = torch.load(trained / "saved_models/tiny_best.pth", weights_only=True)
    for key in ("optimizer", "progress", "settings"):
        del content[key]
    (tmp_path / "saved_models").mkdir()
    torch.save(content, tmp_path / "saved_models/tiny_best.pth")
    flags = ("--data_path", shared_dataset)
    done = run_script("train.py", *flags, "--resume", "saved_models/tiny_best.pth", cwd=tmp_path)
    assert_one_error(done, "no training state")
    run_ok("evaluate.py", *flags, cwd=tmp_path)  # but it can be scored


def test_going_back_to_an_older_state_keeps_the_newer_one(tmp_path, trained, shared_dataset):
    saved = copy_run(trained, tmp_path) / "saved_models"
    flags = ("train.py", "--data_path", shared_dataset)
    run_ok(*flags, "--resume", "--epochs", 1, "--save_every", 1, cwd=tmp_path)
    newer = (saved / "tiny_last.pth").read_bytes()
    log = (tmp_path / "logs/tiny_training_log.csv").read_bytes()
    run_id = log_rows(tmp_path)[0]["run_id"]
    run_ok(*flags, "--resume", "--epochs", 1, cwd=tmp_path)  # now at 4, with epoch_003 kept
    run_ok(*flags, "--resume", saved / "tiny_epoch_003.pth", "--epochs", 1, cwd=tmp_path)
    assert [row["epoch"] for row in log_rows(tmp_path)] == ["1", "2", "3", "4"]
    assert (saved / f"tiny_epoch_003_{run_id}.pth").read_bytes() == newer
    assert load_checkpoint(saved / f"tiny_last_{run_id}.pth")["progress"]["epoch"] == 4
    assert (saved / "tiny_best.pth").is_file()
    run_ok(*flags, "--epochs", 1, *TINY, cwd=tmp_path)  # the names are taken, so these get another one
    assert (saved / f"tiny_last_{run_id}-2.pth").is_file()
    assert (tmp_path / f"logs/tiny_training_log_{run_id}.csv").read_bytes().startswith(log)


def test_a_complete_run_touches_nothing(tmp_path, trained, shared_dataset):
    saved = copy_run(trained, tmp_path) / "saved_models"
    old = saved / "tiny_last_old.pth"
    os.link(saved / "tiny_last.pth", old)
    before = {p.name: p.read_bytes() for d in ("saved_models", "logs") for p in (tmp_path / d).glob("[!.]*")}
    said = run_ok("train.py", "--data_path", shared_dataset, "--resume", old, cwd=tmp_path)
    assert f"--resume {old} --epochs 5" in said
    assert {p.name: p.read_bytes() for d in ("saved_models", "logs") for p in (tmp_path / d).glob("[!.]*")} == before


@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_without_a_best_the_next_epoch_becomes_it(tmp_path, trained, shared_dataset, state):
    saved = copy_run(trained, tmp_path, "[lt]*") / "saved_models"
    if state == "damaged":
        (saved / "tiny_best.pth").write_bytes(b"damaged")
    run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=tmp_path)
    assert load_checkpoint(saved / "tiny_best.pth")["progress"]["best_epoch"] == 3


def test_a_run_that_fails_at_once_leaves_the_earlier_one_alone(tmp_path, trained, shared_dataset):
    saved = copy_run(trained, tmp_path) / "saved_models"
    before = {p.name: p.stat().st_ino for p in saved.glob("*.pth")}
    flags = ("--image_size", 64, "--encoder_weights", "none", "--learning_rate", "1e30")
    done = run_script("train.py", "--data_path", shared_dataset, *flags, cwd=tmp_path)
    assert_one_error(done, "the loss is", "start again with a smaller --learning_rate", status=1)
    assert {p.name: p.stat().st_ino for p in saved.glob("*.pth")} == before


def test_a_spoilt_log_of_an_earlier_run_is_renamed_like_any_other(tmp_path):
    log = tmp_path / "unet_training_log.csv"
    log.write_text("run_id,epoch\nsome,1,more\n")
    (moved,) = archive_previous_run(TrainConfig(save_dir=tmp_path, log_dir=tmp_path, model_name="unet"))
    assert moved.name.startswith("unet_training_log_unknown-")
    assert moved.is_file()
    assert not log.exists()


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "lockf", lockf)
    with pytest.raises(UsageError, match=r"\.unet\.lock can't be locked \(Function not implemented\)"):
        lock_run(TrainConfig(save_dir=tmp_path, log_dir=tmp_path, model_name="unet"))


def test_two_runs_with_one_log_folder_do_not_start(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--epochs", 500, *TINY)
    first = start(tmp_path, *flags, "--save_dir", "a")
    try:
        assert_one_error(run_script("train.py", *flags, "--save_dir", "b", cwd=tmp_path), "another run", "logs")
    finally:
        first.kill()
        first.communicate()


def test_a_new_rate_on_resume_is_the_top_of_the_rest_of_a_cosine(tmp_path, shared_dataset):
    flags = ("train.py", "--data_path", shared_dataset)
    run_ok(*flags, "--epochs", 1, "--scheduler", "cosine", *TINY, cwd=tmp_path)
    run_ok(*flags, "--resume", "--epochs", 2, "--learning_rate", "1e-6", cwd=tmp_path)
    rates = [float(row["learning_rate"]) for row in log_rows(tmp_path)]
    assert rates[1] <= 1e-6
    assert rates[2] < rates[1]


def test_the_line_to_resume_survives_spaces_and_keeps_the_device(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--epochs", 500, *TINY, "--save_dir", "my runs/$x", "--device", "cpu")
    process = start(tmp_path, *flags, "--num_workers", 1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    words = shlex.split(said.strip().splitlines()[-1].removeprefix("To go on: python src/train.py "))
    assert words[words.index("--save_dir") + 1] == "my runs/$x"
    assert "--device cpu --num_workers 1 --resume" in " ".join(words)


SLOW_TO_START = """
import runpy, time
from torch.utils.data._utils import signal_handling
set_up = signal_handling._set_worker_signal_handlers

def slow():  # in a process that reads images
    set_up()
    time.sleep(2)

signal_handling._set_worker_signal_handlers = slow
runpy.run_path({src!r} + "/train.py", run_name="__main__")
"""


def test_a_signal_to_the_whole_job_finds_workers_that_are_just_starting(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--epochs", 500, "--cache", "off", "--num_workers", 2, *TINY)
    slow = ("-c", SLOW_TO_START.format(src=str(SRC)))
    process = start(tmp_path, *flags, program=slow, start_new_session=True)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGTERM)  # which reaches every process of the job
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "")
    assert "Stopped in epoch 1" in said


def test_torture_in_short(capsys, monkeypatch):
    monkeypatch.setattr(torture, "PYTHON", PYTHON)
    short = "--kills 2 --models tiny --workers 2 --epochs 2 --count 20 --seed 1"
    status = torture.main(short.split())
    *_, table, verdict = capsys.readouterr().out.strip().splitlines()
    row = json.loads(table)
    assert status == 0, row
    assert row["kills"] == 2
    assert verdict.startswith("2 kills survived")
    assert verdict.endswith(" 0 corrupt files or differences")


SAVED_IN_MID_EPOCH_STOPPED_IN_VALIDATION = """
import train
from runtime import cli
from runtime.errors import Interrupted
from training import trainer

step = trainer.Trainer.train_batch

def saving(run, batch):
    if run.state.progress.step == 1:
        run.state.last_save = -1e9  # a save is due
    return step(run, batch)

def stopped(*args, **kwargs):
    raise Interrupted(15)

trainer.Trainer.train_batch, trainer.validate = saving, stopped
cli.run(train.main)
"""


def test_figures_of_an_epoch_survive_a_save_in_it_and_a_stop_in_validation(tmp_path, shared_dataset):
    flags = ["--data_path", str(shared_dataset), "--epochs", "1", *map(str, TINY)]
    code = SAVED_IN_MID_EPOCH_STOPPED_IN_VALIDATION
    (tmp_path / "stopped").mkdir()
    (tmp_path / "whole").mkdir()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*PYTHON, "-c", code, *flags], cwd=tmp_path / "stopped", env=env, check=False)
    assert done.returncode == 143
    run_ok("train.py", "--data_path", shared_dataset, "--resume", cwd=tmp_path / "stopped")
    run_ok("train.py", *flags, cwd=tmp_path / "whole")
    figures = [
        {key: row[key] for key in row if key not in ("run_id", "seconds", "images_per_second")}
        for name in ("stopped", "whole")
        for row in log_rows(tmp_path / name)
    ]
    assert figures[0] == figures[1]


def test_one_of_several_processes_is_patient_with_signals():
    from runtime.cli import StopRequest
    from runtime.errors import Interrupted

    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        stop = StopRequest(patient=True)
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            stop.check()
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
