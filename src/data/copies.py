"""Copies: files that are equal byte for byte, and near copies.

Near copies show the same photograph, saved again, resized, slightly cropped, or mirrored. Perceptual hashes find
candidates: their bits say which low frequencies of an image are above the median (a discrete cosine transform, as in
the program pHash). Then pixels and masks are compared block by block, since frames of a fixed camera differ in a small
place alone.
"""

import collections
import functools
import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.cache import CACHE_FOLDER, files_digest, make_once, read_all
from data.image_io import read_image, read_mask, read_trimap
from data.layout import Sample
from runtime.errors import DatasetError
from runtime.files import atomic_write

VERSION = 5  # changes when the same images give other pairs
SIDE = 64  # of the thumbnails that are compared, in pixels
FREQUENCIES = 8  # in each direction, that are hashed
HASH_DISTANCE = 14  # of the 63 bits, in which candidates differ at most
BLOCK = SIDE // 8  # side of the squares in which two thumbnails are compared, in pixels
CORRELATION = 0.9  # of two images at 8x8 pixels, at least
TRIED = 3  # the crops that correlate best are compared in full
DIFFERENCE, OF_BLOCK = 0.12, 0.22  # of copies, and of every block of them, at most, in their standard deviations
SAME_MASK = 0.75  # Dice of the masks of copies, at least; people who draw one pet twice reach 0.86 to 0.99
# Crops that are tried, as (left, top, right, bottom): the whole, and up to 6 % less at every edge and corner.
BOXES = [(0, 0, SIDE, SIDE)] + [
    (left, top, left + side, top + side)
    for side in (0.985 * SIDE, 0.97 * SIDE, 0.94 * SIDE)
    for top in (0, (SIDE - side) / 2, SIDE - side)
    for left in (0, (SIDE - side) / 2, SIDE - side)
]


class Candidate(NamedTuple):
    """An image as it is compared."""

    thumbnail: np.ndarray  # uint8 (SIDE, SIDE, 3)
    mask: np.ndarray | None  # see `_foreground`
    crops: np.ndarray  # see `small_crops`


def find_copies(samples: list[Sample]) -> list[list[Sample]]:
    """Groups of images whose files are equal, byte for byte. Only files of equal size are read."""
    groups: dict[bytes, list[Sample]] = {}
    try:
        with ThreadPoolExecutor() as pool:
            sizes = list(pool.map(lambda sample: sample.image_path.stat().st_size, samples))
            count = collections.Counter(sizes)
            suspects = [sample for size, sample in zip(sizes, samples) if count[size] > 1]
            digests = pool.map(lambda sample: hashlib.sha256(sample.image_path.read_bytes()).digest(), suspects)
            for digest, sample in zip(digests, suspects):
                groups.setdefault(digest, []).append(sample)
    except OSError as error:
        raise DatasetError(f"{error.filename} can't be read ({error.strerror}); replace the file") from None
    return [group for group in groups.values() if len(group) > 1]


def near_copies(root: Path, samples: list[Sample]) -> list[list[Sample]]:
    """Pairs of near copies in a dataset. They are kept in its cache folder, if that can be written."""
    file = root / CACHE_FOLDER / f"near_copies_{files_digest(samples, VERSION)}.json"

    def make() -> None:
        if len(samples) > 1000:
            print(f"Comparing {len(samples):,} images once, to find near copies.", flush=True)
        pairs = [[sample.name for sample in pair] for pair in find_near_copies(samples)]
        with atomic_write(file) as stream:
            json.dump(pairs, stream)

    try:
        make_once(file, "near_copies_*.json", make)
        by_name = {sample.name: sample for sample in samples}
        return [[by_name[name] for name in pair] for pair in json.loads(file.read_text())]
    except OSError as error:
        print(f"Near copies are not kept in {file.parent} ({error.strerror or error}).", file=sys.stderr)
        return find_near_copies(samples)


