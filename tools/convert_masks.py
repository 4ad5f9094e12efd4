"""Turns COCO or LabelMe annotations into the images/ and masks/ that src/train.py reads.

    python tools/convert_masks.py --annotations instances.json --images photos --output my_images --category cat dog

A mask is the union of all shapes of the wanted categories, crowds included. A pixel is in a shape if its center is;
0, 0 is the upper left corner of the first pixel. Coordinates are those of the upright image, or, where only that fits
the size in the annotations, of the pixels as they are stored.
"""

import base64
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from data.image_io import image_size_of  # noqa: E402  the path must be set first
from data.names import IMAGE_SUFFIXES
from runtime import cli  # noqa: E402
from runtime.errors import UsageError  # noqa: E402
from runtime.files import writable_folder  # noqa: E402
from runtime.options import option  # noqa: E402

# What reading raises: our own words, or what JSON of another structure leads to.
FAULTS = (UsageError, LookupError, TypeError, ValueError, AttributeError, RecursionError, OverflowError)


class Annotated(NamedTuple):
    """An image, the place of its annotations, and its shapes: words for messages, category, content."""

    where: str
    file: Path
    size: tuple  # width and height; None where the annotations don't say
    shapes: list[tuple[str, str, dict]]
    embedded: str | None = None  # the image in base64


def read_annotations(path: Path, images: Path) -> tuple[list[Annotated], set[str]]:
    """Reads a JSON file, or all in a folder and those in it; returns annotated images and all categories."""
    files = sorted(file for file in path.rglob("*.json") if file.name[0] != ".") if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UsageError(f"{path}: there is no JSON file; name another one with --annotations")
    found, categories = [], set()
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
            folder = images / file.parent.relative_to(path if path.is_dir() else path.parent)
            new, names = (_read_labelme if "shapes" in content else _read_coco)(content, file.name, images, folder)
        except FAULTS as error:
            raise UsageError(f"{file}: {_text(error)}") from None
        found += new
        categories |= names
    return found, categories


def _read_coco(content: dict, where: str, images: Path, folder: Path) -> tuple[list[Annotated], set[str]]:
    names, found = {category["id"]: str(category["name"]) for category in content["categories"]}, {}
    for row in content["images"]:
        file, size = _find_image(row["file_name"], images, folder), (row.get("width"), row.get("height"))
        if found.setdefault(row["id"], image := Annotated(f"{where}, image {row['id']}", file, size, [])) is not image:
            raise UsageError(f"two images have the id {row['id']}; give one another id")
    for row in content["annotations"]:
        words = f"annotation {row.get('id', '')}".strip()
        if row["category_id"] not in names or row["image_id"] not in found:
            raise UsageError(f"{words} is of a category or an image that is not listed; add it, or export again")
        found[row["image_id"]].shapes.append((f"{where}, {words}", names[row["category_id"]], row))
    return list(found.values()), set(names.values())


def _read_labelme(content: dict, where: str, images: Path, folder: Path) -> tuple[list[Annotated], set[str]]:
    shapes = [(f"{where}, shape {i}", str(row["label"]), row) for i, row in enumerate(content["shapes"], start=1)]
    size = content.get("imageWidth"), content.get("imageHeight")
    image = Annotated(where, _find_image(content["imagePath"], images, folder), size, shapes, content.get("imageData"))
    return [image], {label for _, label, _ in shapes}


def _find_image(name: str, images: Path, folder: Path) -> Path:
    """An image below a folder; where there is none, the path that it should have."""
    # Names may hold a path of the machine that wrote them; nothing outside of the folder is read.
    parts = PurePosixPath(name.replace("\\", "/")).parts
    parts = [part for part in parts if part not in ("..", "/") and not part.endswith(":")]
    tries = folder.joinpath(*parts), images.joinpath(*parts), images / parts[-1]
    return next((path for path in tries if path.is_file()), tries[-1])


def _text(error: Exception) -> str:
    """What is wrong and how to mend it."""
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    known = isinstance(error, UsageError)
    return what if known else f"malformed, or not of COCO or LabelMe ({what}); export it again"


