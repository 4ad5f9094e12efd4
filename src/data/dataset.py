"""A dataset: its images, which of them belong together, its parts, and their pixels in whole batches."""

import collections
import copy
import dataclasses
import functools
import re
import sys
from pathlib import Path

import numpy as np
import torch

from data.cache import PixelCache, open_cache
from data.copies import find_copies, find_near_copies, near_copies
from data.layout import (
    Sample,
    describe_layout,
    find_parts,
    find_root,
    names_of_lists,
    pair_up,
    read_list,
    require_files,
)
from data.names import GROUPINGS, MODES, SPLITS
from data.pixels import to_floats
from data.split import Group, Split, split_at_random, split_by_lists, stratified_subset, take_fold, unite
from data.view import View
from models.checkpoint import Checkpoint, DataRecord
from models.task import BACKGROUND, BORDER
from runtime.errors import DatasetError, UsageError, plural, raise_faults
from runtime.seeding import UNCERTAIN_BORDER, sample_rng


class Dataset:
    """The samples of a folder, listed once, and which of them belong together. `ImageDataset` reads them.

    Images of one of the `groups`, such as frames of a video, are never in two parts. `near` unites copies and near
    copies, `bytes` equal files alone, and `off` nothing. Others are united with near copies: the group of each image by
    its name; or `regex:R`, where the first bracket of R in the name, or all that it matches, is the group; or a file
    with lines of `name group`. With a `limit` so many images are kept, drawn by the seed.
    """

    def __init__(self, data_path, groups: str | dict[str, str] = "near", limit: int | None = None, seed: int = 42):
        self.root = find_root(data_path)
        self.layout = describe_layout(self.root)  # in words
        self.lists = {name: read_list(self.root, name) for name in names_of_lists(self.root)}
        # Of a dataset that is divided already, names begin with the part's.
        self.parts = {
            mode: [dataclasses.replace(sample, name=f"{folder.name}/{sample.name}") for sample in pair_up(folder)]
            for mode, folder in find_parts(self.root).items()
        }
        listed = {s.name: s for samples in (*self.lists.values(), *self.parts.values()) for s in samples}
        given = self.lists or self.parts
        self.samples = [listed[name] for name in sorted(listed)] if given else pair_up(self.root)
        self.groups = read_groups(groups, self.samples) if isinstance(groups, str) else groups
        self._keep(limit, seed)

    def _keep(self, limit: int | None, seed: int) -> None:
        self.limit = limit
        if limit is not None:
            self.samples = stratified_subset(self.samples, limit, seed)
            kept = {*self.samples}
            self.lists = {name: [s for s in samples if s in kept] for name, samples in self.lists.items()}
            self.parts = {mode: [s for s in samples if s in kept] for mode, samples in self.parts.items()}

    def under(self, data: DataRecord) -> "Dataset":
        """The same images under the groups and the limit of a checkpoint."""
        dataset = copy.copy(self)
        dataset.groups = data.groups or "near"
        dataset._keep(data.limit, data.seed)
        return dataset

    def open_cache(self, view: View) -> PixelCache | None:
        """The cache of all images under a view; see data/cache.py. A limited dataset has none: it would replace it."""
        return open_cache(self.root, self.samples, view) if self.limit is None else None

    @functools.cached_property
    def copies(self) -> list[Group]:
        """Groups of images whose files are equal."""
        return find_copies(self.samples)

    @functools.cached_property
    def near_copies(self) -> list[Group]:
        """Pairs of images that show one photograph; see data/copies.py."""
        return near_copies(self.root, self.samples) if self.limit is None else find_near_copies(self.samples)

    def split(
        self, name: str = SPLITS[0], seed: int = 42, fold: list[int] | None = None, needed: tuple[str, ...] = MODES
    ) -> Split:
        """Divides the images into the parts train, valid and test, disjoint in names and in content.

        A folder that has these parts already is taken as it is, with a warning of copies. `official` takes
        trainval.txt, every tenth of it for validation, and test.txt. `80-10-10` shuffles each breed once and gives
        every part the same share of it. Equal files are kept in one part; near copies, too, except in `official`. A
        fold [I, K] divides all images but the test part into K folds with the same share of every breed; the I-th,
        from 1 on, is for validation. The parts `needed` are not empty.
        """
        if name not in SPLITS:
            raise DatasetError(f"no split is called {name!r}; there are {', '.join(SPLITS)}")
        if self.parts:
            return self._own_parts(fold, needed)
        if name == "official":
            parts = self._official_parts(needed)
        else:
            if self.lists and "list" not in self.lists:
                self.require_lists("trainval", "test")  # a part of the images would be divided in another way
            parts = split_at_random(self.samples, seed, self._grouped(self.samples))
        everything = [sample for part in parts.values() for sample in part]
        require_files(self.root, everything)
        groups = [*([] if self.groups == "off" else self.copies), *self._grouped(everything)]
        near = self.near_copies if self.groups not in ("off", "bytes") and (name != "official" or fold) else []
        moved = unite(parts, groups if name == "official" else groups + near)
        if fold:
            take_fold(parts, *fold, seed, groups + near)
        for mode, part in parts.items():
            if not part and mode in needed:
                count = plural(len(everything), "image")
                text = f"{self.root}: the {mode} part of the split {name} is empty: of {count} "
                if isinstance(self.groups, dict):
                    text += f"--groups makes {plural(len({*self.groups.values()}), 'group')}, and "
                text += f"{self.in_groups(moved)}; at least ten different ones are needed, or --groups bytes or off, "
                raise DatasetError(f"{text}or fewer folds (evaluate.py --subset all needs no parts)")
        return Split(**parts, moved=moved)

    def in_groups(self, moved: list[int]) -> str:
        """The numbers of images of each group that were moved into training, in words."""
        rule = f"--groups {self.groups}" if isinstance(self.groups, str) else "copies and --groups"
        return f"{sum(moved):,} were moved into training, in {plural(len(moved), 'group')} ({rule})"

    def part(self, mode: str, split: str = SPLITS[0], seed: int = 42, fold: list[int] | None = None) -> list[Sample]:
        """The samples of one part, or with mode `all` every labelled image; see `split`."""
        if mode == "all":
            require_files(self.root, self.samples)
            return self.samples
        return getattr(self.split(split, seed, fold, (mode,)), mode)

    def part_of(self, checkpoint: Checkpoint, mode: str) -> list[Sample]:
        """The samples of one part under the split of a checkpoint."""
        data, dataset = checkpoint.data, self if mode == "all" else self.under(checkpoint.data)
        split = data.split if self.lists else SPLITS[0]  # without lists there is no official one
        return dataset.part(mode, split, data.seed, None if self.parts else data.fold)

    def copies_of_training(self, seen: set[str], samples: list[Sample]) -> set[str]:
        """Names of those samples that are not among the `seen` names, but of which a near copy is."""
        known = any(sample.name in seen for sample in self.samples)  # else there is no need to look
        pairs = [{a.name, b.name} for a, b in (self.near_copies if known else ())]
        return set().union(*(pair for pair in pairs if pair & seen)) & {sample.name for sample in samples} - seen

    def _grouped(self, samples: list[Sample]) -> list[Group]:
        """The samples of each group, without copies."""
        members: dict[str, Group] = collections.defaultdict(list)
        for sample in samples if isinstance(self.groups, dict) else ():
            if sample.name in self.groups:
                members[self.groups[sample.name]].append(sample)
        return list(members.values())

    def _own_parts(self, fold: list[int] | None, needed: tuple[str, ...]) -> Split:
        """The parts of a dataset that is divided already, as they are. Only a test part may be missing in training."""
        for mode in needed:
            if not self.parts.get(mode) and (mode != "test" or len(needed) == 1):
                advice = "name another --subset" if len(needed) == 1 else "put some there"
                raise DatasetError(f"{self.root} has no {mode} part with images; {advice}")
        if fold:
            raise UsageError(f"{self.root} is divided already, so it has no folds; leave --fold out")
        apart = [group for group in self.copies if len({sample.name.partition("/")[0] for sample in group}) > 1]
        if apart:
            print(f"WARNING: {len(apart)} of the images of {self.root} stand in several parts.", file=sys.stderr)
        return Split(*(self.parts.get(mode, []) for mode in MODES))

    def _official_parts(self, needed: tuple[str, ...]) -> dict[str, list[Sample]]:
        if not self.lists:
            raise DatasetError(f"{self.root} has no trainval.txt and test.txt; use --split 80-10-10")
        self.require_lists(*("test" if mode == "test" else "trainval" for mode in needed))
        trainval, test = (self.lists.get(name, []) for name in ("trainval", "test"))
        both = {sample.name for sample in trainval} & {sample.name for sample in test}
        raise_faults([f"{name} stands in trainval.txt and in test.txt" for name in both], self.root)
        return split_by_lists(trainval, test, self._grouped(trainval))

    def require_lists(self, *names: str) -> None:
        """Raises DatasetError where one of these lists is missing."""
        for name in names:
            if name not in self.lists:
                read_list(self.root, name)  # which says that


