"""Outlines of the regions of a label map as polygons, in pixels, x first; (0, 0) is the first pixel's upper left."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

TOLERANCE = 0.5  # pixels
SHARP = 3  # pixels: a corner between two edges of at least this length is no stair of a slope


class Region(NamedTuple):
    """Connected pixels of a class by its name: their outline, (K, 2) of x and y, and outlines of the holes in it."""

    name: str
    outline: np.ndarray
    holes: list[np.ndarray]


def regions(labels: np.ndarray, names: Mapping[int, str], tolerance: float = TOLERANCE) -> list[Region]:
    """Traces regions of pixels that share an edge, for each value of a label map (H, W) that has a name.

    `simplify` may move the outlines by as many pixels as `tolerance` says.
    """
    found = []
    for value, name in names.items():
        mask = labels == value
        if not mask.any():
            continue
        loops = _trace(mask)
        places, numbers = _vertical_edges(loops, mask.shape[1] + 1)
        owners: list[Region] = []
        for loop in loops:  # by their upper left corners, so a hole comes after what it is in
            x, y = loop[0]
            if mask[y, x]:
                owners.append(Region(name, simplify(loop, tolerance), []))
                found.append(owners[-1])
            else:  # The pixel above the hole belongs to the same region as the next edge to its left.
                edge = np.searchsorted(places, (y - 1) * (mask.shape[1] + 1) + x, side="right") - 1
                owners.append(owners[numbers[edge]])
                owners[-1].holes.append(simplify(loop, tolerance))
    return found


def _vertical_edges(loops: list[np.ndarray], stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted places, y * stride + x, of the vertical edges of pixels along some loops, and the numbers of the loops."""
    start, end = (np.concatenate([np.roll(loop, -k, axis=0)[::2] for loop in loops]) for k in (1, 2))
    number = np.repeat(np.arange(len(loops)), [len(loop) // 2 for loop in loops])
    length = np.abs(end - start)[:, 1]
    first = np.minimum(start, end)[:, 1] - np.cumsum(length) + length
    places = (np.repeat(first, length) + np.arange(length.sum())) * stride + np.repeat(start[:, 0], length)
    order = places.argsort()
    return places[order], np.repeat(number, length)[order]


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
