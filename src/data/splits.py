"""Which part of a dataset an image belongs to."""

import collections
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.copies import connected, find_copies, near_copies
from data.index import LISTS, Sample, by_name, has_lists, list_samples, read_list, require_files
from data.names import MODES, SPLITS
from runtime.errors import DatasetError, UsageError, raise_faults


class Split(NamedTuple):
    """The parts of a dataset, disjoint in names and in content."""

    train: list[Sample]
    valid: list[Sample]
    test: list[Sample]
    moved: int  # images moved into training because a copy, or one of their group, is in another part


def part_samples(root: Path, mode: str, split: str = "80-10-10", seed: int = 42) -> list[Sample]:
    """The samples of one part, as in `split_samples`, or with mode `all` every labelled image of any layout.

    Of the official split only those lists are needed that the part is made of.
    """
    if mode == "all":
        samples = list_samples(root)
        require_files(root, samples)
        return samples
    return getattr(split_samples(root, split, seed, (mode,)), mode)


def split_samples(
    root: Path,
    split: str = "80-10-10",
    seed: int = 42,
    needed: tuple[str, ...] = MODES,
    fold: Sequence[int] | None = None,
    groups: dict[str, str] | None = None,
) -> Split:
    """Divides the samples into the parts train, valid and test, disjoint in names and in content.

    Files that are equal byte for byte are kept in one part; near copies, too, but for the lists of `official`.

    Args:
        root: folder of a dataset.
        split: `official` takes trainval.txt, every tenth of it for validation, and test.txt. `80-10-10`
            shuffles each breed once and gives every part the same share of it.
        seed: of the shuffle; `official` draws nothing.
        needed: parts that must not be empty.
        fold: (I, K) divides all images but the test part into K folds with the same share of every breed, copies in
            one fold; the I-th, from 1 on, is for validation.
        groups: by name of an image; images of one group, such as frames of a video, are never in two parts.

    Raises:
        DatasetError: a list is missing or malformed, listed files are missing, or a part is empty.
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"no split is called {split!r}; there are {', '.join(SPLITS)}")
    if split == "official":
        parts = _official(root, needed, groups)
    else:
        if has_lists(root) and not (root / "annotations/list.txt").is_file():
            for name in ("trainval", "test"):  # a part of the images would be divided in another way
                read_list(root, name)
        parts = _stratified(list_samples(root), seed, groups)
    require_files(root, [sample for part in parts.values() for sample in part])
    everything = [sample for part in parts.values() for sample in part]
    together = [*find_copies(everything), *_members(everything, groups)]
    near = near_copies(root) if split != "official" or fold else []
    moved = _unite(parts, together if split == "official" else together + near)
    if fold:
        parts["train"], parts["valid"] = _fold(parts["train"] + parts["valid"], *fold, seed, together + near)
    for mode, part in parts.items():
        if not part and mode in needed:
            listed = sum(len(p) for p in parts.values())
            raise DatasetError(
                f"{root}: the {mode} part of the split {split} is empty: there are {listed} images in all, of which "
                f"{moved} were moved into training, with copies or groups; at least ten different ones are needed, or "
                "fewer folds (evaluate.py --subset all needs no parts)"
            )
    return Split(**parts, moved=moved)


def _official(root: Path, needed: tuple[str, ...], groups: dict[str, str] | None) -> dict[str, list[Sample]]:
    """The parts that the lists of a dataset give; see `split_samples`."""
    if not has_lists(root):
        raise DatasetError(f"{root} has no trainval.txt and test.txt for the official split; use --split 80-10-10")
    there = {name for name in LISTS if (root / "annotations" / f"{name}.txt").is_file()}
    there |= {"test" if mode == "test" else "trainval" for mode in needed}  # else read_list says what is missing
    trainval, test = (read_list(root, name) if name in there else [] for name in ("trainval", "test"))
    both = {s.name for s in trainval} & {s.name for s in test}
    raise_faults([f"{name} stands in trainval.txt and in test.txt" for name in both], root)
    train = [sample for i, sample in enumerate(trainval, start=1) if i % 10]
    if groups:
        return {**_deal_out(trainval, _members(trainval, groups), {"train": 0.9, "valid": 0.1}), "test": test}
    return {"train": train, "valid": trainval[9::10], "test": test}


def _by_breed(samples: list[Sample], seed: int) -> list[Sample]:
    """Breed after breed, each shuffled: what is dealt out in turns has the same share of every breed."""
    breeds: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=by_name):
        breeds.setdefault(sample.breed, []).append(sample)
    return [
        sample
        for breed, members in breeds.items()
        for sample in (members[i] for i in np.random.default_rng([seed, breed]).permutation(len(members)))
    ]


def _stratified(samples: list[Sample], seed: int, groups: dict[str, str] | None) -> dict[str, list[Sample]]:
    order = _by_breed(samples, seed)
    if groups:
        return _deal_out(order, _members(order, groups), {"train": 0.8, "valid": 0.1, "test": 0.1})
    # Every run of ten gives eight, one and one: each part gets its share of every breed, to within one image.
    parts: dict[str, list[Sample]] = {mode: [] for mode in MODES}
    for i, sample in enumerate(order):
        parts[{4: "valid", 9: "test"}.get(i % 10, "train")].append(sample)
    return parts


def _members(samples: list[Sample], groups: dict[str, str] | None) -> list[list[Sample]]:
    """The samples of each group."""
    found: dict[str, list[Sample]] = {}
    for sample in samples if groups else ():
        if sample.name in groups:
            found.setdefault(groups[sample.name], []).append(sample)
    return list(found.values())


def _deal_out(order: list[Sample], together: list, shares: dict) -> dict:
    """Divides samples among the keys of `shares`, whole groups first and the largest first.

    Of the parts with room for the whole group, each group goes to the one with the least of its share, so that what
    follows each other, such as a breed, is spread. If none has room, it goes to the one with the most. The last groups
    go to parts that are still empty.
    """
    place = {sample: i for i, sample in enumerate(order)}
    grouped = [sorted((s for s in group if s in place), key=place.get) for group in connected(together)]
    grouped = sorted((unit for unit in grouped if unit), key=lambda unit: (-len(unit), place[unit[0]]))
    taken = {sample for unit in grouped for sample in unit}
    parts: dict = {key: [] for key in shares}
    units = grouped + [[sample] for sample in order if sample not in taken]
    for left, unit in zip(range(len(units), 0, -1), units):
        room = {key: share * len(place) - len(parts[key]) for key, share in shares.items()}
        empty = [key for key in parts if not parts[key]]
        fitting = [key for key in parts if room[key] >= len(unit)]
        if left <= len(empty):
            fitting = empty
        key = min(fitting, key=lambda key: len(parts[key]) / shares[key]) if fitting else max(room, key=room.get)
        parts[key] += unit
    return parts


def _fold(samples: list[Sample], number: int, count: int, seed: int, together: list) -> tuple[list, list]:
    """The training and validation images of fold `number` of `count`; see `split_samples`."""
    folds = _deal_out(_by_breed(samples, seed), together, dict.fromkeys(range(1, count + 1), 1 / count))
    valid = folds.pop(number)
    return [sample for fold in folds.values() for sample in fold], valid


def group_names(samples: list[Sample], regex: str | None, file: str | None) -> dict[str, str] | None:
    """The group of each image, by its name; None without groups.

    Args:
        samples: all of the dataset.
        regex: searched in the names; its first bracket, or all that it matches, names the group.
        file: lines of `name group`, with a comma or a tab between, or else a space.

    Raises:
        UsageError: nothing is found; the file can't be read, has another kind of line, or names no image or one twice.
    """
    names = {sample.name for sample in samples}
    if regex is not None:
        found = {name: re.search(regex, name) for name in sorted(names)}
        groups = {name: match.group(bool(match.groups())) for name, match in found.items() if match}
        groups = {name: group for name, group in groups.items() if group}
        if not groups:
            raise UsageError(f"--group_regex {regex!r} finds a group in no name, such as {min(names)}; change it")
        return groups
    if file is None:
        return None
    groups = {}
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise UsageError(f"--groups: {file} can't be read ({reason}); name a text file") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = re.split(r"[,\t]", line, maxsplit=1) if re.search(r"[,\t]", line) else line.strip().rsplit(maxsplit=1)
        name, group = (part.strip() for part in parts) if len(parts) == 2 else ("", "")
        if not group or name not in names or name in groups:
            why = "names an image twice" if name in groups else "is not `name group` of an image of the dataset"
            raise UsageError(f"--groups: {file} line {number} {why} (names have no folder and no ending): {line!r}")
        groups[name] = group
    return groups


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
