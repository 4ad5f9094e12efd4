"""One definition per flag: a field of a config gives the flag, its help, the saved setting and the row in docs/cli.md.

A config is a frozen dataclass whose fields are made by `option`. To add a flag, add a field.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable, Container, Mapping
from types import MappingProxyType
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
    saved: Callable[[str], Any] | None = None  # parses what a checkpoint keeps, where `parse` reads files


def option(default, help: str, parse: Callable[[str], Any] = str, **more):
    """A field of a config; see Option. A boolean default makes a switch, `--name` and `--no-name`."""
    return dataclasses.field(default=default, metadata={"option": Option(help, parse, **more)})


fixed = functools.partial(option, resume=FIXED)
changeable = functools.partial(option, resume=CHANGEABLE)


def options_of(config_class) -> dict[str, tuple[Option, Any]]:
    """Option and default of each field of a config, by name."""
    return {f.name: (f.metadata["option"], f.default) for f in dataclasses.fields(config_class)}


def shown_default(default) -> str:
    """A default as the help and the table of flags show it; empty for none, a switch that is off, and 0."""
    return ",".join(default) if isinstance(default, tuple) else str(default or "")


def add_flags(
    parser: argparse.ArgumentParser,
    config_class,
    only: Container[str] | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Adds a flag for every field, or for some. Flags that are not given leave no trace in the parsed namespace.

    The help shows the defaults of the config, unless the script has its own.
    """
    groups, group = {}, parser
    for name, (flag, default) in options_of(config_class).items():
        if flag.group is not None:
            group = groups[flag.group] = groups.get(flag.group) or parser.add_argument_group(flag.group)
        if only is not None and name not in only:
            continue
        shown = shown_default(defaults.get(name, default))
        words: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": flag.help + (f" (default: {shown})" if shown else ""),
        }
        if isinstance(default, bool):
            words["action"] = argparse.BooleanOptionalAction
        else:
            words |= {"type": flag.parse, "metavar": flag.metavar, "choices": flag.choices or None, "nargs": flag.nargs}
        if flag.bare is not None:
            words |= {"nargs": "?", "const": flag.bare}
        if flag.nargs == "*":
            group.add_argument(name, **words)
        else:
            group.add_argument(f"--{name}", *flag.aliases, dest=name, **words)


def is_valid(config_class, name: str, value) -> bool:
    """Whether a value, such as one from a file, is one that the flag could give."""
    flag, default = options_of(config_class)[name]
    if value is None or isinstance(default, bool):
        return type(value) is type(default)
    if flag.choices:
        return type(value) is str and value in flag.choices
    try:
        parsed = (flag.saved or flag.parse)(str(value))
    except (argparse.ArgumentTypeError, ValueError):  # ValueError: of str, for numbers of thousands of digits
        return False
    return type(parsed) is type(value) and parsed == value


def flag_table(config_class, only: Container[str] | None = None, defaults: Mapping = MappingProxyType({})) -> str:
    """The flags as a table in Markdown: spellings, meaning, default. Arguments: see `add_flags`."""
    rows = ["| flag | meaning | default |", "| --- | --- | --- |"]
    for name, (flag, default) in options_of(config_class).items():
        if only is not None and name not in only:
            continue
        value = "\\|".join(flag.choices) or (flag.metavar or "").replace("|", "\\|")
        value = f" [{value}]" if flag.bare is not None else f" {value}" if value else ""
        aliases = (f"--no-{name}",) if isinstance(default, bool) else flag.aliases
        first = value.strip() if flag.nargs == "*" else f"--{name}{value}"
        spellings = ", ".join(f"`{spelling}`" for spelling in (first, *aliases))
        shown = "off" if defaults.get(name, default) == 0 else shown_default(defaults.get(name, default))
        rows.append(f"| {spellings} | {flag.help} | {shown} |".replace("<", "&lt;"))
    return "\n".join(rows)


def number(
    low: float, high: float = math.inf, kind: type = float, include_low: bool = False, include_high: bool = False
) -> Callable[[str], float]:
    """Accepts finite numbers of a kind between low and high, which are excluded unless included."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' * (kind is int)}number") from None
        inside = low < value < high or (include_low and value == low) or (include_high and value == high)
        if not inside or value == math.inf:
            limits = f"a number above {low}" if high == math.inf else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"{text} is not {limits}")
        return value

    return parse


def whole_number(low: int, high: int = 10**9) -> Callable[[str], int]:
    """Accepts whole numbers from low to high."""
    return number(low, high, int, include_low=True, include_high=True)


def words_of(known, what: str) -> Callable[[str], list[str]]:
    """Accepts words with commas between them, each of which is known."""

    def parse(text: str) -> list[str]:
        words = [word.strip() for word in text.split(",")]
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(f"no {what} is called {word!r}; there are {', '.join(known)}")
        return words

    return parse


positive_number = number(0)
fraction = number(0, 1)  # neither 0 nor 1
fraction_or_zero = number(0, 1, include_low=True)
fraction_or_one = number(0, 1, include_high=True)


def batch_size_option(default: int):
    """Images a step."""
    return fixed(default, "images per step", whole_number(1, 10**5), aliases=("-b",), metavar="N")


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
    num_workers: int | None = option(
        None,
        "processes, in evaluation and inference threads, that read images; by default one per core, 8 at most, but "
        "none beside a training on the CPU, or where images are cached",
        whole_number(0, 256),
        aliases=("--workers", "-j"),
        metavar="N",
    )
    save_dir: str = option("saved_models", "folder of checkpoints", metavar="DIR", group="folders")
    log_dir: str = option("logs", "folder of CSV logs and the plot", metavar="DIR")
