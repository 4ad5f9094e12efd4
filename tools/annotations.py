"""Readers of other tools' annotations for convert_masks.py: one function per format, by suffix in READERS.

A pixel is in a shape if its center is; 0, 0 is the upper left corner of the first pixel. Coordinates are those of the
upright image, or, where only that fits the size in the annotations, of the pixels as they are stored.
"""

import base64
import csv
import functools
import io
import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.image_io import nearest, read_image, read_mask
from data.layout import pair_up
from data.names import IMAGE_SUFFIXES, MASK_ENDING
from models.task import PET, class_colors
from runtime.errors import UsageError, plural

# What reading raises: our own words, or what a file of another structure leads to.
FAULTS = (UsageError, LookupError, TypeError, ValueError, AttributeError, RecursionError, OverflowError, csv.Error)
COLOR = r"(?P<color>#[0-9a-fA-F]{6}|\d{1,3}[ ,]+\d{1,3}[ ,]+\d{1,3})"
VOID = 0xE0E0C0  # Pascal VOC's color of pixels that are left out
VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
)
VOC_NAMES += "pottedplant sheep sofa train tvmonitor"  # of a SegmentationClass/ without a file of names
LABEL_MAPS = ("labelmap.txt", "label_colors.txt", "labelmap.json")
NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
BACKGROUNDS, LEFT_OUT = ("background", "_background_"), ("__ignore__", "ignore", "void")  # LabelMe's names, and others'
COLUMNS = {  # of CSV files, in lower case
    "image": ("img", "image", "imageid", "image_id", "image_name", "filename", "file_name", "file", "name", "id"),
    "runs": ("rle_mask", "encodedpixels", "encoded_pixels", "rle", "segmentation", "annotation", "mask"),
    "name": ("class", "class_name", "classid", "class_id", "label", "category"),
}


class ShapeError(UsageError):
    """A shape that covers nothing, such as a stray point: it can be left out."""


class Shape(NamedTuple):
    """What is drawn: words for messages, category, and the function from (width, height) to pixels, bool (H, W)."""

    where: str
    name: str
    draw: Callable[[tuple[int, int]], np.ndarray]


class Annotated(NamedTuple):
    """An image, the place of its annotations, and its shapes in order."""

    where: str
    file: Path
    shapes: list[Shape]
    size: tuple = (None, None)  # width and height; None where the annotations don't say
    embedded: str | None = None  # the image in base64
    place: tuple[str, str] = ("", "")  # of image and mask in the output: a part, such as train, and the path in it


class Source(NamedTuple):
    """Folders of the annotations and of the images, the file of names or colors, if one is given, and what it lacks."""

    root: Path
    images: Path
    label_map: Path | None
    unnamed: set[int]  # colors, 0xrrggbb, that are found without a name


def read_annotations(path: Path, images: Path, label_map: Path | None = None) -> tuple[list[Annotated], list[str]]:
    """Images of a file of annotations, or of all of one kind in a folder, and all categories in order."""
    source = Source(path if path.is_dir() else path.parent, images, label_map, set())
    found, names = [], {}
    for file in annotation_files(path):
        try:
            new, more = READERS[file.suffix.lower()](file, source)
        except FAULTS as error:
            raise UsageError(f"{file}: {explain(error)}") from None
        found += new
        names |= dict.fromkeys(more)
    if codes := sorted(source.unnamed):
        shown = ", ".join(f"#{code:06x}" for code in codes[:99]) + ", ..." * (len(codes) > 99)
        place = _label_map(file, source, LABEL_MAPS) or "a file of all colors for --label_map"
        text = f"{path} has {plural(len(codes), 'color')} without a name; add lines such as `cat: #{codes[0]:06x}` to"
        raise UsageError(f"{text} {place}, or leave photographs and masks with smooth edges out: {shown}")
    undeclared = {shape.name for image in found for shape in image.shapes} - names.keys()
    return found, [*names, *sorted(undeclared)]


