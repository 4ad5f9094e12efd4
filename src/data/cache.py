"""The pixel cache: images and label maps of a dataset, decoded and resized once, in one file.

It is an .npy array of uint8 (n, 4, S, S): red, green, blue, labels; of images that are not 8-bit RGB of uint16
(n, C + 1, S, S). The file is mapped: a batch reads its own records alone.
"""

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
from tqdm import tqdm

from data.layout import Sample
from data.view import View
from runtime.errors import DatasetError, plural, raise_faults, say_notes
from runtime.files import atomic_write, lock_file

CACHE_FOLDER = ".pixel_cache"  # in the dataset's
FORMAT_VERSION = 3  # changes when the same files give other records
SPARE_BYTES = 1 << 30  # what is left free on the disk, at least


class PixelCache:
    """Records of images by their names, which are in the order of the .npy file."""

    def __init__(self, file: Path, names: list[str]):
        try:
            self.records = np.load(file, mmap_mode="r")
        except ValueError:
            raise DatasetError(f"{file} is damaged; delete it and start again") from None
        self.file, self.rows = file, {name: row for row, name in enumerate(names)}

    def __reduce__(self) -> tuple:  # a process that is spawned maps the file for itself
        return PixelCache, (self.file, list(self.rows))

    def read(self, names: list[str]) -> np.ndarray:
        """The records of these images, (N, C + 1, S, S), the caller's own."""
        return self.records[[self.rows[name] for name in names]]


def open_cache(root: Path, samples: list[Sample], view: View) -> PixelCache | None:
    """The cache of all samples of a dataset under a view, made first where these files have none.

    None, and a line on stderr says why, where the disk can't hold it. Raises DatasetError: images can't be used.
    """
    view.require_labels(samples)
    if any(not sample.binary_mask for sample in samples):
        view = view._replace(classes=())  # of trimaps all tasks share one record
    kind = f"{view.size}_{hashlib.sha256(repr(view).encode()).hexdigest()[:8]}_"
    # Another version of Pillow may resize an image differently, by one level.
    file = root / CACHE_FOLDER / f"{kind}{files_digest(samples, FORMAT_VERSION, PIL.__version__)}.npy"
    try:
        make_once(file, f"{kind}*.npy", lambda: _decode(file, samples, view))
        return PixelCache(file, [sample.name for sample in samples])
    except OSError as error:
        reason = error.strerror or error
        print(f"No cache in {file.parent} ({reason}): every image is decoded at every access.", file=sys.stderr)
        return None


def make_once(file: Path, outdated: str, make: Callable[[], None]) -> None:
    """Calls `make` where a file of the cache folder is missing, in one process at a time; removes `outdated` ones."""
    folder = file.parent
    folder.mkdir(exist_ok=True)
    if file.is_file():
        return
    with lock_file(folder / "lock", wait=True):
        if not file.is_file():  # nobody else has made it while we waited
            for leftover in folder.glob(".*.tmp"):  # of a kill: nobody else is here, we have the lock
                leftover.unlink()
            make()
            for old in {*folder.glob(outdated)} - {file}:  # of files that have changed since
                old.unlink()


def files_digest(samples: list[Sample], *about) -> str:
    """Changes whenever a file, the list of files, or what is said `about` them does."""
    files = [file for sample in samples for file in sample.files]
    with ThreadPoolExecutor() as pool:
        stamps = [(f.name, s.st_size, s.st_mtime_ns) for f, s in zip(files, pool.map(Path.stat, files))]
    return hashlib.sha256(json.dumps([*about, stamps]).encode()).hexdigest()[:16]


def read_all(read: Callable, samples: list[Sample], title: str) -> Iterator:
    """What `read` gives for each sample, or the DatasetError that it raises, in order, with a progress bar."""

    def attempt(sample: Sample):
        try:
            return read(sample)
        except DatasetError as error:
            return error

    workers = os.cpu_count() or 1
    bar = tqdm(total=len(samples), desc=title, unit="image", disable=None, delay=1)
    with bar, ThreadPoolExecutor(workers) as pool:  # Pillow lets go of Python's lock
        for begin in range(0, len(samples), 16 * workers):  # in portions, so that memory stays small
            for result in pool.map(attempt, samples[begin : begin + 16 * workers]):
                yield result
                bar.update()
    say_notes()


def _decode(file: Path, samples: list[Sample], view: View) -> None:
    """Writes the records of all samples in order."""
    shape, dtype = (len(samples), view.channels + 1, view.size, view.size), np.dtype("u1" if view.rgb else "u2")
    needed = math.prod(shape) * dtype.itemsize
    if shutil.disk_usage(file.parent).free < needed + SPARE_BYTES:
        raise OSError(f"it takes {needed / 1e9:.2f} GB and leaves less than 1 GB free")
    print(f"Decoding {plural(len(samples), 'image')} once, into {file} ({needed / 1e6:,.0f} MB).", flush=True)

    def record(sample: Sample) -> np.ndarray:
        image, labels = view.read_at(sample, view.size_of(sample))
        return np.concatenate([image.transpose(2, 0, 1), labels[None].astype(dtype)])

    with atomic_write(file, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": dtype.str, "fortran_order": False, "shape": shape})
        faults = []
        for result in read_all(record, samples, "decoding"):
            if isinstance(result, DatasetError):
                faults.append(str(result))
            elif not faults:
                stream.write(np.ascontiguousarray(result))
        raise_faults(faults, samples[0].image_path.parent.parent)
