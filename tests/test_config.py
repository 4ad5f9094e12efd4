"""Settings of a run, recipes, and what may change on resume."""

import dataclasses

import pytest
import torch

from data import names as data_names
from data.distortions import DISTORTIONS
from helpers import TINY, run_ok, same
from models import names
from models.attention import ATTENTION
from models.build import NETWORKS
from models.checkpoint import Checkpoint, TrainingState, load_checkpoint
from models.task import TASKS
from runtime.errors import CheckpointError
from runtime.options import is_valid, options_of
from stubs import make_checkpoint
from train import build_parser
from training import config as training_config
from training.config import RECIPES, TrainConfig
from training.losses import LOSSES
from training.resolve import new_config, resumed_config, settings_to_save


def test_defaults_are_valid_and_configs_are_frozen():
    for name, (made, default) in options_of(TrainConfig).items():
        assert is_valid(TrainConfig, name, default), name
        assert made.help
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 10**9),
        ("learning_rate", float("nan")),
        ("loss", None),
        ("augment", "twice"),
        pytest.param("patience", 10**5000, id="huge"),
        ("augment_uncertain", "yes"),
    ],
)
def test_settings_that_no_flag_could_give_are_refused(name, value, tmp_path):
    with pytest.raises(CheckpointError, match=f"setting {name} has an impossible value"):
        resumed_config({}, resumable(**{name: value}), tmp_path / "x.pth")


def test_setting_of_another_version_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="x.pth has other settings than this version"):
        resumed_config({}, resumable(tomorrow=1), tmp_path / "x.pth")


def resumable(**settings) -> Checkpoint:
    """A checkpoint of a run with these settings."""
    training = TrainingState(
        settings=settings_to_save(TrainConfig()) | settings,
        optimizer={},
        scaler={},
        random_state=torch.zeros(1),
        trained_weights={} if settings.get("ema") else None,
    )
    return make_checkpoint(model_name="resnet34_unet", training=training)


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
