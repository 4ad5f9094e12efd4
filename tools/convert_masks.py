"""Turns annotations of other tools into the images/ and masks/ that src/train.py reads.

    python tools/convert_masks.py --annotations instances.json --images photos --output my_images --names cat,dog

It reads COCO, LabelMe, YOLO segments, CSV files of run lengths, and masks of palettes or colors: see annotations.py;
with --threshold masks of any values, where auto leaves those of two values as they are.
A mask holds the shapes of the wanted categories in order, crowds included; where they overlap, the later one counts.
"""

import base64
import shutil
import sys
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import annotations as notes  # noqa: E402  the path must be set first
from data.image_io import image_size_of  # noqa: E402
from data.layout import PART_NAMES  # noqa: E402
from data.names import IMAGE_SUFFIXES  # noqa: E402
from models.names import are_class_names  # noqa: E402
from models.task import IGNORED  # noqa: E402
from runtime import cli  # noqa: E402
from runtime.errors import UsageError, plural  # noqa: E402
from runtime.files import writable_folder  # noqa: E402
from runtime.options import number, option  # noqa: E402

SHOWN = 20  # shapes that a message names


def write_pair(image: notes.Annotated, values: dict[str, int], folder: Path, faults: list[str]) -> np.ndarray | None:
    """Writes an image and its mask, uint8 (H, W), into a dataset, unless none of its shapes covers anything.

    Faults get words for each shape that is left out. Raises UsageError: the image can't be read, or its annotations
    don't fit it.
    """
    suffix = image.file.suffix if image.file.suffix.lower() in IMAGE_SUFFIXES else ".jpg"  # the content decides
    (part, name), where, drawn = image.place, image.where, 0
    copy, target = folder / part / f"images/{name}{suffix}", folder / part / f"masks/{name}.png"
    copy.parent.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
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
        mask = np.zeros(size[::-1], np.uint8)
        for where, category, draw in image.shapes:  # noqa: B007  messages name it
            try:
                mask[draw(size)] = values[category]
                drawn += 1
            except notes.ShapeError as error:
                faults.append(f"{where} ({notes.explain(error)})")
    except notes.FAULTS as error:
        raise UsageError(f"{where}: {notes.explain(error)}") from None
    if image.shapes and not drawn:  # an empty mask would say that there is nothing in the image
        copy.unlink()
        return None
    Image.fromarray(mask).save(target)
    return mask


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """The flags of this script."""

    annotations: str | None = option(None, "file, or folder of .json, .csv, .txt or masks", metavar="FILE_OR_DIR")
    images: str | None = option(None, "folder of the images", metavar="DIR")
    output: str | None = option(None, "folder to make", aliases=("--output_path", "--output_dir"), metavar="DIR")
    names: list[str] | None = option(None, "take these categories alone", aliases=("--category",), nargs="+")
    classes: bool = option(False, "write numbers of classes, 0 background, 1 and on in the order of --names")
    label_map: str | None = option(None, "names of colors or of YOLO's classes, if none is found", metavar="FILE")
    threshold: float | str | None = option(
        None,
        "of masks that are images, take what is above this value; auto: as each of them needs",
        lambda text: text if text == "auto" else number(float, "finite", isfinite)(text),
        metavar="V|auto",
    )
    keep_empty: bool = option(False, "give images without a shape of these categories an empty mask")
    strict: bool = option(False, "end where a shape covers nothing, instead of leaving it out")


def with_places(images: list[notes.Annotated], folder: Path) -> list[notes.Annotated]:
    """Images with their places: their paths in a folder, but for folders called images.

    If all are in folders of parts, training and validation among them, the parts stay.
    """
    paths = [[*image.file.relative_to(folder).parent.parts, image.file.stem] for image in images]
    paths = [[*(part for part in path[:-1] if part != "images"), path[-1]] for path in paths]
    modes = {next((mode for mode, names in PART_NAMES.items() if path[0] in names and path[1:]), "") for path in paths}
    cut = int("" not in modes and {"train", "valid"} <= modes)
    return [image._replace(place=("/".join(path[:cut]), "/".join(path[cut:]))) for image, path in zip(images, paths)]


