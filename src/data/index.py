"""Which images there are and which part of a dataset they belong to.

A dataset is a folder in one of three layouts:

    images/ annotations/trimaps/ annotations/*.txt   the Oxford-IIIT Pet layout; only what the lists name exists
    images/ annotations/trimaps/                     the same without lists: images and trimaps pair up by stem
    images/ masks/                                   own images; masks of two values, black is background
"""

import collections
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.image_io import (
    IMAGE_SUFFIXES,
    image_size_of,
    read_image,
    read_mask,
    read_pair,
    read_trimap,
    shown_size,
)
from runtime.errors import DatasetError, raise_faults

MODES = ("train", "valid", "test")
SUBSETS = (*MODES, "all")
SPLITS = ("80-10-10", "official")
LISTS = ("list", "trainval", "test")
DOWNLOAD_HINT = "download the dataset with `python src/oxford_pet.py --download --data_path {}`"


@dataclass(frozen=True)
class Sample:
    """An image and, where there is one, its trimap or mask.

    Args:
        name: unique in its dataset; results are named by it.
        image_path: the image.
        mask_path: its trimap or mask, or None.
        binary_mask: it is a mask of two values. Then the image is turned as its EXIF orientation says.
        breed: number of the breed; 0 for own images.
    """

    name: str
    image_path: Path
    mask_path: Path | None = None
    binary_mask: bool = True
    breed: int = 0

    def read(self, size: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """The image, uint8 (H, W, 3), and its trimap, uint8 (H, W) of 1, 2, 3, or None.

        Args:
            size: side of a square that both are resized to; None keeps their own size.

        Raises:
            DatasetError: see `read_image` and `read_pair`.
        """
        if self.mask_path is None:
            return read_image(self.image_path, size, upright=True), None
        return read_pair(self.image_path, self.mask_path, self.binary_mask, size)

    def read_trimap(self) -> np.ndarray:
        """The trimap, or the mask as a trimap without border, at its own size: uint8 (H, W) of 1, 2, 3."""
        return (read_mask if self.binary_mask else read_trimap)(self.mask_path)

    def displayed_size(self) -> tuple[int, int]:
        """Width and height of the image as it is shown."""
        if self.mask_path is None:
            return image_size_of(self.image_path, upright=True)
        return shown_size(self.image_path, self.mask_path, image_size_of(self.mask_path), self.binary_mask)[:2]


class Split(NamedTuple):
    """The parts of a dataset, disjoint in names and in content."""

    train: list[Sample]
    valid: list[Sample]
    test: list[Sample]
    moved: int  # images moved into training because a copy is in another part


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
    """The layout of a dataset, in words."""
    if not (root / "annotations").is_dir():
        return "own images: images/ and masks/"
    return "Oxford-IIIT Pet layout" if has_lists(root) else "Oxford-IIIT Pet layout without lists"


def has_lists(root: Path) -> bool:
    """Whether a dataset has lists of its images."""
    return any((root / "annotations" / f"{name}.txt").is_file() for name in LISTS)


def list_samples(root: Path) -> list[Sample]:
    """All samples of a dataset, in order of their names.

    Raises:
        DatasetError: see `read_list`; images without a mask and masks without an image, where there are no lists.
    """
    lists = [name for name in LISTS if (root / "annotations" / f"{name}.txt").is_file()]
    if not lists:
        return _pair_up(root)
    return sorted({s.name: s for name in lists for s in read_list(root, name)}.values(), key=by_name)


def read_list(root: Path, name: str) -> list[Sample]:
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
    samples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            stem, breed = line.split()[:2]
            image, trimap = root / "images" / f"{stem}.jpg", root / "annotations/trimaps" / f"{stem}.png"
            sample = Sample(stem, image, trimap, binary_mask=False, breed=int(breed))
        except ValueError:
            raise DatasetError(f"{file} line {number} is not `name class species breed`: {line.strip()!r}") from None
        samples.append(sample)
    twice = [name for name, count in collections.Counter(sample.name for sample in samples).items() if count > 1]
    raise_faults([f"{name} stands in {file.name} more than once" for name in twice], root)
    return samples


def _pair_up(root: Path) -> list[Sample]:
    """Pairs images and masks by stem; the breed is the name without its number, as in `Abyssinian_12`."""
    own = not (root / "annotations").is_dir()
    folders = root / "images", root / ("masks" if own else "annotations/trimaps")
    found: list[dict[str, Path]] = [{}, {}]
    faults = []
    for files, folder in zip(found, folders):
        for path in sorted(folder.glob("*")):
            if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
                continue
            if path.stem in files:
                faults.append(f"{path} and {files[path.stem].name} have the same stem")
            files[path.stem] = path
    images, masks = found
    faults += [f"{images[stem]} has no mask" for stem in images.keys() - masks.keys()]
    faults += [f"{masks[stem]} has no image" for stem in masks.keys() - images.keys()]
    raise_faults(faults, root)
    kinds = sorted({re.sub(r"_?\d+$", "", stem) for stem in images})
    breeds = {kind: 0 if own else number for number, kind in enumerate(kinds, start=1)}
    return [
        Sample(stem, images[stem], masks[stem], own, breeds[re.sub(r"_?\d+$", "", stem)]) for stem in sorted(images)
    ]


# --------------------------------------------------------------------------------------------------------------- splits


def part_samples(root: Path, mode: str, split: str = "80-10-10", seed: int = 42) -> list[Sample]:
    """The samples of one part, as in `split_samples`, or with mode `all` every labelled image of any layout.

    Of the official split only those lists are needed that the part is made of.
    """
    if mode == "all":
        samples = list_samples(root)
        _require_files(root, samples)
        return samples
    return getattr(split_samples(root, split, seed, needed=(mode,)), mode)


def split_samples(root: Path, split: str = "80-10-10", seed: int = 42, needed: tuple[str, ...] = MODES) -> Split:
    """Divides the samples into the parts train, valid and test, disjoint in names and in content.

    Args:
        root: folder of a dataset.
        split: `official` takes trainval.txt, every tenth of it for validation, and test.txt. `80-10-10`
            shuffles each breed once and gives every part the same share of it.
        seed: of the shuffle; `official` draws nothing.
        needed: parts that must not be empty.

    Raises:
        DatasetError: a list is missing or malformed, listed files are missing, or a part is empty.
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"no split is called {split!r}; there are {', '.join(SPLITS)}")
    if split == "official":
        if not has_lists(root):
            raise DatasetError(f"{root} has no trainval.txt and test.txt for the official split; use --split 80-10-10")
        there = {name for name in LISTS if (root / "annotations" / f"{name}.txt").is_file()}
        there |= {"test" if mode == "test" else "trainval" for mode in needed}  # else read_list says what is missing
        trainval, test = (read_list(root, name) if name in there else [] for name in ("trainval", "test"))
        both = {s.name for s in trainval} & {s.name for s in test}
        raise_faults([f"{name} stands in trainval.txt and in test.txt" for name in both], root)
        train = [sample for i, sample in enumerate(trainval, start=1) if i % 10]
        parts = {"train": train, "valid": trainval[9::10], "test": test}
    else:
        if has_lists(root) and not (root / "annotations/list.txt").is_file():
            for name in ("trainval", "test"):  # a part of the images would be divided in another way
                read_list(root, name)
        parts = _stratified(list_samples(root), seed)
    _require_files(root, [sample for part in parts.values() for sample in part])
    moved = _unite_copies(parts)
    for mode, part in parts.items():
        if not part and mode in needed:
            listed = sum(len(p) for p in parts.values())
            raise DatasetError(
                f"{root}: the {mode} part of the split {split} is empty: there are {listed} images in all, of which "
                f"{moved} were moved into training as copies; at least ten different ones are "
                "needed (evaluate.py --subset all needs no parts)"
            )
    return Split(**parts, moved=moved)


def by_name(sample: Sample) -> str:
    """Key to sort samples by."""
    return sample.name


def _stratified(samples: list[Sample], seed: int) -> dict[str, list[Sample]]:
    by_breed: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=by_name):
        by_breed.setdefault(sample.breed, []).append(sample)
    order = [
        sample
        for breed, members in by_breed.items()
        for sample in (members[i] for i in np.random.default_rng([seed, breed]).permutation(len(members)))
    ]
    # Breed follows breed, and every run of ten in this order gives eight, one and one: so each part gets its share of
    # every breed, to within one image, and of the whole.
    parts: dict[str, list[Sample]] = {mode: [] for mode in MODES}
    for i, sample in enumerate(order):
        parts[{4: "valid", 9: "test"}.get(i % 10, "train")].append(sample)
    return parts


def stratified_subset(samples: list[Sample], fraction: float, seed: int) -> list[Sample]:
    """A random part of the samples, the same of every breed; a smaller part lies within a larger one."""
    order = np.random.default_rng(seed).permutation(len(samples)).tolist()
    size, seen, place = collections.Counter(sample.breed for sample in samples), collections.Counter(), {}
    for i in order:  # each sample's place in its breed, from 0 to 1
        seen[samples[i].breed] += 1
        place[i] = (seen[samples[i].breed] - 0.5) / size[samples[i].breed]
    kept = sorted(order, key=place.get)[: round(len(samples) * fraction)]
    return [samples[i] for i in sorted(kept)]


def _require_files(root: Path, samples: list[Sample]) -> None:
    # Two listings instead of two questions an image: 15,000 stats over a network drive take a minute.
    files = [path for sample in samples for path in (sample.image_path, sample.mask_path)]
    present = {path for folder in {file.parent for file in files} for path in folder.glob("*")}
    missing = [path for path in files if path not in present]
    if missing:
        raise DatasetError(
            f"{len(missing)} of the {len(files)} listed files are missing in {root}: "
            f"{', '.join(map(str, missing[:3]))}{', ...' if len(missing) > 3 else ''}; {DOWNLOAD_HINT.format(root)}"
        )


def find_copies(samples: list[Sample]) -> list[list[Sample]]:
    """Groups of images whose files are equal, byte for byte. Only files of equal size are read."""
    try:
        with ThreadPoolExecutor() as pool:
            sizes = list(pool.map(lambda sample: sample.image_path.stat().st_size, samples))
            count = collections.Counter(sizes)
            suspects = [sample for size, sample in zip(sizes, samples) if count[size] > 1]
            digests = list(pool.map(lambda sample: hashlib.sha256(sample.image_path.read_bytes()).digest(), suspects))
    except OSError as error:
        raise DatasetError(f"{error.filename} can't be read ({error.strerror}); replace the file") from None
    groups: dict[bytes, list[Sample]] = {}
    for digest, sample in zip(digests, suspects):
        groups.setdefault(digest, []).append(sample)
    return [group for group in groups.values() if len(group) > 1]


def _unite_copies(parts: dict[str, list[Sample]]) -> int:
    """Moves copies of one image that are in several parts into training; returns how many were moved."""
    home = {sample: mode for mode, part in parts.items() for sample in part}
    mixed = [group for group in find_copies(list(home)) if len({home[sample] for sample in group}) > 1]
    moved = [sample for group in mixed for sample in group if home[sample] != "train"]
    for sample in moved:
        parts[home[sample]].remove(sample)
        parts["train"].append(sample)
    return len(moved)


def fingerprint(samples: list[Sample], sizes: bool = True) -> str:
    """SHA-256 over names and file sizes, in order: tells whether two runs have the same images in a part.

    Args:
        samples: of the part.
        sizes: False for the fingerprints in checkpoints of the first versions, which are of names alone.
    """
    if sizes:
        rows = [f"{s.name} {s.image_path.stat().st_size} {s.mask_path.stat().st_size}" for s in samples]
    else:
        rows = [s.name for s in samples]
    return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogateescape")).hexdigest()