def annotation_files(path: Path) -> list[Path]:
    """A file, or those in a folder that have the first suffix of READERS that occurs there."""
    if path.is_file() and path.suffix.lower() in READERS:
        return [path]
    inner = [path / name for name in ("SegmentationClass", "labels") if (path / name).is_dir()]
    listed = sorted(file for file in (inner[0] if inner else path).rglob("*") if file.is_file())
    no_labels = re.compile(r"\..*|readme.*|" + "|".join(map(re.escape, (*LABEL_MAPS, *NAME_FILES))), re.IGNORECASE)
    for suffix in READERS:
        if files := [f for f in listed if f.suffix.lower() == suffix and not no_labels.fullmatch(f.name)]:
            return files
    raise UsageError(f"{path}: there is no {', '.join(READERS)} file of annotations; name another --annotations")


def explain(error: Exception) -> str:
    """What is wrong and how to mend it."""
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return what if isinstance(error, UsageError) else f"malformed, or not of a known format ({what}); export it again"


def _find_image(name: str, source: Source, folder: str = "") -> Path:
    """An image by its path from its annotations, or the longest end of that; else the path that it should have."""
    # Names may hold a path of the machine that wrote them; nothing outside of the folder is read.
    home, place = source.images.resolve(), (source.root / folder / name).resolve()
    if place.is_file() and place.is_relative_to(home):
        return source.images / place.relative_to(home)
    parts = PurePosixPath(name.replace("\\", "/")).parts
    parts = [part for part in parts if part not in ("..", "/") and not part.endswith(":")]
    tries = [source.images.joinpath(inner, *parts[k:]) for k in range(len(parts)) for inner in (folder, "")]
    return next((path for path in tries if path.is_file()), source.images / folder / parts[-1])


def _image_of_stem(file: Path, source: Source) -> Path:
    """The image of a file of annotations: that of its stem, also without `_mask` and the like, in the likest folder."""
    stems = file.stem, MASK_ENDING.sub("", file.stem)
    listed = ([image for image in _images_by_stem(source.images).get(stem, ()) if image != file] for stem in stems)
    images = next(filter(None, listed), [source.images / file.stem])
    unlike = [len({*image.parent.parts} ^ {*file.parent.parts}) for image in images]
    if unlike.count(min(unlike)) > 1:
        raise UsageError(f"{images[0]} and {images[1]} are of one name; name one folder by --images")
    return images[unlike.index(min(unlike))]


@functools.lru_cache(maxsize=1)
def _images_by_stem(folder: Path) -> dict[str, list[Path]]:
    images: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".":
            images.setdefault(path.stem, []).append(path)
    return images


def _label_map(file: Path, source: Source, names: tuple[str, ...]) -> Path | None:
    """The file of names or colors: the one given, or one of these names in the folder or the two above it."""
    folders = dict.fromkeys([file.parent, source.root, *source.root.resolve().parents[:2]])
    return source.label_map or next((f / name for f in folders for name in names if (f / name).is_file()), None)


def read_json(file: Path, source: Source) -> tuple[list[Annotated], list[str]]:
    """COCO instances, or LabelMe."""
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    folder = str(file.parent.relative_to(source.root))
    return (_read_labelme if "shapes" in content else _read_coco)(content, file.name, source, folder)


def _read_coco(content: dict, where: str, source: Source, folder: str) -> tuple[list[Annotated], list[str]]:
    names, found = {category["id"]: str(category["name"]) for category in content["categories"]}, {}
    for row in content["images"]:
        file, size = _find_image(row["file_name"], source, folder), (row.get("width"), row.get("height"))
        if found.setdefault(row["id"], image := Annotated(f"{where}, image {row['id']}", file, [], size)) is not image:
            raise UsageError(f"two images have the id {row['id']}; give one another id")
    for row in content["annotations"]:
        words = f"annotation {row.get('id', '')}".strip()
        if row["category_id"] not in names or row["image_id"] not in found:
            raise UsageError(f"{words} is of a category or an image that is not listed; add it, or export again")
        parts = row.get("segmentation")
        if isinstance(parts, dict):
            draws = [functools.partial(draw_run_lengths, parts)]
        else:  # a list of polygons, a single one, or none where there is at most a box
            parts = parts if parts and isinstance(parts[0], list) else [parts or []]
            draws = [functools.partial(draw_polygon, part) for part in parts]
        found[row["image_id"]].shapes.extend(Shape(f"{where}, {words}", names[row["category_id"]], d) for d in draws)
    return list(found.values()), list(names.values())


