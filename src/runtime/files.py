"""Files that appear only whole: atomic writes, locks and CSV logs."""

import contextlib
import csv
import errno
import os
import secrets
import tempfile
import time
from pathlib import Path

from runtime.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TEXT = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}  # file names need not be text


@contextlib.contextmanager
def lock_file(path, wait: bool):
    """Locks a file until the context or the process ends. Raises BlockingIOError: it is locked, and not to wait for."""
    with Path(path).open("a+") as file:
        file.seek(2**30)  # Windows guards the locked byte, so it lies far behind the text
        while True:
            try:
                if fcntl:  # lockf, not flock: worker processes must not inherit the lock
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                else:
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                break
            except (BlockingIOError, PermissionError) as error:  # POSIX allows either
                if not wait:
                    raise BlockingIOError(f"{path} is locked") from error
                time.sleep(0.05)
        yield file


@contextlib.contextmanager
def atomic_write(path, mode: str = "w", sync: bool = True):
    """Opens a file for writing (`w` or `wb`) that replaces `path` when it is complete; after an error nothing changes.

    With `sync` it then survives a power cut. A pipe or a device is written to directly.
    """
    path, text = Path(path).resolve(), {} if "b" in mode else TEXT
    if path.exists() and not path.is_file():
        with path.open(mode, **text) as file:
            yield file
        return
    temporary = path.with_name(f".{path.name[:60]}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open(mode.replace("w", "x"), **text) as file:
            yield file
        put_in_place(temporary, path, sync)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def put_in_place(source, path, sync: bool = True) -> None:
    """Moves a complete file to where it belongs."""
    if sync:
        with Path(source).open("rb+") as file:
            os.fsync(file.fileno())
    Path(source).replace(path)
    if sync:
        sync_folder(Path(path).parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut."""
    if os.name == "posix":  # Windows can't open folders
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def writable_folder(path) -> Path:
    """Makes a folder where it is missing. Raises UsageError: files can't be written there."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UsageError(f"can't write to the folder {path} ({error.strerror}); name another one") from None


def write_rows(path, rows: list[dict], header: list[str] | None = None) -> None:
    """Writes a CSV file atomically."""
    with atomic_write(path) as file:
        writer = csv.DictWriter(file, header or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path) -> list[dict]:
    """Reads a CSV file with a header; a missing file has no rows. Raises UsageError: a row is too long."""
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(**TEXT) as file:
        rows = list(csv.DictReader(file))
    if any(None in row for row in rows):
        raise UsageError(f"{path} has a row with more columns than its header; mend it, or move it away")
    return rows


def append_rows(path, rows: list[dict]) -> None:
    """Adds rows to a CSV log, atomically. Columns that the log lacks are added to it. Processes may share a log."""
    path = Path(path)
    with lock_file(path.with_name(f".{path.name}.lock"), wait=True):
        old = read_rows(path)
        write_rows(path, [*old, *rows], list(dict.fromkeys([*(old[0] if old else []), *rows[0]])))
