"""One definition per flag: a field of a config gives everything else."""

import dataclasses

import pytest

from evaluation.config import EvalConfig, InferConfig
from helpers import SRC, assert_one_error, run_script
from runtime.cli import Parser
from runtime.errors import CheckpointError, UsageError
from runtime.options import changeable, fixed, flag_table, fraction, is_valid, options_of
from train import build_parser
from training import config as training_config
from training.config import TrainConfig, check_settings, restore_config, saved_settings
from write_cli_docs import document


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extended(TrainConfig):
    """TrainConfig with flags added, one line each."""

    sharpness: float = fixed(0.5, "how sharp", fraction, metavar="S")
    patience: bool = changeable(False, "wait longer")


def test_a_flag_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(training_config, "TrainConfig", Extended)
    parser = Parser("train.py", "", Extended)
    assert parser.parse_overrides(["--sharpness", "0.7", "--patience"]) == {"sharpness": 0.7, "patience": True}
    assert "how sharp (default: 0.5)" in parser.format_help()
    assert "| `--sharpness S` | how sharp | 0.5 |" in flag_table(Extended)
    assert saved_settings()["sharpness"] == "fixed"
    assert saved_settings()["patience"] == "changeable"
    assert Extended().settings()["sharpness"] == 0.5
    monkeypatch.setitem(training_config.RECIPES, "strong", {"sharpness": 0.9})
    assert Extended.from_flags({"recipe": "strong"}).sharpness == 0.9
    check_settings({"sharpness": 0.7}, tmp_path)
    with pytest.raises(CheckpointError, match="sharpness has an impossible value"):
        check_settings({"sharpness": 1.5}, tmp_path)


def test_the_documentation_of_the_flags_is_up_to_date():
    assert (SRC.parent / "docs/cli.md").read_text() == document(), "run `python tools/write_cli_docs.py`"


def test_hyphens_and_aliases():
    words = "--lr 0.1 -j 2 --batch-size=3 --no-color-jitter --data-path a-b_c"
    assert build_parser().parse_overrides(words.split()) == {
        "learning_rate": 0.1,
        "num_workers": 2,
        "batch_size": 3,
        "color_jitter": False,
        "data_path": "a-b_c",
    }
    assert build_parser().parse_overrides(["--workers", "1"]) == {"num_workers": 1}
    for config in (EvalConfig, InferConfig):
        parser = Parser("script.py", "", config)
        assert parser.parse_overrides(["--output-dir", "x", "--model", "y"]) == {"output_path": "x", "model_path": "y"}


def test_defaults_are_valid_and_configs_are_frozen():
    for name, (made, default) in options_of(TrainConfig).items():
        assert is_valid(TrainConfig, name, default), name
        assert made.help
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 10**7),
        ("image_size", 256.0),
        ("image_size", True),
        ("batch_size", 0),
        ("batch_size", "8"),
        ("learning_rate", float("nan")),
        ("learning_rate", -1.0),
        ("learning_rate", 1),
        ("ema", 1.0),
        ("loss", "mse"),
        ("loss", None),
        ("augment", "twice"),
        ("augment", 3),
        ("color_jitter", 1),
        ("seed", 2**32),
        pytest.param("seed", 10**5000, id="huge"),
        ("model_name", ["unet"]),
        ("compile", "yes"),
    ],
)
def test_settings_that_no_flag_could_give_are_refused(name, value, tmp_path):
    with pytest.raises(CheckpointError, match=f"setting {name} has an impossible value"):
        check_settings({name: value}, tmp_path / "x.pth")


def test_a_setting_of_a_newer_version_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="a setting 'tomorrow' that this version does not know"):
        check_settings({"tomorrow": 1}, tmp_path / "x.pth")


def resumable(**settings) -> dict:
    config = dataclasses.replace(TrainConfig(), **settings)
    return {
        "settings": config.settings(),
        "progress": {},
        "optimizer": {},
        "scheduler": None,
        "random_state": {},
        "model": {"name": config.model_name, "config": {}},
        "preprocessing": {"image_size": config.image_size},
        "data": {"split": config.split, "seed": config.seed},
    }


def test_a_resumed_run_keeps_what_is_fixed_and_takes_what_may_change(tmp_path):
    content = resumable(batch_size=4, learning_rate=0.01, amp="bf16")
    config = restore_config({"learning_rate": 0.02, "epochs": 3, "data_path": "here"}, content, tmp_path)
    assert (config.batch_size, config.learning_rate, config.amp) == (4, 0.02, "bf16")
    assert (config.epochs, config.data_path) == (3, "here")
    with pytest.raises(UsageError, match=r"batch_size 4 \(now 8\)"):
        restore_config({"batch_size": 8}, content, tmp_path)
    del content["settings"]["mix"], content["settings"]["compile"]  # of an older version
    assert restore_config({}, content, tmp_path).mix == "none"
    with pytest.raises(UsageError, match=r"mix none \(now paste\)"):
        restore_config({"mix": "paste"}, content, tmp_path)


@pytest.mark.parametrize("name", ["model_name", "classes", "attention", "image_size", "split", "seed", "ema"])
def test_settings_that_contradict_the_content_are_refused(name, tmp_path):
    other = {"model_name": "unet", "classes": "trimap", "attention": "se", "image_size": 64, "split": "official"}
    content = resumable()
    content["settings"][name] = {**other, "seed": 7, "ema": 0.5}[name]
    with pytest.raises(CheckpointError, match=f"its setting {name} contradicts its content"):
        restore_config({}, content, tmp_path)


def test_an_unknown_flag_names_the_help(tmp_path):
    assert_one_error(run_script("train.py", "--epoch", 3, cwd=tmp_path), "--epoch", "python src/train.py --help")
