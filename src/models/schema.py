"""What a checkpoint may hold: structure, types, sizes and names, checked before anything is built from a value.

A rule is a `Rule`, or a dict of rules by key, or one of `Maybe`, `ListOf` and `DictOf`. A new entry of a checkpoint
is a line in `schema`; settings of a run are checked by training/config.py.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from models.attention import ATTENTION
from models.task import MAX_CLASSES, are_class_names

MAX_COUNT = 10**7  # epochs, list entries
LOG_NUMBERS = (  # of the columns of the training log
    *("epoch", "train_loss", "train_dice", "val_loss", "val_dice"),
    *("learning_rate", "seconds", "images_per_second"),
)


UNLABELED_NUMBERS = ("confident_share", "pseudo_dice")  # of runs with images that have no masks


class Rule(NamedTuple):
    """What a value must be, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


class Maybe(NamedTuple):
    """An entry that may be missing or None."""

    rule: Any


class ListOf(NamedTuple):
    """A list of values of one kind."""

    rule: Any


class DictOf(NamedTuple):
    """A dict with free keys: rules of key and value."""

    key: Any
    value: Any


def whole(low: int, high: int) -> Rule:
    """A whole number from low to high."""
    return Rule(f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def real(low: float, high: float) -> Rule:
    """A number from low to high."""
    return Rule(f"a number from {low} to {high}", lambda v: type(v) in (int, float) and low <= v <= high)


def text(pattern: str, expected: str) -> Rule:
    """A string that matches a regular expression."""
    return Rule(expected, lambda v: type(v) is str and re.fullmatch(pattern, v, re.DOTALL) is not None)


def one_of(*values) -> Rule:
    """One of these values."""
    return Rule(f"one of {', '.join(map(str, values))}", lambda v: type(v) in map(type, values) and v in values)


def tensor(expected: str = "a tensor", holds: Callable[[torch.Tensor], bool] = lambda t: True) -> Rule:
    """A tensor whose values are finite and all lie in the file: none is repeated to make it larger than that."""

    def sound(v) -> bool:
        return (
            isinstance(v, torch.Tensor)
            and v.layout == torch.strided
            and v.device.type == "cpu"
            and v.untyped_storage().nbytes() >= v.numel() * v.element_size()
            and holds(v)
            and (not v.is_floating_point() or bool(torch.isfinite(v).all()))
        )

    return Rule(f"{expected} of finite values", sound)


def _is_fold(value) -> bool:
    return type(value) is list and list(map(type, value)) == [int, int] and 1 <= value[0] <= value[1] <= 100


def _is_window(value) -> bool:
    return type(value) is list and list(map(type, value)) == [float, float] and 0 <= value[0] < value[1] <= 100


NUMBER = Rule("a number", lambda v: type(v) in (int, float) and (type(v) is float or abs(v) < 1 << 63))
PLAIN = Rule(
    "a plain value",
    lambda v: (
        v is None
        or type(v) in (bool, str)
        or NUMBER.holds(v)
        or (type(v) in (list, tuple) and len(v) <= 100 and all(x is None or NUMBER.holds(x) for x in v))
    ),
)
SHA256 = text("[0-9a-f]{64}", "a SHA-256")
RUN_ID = text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "a run id of letters, digits, dots and dashes")
LABEL = Rule("a line of text", lambda v: type(v) is str and v.isprintable() and len(v) <= 500)
NAME = Rule("the name of an image", lambda v: type(v) is str and 0 < len(v) <= 1000)
KEY = text(r"[A-Za-z0-9_.]{1,300}", "a name of letters, digits and dots")
WEIGHTS = DictOf(KEY, tensor("a tensor", lambda t: t.is_floating_point() or t.dtype == torch.int64))

HISTORY_ROW = {"run_id": RUN_ID, **dict.fromkeys(LOG_NUMBERS, NUMBER)}
HISTORY_ROW |= dict.fromkeys(("val_loss", "val_dice"), Maybe(NUMBER))  # of epochs without validation
HISTORY_ROW |= dict.fromkeys(UNLABELED_NUMBERS, Maybe(NUMBER))
PROGRESS = {
    "run_id": RUN_ID,
    "planned_epochs": whole(1, MAX_COUNT),
    "epoch": Maybe(whole(0, MAX_COUNT)),
    "step": Maybe(whole(0, MAX_COUNT)),
    "sums": Maybe(tensor("three or six numbers", lambda t: t.is_floating_point() and t.shape in ((3,), (6,)))),
    "seconds": Maybe(real(0, 1e12)),
    "best_dice": real(-1, 1),
    "best_epoch": whole(0, MAX_COUNT),
    "history": Maybe(ListOf(HISTORY_ROW)),
    "resumed": Maybe(ListOf(whole(0, MAX_COUNT))),
    "patient_from": Maybe(whole(0, MAX_COUNT)),
}


