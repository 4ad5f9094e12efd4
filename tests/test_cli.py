"""The command line of all scripts: spellings, errors in one line, exit statuses."""

import os
import signal
import subprocess
import sys

import pytest

import evaluate
import inference
from evaluation.config import EvalConfig, InferConfig
from helpers import PYTHON, SRC, TINY, Script, assert_one_error, run_ok, run_script
from models.checkpoint import load_checkpoint
from runtime import cli
from runtime.cli import Parser, StopRequest
from runtime.errors import Interrupted
from train import build_parser
from training.config import TrainConfig


@pytest.mark.parametrize("words", [["oxford_pet.py", "--data_path"], ["train.py", "--help"]])
def test_broken_pipe_exits_quietly(shared_dataset, tmp_path, words):
    helps = words[1] == "--help"
    command = [*PYTHON, str(SRC / words[0]), words[1], *([] if helps else [str(shared_dataset)])]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() in (0, 1)  # 0 where it is argparse that meets the broken pipe
    assert errors == ""


def test_long_path_is_one_error_line(tmp_path):
    assert_one_error(run_script("inference.py", "--model_path", "x" * 300, cwd=tmp_path), "x" * 300)


def test_mismatched_torchvision_is_explained(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(SRC / "evaluate.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert_one_error(done, "operator torchvision::nms does not exist", "pip install")


def test_spellings_of_both_reports_are_flags():
    report_a = "--data_path d --model_type resnet34_unet --epochs 30 --batch_size 32 --learning_rate 1e-4 --augment"
    report_b = "--data_path d --epochs 2 --batch_size 8 --learning_rate 1e-4 --model_name unet --resume"
    to_score = "--data_path d --model_path m.pth --model_type unet --batch_size 4"
    to_infer = "--data_path d --model m.pth --model_type unet --save_results"
    assert build_parser().parse_overrides(report_a.split())["augment"] == "bulk"
    assert build_parser().parse_overrides(report_b.split())["resume"] == ""
    config = EvalConfig(**evaluate.build_parser().parse_overrides(to_score.split()))
    assert (config.model_path, config.model_name, config.batch_size) == (["m.pth"], "unet", 4)
    config = InferConfig(**inference.build_parser().parse_overrides(to_infer.split()))
    assert (config.model_path, config.batch_size, config.save_results) == (["m.pth"], 1, True)
    config = TrainConfig(**build_parser().parse_overrides(["-e", "3", "-b", "4", "-lr", "1e-3"]))
    assert (config.epochs, config.batch_size, config.learning_rate) == (3, 4, 1e-3)


def test_hyphens_and_aliases_are_accepted():
    words = "--lr 0.1 -j 2 --batch-size=3 --no-augment-uncertain --data-path a-b_c"
    assert build_parser().parse_overrides(words.split()) == {
        "learning_rate": 0.1,
        "num_workers": 2,
        "batch_size": 3,
        "augment_uncertain": False,
        "data_path": "a-b_c",
    }
    assert build_parser().parse_overrides(["--workers", "1"]) == {"num_workers": 1}
    for config, name in ((EvalConfig, "report"), (InferConfig, "output_path")):
        parser = Parser("script.py", "", config)
        assert parser.parse_overrides(["--output-dir", "x", "--model", "y"]) == {name: "x", "model_path": ["y"]}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't keep to the limit")
def test_out_of_memory_names_the_flags_that_take_less(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--no-cache", *TINY, "--model_name", "resnet")
    flags += ("--image_size", 512, "--batch_size", 32)
    done = Script(SRC / "train.py", flags, tmp_path, limits={"RLIMIT_DATA": 3 * 2**30}).finish()
    assert_one_error(done, "out of memory", "--batch_size", "--accumulate 2", status=1)


@pytest.fixture
def handlers():
    """Puts the handlers of signals back after the test."""
    before = [(signum, signal.getsignal(signum)) for signum in cli.STOPPING]
    yield
    for signum, handler in before:
        signal.signal(signum, handler)


def test_patient_process_ignores_further_signals(handlers):
    stop = StopRequest(patient=True)
    for _ in range(3):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        stop.check()


@pytest.mark.skipif(not cli.HANGUP, reason="needs SIGHUP")
def test_second_hangup_changes_nothing_and_nohup_stays_in_force(handlers):
    stop = StopRequest()
    for _ in range(2):
        signal.raise_signal(signal.SIGHUP)
    with pytest.raises(Interrupted) as interrupted:
        stop.check()
    assert cli.explain(interrupted.value, "") == (129, "")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    StopRequest()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


NOTEBOOK = f"""
import io, runpy, sys

class OutStream(io.TextIOBase):  # as ipykernel's, without reconfigure
    def write(self, text):
        return sys.__stdout__.write(text)

sys.stdout = OutStream()
runpy.run_path({str(SRC / "evaluate.py")!r}, run_name="__main__")
"""


def test_scripts_run_in_notebooks(tmp_path, shared_dataset, model_flags):
    done = Script(NOTEBOOK, (*model_flags, "--data_path", shared_dataset), tmp_path).finish()
    assert (done.returncode, done.stderr) == (0, "")
    assert "TINY test Dice score" in done.stdout
    assert_one_error(Script(NOTEBOOK, ["--epochz"], tmp_path).finish(), "unrecognized")


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal")
def test_closed_terminal_saves_and_stops(tmp_path, shared_dataset):
    import pty

    flags = ["--data_path", str(shared_dataset), "--epochs", "500", "--num_workers", "0", *map(str, TINY)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(PYTHON[0], [*PYTHON, str(SRC / "train.py"), *flags])
    said = b""
    while b"epoch   2/" not in said:
        said += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
    assert load_checkpoint(tmp_path / "saved_models/tiny_last.pth").progress.epoch >= 2
    assert "epoch   " in run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=tmp_path)


def test_dead_worker_is_explained(dataset, tmp_path):
    code = f"""
import os, runpy
from data.view import View
parent, read = os.getpid(), View.read_at
View.read_at = lambda *args: read(*args) if os.getpid() == parent else os._exit(9)
runpy.run_path({str(SRC / "train.py")!r}, run_name="__main__")
"""
    flags = ("--data_path", str(dataset), "--num_workers", "1", "--no-cache", *map(str, TINY))
    done = Script(code, flags, tmp_path).finish()
    assert_one_error(done, "--num_workers 0", status=1)
