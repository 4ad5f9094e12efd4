"""Which part of a dataset an image belongs to."""

import collections
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.copies import connected, find_copies, near_copies
from data.index import LISTS, Sample, by_name, has_lists, list_samples, read_list, require_files
from runtime.errors import DatasetError, raise_faults

MODES = ("train", "valid", "test")
SUBSETS = (*MODES, "all")
SPLITS = ("80-10-10", "official")


class Split(NamedTuple):
    """The parts of a dataset, disjoint in names and in content."""

    train: list[Sample]
    valid: list[Sample]
    test: list[Sample]
    moved: int  # images moved into training because a copy is in another part


def part_samples(
    root: Path, mode: str, split: str = "80-10-10", seed: int = 42, copies: str | None = "near"
) -> list[Sample]:
    """The samples of one part, as in `split_samples`, or with mode `all` every labelled image of any layout.

    Of the official split only those lists are needed that the part is made of.
    """
    if mode == "all":
        samples = list_samples(root)
        require_files(root, samples)
        return samples
    return getattr(split_samples(root, split, seed, (mode,), copies), mode)


def split_samples(
    root: Path,
    split: str = "80-10-10",
    seed: int = 42,
    needed: tuple[str, ...] = MODES,
    copies: str | None = "near",
) -> Split:
    """Divides the samples into the parts train, valid and test, disjoint in names and in content.

    Args:
        root: folder of a dataset.
        split: `official` takes trainval.txt, every tenth of it for validation, and test.txt. `80-10-10`
            shuffles each breed once and gives every part the same share of it.
        seed: of the shuffle; `official` draws nothing.
        needed: parts that must not be empty.
        copies: with `near` also near copies are kept in one part of `80-10-10`; None knows only files that are equal
            byte for byte. The lists of `official` are left as they are but for those.

    Raises:
        DatasetError: a list is missing or malformed, listed files are missing, or a part is empty.
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"no split is called {split!r}; there are {', '.join(SPLITS)}")
    if split == "official":
        if not has_lists(root):
            raise DatasetError(f"{root} has no trainval.txt and test.txt for the official split; use --split 80-10-10")
        there = {name for name in LISTS if (root / "annotations" / f"{name}.txt").is_file()}
        there |= {"test" if mode == "test" else "trainval" for mode in needed}  # else read_list says what is missing
        trainval, test = (read_list(root, name) if name in there else [] for name in ("trainval", "test"))
        both = {s.name for s in trainval} & {s.name for s in test}
        raise_faults([f"{name} stands in trainval.txt and in test.txt" for name in both], root)
        train = [sample for i, sample in enumerate(trainval, start=1) if i % 10]
        parts = {"train": train, "valid": trainval[9::10], "test": test}
    else:
        if has_lists(root) and not (root / "annotations/list.txt").is_file():
            for name in ("trainval", "test"):  # a part of the images would be divided in another way
                read_list(root, name)
        parts = _stratified(list_samples(root), seed)
    require_files(root, [sample for part in parts.values() for sample in part])
    groups = find_copies([sample for part in parts.values() for sample in part])
    if copies == "near" and split != "official":
        groups += near_copies(root)
    moved = _unite(parts, groups)
    for mode, part in parts.items():
        if not part and mode in needed:
            listed = sum(len(p) for p in parts.values())
            raise DatasetError(
                f"{root}: the {mode} part of the split {split} is empty: there are {listed} images in all, of which "
                f"{moved} were moved into training as copies; at least ten different ones are "
                "needed (evaluate.py --subset all needs no parts)"
            )
    return Split(**parts, moved=moved)


def _stratified(samples: list[Sample], seed: int) -> dict[str, list[Sample]]:
    by_breed: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=by_name):
        by_breed.setdefault(sample.breed, []).append(sample)
    order = [
        sample
        for breed, members in by_breed.items()
        for sample in (members[i] for i in np.random.default_rng([seed, breed]).permutation(len(members)))
    ]
    # Breed follows breed, and every run of ten in this order gives eight, one and one: so each part gets its share of
    # every breed, to within one image, and of the whole.
    parts: dict[str, list[Sample]] = {mode: [] for mode in MODES}
    for i, sample in enumerate(order):
        parts[{4: "valid", 9: "test"}.get(i % 10, "train")].append(sample)
    return parts


def stratified_subset(samples: list[Sample], fraction: float, seed: int) -> list[Sample]:
    """A random part of the samples, the same of every breed; a smaller part lies within a larger one."""
    order = np.random.default_rng(seed).permutation(len(samples)).tolist()
    size, seen, place = collections.Counter(sample.breed for sample in samples), collections.Counter(), {}
    for i in order:  # each sample's place in its breed, from 0 to 1
        seen[samples[i].breed] += 1
        place[i] = (seen[samples[i].breed] - 0.5) / size[samples[i].breed]
    kept = sorted(order, key=place.get)[: round(len(samples) * fraction)]
    return [samples[i] for i in sorted(kept)]


def _unite(parts: dict[str, list[Sample]], copies: list) -> int:
    """Moves copies of one image that are in several parts into training; returns how many were moved."""
    home = {sample: mode for mode, part in parts.items() for sample in part}
    mixed = [group for group in connected(copies) if len({home[sample] for sample in group}) > 1]
    moved = [sample for group in mixed for sample in group if home[sample] != "train"]
    for sample in moved:
        parts[home[sample]].remove(sample)
        parts["train"].append(sample)
    return len(moved)
