"""Datasets: the Oxford-IIIT Pet dataset (Parkhi et al., 2012), others in its layout, and folders of images and masks.

A dataset is a folder in one of three layouts:

    images/ annotations/trimaps/ annotations/*.txt   the pets' own; what the lists name exists, nothing else does
    images/ annotations/trimaps/                     the same without lists: pictures and trimaps pair up by stem
    images/ masks/                                   own pictures; masks of two values, black is background

A trimap is 1 = pet, 2 = background, 3 = border; the mask is 1 where it is 1 or 3. Masks of the third layout are read as
trimaps without a border, so that everything after the reading is the same.
"""

import collections
import hashlib
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from pictures import BACKGROUND, BORDER, PICTURES, DatasetError, raise_faults, read_pair

MODES = ("train", "valid", "test")
SPLITS = ("80-10-10", "official")
DOWNLOAD_HINT = "download the dataset with `python src/oxford_pet.py --download --data_path {}`"


class Pet(NamedTuple):
    """One picture with its mask."""

    name: str
    breed: int
    image_path: Path
    mask_path: Path
    own: bool = False  # of the layout images/ masks/


class Split(NamedTuple):
    """The parts of a dataset, disjoint in names and in content."""

    train: list
    valid: list
    test: list
    moved: int  # pictures put into training because a copy of them stood there or elsewhere


# -------------------------------------------------------------------------------------------------------------- layouts


def find_root(data_path) -> Path:
    """The folder that holds images/ beside annotations/ or masks/.

    Args:
        data_path: that folder, its images/ folder, or the folder into which torchvision downloads the dataset.

    Raises:
        DatasetError: there is no dataset.
    """
    path = Path(data_path)
    near = [path, path.parent] if path.name == "images" else [path]
    for root in [*near, *(folder / "oxford-iiit-pet" for folder in near)]:
        if (root / "images").is_dir() and ((root / "annotations").is_dir() or (root / "masks").is_dir()):
            return root
    state = "has no images/ beside annotations/ or masks/" if path.is_dir() else "does not exist"
    raise DatasetError(f"no dataset: the folder {path} {state}; {DOWNLOAD_HINT.format(path)}")


def describe_layout(root: Path) -> str:
    """The layout that a dataset is recognised as, in words."""
    if not (root / "annotations").is_dir():
        return "own pictures: images/ and masks/"
    return "the pets' layout" if has_lists(root) else "the pets' layout without lists"


def has_lists(root: Path) -> bool:
    """Whether a dataset has lists of its pictures, as the pets' own has."""
    return any((root / "annotations" / f"{name}.txt").is_file() for name in ("list", "trainval", "test"))


def list_pets(root: Path) -> list[Pet]:
    """All pictures of a dataset, in order of their names.

    Raises:
        DatasetError: see `read_list`; pictures without a mask and masks without a picture, where there are no lists.
    """
    if not has_lists(root):
        return _pair_up(root)
    optional = [name for name in ("list", "trainval", "test") if (root / "annotations" / f"{name}.txt").is_file()]
    needed = [] if "list" in optional else ["trainval", "test"]
    return sorted({pet.name: pet for name in [*needed, *optional] for pet in read_list(root, name)}.values())


def read_list(root: Path, name: str) -> list[Pet]:
    """Reads annotations/<name>.txt, rows of `Name CLASS-ID SPECIES BREED-ID`; lines that start with # are comments.

    Raises:
        DatasetError: the list is missing, a row is not of that form, or a name stands in it twice.
    """
    file = root / "annotations" / f"{name}.txt"
    if not file.is_file():
        raise DatasetError(f"the list {file} is missing; {DOWNLOAD_HINT.format(root)}")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DatasetError(f"{file} is no text in UTF-8; save it as that") from None
    pets = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            stem, breed = line.split()[:2]
            pet = Pet(stem, int(breed), root / "images" / f"{stem}.jpg", root / "annotations/trimaps" / f"{stem}.png")
        except ValueError:
            raise DatasetError(f"{file} line {number} is not `name class species breed`: {line.strip()!r}") from None
        pets.append(pet)
    twice = [name for name, count in collections.Counter(pet.name for pet in pets).items() if count > 1]
    raise_faults([f"{name} stands in {file.name} more than once" for name in twice], root)
    return pets


