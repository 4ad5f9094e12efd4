"""Errors that end a script with one line on stderr and their exit status, see `runtime.cli.run`; and notes on files."""

NOTED: dict[str, set[str]] = {}  # the files by the sentence
SAID: set[str] = set()  # sentences


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
    """Raises one DatasetError that counts faults, if there are any, and names ten, of those of one remedy the first."""
    if faults:
        kinds: dict[str, list[str]] = {}
        for fault in sorted(faults):
            kinds.setdefault(fault.rpartition("; ")[2] if "`" in fault else fault, []).append(fault)
        texts = [same[0] + f" ({len(same)} files)" * (len(same) > 1) for same in kinds.values()]
        shown = " | ".join(texts[:10]) + (" | ..." if len(texts) > 10 else "")
        raise DatasetError(f"{root}: {plural(len(faults), 'fault')}: {shown}")


def plural(number: int, noun: str, many: str | None = None) -> str:
    """A number and its noun, as `1 image` or `2 images`."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def note(sentence: str, path) -> None:
    """Keeps a sentence, with {} for the files that it is about, and one of them, until `say_notes`."""
    NOTED.setdefault(sentence, set()).add(str(path))


def take_notes() -> list[tuple[str, str]]:
    """What was noted, for another process to note; it is no longer noted here."""
    notes = [(sentence, path) for sentence, files in NOTED.items() for path in files]
    NOTED.clear()
    return notes


def say_notes() -> None:
    """Prints the sentences that were not said before in this process."""
    for sentence, files in NOTED.items():
        if sentence not in SAID:
            SAID.add(sentence)
            count = f"{len(files)} files, such as" if len(files) > 1 else "1 file:"
            print(sentence.format(f"{count} {min(files)}"), flush=True)