def read_groups(source: str, samples: list[Sample]) -> str | dict[str, str]:
    """The group of each image, by its name, or one of GROUPINGS; see Dataset."""
    if source in GROUPINGS:
        return source
    names = {sample.name for sample in samples}
    if source.startswith("regex:"):
        try:
            pattern = re.compile(source.removeprefix("regex:"))
        except re.error as error:
            raise UsageError(f"--groups {source!r} is no regular expression ({error}); change it") from None
        found = {name: pattern.search(name) for name in sorted(names)}
        groups = {name: match.group(bool(match.groups())) for name, match in found.items() if match}
        if not any(groups.values()):
            raise UsageError(f"--groups {source!r} finds a group in no name, such as {min(names)}; change it")
        return {name: group for name, group in groups.items() if group}
    groups = {}
    try:
        lines = Path(source).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise UsageError(
            f"--groups: {source} can't be read ({reason}); name a text file, regex:PATTERN, {', '.join(GROUPINGS)}"
        ) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        words = re.split(r"[,\t]", line) if re.search(r"[,\t]", line) else line.strip().rsplit(maxsplit=1)
        name, group = (word.strip() for word in words) if len(words) == 2 else ("", "")
        if not group or name not in names or name in groups:
            why = "names an image twice" if name in groups else "is not `name group` of an image of the dataset"
            raise UsageError(f"--groups: {source} line {number} {why} (names have no folder and no ending): {line!r}")
        groups[name] = group
    return groups


