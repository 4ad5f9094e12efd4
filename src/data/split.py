"""Which part of a dataset an image belongs to."""

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from data.layout import Sample
from data.names import MODES

Group = list[Sample]


class Split(NamedTuple):
    """The parts of a dataset, disjoint in names."""

    train: list[Sample]
    valid: list[Sample]
    test: list[Sample]
    moved: Sequence[int] = ()  # images of each group that were moved into training, since it was in several parts


def connected(groups: Iterable[Group]) -> list[Group]:
    """Groups of samples, where those that share one are united. Samples and groups stay in the order given."""
    group_of: dict[Sample, Group] = {}
    for group in groups:
        united = list(dict.fromkeys(member for sample in group for member in group_of.get(sample, [sample])))
        group_of.update(dict.fromkeys(united, united))
    return list({id(group): group for group in group_of.values()}.values())


def split_by_lists(trainval: list[Sample], test: list[Sample], groups: list[Group]) -> dict[str, list[Sample]]:
    """The official parts: every tenth image of trainval is for validation; with groups, about a tenth."""
    if groups:
        return {**_deal_out(trainval, groups, {"train": 0.9, "valid": 0.1}), "test": test}
    return {"train": [s for i, s in enumerate(trainval, start=1) if i % 10], "valid": trainval[9::10], "test": test}


def split_at_random(samples: list[Sample], seed: int, groups: list[Group]) -> dict[str, list[Sample]]:
    """80, 10 and 10 % of every breed, each shuffled once; groups stay together."""
    order = _by_breed(samples, seed)
    if groups:
        return _deal_out(order, groups, {"train": 0.8, "valid": 0.1, "test": 0.1})
    # Every run of ten gives eight, one and one: each part gets its share of every breed, to within one image.
    parts: dict[str, list[Sample]] = {mode: [] for mode in MODES}
    for i, sample in enumerate(order):
        parts[{4: "valid", 9: "test"}.get(i % 10, "train")].append(sample)
    return parts


def take_fold(parts: dict[str, list[Sample]], number: int, count: int, seed: int, groups: list[Group]) -> None:
    """Divides all but the test images into `count` folds anew; the one of this number, from 1 on, validates."""
    order = _by_breed(parts["train"] + parts["valid"], seed)
    folds = _deal_out(order, groups, dict.fromkeys(range(1, count + 1), 1 / count))
    parts["valid"] = folds.pop(number)
    parts["train"] = [sample for fold in folds.values() for sample in fold]


def unite(parts: dict[str, list[Sample]], groups: list[Group]) -> list[int]:
    """Moves images of groups that are in several parts into training; returns how many of each such group."""
    home = {sample: mode for mode, part in parts.items() for sample in part}
    moved = []
    for group in connected([[sample for sample in group if sample in home] for group in groups]):
        away = [sample for sample in group if home[sample] != "train"]
        if len({home[sample] for sample in group}) > 1:
            for sample in away:
                parts[home[sample]].remove(sample)
            parts["train"] += away
            moved.append(len(away))
    return moved


def _by_breed(samples: list[Sample], seed: int) -> list[Sample]:
    """Breed after breed, each shuffled: what is dealt out in turns has the same share of every breed."""
    breeds: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.name):
        breeds.setdefault(sample.breed, []).append(sample)
    orders = {breed: np.random.default_rng([seed, breed]).permutation(len(breeds[breed])) for breed in breeds}
    return [breeds[breed][i] for breed, order in orders.items() for i in order]


def _deal_out(order: list[Sample], groups: list[Group], shares: dict) -> dict:
    """Divides samples among the keys of `shares`, whole groups first and the largest first.

    Of the parts with room for the whole group, each group goes to the one with the least of its share, so that what
    follows each other, such as a breed, is spread. If none has room, it goes to the one with the most. The last groups
    go to parts that are still empty.
    """
    place = {sample: i for i, sample in enumerate(order)}
    units = [sorted((s for s in group if s in place), key=place.get) for group in connected(groups)]
    units = sorted((unit for unit in units if unit), key=lambda unit: (-len(unit), place[unit[0]]))
    grouped = {sample for unit in units for sample in unit}
    units += [[sample] for sample in order if sample not in grouped]
    parts: dict = {key: [] for key in shares}
    for left, unit in zip(range(len(units), 0, -1), units):
        room = {key: share * len(place) - len(parts[key]) for key, share in shares.items()}
        empty = [key for key in parts if not parts[key]]
        fitting = empty if left <= len(empty) else [key for key in parts if room[key] >= len(unit)]
        key = min(fitting, key=lambda key: len(parts[key]) / shares[key]) if fitting else max(room, key=room.get)
        parts[key] += unit
    return parts


def stratified_subset(samples: list[Sample], count: int, seed: int) -> list[Sample]:
    """So many random samples, the same share of every breed and folder; fewer of them lie within more."""
    order = np.random.default_rng(seed).permutation(len(samples)).tolist()
    kinds = [(sample.breed, sample.name.rpartition("/")[0]) for sample in samples]
    size, drawn, place = collections.Counter(kinds), collections.Counter(), {}
    for i in order:  # each sample's place in its kind, from 0 to 1
        drawn[kinds[i]] += 1
        place[i] = (drawn[kinds[i]] - 0.5) / size[kinds[i]]
    return [samples[i] for i in sorted(sorted(order, key=place.get)[:count])]
