"""The Oxford-IIIT Pet dataset (Parkhi et al., 2012): reading, splits, verified download.

The pictures that exist are those that the dataset's lists name: images/ also holds files without a trimap. A trimap's
pixels are 1 = pet, 2 = background, 3 = border; the mask is 1 where the trimap is 1 or 3.
"""

import hashlib
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

MODES = ("train", "valid", "test")
SPLITS = ("80-10-10", "official")
BACKGROUND, BORDER = 2, 3
DOWNLOAD_HINT = "download the dataset with `python src/oxford_pet.py --download --data_path {}`"


class DatasetError(ValueError):
    """The data is missing, incomplete or not what it should be; says what, where and how to mend it."""


class Pet(NamedTuple):
    """One listed picture."""

    name: str
    breed: int
    image_path: Path
    trimap_path: Path


def find_root(data_path) -> Path:
    """The folder that holds images/ and annotations/.

    Args:
        data_path: that folder, its images/ folder, or the folder into which torchvision downloads the dataset.

    Raises:
        DatasetError: there is no dataset.
    """
    path = Path(data_path)
    candidates = [path, path / "oxford-iiit-pet", *([path.parent] if path.name == "images" else [])]
    for root in candidates:
        if (root / "images").is_dir() and (root / "annotations").is_dir():
            return root
    state = "has no images/ and annotations/" if path.is_dir() else "does not exist"
    raise DatasetError(f"no dataset: the folder {path} {state}; {DOWNLOAD_HINT.format(path)}")


def read_list(root: Path, name: str) -> list[Pet]:
    """Reads annotations/<name>.txt, rows of `Name CLASS-ID SPECIES BREED-ID`; lines that start with # are comments.

    Raises:
        DatasetError: the list is missing, or a row is not of that form.
    """
    file = root / "annotations" / f"{name}.txt"
    if not file.is_file():
        raise DatasetError(f"the list {file} is missing; {DOWNLOAD_HINT.format(root)}")
    pets = []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            stem, breed = line.split()[:2]
            pet = Pet(stem, int(breed), root / "images" / f"{stem}.jpg", root / "annotations/trimaps" / f"{stem}.png")
        except ValueError:
            raise DatasetError(f"{file} line {number} is not `name class species breed`: {line.strip()!r}") from None
        pets.append(pet)
    return pets