def schema(model_names) -> dict:
    """The rules of a whole checkpoint."""
    return {
        "format": LABEL,
        "format_version": Maybe(whole(1, 1000)),
        "model": {
            "name": one_of(*model_names),
            "config": {
                "out_channels": Maybe(one_of(0, 1, 3)),
                "classes": Maybe(
                    Rule(f"2 to {MAX_CLASSES} names of classes", lambda v: type(v) is list and are_class_names(v))
                ),
                "attention": Maybe(one_of(*ATTENTION)),
                "decoder": Maybe(one_of("plain", "stem")),
                "in_channels": Maybe(whole(1, 100)),
            },
        },
        "weights": WEIGHTS,
        "average": Maybe({"updates": whole(0, 10**12), "trained_weights": WEIGHTS}),
        "preprocessing": {
            "image_size": whole(16, 4096),
            "resize": Maybe(one_of("square", "keep")),
            "channels": Maybe(whole(1, 100)),
            "window": Maybe(Rule("two percentiles", _is_window)),
        },
        "data": {
            "split": one_of("80-10-10", "official"),
            "seed": whole(0, 2**32 - 1),
            "dealing": Maybe(one_of("fitting")),  # of groups
            "copies": Maybe(one_of("near")),  # which copies `80-10-10` keeps in one part; of old: byte for byte equal
            "fingerprints": DictOf(one_of("train", "valid", "test"), SHA256),
            "groups": Maybe(DictOf(NAME, NAME)),
            "fold": Maybe(Rule("two numbers, I of K", _is_fold)),
            "train_names": ListOf(NAME),
            "seen_names": Maybe(ListOf(NAME)),
            "teacher": Maybe(SHA256),
            "unlabeled": Maybe(SHA256),
        },
        "encoder_start": Rule("a text of at most 500 letters", lambda v: type(v) is str and len(v) <= 500),
        "settings": Maybe(DictOf(KEY, PLAIN)),
        "progress": Maybe(PROGRESS),
        "optimizer": Maybe(
            {
                "state": DictOf(whole(0, MAX_COUNT), DictOf(KEY, tensor())),
                "param_groups": ListOf(DictOf(KEY, Rule("a plain value", lambda v: PLAIN.holds(v) or type(v) is list))),
            }
        ),
        "scheduler": Maybe(DictOf(KEY, PLAIN)),
        "scaler": Maybe(DictOf(KEY, NUMBER)),
        "random_state": Maybe(
            tensor("bytes", lambda t: t.dtype == torch.uint8 and t.shape == torch.get_rng_state().shape)
        ),
    }


def find_problem(value, rule, where: str = "") -> str | None:
    """What is wrong with a value, in words; None where the rule holds. Nothing large is copied."""
    if isinstance(rule, Maybe):
        return None if value is None else find_problem(value, rule.rule, where)
    if isinstance(rule, Rule):
        return None if rule.holds(value) else f"{where} is {_show(value)}, not {rule.expected}"
    if isinstance(rule, ListOf):
        if type(value) is not list or len(value) > MAX_COUNT:
            return f"{where} is {_show(value)}, not a list of at most {MAX_COUNT} values"
        return next(filter(None, (find_problem(v, rule.rule, f"{where}[{i}]") for i, v in enumerate(value))), None)
    # An OrderedDict may carry attributes, which could stand in for its methods.
    plain = type(value) is dict or (isinstance(value, dict) and vars(value).keys() <= {"_metadata"})
    if not plain or len(value) > MAX_COUNT:
        return f"{where or 'it'} is {_show(value)}, not a plain dict"
    if isinstance(rule, DictOf):
        found = (
            find_problem(k, rule.key, f"a key of {where}") or find_problem(v, rule.value, f"{where}.{k}".lstrip("."))
            for k, v in value.items()
        )
        return next(filter(None, found), None)
    unknown = [key for key in value if key not in rule]
    if unknown:
        return f"{where or 'it'} has an unknown entry {_show(unknown[0])}"
    lacking = [key for key in rule if key not in value and not isinstance(rule[key], Maybe)]
    if lacking:
        return f"{where or 'it'} lacks {', '.join(lacking)}"
    return next(filter(None, (find_problem(v, rule[k], f"{where}.{k}".lstrip(".")) for k, v in value.items())), None)


def _show(value) -> str:
    if type(value) is str:
        return repr(value if len(value) <= 40 else f"{value[:40]}...")
    if type(value) is float or (type(value) is int and abs(value) < 1 << 63) or value is None:
        return repr(value)
    return f"a {type(value).__name__}"


def adopt_plain(saved, fresh: dict, what: str) -> dict:
    """The values of `saved` for the keys of `fresh`, the state of an object just made.

    Keys that are missing keep their fresh value, unknown ones are dropped: both come of other versions of torch.

    Raises:
        ValueError: a value is of another kind than the fresh one.
    """

    def kind(value):
        if isinstance(value, (list, tuple)):
            return "list", [kind(x) for x in value]
        return type(value)

    for key in fresh.keys() & saved.keys():
        value, before = saved[key], fresh[key]
        sound = kind(value) == kind(before)
        if sound and type(value) is int:
            sound = -1 <= value < 1 << 31
        elif sound and type(value) is float:
            sound = math.isfinite(value) or not math.isfinite(before)
        if not sound:
            raise ValueError(f"{what}.{key} is {_show(value)}")
    return {key: saved.get(key, value) for key, value in fresh.items()}
