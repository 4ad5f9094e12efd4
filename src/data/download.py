"""Downloads the Oxford-IIIT Pet dataset from its authors, verified."""

import contextlib
import http.client
import os
import shutil
import socket
import tarfile
from pathlib import Path

from data.dataset import Dataset
from data.layout import find_root, names_of_lists, require_files
from runtime.errors import DatasetError, first_line

NEEDED_BYTES = 1_700_000_000  # 0.8 GB of archives, and as much again unpacked
SECONDS = 30  # how long the server may be silent
UNFINISHED = ".download"  # the folder for what is not whole yet


def download(data_path) -> Path:
    """Downloads the dataset into <data_path>/oxford-iiit-pet, torchvision's layout, and returns that; safe to repeat.

    torchvision verifies the archives by MD5. Images and annotations appear under their names only when they are whole.
    """
    try:
        root = find_root(data_path)
    except DatasetError:
        root = Path(data_path) / "oxford-iiit-pet"
    else:
        if (root / "annotations").is_dir():
            with contextlib.suppress(DatasetError):  # what is not whole is fetched anew, where it is
                _require_whole(root)
                shutil.rmtree(root / UNFINISHED, ignore_errors=True)
                print(f"The dataset in {root} is complete.")
                return root
        if not names_of_lists(root):
            raise DatasetError(f"{root} holds images of your own; name another folder for the download")
    free = shutil.disk_usage(data_path).free
    if free < NEEDED_BYTES:
        text = f"the download needs {NEEDED_BYTES / 1e9:.1f} GB and {data_path} has {free / 1e9:.1f} GB free"
        raise DatasetError(f"{text}; make room, or name a folder on another disk with --data_path")
    _fetch(root / UNFINISHED)
    if hasattr(os, "sync"):  # not on Windows
        os.sync()  # else a power failure could leave empty files in a folder that looks whole
    for part in ("images", "annotations"):
        source = root / UNFINISHED / "oxford-iiit-pet" / part
        if (root / part).exists():  # what is there already, and not in the download, stays
            shutil.copytree(source, root / part, copy_function=os.replace, dirs_exist_ok=True)
        else:
            source.rename(root / part)
    _require_whole(root)
    shutil.rmtree(root / UNFINISHED)
    return root


def _require_whole(root: Path) -> None:
    dataset = Dataset(root)
    if dataset.lists:
        dataset.require_lists("list", "trainval", "test")
    require_files(root, dataset.samples)


def _fetch(folder: Path) -> None:
    from torchvision.datasets import OxfordIIITPet

    for part in ("images", "annotations"):  # unpacked in part: torchvision would take them for whole
        shutil.rmtree(folder / "oxford-iiit-pet" / part, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Downloading the Oxford-IIIT Pet dataset into {folder.parent}, then unpacking it ...", flush=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)  # torchvision sets none
    try:
        OxfordIIITPet(folder, download=True)
    except (OSError, http.client.HTTPException, RuntimeError, tarfile.TarError, EOFError, ValueError) as error:
        text = f"the dataset can't be downloaded into {folder.parent} ({first_line(error)})"
        raise DatasetError(f"{text}; check the connection and the free space, and start it again") from None
    finally:
        socket.setdefaulttimeout(before)
