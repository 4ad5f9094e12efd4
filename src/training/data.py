"""The data of a training run: its parts, and what the checkpoint says of them."""

import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.augment import AugmentedDataset
from data.check import print_resized_masks, require_readable, warn_if_inverted
from data.dataset import Dataset, ImageDataset
from data.inputs import list_images
from data.layout import fingerprint, names_of_lists
from data.names import DISTORTIONS, MODES
from data.split import stratified_subset
from models.checkpoint import DataRecord
from models.names import DENOISING
from models.task import BACKGROUND, IGNORED, Task
from runtime.errors import DatasetError, UsageError, plural
from training.config import TrainConfig


class Data(NamedTuple):
    """The images of a run, and what the checkpoint says of them; a pre-training has neither test part nor dataset."""

    record: DataRecord
    train: ImageDataset
    valid: ImageDataset
    test: ImageDataset | None = None
    dataset: Dataset | None = None


def open_dataset(config: TrainConfig, saved: DataRecord | None) -> Dataset:
    """The dataset of a new run, or that of the run that is resumed."""
    if saved:
        return Dataset(config.data_path).under(saved)
    return Dataset(config.data_path, config.groups, config.limit, config.seed)


def open_parts(
    config: TrainConfig, saved: DataRecord | None = None, path: Path | None = None, dataset: Dataset | None = None
) -> Data:
    """The parts of a labelled dataset. With `saved`, the record of the checkpoint `path`, they must be the same."""
    dataset = dataset or open_dataset(config, saved)
    root, view = dataset.root, config.view
    split = dataset.split(config.split, config.seed, config.fold_numbers)
    if config.train_fraction < 1:
        count = round(len(split.train) * config.train_fraction)
        split = split._replace(train=stratified_subset(split.train, count, config.seed))
        if not split.train:
            raise UsageError(f"--train_fraction {config.train_fraction:g} leaves no image to train on; use more")
    if config.classes == "trimap" and any(sample.binary_mask for sample in split.train):
        raise UsageError(f"--classes trimap needs trimaps, but {root} has masks without a border; use --classes binary")
    if split.moved:
        print(f"Of {plural(len(dataset.samples), 'image')} {dataset.in_groups(split.moved)}.")
    samples = {mode: getattr(split, mode) for mode in MODES}
    record = make_record(config, samples, dataset.groups, saved, path)
    print_resized_masks(sum(samples.values(), []))
    cache = dataset.open_cache(view) if config.cache else None
    train, valid, test = (ImageDataset(part, view, cache, root, mode) for mode, part in samples.items())
    train = dataclasses.replace(train, augment_uncertain=config.augment_uncertain, seed=config.seed)
    if config.task.classes:
        require_classes(train, config.task, root)
    elif config.classes != DENOISING:  # which uses no mask
        warn_if_inverted([labels[0].numpy() != BACKGROUND for labels in spread_batch(train, 64)["labels"]], root)
    return Data(record, train, valid, test, dataset)


def open_images(config: TrainConfig, saved: DataRecord | None = None, path: Path | None = None) -> Data:
    """The images of a pre-training: a dataset's, as in `open_parts`; or of a folder, a tenth of them for validation."""
    root = Path(config.data_path)
    try:
        dataset = open_dataset(config, saved)
    except DatasetError as error:
        if names_of_lists(root):
            raise
        if (root / "images").is_dir():
            print(f"The masks are not used: {error}", flush=True)
    else:
        return open_parts(config, saved, path, dataset)._replace(test=None, dataset=None)
    samples = list_images(root)
    require_readable(samples, config.view, root)
    if len(samples) < 10:
        raise UsageError(f"{root} has {plural(len(samples), 'image')}; at least ten are needed")
    order, tenth = np.random.default_rng(config.seed).permutation(len(samples)), len(samples) // 10
    drawn = {"train": order[tenth:], "valid": order[:tenth]}
    chosen = {mode: [samples[i] for i in sorted(numbers)] for mode, numbers in drawn.items()}
    parts = (ImageDataset(part, config.view, None, root, mode) for mode, part in chosen.items())
    return Data(make_record(config, chosen, "near", saved, path), *parts)


def make_record(
    config: TrainConfig, parts: dict[str, list], groups: dict | str, saved: DataRecord | None, path: Path | None
) -> DataRecord:
    """What the checkpoint says of the data. Raises UsageError: the run that is resumed had other images."""
    prints = {mode: fingerprint(samples) for mode, samples in parts.items()}
    names = [sample.name for sample in parts["train"]]
    if saved is not None and saved.fingerprints != prints:
        raise UsageError(
            f"{path} was trained on other images ({len(saved.train_names)} for training, now {len(names)}): "
            f"{config.data_path} has changed; use the same dataset, or start a new run"
        )
    split = {"split": config.split, "seed": config.seed, "fold": config.fold_numbers}
    return DataRecord(**split, groups=groups, limit=config.limit, fingerprints=prints, train_names=names)


def spread_batch(dataset: ImageDataset, most: int = 256) -> dict:
    """A batch of up to so many samples, evenly spread."""
    return dataset.read_batch(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(int).tolist())


def require_classes(train_set: ImageDataset, task: Task, root: Path) -> None:
    """Warns of classes that are in no mask of `spread_batch`. Raises UsageError: none is but background."""
    labels = spread_batch(train_set)["labels"]
    present = set(labels.unique().tolist())
    absent = [name for number, name in enumerate(task.classes) if number and number not in present]
    if len(absent) == len(task.classes) - 1:
        raise UsageError(
            f"the masks of {len(labels)} training images in {root} have no class but {task.classes[0]}; values must "
            f"be the numbers of the classes, and {IGNORED} is left out"
        )
    if absent:
        print(f"WARNING: no pixel is {', '.join(absent)} in {plural(len(labels), 'training image')}.", file=sys.stderr)


def augmented(config: TrainConfig, dataset: ImageDataset) -> ImageDataset | AugmentedDataset:
    """The training set under --augment."""
    if config.augment == "off":
        return dataset
    variants = config.num_augmentations if config.augment == "bulk" else 0
    distortions = ",".join(name for name in config.changes if name in DISTORTIONS)
    return AugmentedDataset(
        dataset, config.seed, variants, "color" in config.changes, config.augment_strength, distortions
    )
