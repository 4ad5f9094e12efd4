"""The command line of all scripts: parsing, errors in one line, exit statuses, signals.

Exit statuses: 0 done; 1 the run failed; 2 bad usage or bad input; 128 + signal number after a signal.
"""

import argparse
import contextlib
import ctypes
import errno
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Container

from runtime.errors import Interrupted, RunError, UsageError, first_line
from runtime.files import DISK_FULL
from runtime.options import add_flags

OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory")  # as devices and systems put it
BAD_PATH = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)


class Parser(argparse.ArgumentParser):
    """ArgumentParser for a config: errors in one line, no abbreviations, hyphens as good as underscores.

    Args:
        script: its file name.
        description: its docstring: what it does, then examples.
        config_class: its flags.
        folder: where the script is.
        only: the fields of the config that are flags of this script; None means all.
    """

    def __init__(
        self, script: str, description: str, config_class, folder: str = "src", only: Container[str] | None = None
    ):
        self.folder = folder
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=script, description=description, formatter_class=formatter, allow_abbrev=False)
        add_flags(self, config_class, only)

    def error(self, message: str):
        """Prints one line and exits with status 2."""
        self.exit(2, f"error: {message}; see python {self.folder}/{self.prog} --help\n")

    def print_help(self, file=None):
        """Prints the help; unlike argparse's it does not ignore a broken pipe."""
        (sys.stdout if file is None else file).write(self.format_help())

    def parse_known_args(self, args=None, namespace=None):
        """As in argparse, with the spelling of long flags normalised."""
        spellings = {name.replace("-", "_"): name for name in self._option_string_actions if name.startswith("--")}
        words = []
        for word in sys.argv[1:] if args is None else args:
            name, equals, value = word.partition("=")
            words.append(spellings.get(name.replace("-", "_"), name) + equals + value if word[:2] == "--" else word)
        return super().parse_known_args(words, namespace)

    def parse_overrides(self, argv=None) -> dict:
        """The values of the flags that stand on the command line, by field."""
        return vars(self.parse_args(argv))


class StopRequest:
    """Ctrl-C and SIGTERM, kept until the step in progress ends. A second one ends the process at once.

    Args:
        patient: ignore further signals: one of several processes gets those of all that pass them on.
    """

    def __init__(self, patient: bool = False):
        self.signum, self.patient = 0, patient
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._handle)

    def _handle(self, signum, _frame):
        if self.signum and not self.patient:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signum = signum

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self.signum:
            raise Interrupted(self.signum)


def import_torch() -> None:
    """Imports torch and torchvision, after the flags are parsed: it takes seconds.

    Raises:
        UsageError: they are not of one release.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, AttributeError) as error:
        raise UsageError(
            f"torch and torchvision do not belong together ({first_line(error)}): install the pair of one release "
            "with `pip install --upgrade --force-reinstall torch torchvision`"
        ) from None


def quiet_pillow() -> None:
    """Silences what Pillow and libtiff write to stderr about odd files; one that can't be read is an error of ours.

    Among that are warnings of images of 90 million pixels: Pillow refuses twice as many.
    """
    from PIL import Image

    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):  # on Windows libtiff can't be reached
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


def run(main, less_memory: str = "a smaller --batch_size") -> None:
    """Runs a script's main and exits; what it raises becomes one line on stderr and the exit status.

    Args:
        main: called without arguments; its result is ignored.
        less_memory: what to use when memory runs out.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    quiet_pillow()
    status, message = 0, ""
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # here, so that a reader who went away is noticed here
    except Exception as error:  # noqa: BLE001  what has no explanation is raised again
        status, message = explain(error, less_memory)
        if status is None:
            raise
    except KeyboardInterrupt:
        status = 130
    # Outside of the except blocks the error no longer holds the frames of main, so DataLoaders in them are freed and
    # end their workers.
    if message and os.environ.get("RANK", "0") != "0":
        # Under torchrun the first process reports, and that ends the others, where it has the same trouble. Ending and
        # being noticed takes it seconds on a busy machine.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)
    sys.exit(_report(status, message))


def explain(error: Exception, less_memory: str) -> tuple[int | None, str]:
    """Exit status and message for an error; status None where it is a bug."""
    text = str(error)
    if isinstance(error, UsageError):
        if "Traceback (most recent call last)" in text:  # from a worker process; what was wrong is the last line
            text = text.strip().splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
        return 2, text
    if isinstance(error, RunError):
        return 1, text
    if isinstance(error, Interrupted):
        return 128 + error.signum, ""
    if isinstance(error, BrokenPipeError):
        # The reader of our output went away (`| head`). Python flushes stdout once more at exit, so it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, ""
    if isinstance(error, OSError):
        return _explain_os_error(error)
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return 1, "a process that reads images died; use --num_workers 0, or check memory and files"
    if isinstance(error, RuntimeError) and type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return 1, f"--compile failed ({first_line(error)}); leave the flag out"
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)
    ):
        return 1, f"out of memory; use {less_memory}, or a smaller --image_size"
    return None, ""


def _explain_os_error(error: OSError) -> tuple[int, str]:
    where = f" {error.filename}" if error.filename else ""
    if error.errno in DISK_FULL:
        return 1, f"can't write{where} ({error.strerror}); free some space and start again, train.py with --resume"
    if error.errno in BAD_PATH:
        return 2, f"can't open{where} ({error.strerror}); check the path and its permissions"
    return (2 if error.errno == errno.ENAMETOOLONG else 1), f"{error.strerror or error}{where}"


def _report(status: int, message: str) -> int:
    """Prints the message, if any, in one line whatever is in it; returns the status."""
    if message:
        shown = (c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in message)
        print(f"error: {''.join(shown)}", file=sys.stderr)
    return status
