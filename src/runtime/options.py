"""One definition per flag: a field of a config gives the flag, its help, the saved setting and the row in docs/cli.md.

A config is a frozen dataclass whose fields are made by `option`. To add a flag, add a field.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable, Container
from typing import Any, NamedTuple

FIXED, CHANGEABLE = "fixed", "changeable"  # on --resume; both are saved in the checkpoint


class Option(NamedTuple):
    """What a config's field says about its flag; see `option`."""

    help: str
    parse: Callable[[str], Any] = str
    choices: tuple = ()
    aliases: tuple = ()
    metavar: str | None = None
    group: str | None = None
    bare: Any = None
    resume: str | None = None
    nargs: str | None = None
    saved: Callable[[str], Any] | None = None


def option(default, help: str, parse: Callable[[str], Any] = str, **more):
    """A field of a config. A boolean default makes a switch, `--name` and `--no-name`.

    Args:
        default: of the field and of the flag.
        help: one line of plain text.
        parse: turns the flag's text into the value, or raises argparse.ArgumentTypeError.
        **more: `choices`, the values allowed; `aliases`, other spellings; `metavar`; `group`, the heading in the help
            from this field on; `bare`, the value of the flag without a value; `nargs` as in argparse, `*` for words
            without a flag; `resume`, FIXED or CHANGEABLE for settings that a checkpoint keeps; `saved`, which parses
            these where `parse` reads files.
    """
    return dataclasses.field(default=default, metadata={"option": Option(help, parse, **more)})


fixed = functools.partial(option, resume=FIXED)
changeable = functools.partial(option, resume=CHANGEABLE)


def options_of(config_class) -> dict[str, tuple[Option, Any]]:
    """Option and default of each field of a config, by name."""
    return {f.name: (f.metadata["option"], f.default) for f in dataclasses.fields(config_class)}


def add_flags(parser: argparse.ArgumentParser, config_class, only: Container[str] | None = None) -> None:
    """Adds a flag for every field, or for some. Flags that are not given leave no trace in the parsed namespace."""
    groups, group = {}, parser
    for name, (made, default) in options_of(config_class).items():
        if made.group is not None:
            group = groups[made.group] = groups.get(made.group) or parser.add_argument_group(made.group)
        if only is not None and name not in only:
            continue
        shown = ",".join(default) if isinstance(default, tuple) else default
        note = "" if shown in (None, False, "") else f" (default: {shown})"
        words: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": made.help + note}
        if isinstance(default, bool):
            words["action"] = argparse.BooleanOptionalAction
        else:
            words |= {"type": made.parse, "metavar": made.metavar, "choices": made.choices or None, "nargs": made.nargs}
        if made.bare is not None:
            words |= {"nargs": "?", "const": made.bare}
        if made.nargs == "*":
            group.add_argument(name, **{key: value for key, value in words.items() if key != "dest"})
        else:
            group.add_argument(f"--{name}", *made.aliases, **words)


def is_valid(config_class, name: str, value) -> bool:
    """Whether a value, such as one from a file, is one that the flag could give."""
    made, default = options_of(config_class)[name]
    if isinstance(default, bool):
        return type(value) is bool
    if value is None:
        return default is None
    if made.choices:
        return type(value) is str and value in made.choices
    if type(value) not in (int, float, str):
        return False
    try:
        parsed = (made.saved or made.parse)(str(value))
    except (argparse.ArgumentTypeError, ValueError):  # ValueError: of str, for numbers of thousands of digits
        return False
    return type(parsed) is type(value) and parsed == value


def flag_table(config_class, only: Container[str] | None = None) -> str:
    """The flags of a config, or some of them, as a table in Markdown: spellings, meaning, default."""
    rows = ["| flag | meaning | default |", "| --- | --- | --- |"]
    for name, (made, default) in options_of(config_class).items():
        if only is not None and name not in only:
            continue
        value = "\\|".join(made.choices) or (made.metavar or "").replace("|", "\\|")
        value = f" [{value}]" if made.bare is not None else f" {value}" if value else ""
        more = (f"--no-{name}",) if isinstance(default, bool) else made.aliases
        shown = {None: "", False: "off"}.get(default, ",".join(default) if isinstance(default, tuple) else default)
        first = value.strip() if made.nargs == "*" else f"--{name}{value}"
        spellings = ", ".join([f"`{first}`", *(f"`{one}`" for one in more)])
        rows.append(f"| {spellings} | {made.help} | {shown} |".replace("<", "&lt;"))
    return "\n".join(rows)


# ---------------------------------------------------------------------------------------------------- types of values


def whole_number(low: int, high: int = 10**9) -> Callable[[str], int]:
    """Accepts whole numbers from low to high."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
        return value

    return parse


def number(low: float, high: float = math.inf, *, include_low=False, include_high=False) -> Callable[[str], float]:
    """Accepts finite numbers between low and high, which are excluded unless included."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        inside = (value > low or (include_low and value == low)) and (value < high or (include_high and value == high))
        if not (math.isfinite(value) and inside):
            limits = f"a number above {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise argparse.ArgumentTypeError(f"{text} is not {limits}")
        return value

    return parse


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

# ------------------------------------------------------------------------------------------------ flags of all scripts


def batch_size_option(default: int):
    """Images a step."""
    return fixed(default, "images per step", whole_number(1, 10**5), aliases=("-b",), metavar="N")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """What train.py, evaluate.py and inference.py share."""

    data_path: str = option("dataset", "dataset folder", metavar="DIR", group="most used")
    batch_size: int = batch_size_option(8)
    device: str = option(
        "auto", "auto: CUDA, then MPS, then the CPU", choices=("auto", "cuda", "mps", "cpu"), group="device"
    )
    amp: str = changeable(
        "auto",
        "precision of convolutions; auto: bf16 where the device computes in it, else float32, as off",
        choices=("auto", "off", "bf16", "fp16"),
    )
    num_workers: int | None = option(
        None,
        "processes that read images (inference: threads); by default one per core, 8 at most; 0 to train or score on "
        "the CPU",
        whole_number(0, 256),
        aliases=("--workers", "-j"),
        metavar="N",
    )
    save_dir: str = option("saved_models", "folder of checkpoints", metavar="DIR", group="folders")
    log_dir: str = option("logs", "folder of CSV logs and the plot", metavar="DIR")