def _read_labelme(content: dict, where: str, source: Source, folder: str) -> tuple[list[Annotated], list[str]]:
    rows = enumerate(content["shapes"], start=1)
    shapes = [Shape(f"{where}, shape {i}", str(row["label"]), functools.partial(draw_labelme, row)) for i, row in rows]
    size = content.get("imageWidth"), content.get("imageHeight")
    image = _find_image(content["imagePath"], source, folder)
    return [Annotated(where, image, shapes, size, content.get("imageData"))], []


def draw_labelme(shape: dict, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a LabelMe shape, bool (H, W); `size` is (width, height). Raises ShapeError: it covers nothing."""
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind in ("polygon", "oriented_rectangle", "rotation") or (kind == "rectangle" and len(points) == 4):
        return draw_polygon(np.ravel(points), size)
    if kind not in ("rectangle", "circle", "mask") or len(points) != 2:
        raise ShapeError(
            f"a shape of type {kind} (points: {len(points)}) can't be filled; draw a polygon, rectangle or circle"
        )
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return draw_polygon([x0, y0, x1, y0, x1, y1, x0, y1], size)
    if kind == "circle":
        x, y = np.arange(size[0]) + 0.5, np.arange(size[1])[:, None] + 0.5
        return np.hypot(x - x0, y - y0) <= np.hypot(x1 - x0, y1 - y0)
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=["PNG"]) as image:
            inside = np.atleast_3d(np.asarray(image))[..., 0] != 0
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises
        raise UsageError(f"its mask is no PNG ({error}); draw it again") from None
    canvas = Image.new("1", size)
    canvas.paste(Image.fromarray(inside), (int(x0), int(y0)))  # what lies outside is cut off
    return np.asarray(canvas)


def draw_polygon(points, size: tuple[int, int]) -> np.ndarray:
    """Even-odd rule: along each row of pixel centers, every edge that is crossed changes inside and outside."""
    points = np.asarray(points, dtype=np.float64).ravel()
    if not len(points):
        raise ShapeError("it has no outline, at most a box; draw a polygon")
    if len(points) % 2 or not np.isfinite(points).all():
        raise UsageError(f"a polygon has {points.size} coordinates, not three or more pairs of x and y; draw it again")
    if len(points) < 6:
        raise ShapeError(f"it has {len(points)} coordinates, a polygon three or more pairs of x and y; draw it again")
    width, height = size
    crossed, centers = np.zeros((height, width + 1), bool), np.arange(height) + 0.5
    points = points.reshape(-1, 2)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0)):
        rows = np.flatnonzero((centers >= min(y0, y1)) & (centers < max(y0, y1)))
        x = x0 + (centers[rows] - y0) * (x1 - x0) / (y1 - y0)
        crossed[rows, np.ceil(x - 0.5).clip(0, width).astype(int)] ^= True
    return np.logical_xor.accumulate(crossed, axis=1)[:, :width]


def draw_run_lengths(runs: dict, size: tuple[int, int]) -> np.ndarray:
    """Lengths of background and object in turn, down the columns, as a list or in COCO's compressed form.

    There a character holds 5 bits of a number, the lowest first; 32 says that more follow, 16 in the last is the sign.
    From the fourth number on it is the difference from the last but one (rleFrString in pycocotools).
    """
    text, counts = (runs["counts"], []) if isinstance(runs["counts"], str) else ("", runs["counts"])
    value = shift = 0
    for bits in (code - 48 for code in text.encode()):
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits >> 4) << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    whole = all(type(count) is int and count >= 0 for count in counts)
    if list(runs["size"]) != [size[1], size[0]] or not whole or sum(counts) != size[0] * size[1]:
        raise UsageError(f"its run lengths are not those of an image of {size[0]}x{size[1]}; export it again")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size).T


def read_yolo(file: Path, source: Source) -> tuple[list[Annotated], list[str]]:
    """Lines of a class and a polygon, coordinates from 0 to 1; a file for each image."""
    place, shapes = _label_map(file, source, NAME_FILES), []
    lines = [line.split() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    numbers = [int(line[0]) for line in lines if line]
    names = yolo_names(place) if place else {i: f"class{i}" for i in range(max(numbers, default=-1) + 1)}
    if unnamed := set(numbers) - names.keys():
        raise UsageError(f"{place or file} names no class {min(unnamed)}; add it")
    for number, line in enumerate(lines, start=1):
        if line:
            points = np.array(line[1:] if len(line) != 5 else [], dtype=np.float64)  # four numbers are a box
            draw = lambda size, points=points: draw_polygon(points * np.resize(size, len(points)), size)  # noqa: E731
            shapes.append(Shape(f"{file.name}, line {number}", names[int(line[0])], draw))
    return [Annotated(file.name, _image_of_stem(file, source), shapes)], list(names.values())


def yolo_names(file: Path) -> dict[int, str]:
    """Names of classes by number: `names` of a data.yaml, a list or a mapping, or else the lines of a file."""
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix not in (".yaml", ".yml"):
        return dict(enumerate(filter(None, map(str.strip, text.splitlines()))))
    block = re.search(r"^names:(.*(?:\n(?:[ \t\]}-].*)?)*)", text, re.MULTILINE)
    entry = r"""(?:[\[{,]|-\s|^)\s*(?:(\d+)\s*:)?\s*(?:"([^"]*)"|'([^']*)'|([^\s\[\]{},'"#-][^\[\]{},\n#]*))"""
    rows = re.findall(entry, block[1], re.MULTILINE) if block else []
    if not rows:
        raise UsageError(f"{file} has no names; add lines such as `names:` and `  0: cat`")
    return {int(key or i): (double or single or plain).strip() for i, (key, double, single, plain) in enumerate(rows)}


def read_csv(file: Path, source: Source) -> tuple[list[Annotated], list[str]]:
    """Rows of an image's name and pairs of start and length, as Kaggle has them; several rows of an image add up."""
    csv.field_size_limit(2**31 - 1)
    with file.open(newline="", encoding="utf-8-sig") as text:
        header, *rows = [row for row in csv.reader(text) if row]
    columns = [column.strip().lower() for column in header]
    places = {key: columns.index(n) for key, names in COLUMNS.items() for n in names[::-1] if n in columns}
    if not {"image", "runs"} <= places.keys():
        raise UsageError(f"its columns are {', '.join(header)}; call them image and rle")
    found: dict[str, Annotated] = {}
    for number, row in enumerate(rows, start=2):
        name, runs = row[places["image"]].strip(), row[places["runs"]].strip()
        whole = Path(name).suffix.lower() in IMAGE_SUFFIXES
        image = _find_image(name, source) if whole else _image_of_stem(Path(f"{name}.csv"), source)
        shapes = found.setdefault(name, Annotated(f"{file.name}, {name}", image, [])).shapes
        if runs and runs != "-1":  # else it says that there is nothing
            kind = row[places["name"]].strip() if "name" in places else "object"
            shapes.append(Shape(f"{file.name}, row {number}", kind, functools.partial(draw_pairs, runs)))
    return list(found.values()), []


def draw_pairs(text: str, size: tuple[int, int]) -> np.ndarray:
    """Pairs of start and length, from 1 on, down the columns, as pixels, bool (H, W)."""
    starts, lengths = np.array(text.split(), dtype=np.int64).reshape(-1, 2).T
    ends, count = starts - 1 + lengths, size[0] * size[1]
    if (starts < 1).any() or (lengths < 0).any() or (ends > count).any():
        raise UsageError(f"its run lengths are not those of an image of {size[0]}x{size[1]}; export it again")
    changes = np.bincount(starts - 1, minlength=count + 1) - np.bincount(ends, minlength=count + 1)
    return (np.cumsum(changes[:count]) > 0).reshape(size).T


def read_colors(file: Path, source: Source) -> tuple[list[Annotated], list[str]]:
    """A mask whose colors have names: Pascal VOC, CVAT, CamVid, or any with a label map."""
    place = _label_map(file, source, LABEL_MAPS)
    if place is None and file.parent.name != "SegmentationClass":
        raise UsageError("its colors need names, such as `cat: 128,0,0` in a file for --label_map; or --threshold auto")
    voc = {int(bytes(c).hex(), 16): name for c, name in zip(class_colors(21), VOC_NAMES.split())}
    names = {VOID: LEFT_OUT[0], **(label_map_of(place) if place else voc)}
    codes = np.unique(_codes(file)).tolist()
    source.unnamed.update({*codes} - names.keys() - {0})
    shapes = [Shape(file.name, names[c], lambda _, c=c: _codes(file) == c) for c in codes if c in names]
    return [Annotated(file.name, _image_of_stem(file, source), shapes, _codes(file).shape[::-1])], list(names.values())


def read_thresholded(masks: Path, images: Path, threshold: float | str) -> tuple[list[Annotated], list[str]]:
    """Masks that are images, paired as those of a dataset: their pixels above a threshold are one category."""

    def draw(file: Path, size: tuple[int, int]) -> np.ndarray:
        return nearest(read_mask(file, threshold), size) == PET

    found = []
    for sample in pair_up(images.parent, (images, masks)):
        shapes = [Shape(file.name, "pet", functools.partial(draw, file)) for file in sample.files[1:]]
        found.append(Annotated(shapes[0].where, sample.image_path, shapes, sample.displayed_size()))
    return found, ["pet"]


@functools.lru_cache(maxsize=1)  # of one file after the other, each color is asked for
def _codes(file: Path) -> np.ndarray:
    """Colors as 0xrrggbb, int32 (H, W)."""
    return read_image(file).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def label_map_of(file: Path) -> dict[int, str]:
    """Names by color, 0xrrggbb: JSON of names and colors, or lines of both in either order; CVAT's labelmap.txt."""
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    if file.suffix.lower() == ".json":
        rows = json.loads("\n".join(lines)).items()
        lines = [f"{name}: {','.join(map(str, color)) if isinstance(color, list) else color}" for name, color in rows]
    names: dict[int, str] = {}
    for number, line in enumerate(lines, start=1):
        header = number == 1 and not re.search(r"\d", line)
        if header or not line.strip() or re.match(r"#(?![0-9a-fA-F]{6}\b)", line):
            continue
        match = re.match(rf"\s*(?P<name>.+?)\s*[:=,\t ]\s*{COLOR}\s*(?::.*)?$", line)
        if not (match := match or re.match(rf"\s*{COLOR}[\s,:]+(?P<name>.+?)\s*$", line)):
            raise UsageError(f"line {number} of {file} is no name and color; write such as `cat: 128,0,0`")
        text = match["color"].lstrip("#")
        code = int(text if text != match["color"] else bytes(map(int, re.split("[ ,]+", text))).hex(), 16)
        if names.setdefault(code, match["name"]) != match["name"]:
            raise UsageError(f"{file} gives {names[code]} and {match['name']} one color; change one")
    return names


READERS = {".json": read_json, ".csv": read_csv, ".txt": read_yolo, ".png": read_colors}
READERS |= dict.fromkeys((".bmp", ".gif", ".tif", ".tiff", ".webp"), read_colors)