def find_near_copies(samples: list[Sample], known: list[Sample] | None = None) -> list[list[Sample]]:
    """Pairs of images that are copies of each other by their content; byte for byte equal ones are among them.

    With `known`, pairs of a sample and a known one alone. An image that can't be read, or has one color, is no copy.
    """
    count, samples = len(samples), [*samples, *(known or ())]
    read = read_all(
        lambda s: read_image(s.image_path, (SIDE, SIDE), s.binary_mask, own_range=True), samples, "comparing"
    )
    thumbnails = {i: image for i, image in enumerate(read) if isinstance(image, np.ndarray) and image.std() > 1}
    numbers, pairs = np.array(list(thumbnails)), set()
    hashes = [image_hash(thumbnail) for thumbnail in thumbnails.values()]

    @functools.cache
    def candidate(i: int, mirrored: bool) -> Candidate:
        thumbnail, mask = thumbnails[i], _foreground(samples[i])
        if mirrored:
            thumbnail, mask = np.ascontiguousarray(thumbnail[:, ::-1]), None if mask is None else mask[:, ::-1].copy()
        return Candidate(thumbnail, mask, small_crops(thumbnail))

    for mirrored in (False, True):
        theirs = np.array([image_hash(t[:, ::-1]) for t in thumbnails.values()] if mirrored else hashes)
        for i, row in zip(numbers[numbers < count].tolist(), hashes):
            distances = (len(row) - theirs @ row) / 2
            for j in numbers[(distances <= HASH_DISTANCE) & (numbers > (i if known is None else count - 1))].tolist():
                if are_copies(candidate(i, False), candidate(j, mirrored)):
                    pairs.add((i, j))
    return [[samples[i], samples[j]] for i, j in sorted(pairs)]


def image_hash(thumbnail: np.ndarray) -> np.ndarray:
    """The perceptual hash of a thumbnail, uint8 (SIDE, SIDE, 3): float32 (63,) of -1 and 1."""
    k, x = np.arange(FREQUENCIES)[:, None], np.arange(SIDE)
    cosines = np.cos(np.pi * k * (2 * x + 1) / (2 * SIDE))
    low = (cosines @ thumbnail.mean(2) @ cosines.T).ravel()[1:]  # the first is the mean
    return np.where(low > np.median(low), np.float32(1), np.float32(-1))


def _standardized(images: np.ndarray) -> np.ndarray:
    """Images (V, H, W, 3) with a mean of 0 in each channel and a standard deviation of 1."""
    centered = images - images.mean((1, 2), keepdims=True)
    return centered / np.maximum(centered.std((1, 2, 3), keepdims=True), 1e-3)


def _crop(thumbnail: np.ndarray, box: tuple) -> np.ndarray:
    image = Image.fromarray(thumbnail).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image, np.float32)


def small_crops(thumbnail: np.ndarray) -> np.ndarray:
    """What is compared first of a thumbnail: its crops at 8x8 pixels, as unit vectors (len(BOXES), 192)."""
    small = [_crop(thumbnail, box).reshape(8, BLOCK, 8, BLOCK, 3).mean((1, 3)) for box in BOXES]
    return _standardized(np.stack(small)).reshape(len(BOXES), -1) / 192**0.5


def _foreground(sample: Sample) -> np.ndarray | None:
    """How much of each place its masks cover, uint8 (SIDE, SIDE) of 0 to 255; None where none can be read."""
    try:
        masks = [read_mask(path, 0) if sample.binary_mask else read_trimap(path) for path in sample.files[1:]]
    except DatasetError:  # it is told elsewhere
        return None
    images = [Image.fromarray(mask.clip(0, 1) * 255).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for mask in masks]
    return np.max([np.asarray(image) for image in images], axis=0) if images else None


def are_copies(a: Candidate, b: Candidate) -> bool:
    """Whether two candidates show one photograph, whole, or one whole and one cropped, and have the same mask."""
    for cropped, whole in ((a, b), (b, a)):
        correlations = cropped.crops @ whole.crops[0]
        for view in np.argsort(-correlations)[:TRIED]:
            if correlations[view] < CORRELATION:
                break
            pair = np.stack([_crop(cropped.thumbnail, BOXES[view]), whole.thumbnail.astype(np.float32)])
            # Means of two by two pixels: finer detail depends on how an image was resized.
            first, second = _standardized(pair.reshape(2, SIDE // 2, 2, SIDE // 2, 2, 3).mean((2, 4)))
            blocks = np.abs(first - second).reshape(8, BLOCK // 2, 8, BLOCK // 2, 3).mean((1, 3, 4))
            if blocks.mean() > DIFFERENCE or blocks.max() > OF_BLOCK:
                continue
            if cropped.mask is None or whole.mask is None:
                return True
            mine, other = _crop(cropped.mask, BOXES[view]), whole.mask.astype(np.float32)
            if 2 * np.minimum(mine, other).sum() >= SAME_MASK * (mine.sum() + other.sum()):
                return True
    return False
