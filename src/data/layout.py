"""Which images there are.

A dataset is a folder in one of four layouts; images may lie in subfolders, and their masks in those of the same names:

    images/ annotations/trimaps/ annotations/*.txt   the Oxford-IIIT Pet layout; only what the lists name exists
    images/ annotations/trimaps/                     the same without lists: images and trimaps pair up by stem
    images/ masks/                                   own images; masks of two values, black is background
    train/ valid/ test/ with images/ masks/ in each  own images, divided already
"""

import collections
import contextlib
import hashlib
import os
import re
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.image_io import image_size_of, only_images, shown_size
from data.names import HIDDEN, MASK_ENDING
from runtime.errors import DatasetError, raise_faults

LISTS = ("list", "trainval", "test")
PART_NAMES = {"train": ("train", "training"), "valid": ("valid", "val", "validation"), "test": ("test", "testing")}


@dataclass(frozen=True)
class Sample:
    """An image and, where there is one, its trimap or mask."""

    name: str  # unique in its dataset; results are named by it
    image_path: Path
    mask_path: Path | None = None
    binary_mask: bool = True  # not a trimap; then the image is turned as its EXIF orientation says
    breed: int = 0  # 0 for own images
    species: int = 0  # 1 for a cat, 2 for a dog, 0 where that is unknown
    more_masks: tuple[Path, ...] = ()  # of the same image: all are united

    @property
    def files(self) -> tuple[Path, ...]:
        """The image, and the masks where there are any."""
        return (self.image_path, *((self.mask_path, *self.more_masks) if self.mask_path else ()))

    def displayed_size(self) -> tuple[int, int]:
        """Width and height of the image as it is shown. Raises DatasetError: see `shown_size`."""
        if self.mask_path is None:
            return image_size_of(self.image_path, upright=True)
        return shown_size(self.image_path, self.mask_path, image_size_of(self.mask_path), self.binary_mask)[:2]


def download_hint(folder: Path) -> str:
    """What to do where the dataset is missing."""
    return f"download the dataset with `python src/oxford_pet.py --download --data_path {shlex.quote(str(folder))}`"


def find_root(data_path) -> Path:
    """The folder that holds images/ beside annotations/ or masks/, or parts that do.

    `data_path` is that folder, its images/ folder, or the folder into which torchvision downloads the dataset.
    """
    path = Path(data_path)
    near = [path, path.parent] if path.name == "images" else [path]
    for root in [*near, *(folder / "oxford-iiit-pet" for folder in near)]:
        if (root / "images").is_dir() and ((root / "annotations").is_dir() or (root / "masks").is_dir()):
            return root
    if find_parts(path):
        return path
    if (path / "SegmentationClass").is_dir():
        folder, images, output = (shlex.quote(str(p)) for p in (path, path / "JPEGImages", path / "converted"))
        raise DatasetError(
            f"{folder} is in the layout of Pascal VOC; convert it with `python tools/convert_masks.py --annotations "
            f"{folder} --images {images} --output {output}`, and use --data_path {output}"
        )
    if path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        advice = "put images into images/ and their masks into masks/, or name another folder; "
        advice += "tools/convert_masks.py makes masks of files of LabelMe, COCO, YOLO and others"
        raise DatasetError(f"no dataset: the folder {path} has no images/ beside annotations/ or masks/; {advice}")
    state = "is empty" if path.is_dir() else "does not exist"
    raise DatasetError(f"no dataset: the folder {path} {state}; name another one, or {download_hint(path)}")


def find_parts(root: Path) -> dict[str, Path]:
    """The folders of the parts of a dataset that is divided already, by mode; empty for others."""
    parts = {
        mode: root / name for mode, names in PART_NAMES.items() for name in names if (root / name / "masks").is_dir()
    }
    return parts if parts.keys() >= {"train", "valid"} else {}


def describe_layout(root: Path) -> str:
    """The layout of a dataset, in words."""
    if parts := find_parts(root):
        return f"own images, divided: {', '.join(f'{folder.name}/' for folder in parts.values())}"
    if not (root / "annotations").is_dir():
        return "own images: images/ and masks/" if (root / "masks").is_dir() else "images without masks"
    return "Oxford-IIIT Pet layout" if names_of_lists(root) else "Oxford-IIIT Pet layout without lists"


def names_of_lists(root: Path) -> list[str]:
    """The names of LISTS that a dataset has."""
    return [name for name in LISTS if (root / f"annotations/{name}.txt").is_file()]


def read_list(root: Path, name: str) -> list[Sample]:
    """Reads annotations/<name>.txt, rows of `Name CLASS-ID SPECIES BREED-ID`; lines that start with # are comments."""
    file, samples = root / f"annotations/{name}.txt", []
    if not file.is_file():
        raise DatasetError(f"the list {file} is missing; {download_hint(root)}")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DatasetError(f"{file} is no text in UTF-8; save it as that") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            stem, breed, species = [*line.split(), "0"][:3]
            if ".." in Path(stem).parts or Path(stem).anchor:  # results would be written there
                raise ValueError
            image, trimap = root / "images" / f"{stem}.jpg", root / "annotations/trimaps" / f"{stem}.png"
            samples.append(Sample(stem, image, trimap, False, int(breed), int(species) if species.isdigit() else 0))
        except ValueError:
            raise DatasetError(f"{file} line {number} is not `name class species breed`: {line.strip()!r}") from None
    counts = collections.Counter(sample.name for sample in samples).items()
    raise_faults([f"{name} stands in {file.name} more than once" for name, count in counts if count > 1], root)
    return samples


