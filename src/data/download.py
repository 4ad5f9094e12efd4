"""Downloads the Oxford-IIIT Pet dataset from its authors, verified."""

import contextlib
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

from tqdm import tqdm

from data.index import find_root, has_lists
from data.splits import split_samples
from runtime.errors import DatasetError
from runtime.fetch import fetch

FILTER = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python before 3.10.12 has none
NEEDED_BYTES = 1_700_000_000  # 0.8 GB of archives, and as much again unpacked
SECONDS = 30  # for the server's answer; then how long it may be silent
BLOCK = 4096  # bytes that a file takes at least


def resources() -> tuple[tuple[str, str], ...]:
    """Address and MD5 of both archives, as torchvision has them."""
    from torchvision.datasets import OxfordIIITPet

    return OxfordIIITPet._RESOURCES


def download(data_path) -> Path:
    """Downloads the dataset into <data_path>/oxford-iiit-pet, torchvision's layout; safe to repeat.

    What is complete is left alone; an archive that was cut off or tampered with is fetched anew. Archives are verified
    by MD5 before they are unpacked, and folders appear under their own names only when they are whole.

    Returns:
        The folder with images/ and annotations/.

    Raises:
        DatasetError: the archives can't be had, are not the real ones, or don't fit on the disk.
    """
    from torchvision.datasets.utils import check_integrity

    try:
        root = find_root(data_path)
    except DatasetError:
        root = Path(data_path) / "oxford-iiit-pet"
    else:
        if (root / "annotations").is_dir():
            with contextlib.suppress(DatasetError):  # what is not whole is fetched anew, where it is
                split_samples(root, copies=None)
                print(f"The dataset in {root} is complete.")
                return root
        if not has_lists(root):
            raise DatasetError(f"{root} holds images of your own; name another folder for the download")
    for leftover in root.glob(".unpacking-*"):
        shutil.rmtree(leftover)
    for leftover in root.glob(".*.tar.gz.*.tmp"):
        leftover.unlink()
    free = shutil.disk_usage(data_path).free
    if free < NEEDED_BYTES:
        raise DatasetError(
            f"the download needs {NEEDED_BYTES / 1e9:.1f} GB and {data_path} has {free / 1e9:.1f} GB free; make room, "
            "or name a folder on another disk with --data_path"
        )
    for url, md5 in resources():
        archive = root / url.rsplit("/", 1)[1]
        try:
            root.mkdir(exist_ok=True)
            if not check_integrity(archive, md5):
                fetch(url, archive, "md5", md5, SECONDS)
            _unpack(archive, root)
        except (OSError, RuntimeError, tarfile.TarError, EOFError, ValueError, zlib.error) as error:
            raise DatasetError(f"{url} can't be downloaded into {root} ({error}); try again later") from None
    split_samples(root, copies=None)
    for url, _ in resources():
        (root / url.rsplit("/", 1)[1]).unlink()
    return root


def _unpack(archive: Path, root: Path) -> None:
    total = 0
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as scratch, tarfile.open(archive) as tar:
        for member in tqdm(tar, desc=f"unpacking {archive.name}", unit="file", disable=None):
            if not (member.isfile() or member.isdir()):
                raise tarfile.TarError(f"{member.name} is a link or a device")
            if ".." in Path(member.name).parts or Path(member.name).anchor:
                raise tarfile.TarError(f"{member.name} is outside the destination")
            total += member.size + BLOCK
            if total > NEEDED_BYTES:
                raise tarfile.TarError(f"it unpacks to more than {NEEDED_BYTES / 1e9:.1f} GB")
            tar.extract(member, scratch, **FILTER)
        if hasattr(os, "sync"):  # not on Windows
            os.sync()  # else a power failure could leave empty files in a folder that looks whole
        for folder in Path(scratch).iterdir():
            place_whole(folder, root / folder.name)


def place_whole(source: Path, target: Path) -> None:
    """Moves a folder to where it belongs; what is there already and not in it stays."""
    if not target.exists():
        source.rename(target)
        return
    for path in source.iterdir():
        if path.is_dir():
            place_whole(path, target / path.name)
        else:
            path.replace(target / path.name)