def split_pets(root: Path, split: str = "80-10-10", seed: int = 42) -> dict[str, list[Pet]]:
    """Divides the listed pictures into the parts train, valid and test, disjoint by construction.

    Args:
        root: folder with images/ and annotations/.
        split: `official` takes trainval.txt, every tenth picture of it for validation, and test.txt. `80-10-10`
            shuffles each breed of all listed pictures once and gives every part the same share of it.
        seed: of the shuffle; `official` draws nothing.

    Raises:
        DatasetError: a list is missing or malformed, listed files are missing, or a part is empty.
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"no split is called {split!r}; there are {', '.join(SPLITS)}")
    if split == "official":
        trainval, test = read_list(root, "trainval"), read_list(root, "test")
        parts = {
            "train": [pet for i, pet in enumerate(trainval, start=1) if i % 10],
            "valid": trainval[9::10],
            "test": test,
        }
    else:
        parts = _stratified(read_list(root, "list"), seed)
    _require_files(root, [pet for part in parts.values() for pet in part])
    for mode, part in parts.items():
        if not part:
            listed = sum(len(p) for p in parts.values())
            raise DatasetError(f"{root}: the {mode} part of the split {split} is empty ({listed} pictures are listed)")
    return parts


def _stratified(pets: list[Pet], seed: int) -> dict[str, list[Pet]]:
    by_breed: dict[int, list[Pet]] = {}
    for pet in sorted(pets):
        by_breed.setdefault(pet.breed, []).append(pet)
    order = [
        pet
        for breed, members in by_breed.items()
        for pet in (members[i] for i in np.random.default_rng([seed, breed]).permutation(len(members)))
    ]
    # Breed stands behind breed, and every run of ten in this order gives eight, one and one: so each part gets its
    # share of every breed, to within one picture, and of the whole.
    parts: dict[str, list[Pet]] = {mode: [] for mode in MODES}
    for i, pet in enumerate(order):
        parts[{4: "valid", 9: "test"}.get(i % 10, "train")].append(pet)
    return parts


def _require_files(root: Path, pets: list[Pet]) -> None:
    # Two listings instead of two questions per picture: 15,000 stats over a network drive take a minute.
    present = {p.name for folder in ("images", "annotations/trimaps") for p in (root / folder).glob("*")}
    missing = [str(p) for pet in pets for p in (pet.image_path, pet.trimap_path) if p.name not in present]
    if missing:
        raise DatasetError(
            f"{len(missing)} of the {2 * len(pets)} listed files are missing in {root}: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}; {DOWNLOAD_HINT.format(root)}"
        )


def fingerprint(pets: list[Pet]) -> str:
    """SHA-256 over the names, in order: tells whether two runs have the same pictures in a part."""
    return hashlib.sha256("\n".join(pet.name for pet in pets).encode()).hexdigest()


def read_image(path, size: Optional[int] = None) -> np.ndarray:
    """Reads a picture of any mode as RGB.

    Args:
        path: the file; its content decides the format, not its name (four .jpg files of the dataset are PNGs).
        size: side of a square that the picture is resized to, bilinear with antialiasing; None keeps its own size.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DatasetError: the file can't be read as a picture.
    """
    try:
        with Image.open(path) as image:
            if size is not None:
                image.draft("RGB", (size, size))  # lets the JPEG decoder skip detail that the resize would average away
            if image.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion would clip to white
                image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            image = image.convert("RGB")
            if size is not None:
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} can't be read as a picture ({error}); replace the file") from None


def read_trimap(path, size: Optional[int] = None) -> np.ndarray:
    """Reads a trimap.

    Args:
        path: a single-channel PNG.
        size: side of a square that it is resized to, nearest neighbour; None keeps its own size.

    Returns:
        uint8 (H, W) of 1 = pet, 2 = background, 3 = border.

    Raises:
        DatasetError: the file can't be read, has several channels, or holds other values.
    """
    try:
        with Image.open(path) as image:
            full = np.asarray(image)
            small = full if size is None else np.asarray(image.resize((size, size), Image.Resampling.NEAREST))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} can't be read as a trimap ({error}); replace the file") from None
    if full.ndim != 2 or full.dtype != np.uint8:
        raise DatasetError(f"{path} is no trimap: expected one channel of 8 bits, got an array of shape {full.shape}")
    counts = np.bincount(full.ravel(), minlength=256)
    if counts[1:4].sum() != full.size:
        values = np.flatnonzero(counts)
        shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
        raise DatasetError(
            f"{path} is no trimap: it holds the values {shown}; only 1 (pet), 2 (background) and 3 (border) may occur"
        )
    return small


def sample_rng(seed: int, epoch: int, name: str, purpose: int = 0) -> np.random.Generator:
    """The random numbers of one picture in one epoch, for one purpose.

    A pure function of its arguments: no state lives in worker processes, so a run does not depend on how many there are
    and can go on anywhere.
    """
    return np.random.default_rng([seed, epoch, zlib.crc32(name.encode()), purpose])


class OxfordPetDataset(Dataset):
    """Pictures and masks at their own sizes.

    A sample is a dict: `image` uint8 (H, W, 3), `mask` uint8 (H, W) of 0 and 1, `trimap` uint8 (H, W) of 1, 2, 3, and
    `path`, the picture's file. A key is an index, or a pair (epoch, index) where something is drawn anew every epoch.

    Args:
        data_path: see `find_root`.
        mode: `train`, `valid` or `test`.
        transform: called with a sample, returns it changed.
        split: see `split_pets`.
        augment_uncertain: border pixels become pet or background at random, half and half, instead of pet.
        seed: of the split and of everything drawn.

    Raises:
        DatasetError: see `find_root` and `split_pets`; from indexing, see `read_image` and `read_trimap`.
        ValueError: there is no such mode or split.
    """

    def __init__(
        self, data_path, mode="train", transform=None, split="80-10-10", augment_uncertain=False, seed: int = 42
    ):
        if mode not in MODES:
            raise ValueError(f"no mode is called {mode!r}; there are {', '.join(MODES)}")
        self.root = find_root(data_path)
        self.pets = split_pets(self.root, split, seed)[mode]
        self.mode, self.transform, self.augment_uncertain, self.seed = mode, transform, augment_uncertain, seed

    def __len__(self) -> int:
        return len(self.pets)

    def __getitem__(self, key) -> dict:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = self._read(self.pets[index], epoch)
        return sample if self.transform is None else self.transform(sample)

    def _read(self, pet: Pet, epoch: int, size: Optional[int] = None) -> dict:
        _require_same_size(pet)
        image, trimap = read_image(pet.image_path, size), read_trimap(pet.trimap_path, size)
        rng = sample_rng(self.seed, epoch, pet.name) if self.augment_uncertain else None
        return {
            "image": image,
            "mask": self._preprocess_mask(trimap, rng),
            "trimap": trimap,
            "path": str(pet.image_path),
        }

    @staticmethod
    def _preprocess_mask(trimap: np.ndarray, rng: Optional[np.random.Generator] = None) -> np.ndarray:
        """Trimap (H, W) to mask (H, W): border pixels are pet, or with `rng` either at random, half and half."""
        mask = (trimap != BACKGROUND).astype(np.uint8)
        if rng is not None:
            border = trimap == BORDER
            mask[border] = rng.integers(0, 2, size=int(border.sum()), dtype=np.uint8)
        return mask


def _require_same_size(pet: Pet) -> None:
    # Only the headers are read here; what can't be opened is reported by the reading that follows.
    try:
        with Image.open(pet.image_path) as image, Image.open(pet.trimap_path) as trimap:
            sizes = image.size, trimap.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return
    if sizes[0] != sizes[1]:
        (w, h), (tw, th) = sizes
        raise DatasetError(
            f"{pet.image_path} is {w}x{h} but its trimap {pet.trimap_path} is {tw}x{th}; they must have the same size"
        )


class SimpleOxfordPetDataset(OxfordPetDataset):
    """The same pictures as a network takes them: square and as tensors.

    A sample is a dict: `image` uint8 (3, S, S), `mask` uint8 (1, S, S) of 0 and 1, `trimap` uint8 (1, S, S), `path`. It
    stays in bytes until it is on the device; normalisation is the model's.

    Args:
        *args: as for OxfordPetDataset.
        image_size: S, in pixels.
        **kwargs: as for OxfordPetDataset.
    """

    def __init__(self, *args, image_size: int = 256, **kwargs):
        super().__init__(*args, **kwargs)
        self.image_size = image_size

    def _read(self, pet: Pet, epoch: int, size: Optional[int] = None) -> dict:
        sample = super()._read(pet, epoch, size or self.image_size)
        return {
            "image": torch.from_numpy(sample["image"].transpose(2, 0, 1).copy()),
            "mask": torch.from_numpy(sample["mask"][None]),
            "trimap": torch.from_numpy(sample["trimap"][None].copy()),
            "path": sample["path"],
        }


def load_dataset(data_path, mode: str = "train", **options) -> SimpleOxfordPetDataset:
    """Opens one part of the dataset; see SimpleOxfordPetDataset for options, samples and errors."""
    return SimpleOxfordPetDataset(data_path, mode, **options)


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


def main(argv=None) -> None:
    """The command line of this file."""
    import cli

    parser = cli.Parser(prog="oxford_pet.py", description="Download and check the Oxford-IIIT Pet dataset.")
    parser.add_argument("--data_path", default="dataset", metavar="DIR", help="dataset folder")
    parser.add_argument("--download", action="store_true", help="fetch the real dataset (about 800 MB), MD5 verified")
    args = parser.parse_args(argv)
    if args.download:
        cli.writable_folder(args.data_path)
        download(args.data_path)
    root = find_root(args.data_path)
    for split in SPLITS:
        parts = split_pets(root, split)
        print(f"{root} {split}: " + ", ".join(f"{len(pets)} {mode}" for mode, pets in parts.items()))


if __name__ == "__main__":
    import cli

    cli.run(main, DatasetError)
