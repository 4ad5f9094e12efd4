"""Two processes at one job on the CPU, started by torch's launcher or, which is quicker, just as it would."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import PYTHON, SRC, TINY, Script, copy_run, expect_success, log_rows, run_ok
from models.checkpoint import load_checkpoint
from runtime.distributed import init_distributed

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", PYTHON[1]]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def two_ok(script: str, *args, cwd: Path) -> str:
    """Runs a script in two processes that must succeed; returns what they printed on stdout."""
    return expect_success(Script(SRC / script, args, cwd, processes=2).finish())


@pytest.fixture(scope="module")
def pair(tmp_path_factory, shared_dataset) -> tuple[Path, str]:
    """A folder where two processes have trained for two epochs, and what they printed."""
    folder = tmp_path_factory.mktemp("pair")
    flags = ("--data_path", shared_dataset, "--epochs", 2, "--augment", "online", "--ema", 0.9, *TINY)
    return folder, two_ok("train.py", *flags, cwd=folder)


def test_a_step_of_two_is_the_step_of_one(tmp_path):
    script = Path(__file__).with_name("one_step.py")  # 7 images: shares of 4 and 3, in one piece and in three
    figures, weights, everything, words, largest = json.loads(run_ok(script, 1, cwd=tmp_path))
    said = two_ok(script, 1, 3, cwd=tmp_path).splitlines()
    lines = [line for line in said if line and not line.startswith("[Gloo]")]  # which torch 2.10 prints
    assert len(lines) == 2  # the first alone prints
    for both in map(json.loads, lines):
        assert both[0] == pytest.approx(figures, rel=1e-5)
        for a, b in zip(weights, both[1]):
            assert torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-6)
        assert both[2] == everything == [0, 1, 2, 3, 4]
        assert both[3] == words == "process 0"
        assert (largest, both[4]) == ([0, 0], [1, 0])


def test_two_train_as_one_and_leave_no_trace(pair):
    folder, said = pair
    assert "2 processes of 1 threads" in said
    assert said.count("Run  ") == 1
    assert "32 train" in said
    table = log_rows(folder)
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert float(table[1]["train_loss"]) < float(table[0]["train_loss"])
    checkpoint = load_checkpoint(folder / "saved_models/tiny_last.pth")
    assert not [key for key in checkpoint.weights if key.startswith("module.")]
    assert checkpoint.training.optimizer["state"][0]["step"] == 8  # two epochs of 32 images in batches of 8


def test_two_validate_as_one_to_the_last_digit(pair, shared_dataset, tmp_path):
    folder, _ = pair
    flags = ("--data_path", shared_dataset, "--model_path", folder / "saved_models/tiny_last.pth")
    run_ok("evaluate.py", *flags, "--subset", "valid", "--json", "valid.json", cwd=tmp_path)
    logged = float(log_rows(folder)[-1]["val_dice"])
    assert json.loads((tmp_path / "valid.json").read_text())["dice"] == pytest.approx(logged, abs=5e-7)


@pytest.mark.parametrize("processes", [1, 2])
def test_one_goes_on_where_two_stopped_and_the_reverse(processes, request, shared_dataset, tmp_path):
    wanted = request.getfixturevalue  # each of the two takes its time, so only the one that is needed
    before, run = (wanted("pair")[0], run_ok) if processes == 1 else (wanted("trained"), two_ok)
    copy_run(before, tmp_path)
    said = run("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=tmp_path)
    assert "in epoch 3 of 3 after step 0" in said
    table = log_rows(tmp_path)
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert float(table[2]["train_loss"]) < float(table[1]["train_loss"])
    checkpoint = load_checkpoint(tmp_path / "saved_models/tiny_last.pth")
    assert checkpoint.training.optimizer["state"][0]["step"] == 12
    assert checkpoint.weights.keys() == load_checkpoint(before / "saved_models/tiny_last.pth").weights.keys()


@pytest.mark.parametrize("end", ["terminate all", "kill one"])
def test_a_stop_and_a_death_leave_a_state_to_go_on_from(end, shared_dataset, tmp_path):
    command = [*LAUNCH, str(SRC / "train.py"), "--data_path", str(shared_dataset), "--epochs", "500", *map(str, TINY)]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not process.stdout.readline().startswith("epoch   3"):
        assert process.poll() is None, process.stderr.read()
    if end == "kill one":
        os.kill(second_of(process.pid), signal.SIGKILL)
    else:
        process.terminate()
    said, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    progress = load_checkpoint(tmp_path / "saved_models/tiny_last.pth").progress
    stands = (progress.epoch + 1, progress.step)
    if end == "terminate all":
        stopped = re.search(r"Stopped in epoch (\d+) after step (\d+); saved", said)
        assert stopped, said + errors
        assert "torchrun --nproc_per_node=2 src/train.py" in said
        assert stands == tuple(map(int, stopped.groups()))
        assert not progress.step or progress.sums[1] == 8 * progress.step  # images of both
    assert progress.epoch >= 2
    said = run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=tmp_path)
    assert f"in epoch {stands[0]} of {stands[0]} after step {stands[1]}" in said


def second_of(launcher: int) -> int:
    """Process id of the second of a launcher's processes."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (second,) = [int(pid) for pid in children if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()]
    return second


def test_a_stray_variable_is_no_launcher(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with init_distributed(torch.device("cpu")) as team:
        assert team.size == 1


def test_an_error_of_all_is_said_once(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--batch_size", 1, *TINY)
    command = [*LAUNCH, str(SRC / "train.py"), *map(str, flags)]
    done = subprocess.run(command, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode != 0
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "steps of 1 image can't be shared by 2 processes" in error


def test_encoder_that_was_frozen_learns_in_two_processes(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--model_name", "efficientnet_lite0_unet", "--encoder_weights", "none")
    flags += ("--freeze_encoder", 1, "--image_size", 64)
    paths = []
    for more in (("--epochs", 1), ("--epochs", 1, "--resume"), ("--epochs", 1, "--resume")):
        two_ok("train.py", *flags, *more, cwd=tmp_path)
        paths.append(tmp_path / f"after_{len(paths)}.pth")
        shutil.copy(tmp_path / "saved_models/efficientnet_lite0_unet_last.pth", paths[-1])
    frozen, second, third = (load_checkpoint(path).weights["encoder.features.0.0.weight"] for path in paths)
    assert not torch.equal(frozen, second)
    assert not torch.equal(second, third)
    states = [load_checkpoint(path).training.optimizer["state"] for path in paths]
    assert len(states[0]) < len(states[1]) == len(states[2])  # Adam has met no gradient of the encoder before
