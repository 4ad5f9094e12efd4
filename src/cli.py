"""The command line that all scripts share: groups of flags, errors in one line, exit statuses.

Exit statuses: 0 done; 1 the run failed; 2 bad usage or bad input; 128 + signal number after a signal.
"""

import argparse
import errno
import math
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

try:
    import torchvision  # noqa: F401  imported here first, so that a mismatch is explained and not thrown at the user
except (ImportError, RuntimeError, AttributeError) as broken:
    print(
        f"error: torch and torchvision do not belong together ({str(broken).splitlines()[0]}): install the pair of one "
        "release with `pip install --upgrade --force-reinstall torch torchvision`",
        file=sys.stderr,
    )
    sys.exit(2)


OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory")  # as the devices and systems put it
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UsageError(Exception):
    """Bad usage or bad input: what, where, how to mend it, in one line. Ends a script with status 2."""


class RunError(Exception):
    """The run itself failed, through no fault of the input. Ends a script with status 1."""


class Interrupted(Exception):  # noqa: N818  the run was not in error
    """A signal asked the run to stop, and its state is saved. Ends a script with status 128 + signum."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


class StopRequest:
    """Ctrl-C and SIGTERM, kept until the step in progress ends; a second one leaves at once.

    Args:
        patient: a second one changes nothing: one of several processes gets the signals of all that pass them on.
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
        """Raises Interrupted where a signal has come."""
        if self.signum:
            raise Interrupted(self.signum)


class _HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Names a default only where there is one to name."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """ArgumentParser whose errors are one line, and whose flags can't be abbreviated."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=_HelpWithDefaults, **kwargs)

    def error(self, message: str):
        """Prints one line and leaves with status 2."""
        self.exit(2, f"error: {message}; see python src/{self.prog} --help\n")

    def parse_given(self, argv=None) -> tuple[argparse.Namespace, dict]:
        """Parses, and tells apart what was given from what is default.

        Returns:
            The namespace, and a dict of only the flags that stand on the command line.
        """
        unset = object()
        args = self.parse_args(argv)
        blank = argparse.Namespace(**dict.fromkeys(vars(args), unset))
        given = vars(self.parse_args(argv, namespace=blank))
        return args, {name: value for name, value in given.items() if value is not unset}


def whole_number(low: int, high: int = 10**9):
    """An argparse type: a whole number from low to high."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
        return value

    return parse


def positive_number(text: str) -> float:
    """An argparse type: a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0")
    return value


def share(text: str) -> float:
    """An argparse type: a number between 0 and 1, neither of them."""
    value = positive_number(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def share_or_none(text: str) -> float:
    """An argparse type: a number from 0, which means none, up to 1, but not 1."""
    return 0.0 if _is_number(text, 0) else share(text)


def part(text: str) -> float:
    """An argparse type: a number above 0 and up to 1."""
    return 1.0 if _is_number(text, 1) else share(text)


def _is_number(text: str, value: int) -> bool:
    try:
        return float(text) == value
    except ValueError:
        return False


def words_of(text: str, known, what: str) -> list[str]:
    """For argparse types: words with commas between them, each of them known."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(f"no {what} is called {word!r}; there are {', '.join(known)}")
    return words


def add_data_flags(parser: Parser, batch_size: int):
    """Where the data is and how it is read: the same in every script. Returns the group, to add flags to."""
    group = parser.add_argument_group("data")
    group.add_argument("--data_path", default="dataset", metavar="DIR", help="dataset folder")
    size = whole_number(1, 10**5)
    group.add_argument("--batch_size", "-b", type=size, default=batch_size, metavar="N", help="images a step")
    group.add_argument(
        "--num_workers",
        type=whole_number(0, 256),
        metavar="N",
        help="processes that read images (inference: threads); by default one a core, 8 at most, "
        "but 0 to train or score on the CPU",
    )
    return group


def add_cache_flag(group) -> None:
    """Whether pictures are decoded once or at every access."""
    group.add_argument(
        "--cache", choices=["on", "off"], default="on", help="keep decoded pictures in <dataset>/.pixel_cache"
    )


def add_device_flags(parser: Parser):
    """Where and in which precision to compute. Returns the group, to add flags to."""
    group = parser.add_argument_group("device")
    group.add_argument(
        "--device", choices=["auto", "cuda", "mps", "cpu"], default="auto", help="auto: CUDA, then MPS, then the CPU"
    )
    group.add_argument(
        "--amp",
        choices=["auto", "off", "bf16", "fp16"],
        default="auto",
        help="precision of convolutions; auto: bf16 where the device computes in it, else float32, as off",
    )
    return group


def add_folder_flags(parser: Parser) -> None:
    """Where checkpoints and logs are."""
    group = parser.add_argument_group("folders")
    group.add_argument("--save_dir", default="saved_models", metavar="DIR", help="checkpoints")
    group.add_argument("--log_dir", default="logs", metavar="DIR", help="CSV logs and the plot")


def add_checkpoint_flags(parser: Parser) -> None:
    """Which checkpoint to use, for the scripts that use a trained model."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_path",
        "--model",
        metavar="FILE",
        help="checkpoint; by default <save_dir>/<model>_best.pth",
    )
    group.add_argument(
        "--model_name",
        "--model_type",
        metavar="NAME",
        help="unet or resnet34_unet; by default, and at most, what the checkpoint says",
    )


def writable_folder(path) -> Path:
    """Makes the folder where it is missing and proves that files can be written there.

    Raises:
        UsageError: it can't be made, is no folder, or is not writable.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UsageError(f"can't write to the folder {path} ({error.strerror}); name another one") from None


def run(main, *bad_input: type[Exception], out_of_memory: str = "a smaller --batch_size") -> None:
    """Runs a script's main and turns what it raises into one line and the exit status.

    Args:
        main: called without arguments; whatever it returns is ignored.
        *bad_input: exceptions that mean bad input besides UsageError, such as DatasetError.
        out_of_memory: what needs less of it.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    status, message = 0, ""
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # here, so that a reader who went away is noticed here
    except (UsageError, *bad_input) as error:
        status, message = 2, _last_line(error)
    except RunError as error:
        status, message = 1, str(error)
    except Interrupted as error:
        status = 128 + error.signum
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): no error of ours. Python would complain once more when it
        # flushes stdout at exit, so stdout goes nowhere from here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        if error.errno in DISK_FULL:
            status = 1
            message = f"can't write{where} ({error.strerror}); free some space and start again, train.py with --resume"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR):
            status, message = 2, f"can't open{where} ({error.strerror}); check the path and its permissions"
        else:
            status, message = (2 if error.errno == errno.ENAMETOOLONG else 1), f"{error.strerror or error}{where}"
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if "DataLoader worker" in text:
            status, message = 1, "a process that reads images died; use --num_workers 0, or see to memory and files"
        elif type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            status, message = 1, f"--compile failed ({text.splitlines()[0]}); leave the flag out"
        elif isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
            status, message = 1, f"out of memory; use {out_of_memory}, or a smaller --image_size"
        else:
            raise
    # Out of the except blocks, so that the error no longer holds the frames of main: DataLoaders in them end their
    # worker processes when they are freed.
    if message:
        if os.environ.get("RANK", "0") != "0":
            # Under torchrun the first process says it, and that ends the others, where it is its trouble as well.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(2)
        print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _last_line(error: Exception) -> str:
    # A worker process of a DataLoader sends its whole traceback as the message; what was wrong is its last line.
    return str(error).strip().splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
