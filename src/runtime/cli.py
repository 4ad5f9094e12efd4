"""The command line of all scripts: flags, signals, and errors in one line.

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
import threading
import time
import warnings

from runtime.errors import Interrupted, RunError, UsageError, first_line, say_notes
from runtime.files import DISK_FULL
from runtime.options import options_of

HANGUP = getattr(signal, "SIGHUP", None)  # the terminal was closed; Windows has no such signal
STOPPING = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else []))
OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory")  # as devices and systems put it
BAD_PATH = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


class Parser(argparse.ArgumentParser):
    """The flags of a config, all or only some, and with other defaults than the config's in their help.

    Flags that are not given leave no trace in what is parsed. Abbreviations are refused; hyphens are underscores.
    """

    def __init__(self, script: str, description: str, config_class, folder: str = "src", only=None, defaults=None):
        self.folder = folder
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=script, description=description, formatter_class=formatter, allow_abbrev=False)
        groups, group = {}, self
        for name, (flag, default) in options_of(config_class).items():
            if flag.group is not None:
                group = groups[flag.group] = groups.get(flag.group) or self.add_argument_group(flag.group)
            if only is not None and name not in only:
                continue
            shown = shown_default((defaults or {}).get(name, default))
            words = {"default": argparse.SUPPRESS, "help": flag.help + (f" (default: {shown})" if shown else "")}
            if isinstance(default, bool):
                words["action"] = argparse.BooleanOptionalAction
            else:
                words |= {"type": flag.parse, "metavar": flag.metavar, "choices": flag.choices or None}
                words |= {"nargs": flag.nargs} if flag.bare is None else {"nargs": "?", "const": flag.bare}
            if flag.nargs == "*":
                group.add_argument(name, **words)
            else:
                group.add_argument(f"--{name}", *flag.aliases, dest=name, **words)

    def error(self, message: str):
        self.exit(2, f"error: {message}; see python {self.folder}/{self.prog} --help\n")

    def parse_overrides(self, argv=None) -> dict:
        """The values of the flags on the command line, by field."""
        spellings = {flag.replace("-", "_"): flag for flag in self._option_string_actions if flag.startswith("--")}
        words = []
        for word in sys.argv[1:] if argv is None else argv:
            flag, equals, value = word.partition("=")
            words.append(spellings.get(flag.replace("-", "_"), flag) + equals + value)
        return vars(self.parse_args(words))


def shown_default(default) -> str:
    """A default as the help and the table of flags show it; empty for none, a switch that is off, and 0."""
    return ",".join(default) if isinstance(default, tuple) else str(default or "")


class StopRequest:
    """A signal that asks the run to stop, kept until the step in progress ends.

    A second one ends the process at once, unless it is `patient`: one of several processes gets those of all of them.
    """

    def __init__(self, patient: bool = False):
        self.signum, self.patient = 0, patient
        self.terminals = [number for number in (1, 2) if os.isatty(number)]
        handle_signals(self._handle)

    def _handle(self, signum, _frame):
        if signum == HANGUP:  # it may come twice, from the system and from the shell
            _discard_output(*self.terminals)
        elif self.signum and not self.patient:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signum = signum

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self.signum:
            raise Interrupted(self.signum)


def handle_signals(handler) -> None:
    """Sets the handler of the signals that stop a script. In other threads than the main one Python can't."""
    if threading.current_thread() is threading.main_thread():
        for signum in STOPPING:
            if signum != HANGUP or signal.getsignal(signum) != signal.SIG_IGN:  # as nohup wants it
                signal.signal(signum, handler)


def _discard_output(*descriptors: int) -> None:
    for number in descriptors:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def import_torch() -> None:
    """Imports torch and torchvision, after the flags are parsed: it takes seconds."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, AttributeError) as error:
        raise UsageError(
            f"torch and torchvision do not belong together ({first_line(error)}): install the pair of one release with "
            "`pip install --upgrade --force-reinstall torch torchvision`"
        ) from None


def quiet_pillow() -> None:
    """Silences what Pillow and libtiff write to stderr about odd and large files."""
    from PIL import Image

    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):  # on Windows libtiff can't be reached
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


def run(main, less_memory: str = "a smaller --batch_size") -> None:
    """Runs a script's main and exits; an error becomes one line on stderr."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, or under pythonw
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
    if hasattr(sys.stdout, "reconfigure"):  # not in notebooks
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    quiet_pillow()
    status, message = 0, ""
    try:
        try:
            main()
        finally:
            say_notes()
            sys.stdout.flush()  # here, so that a reader who went away is noticed here
    except Exception as error:  # noqa: BLE001  what has no explanation is raised again
        status, message = explain(error, less_memory)
        if status is None:
            raise
    except KeyboardInterrupt:
        status = 130
    # Out here the error no longer holds the frames of main: DataLoaders in them are freed and end their workers.
    if message and os.environ.get("RANK", "0") != "0":
        # Under torchrun the first process reports, and its end ends the others, which takes seconds on a busy machine.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)
    if message:  # in one line, whatever is in it
        shown = (c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in message)
        print(f"error: {''.join(shown)}", file=sys.stderr)
    sys.exit(status)


def explain(error: Exception, less_memory: str) -> tuple[int | None, str]:
    """Exit status and message for an error; status None where it is a bug."""
    kind, text, at_run_time = type(error), str(error), isinstance(error, RuntimeError)
    if isinstance(error, (UsageError, RunError, Interrupted)):
        # From a worker process it comes as text with a traceback, the message last.
        return error.status, text.rpartition(f"\n{kind.__module__}.{kind.__name__}: ")[2].strip()
    if isinstance(error, BrokenPipeError):  # the reader of our output went away (`| head`); Python flushes it at exit
        _discard_output(sys.stdout.fileno())
        return 1, ""
    if isinstance(error, OSError):
        place = f" {error.filename}" if error.filename else ""
        if error.errno in DISK_FULL:
            return 1, f"can't write{place} ({error.strerror}); free some space and start again, train.py with --resume"
        if error.errno in BAD_PATH:
            return 2, f"can't open{place} ({error.strerror}); check the path and its permissions"
        return 1, f"{error.strerror or error}{place}"
    if at_run_time and "DataLoader worker" in text:
        return 1, "a process that reads images died; use --num_workers 0, or check memory and files"
    if isinstance(error, MemoryError) or (at_run_time and any(words in text for words in OUT_OF_MEMORY)):
        advice = f"use {less_memory}, or a smaller --image_size" if less_memory else "end other programs, and try again"
        return 1, f"out of memory; {advice}"
    return None, ""
