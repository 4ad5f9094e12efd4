"""One definition per flag: a field of a config gives everything else."""

import argparse
import dataclasses

import pytest

from helpers import SRC
from runtime.cli import Parser
from runtime.options import changeable, fixed, fraction, is_valid, positive_number, whole_number
from training import config as training_config
from training import resolve
from training.config import TrainConfig
from training.resolve import new_config, saved_settings, settings_to_save
from write_cli_docs import document, flag_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extended(TrainConfig):
    """TrainConfig with flags added, one line each."""

    sharpness: float = fixed(0.5, "how sharp", fraction, metavar="S")
    patience: bool = changeable(False, "wait longer")


def test_flag_is_added_by_one_field(monkeypatch):
    for module in (training_config, resolve):
        monkeypatch.setattr(module, "TrainConfig", Extended)
    parser = Parser("train.py", "", Extended)
    assert parser.parse_overrides(["--sharpness", "0.7", "--patience"]) == {"sharpness": 0.7, "patience": True}
    assert "how sharp (default: 0.5)" in parser.format_help()
    assert "| `--sharpness S` | how sharp | 0.5 |" in flag_table(Extended)
    assert (saved_settings()["sharpness"], saved_settings()["patience"]) == ("fixed", "changeable")
    assert settings_to_save(Extended())["sharpness"] == 0.5
    monkeypatch.setitem(training_config.RECIPES, "strong", {"all": {"sharpness": 0.9}})
    assert new_config({"recipe": "strong"}, False, None).sharpness == 0.9
    assert is_valid(Extended, "sharpness", 0.7)
    assert not any(is_valid(Extended, "sharpness", value) for value in (1.5, 1, "0.7", None, True, [0.7]))
    assert not any(is_valid(Extended, "patience", value) for value in (0, "true", None))


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
