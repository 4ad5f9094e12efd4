"""Errors that end a script with one line on stderr and their exit status; see `runtime.cli.run`."""


class UsageError(Exception):
    """Bad usage or bad input: what, where and how to mend it, in one line."""

    status = 2


class DatasetError(UsageError, ValueError):
    """The data is missing, incomplete or malformed."""


class CheckpointError(UsageError):
    """A checkpoint is missing, damaged, or not what it should be."""


class RunError(Exception):
    """The run failed, and the input is not to blame."""

    status = 1


class Interrupted(Exception):  # noqa: N818  the run was not in error
    """A signal asked the run to stop, and its state is saved."""

    def __init__(self, signum: int):
        super().__init__()
        self.status = 128 + signum


def raise_faults(faults: list[str], root) -> None:
    """Raises one DatasetError that counts these faults and names the first ten, if there are any."""
    if faults:
        shown = " | ".join(sorted(faults)[:10]) + (" | ..." if len(faults) > 10 else "")
        raise DatasetError(f"{root}: {plural(len(faults), 'fault')}: {shown}")


def plural(number: int, noun: str, many: str | None = None) -> str:
    """A number and its noun, as `1 image` or `2 images`."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