def refuse_seen(seen: set[str], samples: list[Sample], path: Path, advice: str) -> None:
    """Raises UsageError where the network of a checkpoint was trained on some of these samples."""
    hits = [sample.name for sample in samples if sample.name in seen]
    if hits:
        text = f"{path} was trained on {len(hits)} of these {plural(len(samples), 'image')} ({hits[0]}, ...)"
        raise UsageError(f"{text}, so a score on them would be inflated by leakage; {advice}")


def as_keys(keys: list) -> list[tuple[int, int]]:
    """Keys of samples as pairs (epoch, index); a plain index is of epoch 0."""
    return [key if isinstance(key, tuple) else (0, key) for key in keys]


@dataclasses.dataclass(eq=False, repr=False)
class ImageDataset(torch.utils.data.Dataset):
    """Images, and labels where all have masks, as a network takes them: in whole batches, as tensors.

    A batch is a dict: `image` uint8 (N, C, H, W), or float32 in 0..255 of images that are not 8-bit RGB; `labels` uint8
    (N, 1, H, W), see models/task.py; `path`, a list of files. Those of a batch must have one shape. A key is an index,
    or a pair (epoch, index): with `augment_uncertain` border pixels become pet or background anew every epoch.
    """

    samples: list[Sample]
    view: View
    cache: PixelCache | None = None
    root: Path = Path()
    mode: str = "all"
    augment_uncertain: bool = False
    seed: int = 42

    def __post_init__(self):
        self.view.require_labels(self.samples)
        self.decodes = self.cache is None  # which takes work that other processes could share

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key) -> dict:
        return {name: values[0] for name, values in self.read_batch([key]).items()}

    def read_batch(self, keys: list) -> dict:
        """A batch of these samples."""
        keys = as_keys(keys)
        samples = [self.samples[index] for _, index in keys]
        if self.cache is not None:
            records = self.cache.read([sample.name for sample in samples])
            images, stored = records[:, :-1], list(records[:, -1].astype(np.uint8))
        else:
            pairs = [self.view.read_at(sample, self.view.size_of(sample)) for sample in samples]
            images = np.stack([image.transpose(2, 0, 1) for image, _ in pairs])
            stored = [labels for _, labels in pairs]
        batch = {"image": torch.from_numpy(to_floats(images)), "path": [str(sample.image_path) for sample in samples]}
        if stored[0] is not None:
            labels = np.stack([self.view.relabel(sample, values) for sample, values in zip(samples, stored)])
            batch |= {name: torch.from_numpy(values[:, None]) for name, values in self.targets(keys, labels).items()}
        return batch

    def targets(self, keys: list[tuple[int, int]], labels: np.ndarray) -> dict[str, np.ndarray]:
        """What a batch holds of its label maps, uint8 (N, H, W). Border pixels are drawn where that is asked for."""
        if not self.augment_uncertain:
            return {"labels": labels}
        decided = (labels != BACKGROUND).astype(np.uint8)
        for (epoch, index), mask, border in zip(keys, decided, labels == BORDER):
            rng = sample_rng(self.seed, epoch, self.samples[index].name, UNCERTAIN_BORDER)
            mask[border] = rng.integers(0, 2, size=int(border.sum()), dtype=np.uint8)
        return {"labels": decided}
