"""Checkpoints with wrong entries: each is refused in one line, before memory is taken."""

import copy
import subprocess

import pytest
import torch

from helpers import SRC, Script, assert_one_error, copy_run, run_script
from models.checkpoint import load_checkpoint
from models.schema import FIELDS, find_problem
from runtime.errors import CheckpointError
from training.config import TrainConfig
from training.resolve import restore_config
from training.state import start_progress


@pytest.fixture(scope="module")
def content(trained) -> dict:
    """A real checkpoint."""
    return load_checkpoint(trained / "saved_models/tiny_last.pth")


def test_a_real_checkpoint_follows_the_rules(content):
    assert find_problem(content) is None
    restore_config({}, content, "last.pth")


def changed(content: dict, path: tuple, value) -> dict:
    """A copy of a checkpoint with one entry changed; tensors are shared."""
    made = copy.copy(content)
    place = made
    for key in path[:-1]:
        place[key] = copy.copy(place[key])
        place = place[key]
    place[path[-1]] = value
    return made


@pytest.mark.parametrize("path", [path for path, test in FIELDS.items() if not test(None)])
def test_every_missing_entry_is_named(content, path):
    assert find_problem(changed(content, tuple(path.split(".")), None)) == f"{path} is missing"


HUGE = 10**18


WRONG = {
    "object": object(),
    "nested": [[["x"]]],
    "number": -1.5e13,
    "nan": float("nan"),
    "text": "a/../b\n" * 200,
    "huge": HUGE,
}


SECTIONS = {path.split(".")[0] for path in FIELDS}


@pytest.mark.parametrize("path", sorted(SECTIONS | FIELDS.keys()))
@pytest.mark.parametrize("kind", WRONG)
def test_every_entry_of_a_wrong_kind_is_refused(content, path, kind):
    problem = find_problem(changed(content, tuple(path.split(".")), WRONG[kind]))
    assert problem
    assert path in problem
    assert "\n" not in problem


