"""One definition per flag: a field of a config gives everything else."""

import dataclasses

import pytest

from helpers import SRC
from runtime.cli import Parser
from runtime.errors import CheckpointError
from runtime.options import changeable, fixed, flag_table, fraction
from training import config as training_config
from training.config import TrainConfig, check_settings, saved_settings
from write_cli_docs import document


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extended(TrainConfig):
    """TrainConfig with flags added, one line each."""

    sharpness: float = fixed(0.5, "how sharp", fraction, metavar="S")
    patience: bool = changeable(False, "wait longer")


def test_flag_is_added_by_one_field(monkeypatch, tmp_path):
    monkeypatch.setattr(training_config, "TrainConfig", Extended)
    parser = Parser("train.py", "", Extended)
    assert parser.parse_overrides(["--sharpness", "0.7", "--patience"]) == {"sharpness": 0.7, "patience": True}
    assert "how sharp (default: 0.5)" in parser.format_help()
    assert "| `--sharpness S` | how sharp | 0.5 |" in flag_table(Extended)
    assert saved_settings()["sharpness"] == "fixed"
    assert saved_settings()["patience"] == "changeable"
    assert Extended().settings()["sharpness"] == 0.5
    monkeypatch.setitem(training_config.RECIPES, "strong", {"all": {"sharpness": 0.9}})
    assert Extended.from_flags({"recipe": "strong"}).sharpness == 0.9
    check_settings({**Extended().settings(), "sharpness": 0.7}, tmp_path)
    with pytest.raises(CheckpointError, match="sharpness has an impossible value"):
        check_settings({**Extended().settings(), "sharpness": 1.5}, tmp_path)


def test_flag_documentation_is_up_to_date():
    assert (SRC.parent / "docs/cli.md").read_text() == document(), "run `python tools/write_cli_docs.py`"
