"""A field of a config defines a flag: its help, what it accepts, the saved setting, and the row in docs/cli.md."""

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

FIXED, CHANGEABLE = "fixed", "changeable"  # on --resume; both are saved in the checkpoint


class Option(NamedTuple):
    """What a config's field says about its flag."""

    help: str  # one line of plain text
    parse: Callable[[str], Any] = str  # turns the flag's text into the value, or raises argparse.ArgumentTypeError
    choices: tuple = ()
    aliases: tuple = ()  # other spellings
    metavar: str | None = None
    group: str | None = None  # the heading in the help from this field on
    bare: Any = None  # the value of the flag without a value
    resume: str | None = None  # FIXED or CHANGEABLE for settings that a checkpoint keeps
    nargs: str | None = None  # as in argparse; `*` is for words without a flag


def option(default, help: str, parse: Callable[[str], Any] = str, **more):
    """A field of a config; see Option. A boolean default makes a switch, `--name` and `--no-name`."""
    if type(default) is int:
        more = {"metavar": "N", **more}
    return dataclasses.field(default=default, metadata={"option": Option(help, parse, **more)})


fixed = functools.partial(option, resume=FIXED)
changeable = functools.partial(option, resume=CHANGEABLE)


def options_of(config_class) -> dict[str, tuple[Option, Any]]:
    """Option and default of each field of a config, by name."""
    return {f.name: (f.metadata["option"], f.default) for f in dataclasses.fields(config_class)}


def is_valid(config_class, name: str, value) -> bool:
    """Whether a value, such as one from a file, is one that the flag could give."""
    flag, default = options_of(config_class)[name]
    if value is None or isinstance(default, bool):
        return type(value) is type(default)
    try:
        parsed = flag.parse(str(value))
    except (argparse.ArgumentTypeError, ValueError):  # ValueError: of str, for numbers of thousands of digits
        return False
    return type(parsed) is type(value) and parsed == value and (not flag.choices or value in flag.choices)


def number(kind: type, limits: str, allowed: Callable[[float], bool]) -> Callable[[str], float]:
    """Accepts numbers of a kind that are allowed; `limits` says it in words."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' * (kind is int)}number") from None
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"{text} is not {limits}")
        return value

    return parse


def whole_number(low: int, high: int = 10**9) -> Callable[[str], int]:
    """Accepts whole numbers from low to high."""
    return number(int, f"between {low} and {high}", lambda value: low <= value <= high)


positive_number = number(float, "a number above 0", lambda value: 0 < value < math.inf)
fraction = number(float, "between 0 and 1", lambda value: 0 < value < 1)
fraction_or_zero = number(float, "between 0 and 1", lambda value: 0 <= value < 1)
fraction_or_one = number(float, "between 0 and 1", lambda value: 0 < value <= 1)


def words_of(known, what: str) -> Callable[[str], list[str]]:
    """Accepts words with commas between them, each of which is known."""

    def parse(text: str) -> list[str]:
        words = [word.strip() for word in text.split(",")]
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(f"no {what} is called {word!r}; there are {', '.join(known)}")
        return words

    return parse


WORKERS = "processes, in evaluation and inference threads, that read images; by default one per core, 8 at most, but "
WORKERS += "none beside a training on the CPU; always none where images are cached"


def batch_size_option(default: int):
    return fixed(default, "images per step", whole_number(1, 10**5), aliases=("-b",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """What train.py, evaluate.py and inference.py share."""

    data_path: str = option("dataset", "dataset folder", metavar="DIR", group="most used")
    batch_size: int = batch_size_option(8)
    device: str = option(
        "auto", "device; auto: CUDA, else MPS, else CPU", choices=("auto", "cuda", "mps", "cpu"), group="device"
    )
    amp: str = changeable(
        "auto",
        "mixed precision; auto: bf16 where the device computes in it, else float32, as off",
        choices=("auto", "off", "bf16", "fp16"),
    )
    num_workers: int | None = option(None, WORKERS, whole_number(0, 256), aliases=("--workers", "-j"), metavar="N")
    save_dir: str = option("saved_models", "folder of checkpoints", metavar="DIR", group="folders")
    log_dir: str = option("logs", "folder of CSV logs and the plot", metavar="DIR")
