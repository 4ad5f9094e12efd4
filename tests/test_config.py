"""Settings of a run, recipes, what may change on resume, and one definition per flag."""

import argparse
import dataclasses

import pytest
import torch

from data import names as data_names
from data.distortions import DISTORTIONS
from helpers import SRC, TINY, run_ok, same
from models import names
from models.attention import ATTENTION
from models.build import NETWORKS
from models.checkpoint import TrainingState, load_checkpoint
from models.task import TASKS
from runtime.cli import Parser
from runtime.errors import CheckpointError
from runtime.options import fixed, fraction, is_valid, options_of, positive_number, whole_number
from stubs import make_checkpoint
from train import build_parser
from training import config as training_config
from training import resolve
from training.config import RECIPES, TrainConfig
from training.losses import LOSSES
from training.resolve import new_config, resumed_config, settings_to_save
from write_cli_docs import document, flag_table


def test_defaults_are_valid_and_configs_are_frozen():
    for name, (made, default) in options_of(TrainConfig).items():
        assert is_valid(TrainConfig, name, default), name
        assert made.help
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("batch_size", 10**9, "setting batch_size has an impossible value"),
        ("learning_rate", float("nan"), "setting learning_rate has an impossible value"),
        ("augment_uncertain", "yes", "setting augment_uncertain has an impossible value"),
        ("tomorrow", 1, "x.pth has other settings than this version"),
    ],
)
def test_settings_that_no_flag_could_give_are_refused(name, value, words, tmp_path):
    settings = settings_to_save(TrainConfig()) | {name: value}
    training = TrainingState(settings=settings, optimizer={}, scaler={}, random_state=torch.zeros(1))
    with pytest.raises(CheckpointError, match=words):
        resumed_config({}, make_checkpoint(model_name="resnet34_unet", training=training), tmp_path / "x.pth")


def test_recipes_hold_valid_settings():
    assert new_config({}, False, None) == TrainConfig()
    for values in (row for rows in RECIPES.values() for row in rows.values()):
        for name, value in values.items():
            assert is_valid(TrainConfig, name, value), name
            if name == "classes":
                continue  # set by pretrain.py, and no value of the flag
            words = [f"--{name}"] if value is True else [f"--{name}", str(value)]
            assert build_parser().parse_overrides(words) == {name: value}


def test_strong_recipe_knows_its_start():
    scratch, weights = (new_config({"recipe": "strong"}, pretrained, None) for pretrained in (False, True))
    assert (scratch.epochs, scratch.sizes) == (40, "128:4,160:8,192:7,224:8")
    assert (weights.epochs, weights.sizes) == (10, "fixed")
    assert scratch.decoder == weights.decoder == "stem"
    assert new_config({"recipe": "strong", "epochs": 3}, True, None).epochs == 3


def test_recipe_yields_to_flags_and_the_average_is_scored(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--recipe", "strong", "--scheduler", "none", "--attention", "se")
    said = run_ok("train.py", *flags, "--batch_size", 16, *TINY, "--epochs", 2, cwd=tmp_path)
    assert "recipe strong" in said
    assert "loss bce_dice, optimizer adamw" in said
    last = load_checkpoint(tmp_path / "saved_models/tiny_last.pth")
    settings = last.training.settings
    assert (settings["scheduler"], settings["learning_rate"], settings["augment"]) == ("none", 3e-2, "online")
    assert last.config == {"out_channels": 1, "attention": "se", "decoder": "plain", "in_channels": 3}
    assert last.training.updates == 4
    assert not same(last.weights, last.training.trained_weights)
    # What is validated, saved as best and evaluated is the average: the figures are the same.
    run_ok("evaluate.py", "--data_path", shared_dataset, "--subset", "valid", "--json", "e.json", cwd=tmp_path)
    best = load_checkpoint(tmp_path / "saved_models/tiny_best.pth").progress.best_score
    assert f'"dice": {best:.6f}'.rstrip("0") in (tmp_path / "e.json").read_text()


def test_names_of_flags_are_those_of_the_tables():
    assert list(NETWORKS) == names.MODELS
    assert tuple(ATTENTION) == names.ATTENTION
    assert tuple(TASKS) == names.TASKS
    assert tuple(DISTORTIONS) == data_names.DISTORTIONS
    assert tuple(LOSSES) == training_config.LOSSES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extended(TrainConfig):
    """TrainConfig with a flag added."""

    sharpness: float = fixed(0.5, "how sharp", fraction, metavar="S")


def test_flag_is_added_by_one_field(monkeypatch):
    for module in (training_config, resolve):
        monkeypatch.setattr(module, "TrainConfig", Extended)
    assert Parser("train.py", "", Extended).parse_overrides(["--sharpness", "0.7"]) == {"sharpness": 0.7}
    assert "| `--sharpness S` | how sharp | 0.5 |" in flag_table(Extended)
    assert settings_to_save(Extended())["sharpness"] == 0.5
    assert not any(is_valid(Extended, "sharpness", value) for value in (1.5, 1, "0.7", None, True, [0.7]))


def test_numbers_outside_of_their_limits_are_named():
    assert (whole_number(1, 5)("5"), positive_number("1e9")) == (5, 1e9)
    for parse, text, words in (
        (whole_number(1, 5), "6", "6 is not between 1 and 5"),
        (whole_number(1), "1" * 400, "is not between 1 and 1000000000"),
        (whole_number(1), "1.5", "'1.5' is no whole number"),
        (positive_number, "inf", "inf is not a number above 0"),
        (fraction, "nan", "nan is not between 0 and 1"),
        (fraction, "0", "0 is not between 0 and 1"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=words):
            parse(text)


def test_flag_documentation_is_up_to_date():
    assert (SRC.parent / "docs/cli.md").read_text() == document(), "run `python tools/write_cli_docs.py`"