def choose(config: ConvertConfig) -> tuple[list[notes.Annotated], dict[str, int], list[Path]]:
    """Images with their wanted shapes and places, values of categories in masks, and all files that have annotations.

    Raises UsageError: a category or an image is missing, two images get one name, or no image is left.
    """
    label_map = Path(config.label_map) if config.label_map else None
    if config.threshold is None:
        found, known = notes.read_annotations(Path(config.annotations), Path(config.images), label_map)
    else:
        found, known = notes.read_thresholded(Path(config.annotations), Path(config.images), config.threshold)
    names = [name.strip() for text in config.names or known for name in ([text] if text in known else text.split(","))]
    for name in names:
        if name not in known:
            raise UsageError(f"{config.annotations} has no category {name!r}; there are {', '.join(sorted(known))}")
    names = [name for name in dict.fromkeys(names) if name.lower() not in (*notes.BACKGROUNDS, *notes.LEFT_OUT)]
    if config.classes and not are_class_names(["background", *names]):
        text = f"--classes takes up to 199 names of letters, digits, spaces and dashes, not {', '.join(names)}"
        raise UsageError(f"{text}; rename them, or choose some with --names")
    values = {name: number if config.classes else 255 for number, name in enumerate(names, start=1)}
    drawn = values | {name: 0 for name in known if name.lower() in notes.BACKGROUNDS}
    if config.classes:
        drawn |= {name: IGNORED for name in known if name.lower() in notes.LEFT_OUT}
    images = [image._replace(shapes=[shape for shape in image.shapes if shape.name in drawn]) for image in found]
    images = [image for image in images if config.keep_empty or any(shape.name in values for shape in image.shapes)]
    if not images:
        raise UsageError(f"{config.annotations}: of its {plural(len(found), 'image')} none has a shape; draw one")
    if missing := [image for image in images if not (image.embedded or image.file.is_file())]:
        some = f"{len(missing)} of {plural(len(images), 'image')} missing, such as"
        raise UsageError(f"{some} {missing[0].file} of {missing[0].where}; name their folder with --images")
    taken: dict[str, notes.Annotated] = {}
    for image in (images := with_places(images, Path(config.images))):
        other = taken.setdefault("/".join(image.place).casefold(), image)  # on some file systems A.png is a.png
        if other is not image:
            raise UsageError(f"{image.file} ({image.where}) and {other.file} would get one name; rename one")
    return images, drawn, [image.file for image in found]


def write_all(images: list[notes.Annotated], values: dict[str, int], folder: Path, strict: bool) -> dict[Path, bool]:
    """Writes images and masks; returns of each image whether its mask is empty.

    Raises UsageError: as `write_pair`; no shape covers anything; or one doesn't, and `strict`.
    """
    faults: list[str] = []
    bar = tqdm(images, unit="image", disable=None)  # no bar unless on a terminal
    masks = ((image.file, write_pair(image, values, folder, faults)) for image in bar)
    written = {file: not mask.any() for file, mask in masks if mask is not None}
    if faults:
        shown = "; ".join(faults[:SHOWN]) + f" and {len(faults) - SHOWN} more" * (len(faults) > SHOWN)
        text = f"{len(faults)} of {sum(len(image.shapes) for image in images)} shapes cover nothing: {shown}"
        if strict or not written:
            raise UsageError(text + "; without --strict they are left out" * bool(written))
        print(f"warning: left out, {text}", file=sys.stderr)
    return written


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
    images, values, files = choose(config)
    draft = writable_folder(home.parent) / f".{home.name}.unfinished"
    shutil.rmtree(draft, ignore_errors=True)  # left by a broken-off run
    try:
        written = write_all(images, values, draft, config.strict)
        classes = ["background", *(name for name, value in values.items() if 0 < value < IGNORED)]
        if config.classes:
            (draft / "classes.txt").write_text("\n".join([*classes, ""]), encoding="utf-8")
        if home.exists():
            home.rmdir()  # empty, as seen above
        draft.rename(home)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    skipped = [file.name for file in files if file not in written]
    print(f"{home}: {plural(len(written), 'image')}, {sum(written.values())} with an empty mask; ", end="")
    print(f"{len(skipped)} without a shape skipped", *skipped[:3], *["..."] * (len(skipped) > 3), sep=", ")
    if config.classes:
        print(f"classes: {', '.join(classes)}; train with --classes {home / 'classes.txt'}")


if __name__ == "__main__":
    cli.run(main)
