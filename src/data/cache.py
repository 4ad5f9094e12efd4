"""The pixel cache: images and label maps of a dataset, decoded and resized once, as bytes in one file.

The file is a plain .npy array of uint8 (n, 4, S, S): red, green, blue, labels; of images that are not 8-bit RGB it is
of uint16 (n, C + 1, S, S). It is read by position, because mapped pages would count as this process's memory; what is
read by position stays in the system's page cache, which all processes share.
"""

import hashlib
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.layout import Sample
from data.view import View
from runtime.errors import DatasetError, raise_faults
from runtime.files import atomic_write, lock_file

CACHE_FOLDER = ".pixel_cache"  # in the dataset's
FORMAT_VERSION = 2  # changes when the same files give other records
SPARE_BYTES = 1 << 30  # what is left free on the disk, at least


class PixelCache:
    """Records of images by their names, which are in the order of the .npy file."""

    def __init__(self, file: Path, names: list[str]):
        try:
            array = np.load(file, mmap_mode="r")
        except ValueError:
            raise DatasetError(f"{file} is damaged; delete it and start again") from None
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
    """Opens the cache of all samples of a dataset under a view, and makes it first where these files have none.

    Several processes may call this at once: one makes the cache, the others wait for it.

    Returns:
        The cache; None, with a line on stderr that says why, where the disk has no room or can't be written.

    Raises:
        DatasetError: images or masks can't be used; the first ten are named, all are counted.
    """
    view.require_labels(samples)
    if any(not sample.binary_mask for sample in samples):
        view = view._replace(classes=())  # of trimaps all tasks share one record
    folder = root / CACHE_FOLDER
    kind = f"{view.size}_{hashlib.sha256(repr(view).encode()).hexdigest()[:8]}_"
    record = np.empty((view.channels + 1, view.size, view.size), view.dtype)
    file = folder / f"{kind}{files_digest(samples, FORMAT_VERSION)}.npy"

    def is_whole() -> bool:
        return file.is_file() and file.stat().st_size > len(samples) * record.nbytes

    try:
        folder.mkdir(exist_ok=True)
        if not is_whole():
            with lock_file(folder / "lock", wait=True):
                if not is_whole():  # nobody else has made it while we waited
                    _make(file, samples, view, record)
                    for old in folder.glob(f"{kind}*.npy"):  # of files that have changed since
                        if old != file:
                            old.unlink()
        return PixelCache(file, [sample.name for sample in samples])
    except OSError as error:
        reason = error.strerror or error
        print(f"No cache in {folder} ({reason}): every image is decoded at every access.", file=sys.stderr)
        return None


def files_digest(samples: list[Sample], *about) -> str:
    """Changes whenever a file, the list of files, or what is said `about` them does."""

    def stamp(path: Path) -> tuple[str, int, int]:
        status = path.stat()
        return path.name, status.st_size, status.st_mtime_ns

    with ThreadPoolExecutor() as pool:
        stamps = list(pool.map(lambda sample: (stamp(sample.image_path), stamp(sample.mask_path)), samples))
    return hashlib.sha256(json.dumps([*about, stamps]).encode()).hexdigest()[:16]


def _make(file: Path, samples: list[Sample], view: View, record: np.ndarray) -> None:
    for leftover in file.parent.glob(".*.npy.*.tmp"):  # of a kill: nobody else is here, we have the lock
        leftover.unlink()
    needed, free = len(samples) * record.nbytes, shutil.disk_usage(file.parent).free
    if free < needed + SPARE_BYTES:
        raise OSError(f"it takes {needed / 1e9:.2f} GB and leaves less than 1 GB free")
    print(f"Decoding {len(samples):,} images once, into {file} ({needed / 1e6:,.0f} MB).", flush=True)
    with atomic_write(file, "wb") as stream:
        shape = (len(samples), *record.shape)
        header = {"descr": record.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        _fill(stream, samples, view)


def _fill(stream, samples: list[Sample], view: View) -> None:
    """Writes the records of all samples in order. Threads decode them, since Pillow lets go of Python's lock."""

    def decode(sample: Sample):
        try:
            image, labels = view.read_at(sample, view.size_of(sample))
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
