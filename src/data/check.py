"""Verifies every file of a dataset."""

import collections
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.dataset import Dataset
from data.image_io import describe_image, image_size_of
from data.layout import Sample
from data.names import MODES
from data.view import View
from models.task import BACKGROUND
from runtime.errors import DatasetError, raise_faults


class Inspection(NamedTuple):
    """What was found in one image and its mask; only `fault` where there is one."""

    fault: str = ""
    mode: str = ""
    size: tuple = (0, 0)  # width, height
    pet_share: float = 0.0
    inverted: bool = False


def looks_inverted(mask: np.ndarray) -> bool:
    """Whether a mask (H, W) seems inverted: most of its rim is pet, and more of it than of its middle."""
    height, width = mask.shape
    rim = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
    middle = mask[height // 4 : height - height // 4, width // 4 : width - width // 4].mean()
    return rim > 0.5 and rim > middle


def warn_if_inverted(masks: list[np.ndarray], root: Path) -> None:
    """Warns on stderr where most masks look inverted. Masks are (H, W) of bool."""
    inverted = sum(map(looks_inverted, masks))
    if 2 * inverted > len(masks):
        print(
            f"WARNING: {inverted} of {len(masks)} masks looked at in {root} seem INVERTED: their rim is pet and their "
            "middle is background. In a mask black is background and the other value is pet.",
            file=sys.stderr,
        )


def print_resized_masks(samples: list[Sample]) -> None:
    """Prints how many masks have another size than their image, if any has. Reads headers alone."""

    def differs(sample: Sample) -> bool:
        try:
            return sample.binary_mask and image_size_of(sample.mask_path) != sample.displayed_size()
        except DatasetError:  # told where the file is read
            return False

    with ThreadPoolExecutor() as pool:
        count = sum(pool.map(differs, samples))
    if count:
        print(f"{count} of {len(samples)} masks have another size than their images, of the same shape.", flush=True)


def require_readable(samples: list[Sample], view: View, folder: str | Path) -> None:
    """Reads every image once, so that a broken one is told before the run. Raises DatasetError."""

    def fault_of(sample: Sample) -> str | None:
        try:
            view.read_at(sample, (1, 1))
        except DatasetError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(fault_of, samples), total=len(samples), desc="reading", disable=None, delay=1)
        raise_faults([fault for fault in bar if fault], folder)


def inspect(sample: Sample, view: View) -> Inspection:
    """Reads both files whole."""
    try:
        mode = describe_image(sample.image_path)
        image, labels = view.read_at(sample)
    except DatasetError as error:
        return Inspection(str(error))
    mask = labels != BACKGROUND
    return Inspection("", mode, image.shape[1::-1], float(mask.mean()), looks_inverted(mask))


def check(dataset: Dataset, split: str, seed: int, view: View) -> None:
    """Verifies every file of a dataset and prints what is in it.

    Raises:
        DatasetError: there are faults; the first ten are named, all are counted.
    """
    root, samples = dataset.root, dataset.samples
    view.require_labels(samples)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        inspections = pool.map(lambda sample: inspect(sample, view), samples)
        inspections = list(tqdm(inspections, total=len(samples), desc="checking", unit="image", disable=None))
    print(f"{root}: {dataset.layout}, {len(samples):,} images")
    whole = [inspection for inspection in inspections if not inspection.fault]
    if whole:
        modes = collections.Counter(inspection.mode for inspection in whole).most_common()
        sides = sorted({inspection.size for inspection in whole})
        smallest, largest = ("x".join(map(str, size)) for size in (sides[0], sides[-1]))
        shares = np.array([inspection.pet_share for inspection in whole])
        empty, full = (shares == 0).sum(), (shares == 1).sum()
        print(f"  kinds       {', '.join(f'{count:,} {mode}' for mode, count in modes)}")
        print(f"  sizes       {smallest} to {largest}, {len(sides):,} different ones")
        print(f"  pet share   {shares.min():.1%} to {shares.max():.1%}, median {np.median(shares):.1%}; ", end="")
        print(f"{empty} masks are empty, {full} full")
        if empty:
            names = [s.name for s, seen in zip(samples, inspections) if not (seen.fault or seen.pet_share)]
            print(f"  empty       {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}")
        if not view.classes:
            print(f"  inverted    {sum(inspection.inverted for inspection in whole)} masks look so")
    print_resized_masks(samples)
    raise_faults([inspection.fault for inspection in inspections if inspection.fault], root)
    for group in dataset.copies[:10]:
        print(f"  the same    {' = '.join(sample.image_path.name for sample in group)}")
    parts = dataset.split(split, seed)
    home = {sample: mode for mode, part in zip(MODES, parts) for sample in part}
    copied = sum(len(group) - 1 for group in dataset.copies)
    print(f"  split       {split}: {', '.join(f'{len(part):,} {mode}' for mode, part in zip(MODES, parts))}")
    print(f"  copies      {copied}; {parts.moved} moved into training by the split")
    near = [pair for pair in dataset.near_copies if home.keys() >= set(pair)]
    apart = [pair for pair in near if len({home[sample] for sample in pair}) > 1]
    for pair in apart:
        print(f"  near copies {' = '.join(f'{sample.name} ({home[sample]})' for sample in pair)}")
    print(f"  near copies {len(near)} pairs by content, {len(apart)} of them in different parts")
    print("No faults.")
