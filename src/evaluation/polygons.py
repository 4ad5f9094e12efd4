"""Outlines of the regions of a label map as polygons, and annotation files of them: LabelMe, COCO or YOLO.

Coordinates are pixels, x first; (0, 0) is the upper left corner of the first pixel. Sizes are (width, height) of the
image, turned upright. No format has holes that all tools read: in a file a region with holes is a polygon with a cut.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from runtime.files import atomic_write

TOLERANCE = 0.5  # pixels
SPECK = 6  # pixels that the network saw: smaller regions and holes are not proposed
LABELME = "5.8.1"  # the version whose format is written
SHARP = 3  # pixels: a corner between two edges of at least this length is no stair of a slope


class Region(NamedTuple):
    """Connected pixels of a class by its name: their outline, (K, 2) of x and y, and outlines of the holes in it."""

    name: str
    outline: np.ndarray
    holes: list[np.ndarray]


def regions(
    labels: np.ndarray, names: Mapping[int, str], tolerance: float = TOLERANCE, least: float = 0
) -> list[Region]:
    """Traces regions of pixels that share an edge, for each value of a label map (H, W) that has a name.

    `simplify` may move the outlines by as many pixels as `tolerance` says. Regions and holes of an area below `least`
    pixels are left out.
    """
    found: list[Region] = []
    for value, name in names.items():
        mask, owners = labels == value, []
        if not mask.any():
            continue
        loops = _trace(mask)
        starts, ends = (np.concatenate([np.roll(loop, -k, axis=0)[::2] for loop in loops]) for k in (1, 2))
        left, top, bottom = (
            starts[:, 0],
            np.minimum(starts, ends)[:, 1],
            np.maximum(starts, ends)[:, 1],
        )  # vertical edges
        numbers = np.repeat(np.arange(len(loops)), [len(loop) // 2 for loop in loops])
        for loop in loops:  # by their upper left corners, so a hole comes after what it is in
            (x, y), large = loop[0], _area(loop) >= least
            if mask[y, x]:
                owners.append(Region(name, simplify(loop, tolerance), []))
                found += owners[-1:] * large
            else:  # The pixel above the hole belongs to the same region as the next edge to its left.
                beside = np.flatnonzero((top < y) & (bottom >= y) & (left <= x))
                owners.append(owners[numbers[beside[left[beside].argmax()]]])
                owners[-1].holes.extend([simplify(loop, tolerance)] * large)
    return found


def proposals(labels: np.ndarray, names: Mapping[int, str], seen: tuple[int, int]) -> list[Region]:
    """Regions to be corrected by hand: no finer than a network that saw the image at this height and width."""
    scale = max(1.0, labels.size / (seen[0] * seen[1]))  # its pixels in one that the network saw
    return regions(labels, names, TOLERANCE * scale**0.5, SPECK * scale)


def _trace(mask: np.ndarray) -> list[np.ndarray]:
    """Clockwise loops along the edges of a mask's pixels: int (K, 2) of corners, the upper left one first."""
    padded = np.pad(mask, 1)
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    # Where pixels touch in a point alone, two loops pass through it: it counts twice.
    touching = (a == d) & (b == c) & (a != b)
    y, x = np.nonzero(a ^ b ^ c ^ d | touching)
    twice = touching[y, x]
    second = np.insert(np.zeros(len(y), bool), np.flatnonzero(twice) + 1, True)
    y, x, rising = (np.repeat(array, 1 + twice) for array in (y, x, b[y, x]))
    # Along each row, corners in order bound an edge in pairs; down each column, too.
    partner = np.empty((2, len(y)), int)
    for row, order in zip(partner, (np.lexsort((second, x, y)), np.lexsort((second ^ rising, y, x)))):
        row[order[0::2]], row[order[1::2]] = order[1::2], order[0::2]
    across, down, points = *partner.tolist(), np.stack([x, y], axis=1)
    seen, loops = bytearray(len(y)), []
    for start in range(len(y)):
        loop, here = [], start
        while not seen[here]:
            loop += [here, across[here]]
            seen[here] = seen[across[here]] = 1
            here = down[across[here]]
        loops += [points[loop]] if loop else []
    return loops


def simplify(loop: np.ndarray, tolerance: float) -> np.ndarray:
    """Drops corners of a loop (K, 2) that are nearer to the line between those that stay (Douglas, Peucker, 1973).

    Stairs are first cut half a pixel from each corner: then a slope is a line, and no pixel's center changes sides.
    Tolerance of 0 keeps the loop as it is.
    """
    if not tolerance:
        return loop
    step = np.roll(loop, -1, axis=0) - loop
    length = np.abs(step).sum(axis=1)[:, None]
    sharp = np.minimum(length, np.roll(length, 1, axis=0)) >= SHARP
    half = np.where(sharp, 0, 0.5)
    points = np.stack([loop - half * np.roll(step / length, 1, axis=0), loop + half * step / length], axis=1)
    points = points.reshape(-1, 2)
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    far = int(np.hypot(*(points - points[0]).T).argmax())
    ring, kept, spans = np.append(points, points[:1], axis=0), {0, far}, [(0, far), (far, len(points))]
    while spans:
        first, last = spans.pop()
        between, chord = ring[first + 1 : last] - ring[first], ring[last] - ring[first]
        share = (between @ chord / max(chord @ chord, 1e-9)).clip(0, 1)
        distance = np.hypot(*(between - share[:, None] * chord).T)
        if distance.max(initial=0) > tolerance:
            middle = first + 1 + int(distance.argmax())
            kept.add(middle)
            spans += [(first, middle), (middle, last)]
    return points[sorted(kept)] if len(kept) > 2 else loop


def cut(region: Region) -> np.ndarray:
    """A region as one polygon (K, 2), for formats without holes: a line of no width leads to each hole and back."""
    outline = region.outline
    for hole in region.holes:
        distances = np.abs(outline[:, None] - hole).sum(axis=2)
        i, k = np.unravel_index(distances.argmin(), distances.shape)
        around = np.roll(hole, -k, axis=0)[::-1]  # against the outline's direction, for programs that count turns
        outline = np.concatenate([outline[: i + 1], around[-1:], around, outline[i:]])
    return outline


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
