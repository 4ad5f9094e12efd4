"""Annotation files of polygons: LabelMe, COCO or YOLO. Sizes are (width, height) of the image, turned upright.

None of them has holes in polygons that all tools read, so a region with holes is one polygon with a cut.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.polygons import Region, cut
from runtime.files import atomic_write

LABELME = "5.8.1"  # the version whose format is written


def write_text(path: Path, content) -> None:
    """Writes text, or JSON of what is no text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, sync=False) as file:
        file.write(content if isinstance(content, str) else json.dumps(content) + "\n")


def write_labelme(path: Path, image: Path, size: tuple[int, int], regions: Sequence[Region]) -> None:
    """Writes a JSON file of an image's regions, with the image's path as seen from there."""
    image = image.parent.resolve() / image.name  # the file itself may be a link
    place = str(image)
    with contextlib.suppress(ValueError):  # on Windows there is no path from one drive to another
        place = Path(os.path.relpath(image, path.parent.resolve())).as_posix()
    rest = {"group_id": None, "description": "", "shape_type": "polygon", "flags": {}}
    shapes = [{"label": region.name, "points": cut(region).tolist(), **rest} for region in regions]
    content = {"version": LABELME, "flags": {}, "shapes": shapes, "imagePath": place, "imageData": None}
    write_text(path, content | {"imageHeight": size[1], "imageWidth": size[0]})


def write_yolo(path: Path, size: tuple[int, int], regions: Sequence[Region], names: Sequence[str]) -> None:
    """Writes a text file of an image's regions: a line for each, of its class and of coordinates from 0 to 1."""
    rows = [(names.index(region.name), (cut(region) / size).ravel()) for region in regions]
    write_text(path, "".join(f"{number} {' '.join(f'{value:.6f}' for value in row)}\n" for number, row in rows))


def write_yolo_names(path: Path, names: Sequence[str]) -> None:
    """Writes data.yaml, which names the classes of all images."""
    rows = [f"  {number}: {json.dumps(name)}" for number, name in enumerate(names)]
    write_text(path, "\n".join(["path: .", "train: images", "val: images", "names:", *rows, ""]))


def write_coco(path: Path, images: list[tuple[str, tuple[int, int], list[Region]]], names: Sequence[str]) -> None:
    """Writes one JSON file of all images: of each its file name, size and regions."""
    pictures, annotations = [], []
    for number, (name, (width, height), regions) in enumerate(images, start=1):
        pictures.append({"id": number, "file_name": name, "width": width, "height": height})
        for region in regions:
            low, high = region.outline.min(axis=0), region.outline.max(axis=0)
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": names.index(region.name) + 1}
            row |= {"segmentation": [cut(region).ravel().tolist()], "bbox": [*low.tolist(), *(high - low).tolist()]}
            annotations.append(row | {"area": _area(region.outline) - sum(map(_area, region.holes)), "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    write_text(path, {"images": pictures, "annotations": annotations, "categories": categories})


def _area(polygon: np.ndarray) -> float:
    """Pixels in a polygon (K, 2)."""
    x, y = polygon.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
