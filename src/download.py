"""Downloads the Oxford-IIIT Pet dataset from its authors, verified."""

import shutil
import tarfile
import tempfile
from pathlib import Path

from oxford_pet import find_root, split_pets
from pictures import DatasetError


def resources() -> tuple[tuple[str, str], ...]:
    """Address and MD5 of both archives, as torchvision has them."""
    from torchvision.datasets import OxfordIIITPet

    return OxfordIIITPet._RESOURCES


def download(data_path) -> Path:
    """Downloads the dataset into <data_path>/oxford-iiit-pet, torchvision's layout; safe to repeat.

    What is complete is left alone. Archives are verified by MD5 before they are unpacked, and folders appear under
    their own names only when they are whole.

    Returns:
        The folder with images/ and annotations/.

    Raises:
        DatasetError: the archives can't be had, or are not the real ones.
    """
    from torchvision.datasets.utils import download_url

    try:
        root = find_root(data_path)
        split_pets(root)
        print(f"The dataset in {root} is complete.")
        return root
    except DatasetError:
        root = Path(data_path) / "oxford-iiit-pet"
    for url, md5 in resources():
        archive = root / url.rsplit("/", 1)[1]
        try:
            download_url(url, root, md5=md5)
            _unpack(archive, root)
        except (OSError, RuntimeError, tarfile.TarError) as error:
            raise DatasetError(f"{url} can't be downloaded into {root} ({error}); try again later") from None
    split_pets(root)
    for url, _ in resources():
        (root / url.rsplit("/", 1)[1]).unlink()
    return root


def _unpack(archive: Path, root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as scratch, tarfile.open(archive) as tar:
        tar.extractall(scratch, filter="data")  # refuses members that leave the folder, links out of it, devices
        for folder in Path(scratch).iterdir():
            shutil.rmtree(root / folder.name, ignore_errors=True)  # a half-unpacked one from before
            folder.rename(root / folder.name)
