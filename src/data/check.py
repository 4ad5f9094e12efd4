"""Verifies every file of a dataset."""

import collections
import sys
from pathlib import Path

import numpy as np

from data.cache import read_all
from data.dataset import Dataset
from data.image_io import image_size_of, read_header
from data.layout import Sample
from data.names import MODES
from data.view import View
from models.task import BACKGROUND
from runtime.errors import DatasetError, plural, raise_faults


def looks_inverted(mask: np.ndarray) -> bool:
    """Whether a mask (H, W) seems inverted: most of its rim is pet, and more of it than of its middle."""
    height, width = mask.shape
    rim = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
    middle = mask[height // 4 : height - height // 4, width // 4 : width - width // 4].mean()
    return rim > 0.5 and rim > middle


def warn_if_inverted(masks: list[np.ndarray], root: Path) -> None:
    """Warns on stderr where most masks, (H, W) of bool, look inverted."""
    inverted = sum(map(looks_inverted, masks))
    if 2 * inverted > len(masks):
        text = f"WARNING: {inverted} of {len(masks)} masks looked at in {root} seem INVERTED: their rim is pet"
        print(f"{text} and their middle is background; in a mask black is background.", file=sys.stderr)


def print_resized_masks(samples: list[Sample]) -> None:
    """Prints how many masks have another size than their image, if any has. Reads headers alone."""

    def differs(sample: Sample) -> bool:
        return sample.binary_mask and image_size_of(sample.mask_path) != sample.displayed_size()

    # What can't be read is told elsewhere.
    if count := sum(result is True for result in read_all(differs, samples, "comparing sizes")):
        print(f"{count} of {len(samples)} masks have another size than their images, of the same shape.", flush=True)


def require_readable(samples: list[Sample], view: View, folder: str | Path) -> None:
    """Reads every image once, so that a broken one is told before the run. Raises DatasetError."""
    results = read_all(lambda sample: view.read_at(sample, (1, 1)), samples, "reading")
    raise_faults([str(result) for result in results if isinstance(result, DatasetError)], folder)


def check(dataset: Dataset, split: str, seed: int, view: View) -> None:
    """Verifies every file of a dataset and prints what is in it. Raises DatasetError: there are faults."""

    def inspect(sample: Sample) -> tuple:
        kind, (image, labels) = read_header(sample.image_path)[0], view.read_at(sample)
        mask = labels != BACKGROUND
        return kind, image.shape[1::-1], float(mask.mean()), looks_inverted(mask), sample.name

    root, samples = dataset.root, dataset.samples
    view.require_labels(samples)
    results = list(read_all(inspect, samples, "checking"))
    print(f"{root}: {dataset.layout}, {plural(len(samples), 'image')}")
    if whole := [result for result in results if not isinstance(result, DatasetError)]:
        print_contents(whole, bool(view.classes))
    print_resized_masks(samples)
    raise_faults([str(result) for result in results if isinstance(result, DatasetError)], root)
    for group in dataset.copies[:10]:
        print(f"  the same    {' = '.join(sample.image_path.name for sample in group)}")
    parts = dataset.split(split, seed)
    home = {sample: mode for mode, part in zip(MODES, parts) for sample in part}
    copied = sum(len(group) - 1 for group in dataset.copies)
    print(f"  split       {split}: {', '.join(f'{len(part):,} {mode}' for mode, part in zip(MODES, parts))}")
    print(f"  copies      {copied}; {sum(parts.moved)} moved into training by the split")
    near = [pair for pair in dataset.near_copies if home.keys() >= set(pair)]
    apart = [pair for pair in near if len({home[sample] for sample in pair}) > 1]
    for pair in apart:
        print(f"  near copies {' = '.join(f'{sample.name} ({home[sample]})' for sample in pair)}")
    print(f"  near copies {plural(len(near), 'pair')} by content, {len(apart)} of them in different parts")
    print("No faults.")


def print_contents(rows: list[tuple], named_classes: bool) -> None:
    """Prints what is in the images, by rows of what `check` has found in each."""
    kinds, sizes, shares, inverted, names = zip(*rows)
    sides, shares = ["{}x{}".format(*size) for size in sorted(set(sizes))], np.array(shares)
    counts = collections.Counter(kinds).most_common()
    empty = [name for name, share in zip(names, shares) if not share]
    print(f"  kinds       {', '.join(f'{count:,} {kind}' for kind, count in counts)}")
    print(f"  sizes       {sides[0]} to {sides[-1]}, {plural(len(sides), 'size')}")
    print(f"  pet share   {shares.min():.1%} to {shares.max():.1%}, median {np.median(shares):.1%}; ", end="")
    print(f"{plural(len(empty), 'mask')} empty, {(shares == 1).sum()} full")
    if empty:
        print(f"  empty       {', '.join(empty[:20])}{', ...' if len(empty) > 20 else ''}")
    if not named_classes:
        print(f"  inverted    {plural(sum(inverted), 'mask')} by the look of it")
