"""What a checkpoint may hold: types and sizes, checked before anything is built from a value.

A new entry of a checkpoint is a line in FIELDS; the settings of a run are checked by training/config.py.
"""

import re
from collections.abc import Callable

import torch

from models.names import ATTENTION, DECODERS, MODELS, are_class_names

MAX_COUNT = 10**7  # epochs, list entries
Test = Callable[[object], bool]


def whole(low: int, high: int) -> Test:
    """A whole number from low to high."""
    return lambda v: type(v) is int and low <= v <= high


def real(low: float, high: float) -> Test:
    """A number from low to high."""
    return lambda v: type(v) in (int, float) and low <= v <= high


def text(pattern: str) -> Test:
    """A string that matches a regular expression."""
    return lambda v: type(v) is str and re.fullmatch(pattern, v, re.DOTALL) is not None


def one_of(*values) -> Test:
    """One of these values."""
    return lambda v: any(type(v) is type(value) and v == value for value in values)


def maybe(test: Test) -> Test:
    """None, or what the test allows."""
    return lambda v: v is None or test(v)


def list_of(test: Test) -> Test:
    """A list of such values."""
    return lambda v: type(v) is list and len(v) <= MAX_COUNT and all(map(test, v))


def dict_of(key: Test, value: Test) -> Test:
    """A dict with such keys and values. An OrderedDict is none: its attributes could stand in for its methods."""
    return lambda v: type(v) is dict and len(v) <= MAX_COUNT and all(key(k) and value(x) for k, x in v.items())


def part(**tests: Test) -> Test:
    """A dict with these entries and no others."""
    return lambda v: type(v) is dict and v.keys() == tests.keys() and all(test(v[k]) for k, test in tests.items())


def is_tensor(value) -> bool:
    """Whether this is a tensor of finite values that all lie in the file: none is repeated to make it larger."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
        and (not value.is_floating_point() or bool(torch.isfinite(value).all()))
    )


def _is_weight(value) -> bool:
    return is_tensor(value) and (value.is_floating_point() or value.dtype == torch.int64)


def _are_sums(value) -> bool:
    return is_tensor(value) and value.dtype == torch.float64 and value.ndim == 1 and 2 <= len(value) < 100


def _is_random_state(value) -> bool:
    return is_tensor(value) and value.dtype == torch.uint8 and value.shape == torch.get_rng_state().shape


def _is_number(value) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 1 << 63)


def _is_plain(value) -> bool:
    values = value if type(value) in (list, tuple) else [value]
    return len(values) <= MAX_COUNT and all(v is None or type(v) in (bool, str) or _is_number(v) for v in values)


def _is_model_config(value) -> bool:
    tests = {
        "out_channels": one_of(0, 1, 3),
        "classes": lambda v: type(v) is list and are_class_names(v),
        "attention": one_of(*ATTENTION),
        "decoder": one_of(*DECODERS),
        "in_channels": whole(1, 100),
    }
    return type(value) is dict and all(key in tests and tests[key](v) for key, v in value.items())


def _is_window(value) -> bool:
    return type(value) is list and list(map(type, value)) == [float, float] and 0 <= value[0] < value[1] <= 100


def _is_fold(value) -> bool:
    return type(value) is list and list(map(type, value)) == [int, int] and 1 <= value[0] <= value[1] <= 100


def _is_log_row(value) -> bool:
    if not dict_of(KEY, lambda v: v is None or _is_number(v) or RUN_ID(v))(value):
        return False
    return RUN_ID(value.get("run_id")) and whole(1, MAX_COUNT)(value.get("epoch"))


SHA256 = text("[0-9a-f]{64}")
RUN_ID = text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NAME = text(".{1,1000}")  # of an image
KEY = text(r"[A-Za-z0-9_.]{1,300}")
WEIGHTS = dict_of(KEY, _is_weight)
FIELDS: dict[str, Test] = {  # None stands for an entry that is not there
    "model.name": lambda v: type(v) is str and v in MODELS,
    "model.config": _is_model_config,
    "weights": WEIGHTS,
    "average": maybe(part(updates=whole(0, 10**12), trained_weights=WEIGHTS)),
    "preprocessing.image_size": whole(16, 4096),
    "preprocessing.channels": whole(1, 100),
    "preprocessing.window": maybe(_is_window),
    "data.split": one_of("80-10-10", "official"),
    "data.seed": whole(0, 2**32 - 1),
    "data.fold": maybe(_is_fold),
    "data.groups": maybe(dict_of(NAME, NAME)),
    "data.fingerprints": dict_of(one_of("train", "valid", "test"), SHA256),
    "data.train_names": list_of(NAME),
    "data.seen_names": list_of(NAME),
    "encoder_start": text(".{0,500}"),
    "settings": maybe(dict_of(KEY, _is_plain)),
    "progress.run_id": RUN_ID,
    "progress.planned_epochs": whole(1, MAX_COUNT),
    "progress.epoch": maybe(whole(0, MAX_COUNT)),
    "progress.step": maybe(whole(0, MAX_COUNT)),
    "progress.sums": maybe(_are_sums),
    "progress.seconds": maybe(real(0, 1e12)),
    "progress.best_score": maybe(real(-1e12, 1)),
    "progress.best_epoch": whole(0, MAX_COUNT),
    "progress.history": maybe(list_of(_is_log_row)),
    "progress.resumed": maybe(list_of(whole(0, MAX_COUNT))),
    "progress.patient_from": maybe(whole(0, MAX_COUNT)),
    "terms": dict_of(KEY, dict_of(KEY, _is_plain)),
    "optimizer": maybe(
        part(
            state=dict_of(whole(0, MAX_COUNT), dict_of(KEY, is_tensor)),
            param_groups=list_of(dict_of(KEY, _is_plain)),
        )
    ),
    "scheduler": maybe(dict_of(KEY, _is_plain)),
    "scaler": maybe(dict_of(KEY, _is_number)),
    "random_state": maybe(_is_random_state),
}


def find_problem(content: dict, section: str = "") -> str | None:
    """What is wrong with a checkpoint's content, or with one section such as `progress`; None where nothing is."""
    for path, test in FIELDS.items():
        *parents, name = path.split(".")
        place = content
        for parent in parents:
            place = {} if place.get(parent) is None else place[parent]
            if type(place) is not dict:
                return f"{parent} has an impossible value"
        if path.startswith(section) and not test(place.get(name)):
            return f"{path} {'is missing' if place.get(name) is None else 'has an impossible value'}"
    return None
