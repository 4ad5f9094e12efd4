"""The files of a run: locked while it writes them, and renamed before another run does."""

import contextlib
import os
import re
import socket
import time
from pathlib import Path

from models.checkpoint import RUN_ID, checkpoint_path, read_progress
from runtime.errors import UsageError
from runtime.files import lock_file, read_rows, sync_folder, writable_folder
from training.config import TrainConfig


def log_path(config: TrainConfig) -> Path:
    """The training log of a model."""
    return Path(config.log_dir) / f"{config.model_name}_training_log.csv"


def is_file_of_run(path: Path, config: TrainConfig) -> bool:
    """Whether a checkpoint is the one that a run with these settings writes last."""
    last = checkpoint_path(config.save_dir, config.model_name, "last")
    return path.is_file() and path.resolve() == last.resolve()


def lock_run(config: TrainConfig) -> contextlib.ExitStack:
    """Makes this process the only one that writes the files of a model, and removes what a killed one left unfinished.

    The lock lasts until it is closed or the process ends. Raises UsageError: another run has it.
    """
    name, lock = config.model_name, contextlib.ExitStack()
    for folder in {writable_folder(folder).resolve() for folder in (config.save_dir, config.log_dir)}:
        path = folder / f".{name}.lock"
        try:
            file = lock.enter_context(lock_file(path, wait=False))
        except BlockingIOError:
            raise UsageError(
                f"another run ({path.read_text().strip() or 'just starting'}) is writing files of {name} in "
                f"{folder}; wait until it ends, or give this one a --save_dir and a --log_dir of its own"
            ) from None
        except OSError as error:
            raise UsageError(
                f"{path} can't be locked ({error.strerror}), so two runs could write the same files; name folders on "
                "another disk with --save_dir and --log_dir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for kind in ("best", "last", "epoch", "training_log"):  # not all: `unet` and `unet_small` may share a folder
            for leftover in folder.glob(f".{name}_{kind}*.tmp"):
                leftover.unlink(missing_ok=True)
    return lock


def archive_previous_run(config: TrainConfig) -> list[Path]:
    """Renames the files under a model's names so that each carries the id of the run that wrote it.

    Returns the new names, none of which existed before.
    """
    ours, moved = re.compile(rf"{config.model_name}_(best|last|epoch_\d+)"), []
    files = [path for path in sorted(Path(config.save_dir).glob("*.pth")) if ours.fullmatch(path.stem)]
    for path in filter(Path.is_file, [*files, log_path(config)]):
        owner = writer_of(path) or time.strftime("unknown-%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
        target, number = path.with_name(f"{path.stem}_{owner}{path.suffix}"), 1
        while target.exists():
            number += 1
            target = path.with_name(f"{path.stem}_{owner}-{number}{path.suffix}")
        moved.append(path.rename(target))
    for folder in {path.parent for path in moved}:
        sync_folder(folder)  # before a new file takes a name: a power failure could keep that and lose the renaming
    return moved


def writer_of(path: Path) -> str | None:
    """The id of the run that wrote a checkpoint or a log; None where it can't be read."""
    if path.suffix == ".pth":
        run_id = getattr(read_progress(path), "run_id", None)
    else:
        rows = []
        with contextlib.suppress(UsageError):  # whoever changed it by hand, it is only to be renamed
            rows = read_rows(path)
        run_id = rows[0].get("run_id") if rows else None
    return run_id if run_id and RUN_ID.fullmatch(run_id) else None
