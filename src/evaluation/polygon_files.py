"""Annotation files of polygons, to go on in annotation tools: LabelMe, COCO or YOLO.

with WRITERS["coco"](folder, ["pet"]) as writer:
    writer.add(image, (width, height), regions(label_map, {PET: "pet"}))
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


class PolygonWriter:
    """Writes one file per image, named after it. Others override this.

    Args:
        folder: where the files go.
        names: of all classes but the background, in order.
    """

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder, self.names = Path(folder), list(names)

    def add(self, image: Path, size: tuple[int, int], found: list[Region]) -> None:
        """Takes the regions of an image whose width and height are `size`, turned upright."""
        raise NotImplementedError

    def close(self) -> None:
        """Writes what all images share."""

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()

    def write(self, name: str, content) -> None:
        """Writes text, or JSON of what is no text, to a file in the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, sync=False) as file:
            file.write(content if isinstance(content, str) else json.dumps(content) + "\n")


class LabelMe(PolygonWriter):
    """A JSON file per image, with the image's path as seen from there."""

    def add(self, image: Path, size: tuple[int, int], found: list[Region]) -> None:
        more = {"group_id": None, "description": "", "shape_type": "polygon", "flags": {}}
        image = Path(image).parent.resolve() / Path(image).name  # the file itself may be a link
        place = str(image)
        with contextlib.suppress(ValueError):  # on Windows there is no path from one drive to another
            place = Path(os.path.relpath(image, self.folder.resolve())).as_posix()
        shapes = [{"label": region.name, "points": cut(region).tolist(), **more} for region in found]
        content = {"version": LABELME, "flags": {}, "shapes": shapes, "imagePath": place, "imageData": None}
        self.write(f"{image.stem}.json", content | {"imageHeight": size[1], "imageWidth": size[0]})


class Coco(PolygonWriter):
    """One annotations.json for all images.

    A region with holes is one polygon with a cut: annotation tools open that, and not all of them run lengths.
    """

    def __init__(self, folder: Path, names: Sequence[str]):
        super().__init__(folder, names)
        categories = [{"id": number, "name": name} for number, name in enumerate(self.names, start=1)]
        self.content: dict = {"images": [], "annotations": [], "categories": categories}

    def add(self, image: Path, size: tuple[int, int], found: list[Region]) -> None:
        images, rows = self.content["images"], self.content["annotations"]
        images.append({"id": len(images) + 1, "file_name": Path(image).name, "width": size[0], "height": size[1]})
        for region in found:
            low, high = region.outline.min(axis=0), region.outline.max(axis=0)
            row = {"id": len(rows) + 1, "image_id": len(images), "category_id": self.names.index(region.name) + 1}
            row |= {"segmentation": [cut(region).ravel().tolist()], "bbox": [*low.tolist(), *(high - low).tolist()]}
            rows.append(row | {"area": _area(region.outline) - sum(map(_area, region.holes)), "iscrowd": 0})

    def close(self) -> None:
        self.write("annotations.json", self.content)


class Yolo(PolygonWriter):
    """A labels/<image>.txt of coordinates from 0 to 1 per image, and data.yaml with the names."""

    def add(self, image: Path, size: tuple[int, int], found: list[Region]) -> None:
        rows = [(self.names.index(region.name), (cut(region) / size).ravel()) for region in found]
        text = "".join(f"{number} {' '.join(f'{value:.6f}' for value in row)}\n" for number, row in rows)
        self.write(f"labels/{Path(image).stem}.txt", text)

    def close(self) -> None:
        rows = [f"  {number}: {json.dumps(name)}" for number, name in enumerate(self.names)]
        self.write("data.yaml", "\n".join(["path: .", "train: images", "val: images", "names:", *rows, ""]))


def _area(polygon: np.ndarray) -> float:
    """Of a polygon (K, 2), in pixels."""
    x, y = polygon.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


WRITERS = {"labelme": LabelMe, "coco": Coco, "yolo": Yolo}