def pair_up(root: Path, folders: tuple[Path, Path] | None = None) -> list[Sample]:
    """Pairs images and masks by stem and subfolder; the breed is the name without its number, as in `Abyssinian_12`.

    Case and Unicode's forms of a letter do not matter, and masks may have a suffix of their own, as in `x_mask.png`.
    An image may have several masks, with numbers at their ends, but not several trimaps. Both may lie in one folder.
    """
    own = folders is not None or not (root / "annotations").is_dir()
    folders = folders or (root / "images", root / ("masks" if own else "annotations/trimaps"))
    faults, by_stem = [], []
    for folder in folders:
        files: dict[str, Path] = {}
        for path in only_images(sorted(_files(folder))):
            other = files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
            if other is not path:
                faults.append(f"{path} and {other.name} have the same stem")
        by_stem.append(files)
    images, files = by_stem
    if folders[0].resolve() == folders[1].resolve():
        files = {stem: images.pop(stem) for stem in files if MASK_ENDING.search(stem)}
        if not images or not files:
            advice = "call them like their images with _mask at the end, or name another folder of masks"
            raise DatasetError(f"{folders[0]} does not hold both images and masks; {advice}")
    masks = {stem: [file] for stem, file in files.items()}
    if images.keys() != masks.keys():
        masks = pair_loosely(images, files, own)
    lacking, left = sorted(images.keys() - masks.keys()), sorted(masks.keys() - images.keys())
    if lacking and left:  # one of each: ten of one side would not show how the other is called
        counts = f"{len(lacking)} images have no mask, {len(left)} masks no image"
        faults.append(f"{images[lacking[0]]} has no mask; masks are called like {masks[left[0]][0]} ({counts})")
    else:
        faults += [f"{images[stem]} has no mask" for stem in lacking]
        faults += [f"{masks[stem][0]} has no image" for stem in left]
    raise_faults(faults, root)
    kinds = {stem: "" if own else re.sub(r"_?\d+$", "", stem) for stem in images}
    breeds = {kind: number for number, kind in enumerate(sorted({*kinds.values()}), start=0 if own else 1)}
    rows = [(stem, *masks[stem]) for stem in sorted(images)]
    return [Sample(s, images[s], mask, own, breeds[kinds[s]], 0, tuple(more)) for s, mask, *more in rows]


def pair_loosely(images: dict[str, Path], masks: dict[str, Path], several: bool) -> dict[str, list[Path]]:
    """Masks by the stems of their images, as far as they pair; those that don't keep their own. Says what it took."""

    def plain(stem: str) -> str:
        return unicodedata.normalize("NFC", stem).casefold()

    stems = {plain(stem): stem for stem in images}
    if len(stems) < len(images):
        stems = {stem: stem for stem in images}
    unpaired = [plain(stem) for stem in masks if plain(stem) not in stems]
    endings = collections.Counter(
        re.sub(r"\d+", "0", name[cut:])  # all numbers are one ending
        for name in unpaired
        for cut in range(1, len(name))
        if name[:cut] in stems and not name[cut].isalnum()  # `1_mask`, not the image 1 for the mask 12
    )
    ending, count = max(endings.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))
    if 2 * count < len(masks):
        ending = ""  # of a few masks alone: these are faults
    tail = re.compile(rf"{re.escape(ending)}\Z".replace("0", r"\d+"))
    names = {stem: plain(stem) if plain(stem) in stems else tail.sub("", plain(stem)) for stem in masks}
    paired: dict[str, list[Path]] = {}
    for stem, file in masks.items():
        paired.setdefault(stems.get(names[stem], stem), []).append(file)
    if len(paired) < len(masks) and not (several and "0" in ending):  # by case alone, or by an ending and without
        return {stem: [file] for stem, file in masks.items()}
    if ending:
        united = f"; {len(masks)} masks of {len(paired)} images are united" * (len(paired) < len(masks))
        print(f"Masks are called like their images with {ending!r} at the end{united}.", flush=True)
    return paired


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder and those below; hidden folders, and links to folders, are left out."""
    # 15,000 stats over a network drive take a minute; only links need one.
    with os.scandir(folder) if folder.is_dir() else contextlib.nullcontext(()) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from () if HIDDEN.match(entry.name) else _files(Path(entry))
            elif entry.is_file(follow_symlinks=False) or Path(entry).is_file():
                yield Path(entry)


def require_files(root: Path, samples: Sequence[Sample]) -> None:
    """Raises DatasetError where listed files are missing."""
    files = [path for sample in samples for path in sample.files]
    present = set().union(*(_files(folder) for folder in {file.parent for file in files}))
    missing = [path for path in files if path not in present]
    if missing:
        text = f"{len(missing)} of the {len(files)} listed files are missing in {root}: "
        text += ", ".join(map(str, missing[:3])) + ", ..." * (len(missing) > 3)
        raise DatasetError(f"{text}; {download_hint(root)}")


def fingerprint(samples: Sequence[Sample]) -> str:
    """SHA-256 over names and file sizes, in order: tells whether two runs have the same images in a part."""
    rows = [" ".join([s.name, *(str(file.stat().st_size) for file in s.files)]) for s in samples]
    return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogateescape")).hexdigest()
