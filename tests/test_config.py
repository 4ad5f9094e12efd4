"""Settings of a run, recipes, and what may change on resume."""

import dataclasses

import pytest
import torch

from data import names as data_names
from data.distortions import DISTORTIONS
from helpers import TINY, run_ok
from models import names
from models.attention import ATTENTION
from models.build import NETWORKS
from models.checkpoint import load_checkpoint
from models.task import TASKS
from runtime.errors import CheckpointError, UsageError
from runtime.options import is_valid, options_of
from train import build_parser
from training import config as training_config
from training.config import RECIPES, TrainConfig
from training.losses import LOSSES
from training.resolve import check_settings, restore_config


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
        ("loss", "hinge"),
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
        check_settings({**TrainConfig().settings(), name: value}, tmp_path / "x.pth")


def test_setting_of_another_version_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="x.pth has other settings than this version"):
        check_settings({**TrainConfig().settings(), "tomorrow": 1}, tmp_path / "x.pth")


def resumable(**settings) -> dict:
    config = dataclasses.replace(TrainConfig(), **settings)
    return {
        "settings": config.settings(),
        "progress": {},
        "optimizer": {},
        "scheduler": None,
        "scaler": {},
        "random_state": {},
        "model": {"name": config.model_name, "config": {}},
        "preprocessing": config.preprocessing,
        "data": {"split": config.split, "seed": config.seed, "fold": None},
    }


def test_resume_keeps_fixed_settings_and_takes_changeable_ones(tmp_path):
    content = resumable(batch_size=4, learning_rate=0.01, amp="bf16")
    config = restore_config({"learning_rate": 0.02, "epochs": 3, "data_path": "here"}, content, tmp_path)
    assert (config.batch_size, config.learning_rate, config.amp) == (4, 0.02, "bf16")
    assert (config.epochs, config.data_path) == (3, "here")
    with pytest.raises(UsageError, match=r"batch_size 4 \(now 8\)"):
        restore_config({"batch_size": 8}, content, tmp_path)


@pytest.mark.parametrize(
    "name", ["model_name", "classes", "attention", "decoder", "image_size", "split", "seed", "ema"]
)
def test_settings_that_contradict_the_content_are_refused(name, tmp_path):
    other = {"model_name": "unet", "classes": "trimap", "attention": "se", "decoder": "stem", "split": "official"}
    content = resumable()
    content["settings"][name] = {**other, "image_size": 64, "seed": 7, "ema": 0.5}[name]
    with pytest.raises(CheckpointError, match=f"its setting {name} contradicts its content"):
        restore_config({}, content, tmp_path)


def test_recipes_hold_valid_settings():
    assert TrainConfig.from_flags({}) == TrainConfig()
    for values in (row for rows in RECIPES.values() for row in rows.values()):
        for name, value in values.items():
            assert is_valid(TrainConfig, name, value), name
            if name == "classes":
                continue  # set by pretrain.py, and no value of the flag
            words = [f"--{name}"] if value is True else [f"--{name}", str(value)]
            assert build_parser().parse_overrides(words) == {name: value}


def test_strong_recipe_knows_its_start():
    scratch, weights = (TrainConfig.from_flags({"recipe": "strong"}, pretrained) for pretrained in (False, True))
    assert (scratch.epochs, scratch.progressive) == (40, "auto")
    assert (weights.epochs, weights.progressive) == (10, None)
    assert scratch.decoder == weights.decoder == "stem"
    assert TrainConfig.from_flags({"recipe": "strong", "epochs": 3}, True).epochs == 3


def test_recipe_yields_to_flags_and_resumes_exactly(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--recipe", "strong", "--scheduler", "none", "--sizes", "vary")
    flags += ("--attention", "se", "--color_jitter", "--ema", 0.9, "--batch_size", 16, *TINY)
    contents = []
    for name, first in (("whole", 2), ("parts", 1)):
        folder = tmp_path / name
        folder.mkdir()
        said = run_ok("train.py", *flags, "--epochs", first, cwd=folder)
        if first == 1:
            run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=folder)
        contents.append(load_checkpoint(folder / "saved_models/tiny_last.pth"))
    whole, parts = contents
    assert "recipe strong: bce_dice, AdamW" in said
    assert "attention se" in said
    assert whole["settings"]["scheduler"] == "none"
    assert whole["settings"]["learning_rate"] == 3e-2
    assert whole["settings"]["augment"] == "online"
    assert whole["model"]["config"] == {"out_channels": 1, "attention": "se"}
    for kind in (lambda c: c["weights"], lambda c: c["average"]["trained_weights"]):
        assert all(torch.equal(value, kind(parts)[key]) for key, value in kind(whole).items())
    assert whole["average"]["updates"] == parts["average"]["updates"] == 4
    key = "head.weight"
    assert not torch.equal(whole["weights"][key], whole["average"]["trained_weights"][key])
    # What is validated, saved as best and evaluated is the average: the figures are the same.
    run_ok("evaluate.py", "--data_path", shared_dataset, "--subset", "valid", "--json", "e.json", cwd=folder)
    best = load_checkpoint(folder / "saved_models/tiny_best.pth")["progress"]["best_score"]
    assert f'"dice": {best:.6f}'.rstrip("0") in (folder / "e.json").read_text()


def test_names_of_flags_are_those_of_the_tables():
    assert list(NETWORKS) == names.MODELS
    assert tuple(ATTENTION) == names.ATTENTION
    assert tuple(TASKS) == names.TASKS
    assert tuple(DISTORTIONS) == data_names.DISTORTIONS
    assert tuple(LOSSES) == training_config.LOSSES
