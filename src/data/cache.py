"""The pixel cache: images and label maps of a dataset, decoded and resized once, as bytes in one file.

The file is a plain .npy array of uint8 (n, 4, S, S): red, green, blue, labels; of images that are not 8-bit RGB it is
of uint16. `np.load(file, mmap_mode="r")` opens it. It is read by position here, because mapped pages would count as
this process's memory; what is read by position stays in the system's page cache, which all processes share.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.image_io import load_array
from data.layout import Sample
from data.view import View
from runtime.errors import DatasetError, raise_faults
from runtime.files import lock_file, sync_folder

CACHE_FOLDER = ".pixel_cache"  # in the dataset's
FORMAT_VERSION = 2  # changes when the same files give other records
SPARE_BYTES = 1 << 30  # what is left free on the disk, at least


class PixelCache:
    """Records of images by their names.

    Args:
        file: the .npy file.
        names: of the images, in the file's order.

    Raises:
        OSError: this user may not read the file.
        DatasetError: the file is damaged, or not of the shape that the names ask for.
    """

    def __init__(self, file: Path, names: list[str]):
        damaged = DatasetError(f"{file} is damaged; delete it and start again")
        os.close(os.open(file, os.O_RDONLY))  # a file of another user is not a damaged one
        try:
            array = load_array(file)
        except DatasetError:
            raise damaged from None
        if array.dtype not in (np.uint8, np.uint16) or array.ndim != 4 or len(array) != len(names):
            raise damaged
        self.file, self.shape, self.dtype, self.offset = file, array.shape[1:], array.dtype, array.offset
        self.rows = {name: row for row, name in enumerate(names)}
        self.handle: int | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "handle": None}  # a worker process opens the file for itself

    def read(self, names: list[str]) -> np.ndarray:
        """The records of these images, (N, C + 1, S, S), the caller's own."""
        rows = [self.rows[name] for name in names]
        if not hasattr(os, "preadv"):  # Windows
            return np.load(self.file, mmap_mode="r")[rows]
        if self.handle is None:
            self.handle = os.open(self.file, os.O_RDONLY)
        records = np.empty((len(rows), *self.shape), self.dtype)
        for record, row in zip(records, rows):
            # The position is in the call, so processes that share the handle after a fork don't disturb each other.
            if os.preadv(self.handle, [record], self.offset + row * record.nbytes) != record.nbytes:
                raise DatasetError(f"{self.file} has been cut off; delete it and start again")
        return records


def open_cache(root: Path, samples: list[Sample], view: View) -> PixelCache | None:
    """Opens the cache of a dataset at a size, and makes it first where there is none of exactly these files.

    Several processes may call this at once: one makes the cache, the others wait for it.

    Args:
        root: folder of the dataset; the cache goes into its folder .pixel_cache.
        samples: all of the dataset.
        view: what is read of them.

    Returns:
        The cache; None, with a line on stderr that says why, where the disk has no room or can't be written.

    Raises:
        DatasetError: images or masks can't be used; the first ten are named, all are counted.
    """
    view.require_labels(samples)
    if any(not sample.binary_mask for sample in samples):
        view = view._replace(classes=())  # of trimaps all tasks share one record
    names, folder = [sample.name for sample in samples], root / CACHE_FOLDER
    kind = f"{view.size}_{hashlib.sha256(repr(view).encode()).hexdigest()[:8]}_"
    record = np.empty((view.channels + 1, view.size, view.size), view.dtype)
    file = folder / f"{kind}{files_digest(samples, FORMAT_VERSION)}.npy"
    try:
        make_cache_folder(folder)
        if not _is_whole(file, len(samples), record):
            with lock_file(folder / "lock", wait=True):
                if not _is_whole(file, len(samples), record):  # nobody else has made it while we waited
                    _make(file, samples, view, record)
        return PixelCache(file, names)
    except OSError as error:
        print(
            f"No cache in {folder} ({error.strerror or error}): every image is decoded at every access.",
            file=sys.stderr,
        )
        return None


def make_cache_folder(folder: Path) -> None:
    """Makes the cache folder of a dataset, where it is missing.

    Raises:
        OSError: it can't be made, or a link in its place or in it may lead out of the dataset, or a pipe in it waits.
    """
    folder.mkdir(exist_ok=True)
    with os.scandir(folder) as entries:
        odd = [e.name for e in entries if not (e.is_file(follow_symlinks=False) or e.is_dir(follow_symlinks=False))]
    if folder.is_symlink() or odd:
        raise OSError(f"{odd[0] if odd else 'it'} is a link or no file")


def _is_whole(file: Path, count: int, record: np.ndarray) -> bool:
    return file.is_file() and file.stat().st_size > count * record.nbytes


def files_digest(samples: list[Sample], *about) -> str:
    """Changes whenever a file, the list of files, or what is said `about` them does."""

    def stamp(path: Path) -> tuple[str, int, int]:
        status = path.stat()
        return str(path.name), status.st_size, status.st_mtime_ns

    with ThreadPoolExecutor() as pool:
        stamps = list(pool.map(lambda sample: (stamp(sample.image_path), stamp(sample.mask_path)), samples))
    return hashlib.sha256(json.dumps([*about, stamps]).encode()).hexdigest()[:16]


def _make(file: Path, samples: list[Sample], view: View, record: np.ndarray) -> None:
    for leftover in file.parent.glob("*.tmp"):  # of a kill: nobody else is here, we have the lock
        leftover.unlink()
    needed, free = len(samples) * record.nbytes, shutil.disk_usage(file.parent).free
    if free < needed + SPARE_BYTES:
        raise OSError(f"it takes {needed / 1e9:.2f} GB and leaves less than 1 GB free")
    print(f"Decoding {len(samples):,} images once, into {file} ({needed / 1e6:,.0f} MB).", flush=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            shape = (len(samples), *record.shape)
            header = {"descr": record.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            _fill(stream, samples, view)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(file)
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync_folder(file.parent)
    kind = file.name[:-20]  # what stands before the digest
    for other in file.parent.glob(f"{kind}{'[0-9a-f]' * 16}.npy"):  # of files that have changed since
        if other != file:
            other.unlink()


def _fill(stream, samples: list[Sample], view: View) -> None:
    """Writes the records of all samples in order. Threads decode them, since Pillow lets go of Python's lock."""

    def decode(sample: Sample):
        try:
            image, labels = view.read_stored(sample, view.size_of(sample))
        except DatasetError as error:
            return str(error)
        return np.concatenate([image.transpose(2, 0, 1), labels[None].astype(view.dtype)])

    faults, workers = [], os.cpu_count() or 1
    bar = tqdm(total=len(samples), desc="decoding", unit="image", disable=None, delay=1)
    with bar, ThreadPoolExecutor(workers) as pool:
        for begin in range(0, len(samples), 16 * workers):  # in portions, so that memory stays small
            for record in pool.map(decode, samples[begin : begin + 16 * workers]):
                if isinstance(record, str):
                    faults.append(record)
                elif not faults:
                    stream.write(np.ascontiguousarray(record))
                bar.update()
    raise_faults(faults, samples[0].image_path.parent.parent)