def _pair_up(root: Path) -> list[Pet]:
    """Pairs pictures and masks by stem; the breed is the name without its number, as in `Abyssinian_12`."""
    own = not (root / "annotations").is_dir()
    folders = root / "images", root / ("masks" if own else "annotations/trimaps")
    found: list[dict[str, Path]] = [{}, {}]
    faults = []
    for files, folder in zip(found, folders):
        for path in sorted(folder.glob("*")):
            if path.suffix.lower() not in PICTURES or path.name.startswith("."):
                continue
            if path.stem in files:
                faults.append(f"{path} and {files[path.stem].name} have the same stem")
            files[path.stem] = path
    images, masks = found
    faults += [f"{images[stem]} has no mask" for stem in images.keys() - masks.keys()]
    faults += [f"{masks[stem]} has no picture" for stem in masks.keys() - images.keys()]
    raise_faults(faults, root)
    kinds = sorted({re.sub(r"_?\d+$", "", stem) for stem in images})
    breeds = {kind: 0 if own else number for number, kind in enumerate(kinds, start=1)}
    return [Pet(stem, breeds[re.sub(r"_?\d+$", "", stem)], images[stem], masks[stem], own) for stem in sorted(images)]


# --------------------------------------------------------------------------------------------------------------- splits


def split_pets(root: Path, split: str = "80-10-10", seed: int = 42) -> Split:
    """Divides the pictures into the parts train, valid and test, disjoint in names and in content.

    Args:
        root: folder of a dataset.
        split: `official` takes trainval.txt, every tenth picture of it for validation, and test.txt. `80-10-10`
            shuffles each breed once and gives every part the same share of it.
        seed: of the shuffle; `official` draws nothing.

    Raises:
        DatasetError: a list is missing or malformed, listed files are missing, or a part is empty.
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"no split is called {split!r}; there are {', '.join(SPLITS)}")
    if split == "official":
        if not has_lists(root):
            raise DatasetError(f"{root} has no trainval.txt and test.txt for the official split; use --split 80-10-10")
        trainval, test = read_list(root, "trainval"), read_list(root, "test")
        both = {pet.name for pet in trainval} & {pet.name for pet in test}
        raise_faults([f"{name} stands in trainval.txt and in test.txt" for name in both], root)
        train = [pet for i, pet in enumerate(trainval, start=1) if i % 10]
        parts = {"train": train, "valid": trainval[9::10], "test": test}
    else:
        parts = _stratified(list_pets(root), seed)
    _require_files(root, [pet for part in parts.values() for pet in part])
    moved = _unite_copies(parts)
    for mode, part in parts.items():
        if not part:
            listed = sum(len(p) for p in parts.values())
            raise DatasetError(
                f"{root}: the {mode} part of the split {split} is empty: there are {listed} pictures in all, of which "
                f"{moved} were moved into training as copies; ten different ones are the least"
            )
    return Split(**parts, moved=moved)


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
    folders = {path.parent for pet in pets for path in (pet.image_path, pet.mask_path)}
    present = {path for folder in folders for path in folder.glob("*")}
    missing = [path for pet in pets for path in (pet.image_path, pet.mask_path) if path not in present]
    if missing:
        raise DatasetError(
            f"{len(missing)} of the {2 * len(pets)} listed files are missing in {root}: "
            f"{', '.join(map(str, missing[:3]))}{', ...' if len(missing) > 3 else ''}; {DOWNLOAD_HINT.format(root)}"
        )


def find_copies(pets: list[Pet]) -> list[list[Pet]]:
    """Groups of pictures whose files are equal, byte for byte. Only files of equal size are read."""
    try:
        with ThreadPoolExecutor() as pool:
            sizes = list(pool.map(lambda pet: pet.image_path.stat().st_size, pets))
            count = collections.Counter(sizes)
            suspects = [pet for size, pet in zip(sizes, pets) if count[size] > 1]
            digests = list(pool.map(lambda pet: hashlib.sha256(pet.image_path.read_bytes()).digest(), suspects))
    except OSError as error:
        raise DatasetError(f"{error.filename} can't be read ({error.strerror}); replace the file") from None
    groups: dict[bytes, list[Pet]] = {}
    for digest, pet in zip(digests, suspects):
        groups.setdefault(digest, []).append(pet)
    return [group for group in groups.values() if len(group) > 1]


def _unite_copies(parts: dict[str, list[Pet]]) -> int:
    """Moves copies of one picture that stand in several parts into training; returns how many were moved."""
    home = {pet: mode for mode, part in parts.items() for pet in part}
    mixed = [group for group in find_copies(list(home)) if len({home[pet] for pet in group}) > 1]
    moved = [pet for group in mixed for pet in group if home[pet] != "train"]
    for pet in moved:
        parts[home[pet]].remove(pet)
        parts["train"].append(pet)
    return len(moved)


def fingerprint(pets: list[Pet]) -> str:
    """SHA-256 over names and file sizes, in order: tells whether two runs have the same pictures in a part."""
    rows = (f"{pet.name} {pet.image_path.stat().st_size} {pet.mask_path.stat().st_size}" for pet in pets)
    return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogateescape")).hexdigest()


def sample_rng(seed: int, epoch: int, name: str, purpose: int = 0) -> np.random.Generator:
    """The random numbers of one picture in one epoch, for one purpose.

    A pure function of its arguments: no state lives in worker processes, so a run does not depend on how many there are
    and can go on anywhere.
    """
    return np.random.default_rng([seed, epoch, zlib.crc32(name.encode("utf-8", "surrogateescape")), purpose])


# ------------------------------------------------------------------------------------------------------------- datasets


class OxfordPetDataset(Dataset):
    """Pictures and masks at their own sizes.

    A sample is a dict: `image` uint8 (H, W, 3), `mask` uint8 (H, W) of 0 and 1, `trimap` uint8 (H, W) of 1, 2, 3, and
    `path`, the picture's file. A key is an index, or a pair (epoch, index) where something is drawn anew every epoch.

    Args:
        data_path: see `find_root`.
        mode: `train`, `valid` or `test`.
        transform: called with a sample, returns it changed.
        split: see `split_pets`; the name of one, or what it returned.
        augment_uncertain: border pixels become pet or background at random, half and half, instead of pet.
        seed: of the split and of everything drawn.

    Raises:
        DatasetError: see `find_root` and `split_pets`; from indexing, see `read_pair`.
        ValueError: there is no such mode or split.
    """

    def __init__(
        self, data_path, mode="train", transform=None, split="80-10-10", augment_uncertain=False, seed: int = 42
    ):
        if mode not in MODES:
            raise ValueError(f"no mode is called {mode!r}; there are {', '.join(MODES)}")
        self.root = find_root(data_path)
        self.pets = getattr(split if isinstance(split, Split) else split_pets(self.root, split, seed), mode)
        self.mode, self.transform, self.augment_uncertain, self.seed = mode, transform, augment_uncertain, seed

    def __len__(self) -> int:
        return len(self.pets)

    def __getitem__(self, key) -> dict:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        pet = self.pets[index]
        sample = self._sample(pet, epoch, *read_pair(*pet[2:]))
        return sample if self.transform is None else self.transform(sample)

    def _sample(self, pet: Pet, epoch: int, image: np.ndarray, trimap: np.ndarray) -> dict:
        rng = sample_rng(self.seed, epoch, pet.name) if self.augment_uncertain else None
        mask = self._preprocess_mask(trimap, rng)
        return {"image": image, "mask": mask, "trimap": trimap, "path": str(pet.image_path)}

    @staticmethod
    def _preprocess_mask(trimap: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Trimap (H, W) to mask (H, W): border pixels are pet, or with `rng` either at random, half and half."""
        mask = (trimap != BACKGROUND).astype(np.uint8)
        if rng is not None:
            border = trimap == BORDER
            mask[border] = rng.integers(0, 2, size=int(border.sum()), dtype=np.uint8)
        return mask