def draw_shape(shape: dict, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a COCO annotation or a LabelMe shape, bool (H, W); `size` is (width, height).

    Raises:
        UsageError: what is wrong and how to mend it; or another of FAULTS.
    """
    if "points" not in shape:
        parts = shape.get("segmentation")
        if isinstance(parts, dict):
            return _draw_run_lengths(parts["counts"], parts["size"], size)
        if not parts:
            raise UsageError("it has no outline, at most a box; draw a polygon")
        return np.logical_or.reduce([_draw_polygon(part, size) for part in parts])
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind == "polygon":
        return _draw_polygon(np.ravel(points), size)
    if kind not in ("rectangle", "circle"):
        raise UsageError(f"a {kind} can't be filled; draw a polygon, rectangle or circle")
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return _draw_polygon([x0, y0, x1, y0, x1, y1, x0, y1], size)
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1])[:, None] + 0.5
    return np.hypot(x - x0, y - y0) <= np.hypot(x1 - x0, y1 - y0)


def _draw_polygon(points, size: tuple[int, int]) -> np.ndarray:
    """Even-odd rule: along each row of pixel centers, every edge that is crossed changes inside and outside."""
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise UsageError(f"a polygon has {points.size} coordinates, not three or more pairs of x and y; draw it again")
    width, height = size
    crossed, centers = np.zeros((height, width + 1), bool), np.arange(height) + 0.5
    points = points.reshape(-1, 2)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0)):
        rows = np.flatnonzero((centers >= min(y0, y1)) & (centers < max(y0, y1)))
        x = x0 + (centers[rows] - y0) * (x1 - x0) / (y1 - y0)
        crossed[rows, np.ceil(x - 0.5).clip(0, width).astype(int)] ^= True
    return np.logical_xor.accumulate(crossed, axis=1)[:, :width]


def _draw_run_lengths(counts, encoded_size: list[int], size: tuple[int, int]) -> np.ndarray:
    """Lengths of background and object in turn, down the columns, as a list or in COCO's compressed form.

    There a character holds 5 bits of a number, the lowest first; 32 says that more follow, 16 in the last is the sign.
    From the fourth number on it is the difference from the last but one (rleFrString in pycocotools).
    """
    text, counts = (counts, []) if isinstance(counts, str) else ("", counts)
    value = shift = 0
    for bits in (code - 48 for code in text.encode()):
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits >> 4) << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    whole = all(type(count) is int and count >= 0 for count in counts)
    if list(encoded_size) != [size[1], size[0]] or not whole or sum(counts) != size[0] * size[1]:
        raise UsageError(f"its run lengths are not those of an image of {size[0]}x{size[1]}; export it again")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size).T


def write_pair(image: Annotated, shapes: list[tuple[str, str, dict]], folder: Path) -> bool:
    """Writes an image and its mask; returns whether the mask holds anything.

    Raises:
        UsageError: the image can't be read, or its annotations don't fit it.
    """
    suffix = image.file.suffix if image.file.suffix.lower() in IMAGE_SUFFIXES else ".jpg"  # the content decides
    copy, where = folder / "images" / f"{image.file.stem}{suffix}", image.where
    try:
        source = image.file if image.file.is_file() else copy
        if source is copy:
            copy.write_bytes(base64.b64decode(image.embedded, validate=True))
        else:
            shutil.copyfile(source, copy)
        sizes = image_size_of(source, upright=True), image_size_of(source)
        size = next((size for size in sizes if None in image.size or size == image.size), None)
        if size is None:
            shown = "{}x{}, but {} is {}x{}".format(*image.size, image.file, *sizes[0])
            raise UsageError(f"it is for an image of {shown}; annotate that file")
        mask = np.zeros(size[::-1], bool)
        for where, _, shape in shapes:  # noqa: B007  messages name it
            mask |= draw_shape(shape, size)
    except FAULTS as error:
        raise UsageError(f"{where}: {_text(error)}") from None
    Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{copy.stem}.png")
    return bool(mask.any())


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """The flags of this script."""

    annotations: str | None = option(None, "COCO or LabelMe JSON, or a folder of such files", metavar="FILE_OR_DIR")
    images: str | None = option(None, "folder of the images", metavar="DIR")
    output: str | None = option(None, "folder to make", aliases=("--output_path", "--output_dir"), metavar="DIR")
    category: list[str] | None = option(None, "take these alone; by default all", nargs="+", metavar="NAME")
    keep_empty: bool = option(False, "give images without a shape of these categories an empty mask")


def choose(config: ConvertConfig) -> tuple[list[tuple[Annotated, list]], int]:
    """Images with their wanted shapes, and how many images have none and are skipped.

    Raises:
        UsageError: a category or an image is missing, two images have one stem, or no image is left.
    """
    found, known = read_annotations(Path(config.annotations), Path(config.images))
    for name in config.category or []:
        if name not in known:
            raise UsageError(f"{config.annotations} has no category {name!r}; there are {', '.join(sorted(known))}")
    wanted = set(config.category or known)
    pairs = [(image, [shape for shape in image.shapes if shape[1] in wanted]) for image in found]
    pairs = [pair for pair in pairs if pair[1] or config.keep_empty]
    if not pairs:
        raise UsageError(f"{config.annotations}: none of its {len(found)} images has a shape; draw one")
    missing = [image.file for image, _ in pairs if not (image.embedded or image.file.is_file())]
    if missing:
        some = f"{len(missing)} of {len(pairs)} images are missing, such as {missing[0]}"
        raise UsageError(f"{some}; name their folder with --images")
    stems: dict[str, Annotated] = {}
    for image, _ in pairs:
        other = stems.setdefault(image.file.stem.casefold(), image)  # on some file systems A.png is a.png
        if other is not image:
            raise UsageError(f"{image.file} ({image.where}) and {other.file} would get one name; rename one")
    return pairs, len(found) - len(pairs)


def main(argv=None) -> None:
    """The command line: writes the dataset and says so in one line."""
    parser = cli.Parser("convert_masks.py", __doc__.splitlines()[0], ConvertConfig, folder="tools")
    config = ConvertConfig(**parser.parse_overrides(argv))
    for name in ("annotations", "images", "output"):
        if getattr(config, name) is None:
            raise UsageError(f"--{name} is missing; see python tools/convert_masks.py --help")
    home = Path(config.output).resolve()
    if home.exists() and (home.is_file() or any(home.iterdir())):
        raise UsageError(f"{home} is not empty and is left alone; name another --output")
    pairs, skipped = choose(config)
    draft = writable_folder(home.parent) / f".{home.name}.unfinished"
    shutil.rmtree(draft, ignore_errors=True)  # left by a broken-off run
    try:
        for folder in ("images", "masks"):
            (draft / folder).mkdir(parents=True)
        bar = tqdm(pairs, unit="image", disable=None)  # no bar unless on a terminal
        empty = [write_pair(image, shapes, draft) for image, shapes in bar].count(False)
        if home.exists():
            home.rmdir()  # empty, as seen above
        draft.rename(home)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    print(f"{home}: {len(pairs)} images, {empty} with an empty mask; {skipped} without a shape skipped")


if __name__ == "__main__":
    cli.run(main)