def small(*shape, dtype=torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


HOSTILE = {
    "weights repeated from one number": (("weights", "head.bias"), small(1).expand(10**6, 10**6)),
    "weights with a hole": (("weights", "head.bias"), torch.tensor([float("nan")])),
    "infinite weights": (("weights", "head.bias"), torch.tensor([float("inf")])),
    "weights that are numbers": (("weights", "head.bias"), 1.0),
    "weights of complex numbers": (("weights", "head.bias"), small(1, dtype=torch.complex64)),
    "sparse weights": (("weights", "head.bias"), small(1).to_sparse()),
    "a weight without a name": (("weights", 7), small(1)),
    "a name with a line break": (("weights", "a\nb"), small(1)),
    "an image of 10 million pixels a side": (("preprocessing", "image_size"), 10**7),
    "an image of no pixels": (("preprocessing", "image_size"), 0),
    "an image size that is true": (("preprocessing", "image_size"), True),
    "a billion channels": (("model", "config", "out_channels"), 10**9),
    "two channels": (("model", "config", "out_channels"), 2),
    "an unknown network": (("model", "name"), "segnet"),
    "a network by its path": (("model", "name"), "../unet"),
    "an unknown attention": (("model", "config", "attention"), "more"),
    "no attention": (("model", "config", "attention"), None),
    "an unknown decoder": (("model", "config", "decoder"), "more"),
    "an argument of the constructor": (("model", "config", "device"), "meta"),
    "a run id with a slash": (("progress", "run_id"), "a/b"),
    "a run id of two dots": (("progress", "run_id"), ".."),
    "a hidden run id": (("progress", "run_id"), ".ssh"),
    "a run id with a zero": (("progress", "run_id"), "a\0b"),
    "a run id with a line break": (("progress", "run_id"), "a\nb"),
    "an empty run id": (("progress", "run_id"), ""),
    "a long run id": (("progress", "run_id"), "a" * 101),
    "a run id that is a number": (("progress", "run_id"), 7),
    "epochs below zero": (("progress", "epoch"), -1),
    "more epochs than there are atoms": (("progress", "planned_epochs"), 10**80),
    "half an epoch": (("progress", "epoch"), 0.5),
    "a step of the size of a number": (("progress", "step"), HUGE),
    "sums of another shape": (("progress", "sums"), small(2, 2, dtype=torch.float64)),
    "sums of whole numbers": (("progress", "sums"), small(3, dtype=torch.int64)),
    "a history without epochs": (("progress", "history"), [{"run_id": "r", "val_dice": 0.5}]),
    "a best Dice above one": (("progress", "best_score"), 1.5),
    "a best Dice that is not a number": (("progress", "best_score"), float("nan")),
    "terms that are a list": (("terms",), ["masks"]),
    "a term that is a word": (("terms", "masks"), "masks"),
    "a term of tensors": (("terms", "masks"), {"fingerprint": small(3)}),
    "sums without a number of images": (("progress", "sums"), small(1, dtype=torch.float64)),
    "a history that is a dict": (("progress", "history"), {}),
    "a history of words": (("progress", "history"), ["epoch 1"]),
    "a history with a command": (("progress", "history"), [{"run_id": "=cmd|' /C calc'!A0"}]),
    "resumed before it began": (("progress", "resumed"), [-3]),
    "an encoder start of a megabyte": (("encoder_start",), "x" * 10**6),
    "a split that does not exist": (("data", "split"), "all"),
    "a seed below zero": (("data", "seed"), -1),
    "a seed above 32 bits": (("data", "seed"), 2**32),
    "a fingerprint of another kind": (("data", "fingerprints", "train"), "abc"),
    "a fingerprint of another part": (("data", "fingerprints", "all"), "0" * 64),
    "names that are one word": (("data", "train_names"), "abc"),
    "names that are numbers": (("data", "train_names"), [1, 2]),
    "a nameless image": (("data", "train_names"), [""]),
    "a random state that is too short": (("random_state",), small(3, dtype=torch.uint8)),
    "a random state of floats": (("random_state",), small(5056)),
    "an optimizer without groups": (("optimizer", "param_groups"), {}),
    "an optimizer with groups of words": (("optimizer", "param_groups"), ["adam"]),
    "an optimizer whose state is a list": (("optimizer", "state"), []),
    "an optimizer that repeats one number": (("optimizer", "state", 0, "exp_avg"), small(1).expand(10**6, 10**6)),
    "a momentum that is not a number": (("optimizer", "state", 0, "exp_avg"), torch.tensor([float("nan")])),
    "a scheduler with a function's name": (("scheduler", "step"), [["os", "system"]]),
    "a scaler of words": (("scaler", "scale"), "large"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_values_are_refused_in_one_line(content, name):
    path, value = HOSTILE[name]
    problem = find_problem(changed(content, path, value))
    assert problem
    assert "\n" not in problem
    assert "\x1b" not in problem
    assert len(problem) < 300


STATES = {
    "another number of parameters": (("optimizer", "param_groups"), lambda v: [{**v[0], "params": [0, 1]}]),
    "no learning rate but a word": (("optimizer", "param_groups"), lambda v: [{**v[0], "lr": "fast"}]),
    "an infinite learning rate": (("optimizer", "param_groups"), lambda v: [{**v[0], "lr": float("inf")}]),
    "a momentum of another shape": (("optimizer", "state", 0), lambda v: {**v, "exp_avg": torch.zeros(3)}),
    "a state without momentum": (("optimizer", "state", 0), lambda v: {"step": v["step"]}),
    "a state of a parameter too many": (("optimizer", "state"), lambda v: {**v, 10**6: v[0]}),
    "a scheduler's number that is too large": (("scheduler", "num_bad_epochs"), lambda v: 1 << 40),
    "a scheduler's number that is a list": (("scheduler", "num_bad_epochs"), lambda v: [1]),
    "a scheduler's mode that is a number": (("scheduler", "mode"), lambda v: 1),
    "a random state of zeros": (("random_state",), torch.zeros_like),
    "weights of another network": (("weights",), lambda v: {"a": torch.zeros(3)}),
}


@pytest.fixture(scope="module")
def fresh_state(tmp_path_factory):
    from data.loader import Batches
    from runtime.device import Precision
    from training.setup import Source, build_state

    config = TrainConfig(image_size=64, encoder_weights="none", save_dir=str(tmp_path_factory.mktemp("none")))
    batches = Batches(range(8), 8, 0)
    return build_state(config, False, Precision(torch.device("cpu")), batches, Source(), {}, None)


@pytest.mark.parametrize("name", STATES)
def test_states_that_do_not_fit_the_run_are_refused_in_one_line(content, fresh_state, tmp_path, name):
    path, change = STATES[name]
    value = content
    for key in path:
        value = value[key]
    hostile = changed(content, path, change(value))
    assert find_problem(hostile) is None  # the structure is right
    with pytest.raises(CheckpointError, match=r"x\.pth can't be resumed") as caught:
        fresh_state.restore(hostile, tmp_path / "x.pth")
    assert "\n" not in str(caught.value)


def save_with(content: dict, path: tuple, value, file) -> None:
    torch.save(changed(content, path, value), file)


def limited(script, *args, cwd) -> subprocess.CompletedProcess:
    """Runs a script that may not allocate more than 2 GB, most of which torch's libraries take."""
    return Script(script, args, cwd, limits={"RLIMIT_DATA": 2 << 30}).finish()


@pytest.mark.parametrize(
    ("script", "path", "value", "words"),
    [
        ("evaluate.py", ("preprocessing", "image_size"), 10**7, "preprocessing.image_size has an impossible value"),
        ("inference.py", ("weights", "head.bias"), torch.zeros(1).expand(10**6, 10**6), "weights has"),
        ("export.py", ("model", "config", "out_channels"), 10**9, "model.config has"),
    ],
)
def test_scripts_refuse_hostile_files_before_memory_is_taken(
    content, shared_dataset, tmp_path, script, path, value, words
):
    save_with(content, path, value, tmp_path / "x.pth")
    flags = ("--model_path", "x.pth", "--data_path", shared_dataset)
    assert_one_error(limited(SRC / script, *flags, cwd=tmp_path), "x.pth is malformed", words)


def test_a_run_id_with_a_slash_harms_nothing(trained, content, shared_dataset, tmp_path):
    (tmp_path / "saved_models").mkdir()
    save_with(content, ("progress", "run_id"), "../../elsewhere/x", tmp_path / "saved_models/tiny_last.pth")
    flags = ("--data_path", shared_dataset, "--image_size", 64, "--encoder_weights", "none", "--epochs", 1)
    assert_one_error(run_script("train.py", *flags, "--resume", cwd=tmp_path), "progress.run_id")
    done = run_script("train.py", *flags, cwd=tmp_path)  # a new run moves the file away under a name of its own
    assert done.returncode == 0, done.stderr
    names = {p.name for p in (tmp_path / "saved_models").glob("[!.]*")}
    assert len(names) == 3
    assert any(name.startswith("tiny_last_unknown-") for name in names)
    assert not (tmp_path / "elsewhere").exists()


def test_settings_that_would_take_all_memory_are_refused_on_resume(trained, content, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    file = folder / "saved_models/tiny_last.pth"
    file.unlink()
    save_with(content, ("settings", "batch_size"), 10**9, file)
    done = limited(SRC / "train.py", "--data_path", shared_dataset, "--resume", cwd=folder)
    assert_one_error(done, "its setting batch_size has an impossible value")


@pytest.mark.parametrize(("step", "sums"), [(5, [1.0, 8.0, 8.0, 1.0]), (2, None), (2, [0.0, 0.0, 0.0, 0.0])])
def test_a_run_that_stands_where_it_can_not_is_refused(content, tmp_path, step, sums):
    progress = {**content["progress"], "step": step, "sums": None if sums is None else torch.tensor(sums)}
    with pytest.raises(CheckpointError, match=f"step {step} of 4"):
        start_progress(TrainConfig(), False, 4, {**content, "progress": progress}, tmp_path / "x.pth")


def test_the_name_of_an_encoder_file_is_shown_in_one_line(content, tmp_path):
    save_with(content, ("encoder_start",), "from a\nb\x1b[2J.pth", tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth")["encoder_start"] == "from a?b?[2J.pth"