class SimpleOxfordPetDataset(OxfordPetDataset):
    """The same pictures as a network takes them: square and as tensors.

    A sample is a dict: `image` uint8 (3, S, S), `mask` uint8 (1, S, S) of 0 and 1, `trimap` uint8 (1, S, S), `path`. It
    stays in bytes until it is on the device; normalisation is the model's.

    Args:
        *args: as for OxfordPetDataset.
        image_size: S, in pixels.
        records: where pictures are kept decoded, see `pixel_cache.open_cache`; None decodes them at every access.
        **kwargs: as for OxfordPetDataset.
    """

    def __init__(self, *args, image_size: int = 256, records=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.image_size, self.records, self.decodes = image_size, records, records is None

    def __getitem__(self, key) -> dict:
        batch = self.read_batch([key])
        sample = {k: v[0] for k, v in batch.items()}
        return sample if self.transform is None else self.transform(sample)

    def read_batch(self, keys: list) -> dict:
        """Many samples at once, before `transform`: the sample's fields with N in front, paths as a list."""
        keys = [key if isinstance(key, tuple) else (0, key) for key in keys]
        pets = [self.pets[index] for _, index in keys]
        if self.records is not None:
            pixels = self.records.read([pet.name for pet in pets])
        else:
            pixels = np.empty((len(pets), 4, self.image_size, self.image_size), np.uint8)
            for record, pet in zip(pixels, pets):
                write_record(record, pet)
        masks = np.empty_like(pixels[:, 3:])
        for mask, pet, (epoch, _), record in zip(masks, pets, keys, pixels):
            mask[0] = self._sample(pet, epoch, record[:3], record[3])["mask"]
        return {
            "image": torch.from_numpy(pixels[:, :3]),
            "mask": torch.from_numpy(masks),
            "trimap": torch.from_numpy(pixels[:, 3:]),
            "path": [str(pet.image_path) for pet in pets],
        }


def write_record(record: np.ndarray, pet: Pet) -> None:
    """Fills a record, uint8 (4, S, S), with a picture's three channels and its trimap."""
    image, record[3] = read_pair(*pet[2:], record.shape[-1])
    record[:3] = image.transpose(2, 0, 1)


def load_dataset(data_path, mode: str = "train", **options) -> SimpleOxfordPetDataset:
    """Opens one part of a dataset; see SimpleOxfordPetDataset for options, samples and errors."""
    return SimpleOxfordPetDataset(data_path, mode, **options)


def main(argv=None) -> None:
    """The command line of this file."""
    import cli
    from dataset_check import check, preview
    from download import download

    parser = cli.Parser(prog="oxford_pet.py", description="Download, check and preview a dataset.")
    flag = parser.add_argument
    flag("--data_path", default="dataset", metavar="DIR", help="dataset folder")
    flag("--download", action="store_true", help="fetch the Oxford-IIIT Pet dataset (about 800 MB), MD5 verified")
    flag("--check", action="store_true", help="read every file and report what is wrong or odd")
    flag("--preview", nargs="?", const="preview.png", metavar="FILE", help="draw pictures and augmented ones")
    flag("--split", choices=SPLITS, default=SPLITS[0], help="which images are which")
    flag("--seed", type=cli.whole_number(0, 2**32 - 1), default=42, metavar="N", help="of the split")
    args = parser.parse_args(argv)
    if args.download:
        cli.writable_folder(args.data_path)
        download(args.data_path)
    root = find_root(args.data_path)
    if args.check:
        check(root, args.split, args.seed)
    if args.preview:
        cli.writable_folder(Path(args.preview).parent)
        preview(root, args.split, args.seed, Path(args.preview))
    if not (args.check or args.preview):
        sizes = zip(split_pets(root, args.split, args.seed), MODES)
        print(f"{root} ({describe_layout(root)}), split {args.split}: ", end="")
        print(", ".join(f"{len(part)} {mode}" for part, mode in sizes))


if __name__ == "__main__":
    import cli

    cli.run(main, DatasetError)
