"""The labelled data of a training run: its parts, and what the checkpoint says of them."""

import sys
from pathlib import Path

import numpy as np

from data.augment import AugmentedDataset
from data.cache import open_cache
from data.check import print_resized_masks, require_readable, warn_if_inverted
from data.datasets import ImageDataset, SimpleOxfordPetDataset, load_dataset
from data.index import find_root, fingerprint, has_lists, list_samples
from data.inputs import list_images
from data.names import MODES
from data.splits import group_names, split_samples, stratified_subset
from models.task import BACKGROUND, IGNORED, Task
from runtime.errors import DatasetError, UsageError
from training.config import TrainConfig

LOOKED_AT = 256  # training images, at most, whose classes are counted
Parts = tuple[SimpleOxfordPetDataset, ...]  # train, valid and, of labelled images, test


def open_parts(config: TrainConfig, saved: dict | None, path: Path | None) -> tuple[Parts, dict]:
    """The parts of the dataset, and the checkpoint's record of them.

    Args:
        config: the settings of the run.
        saved: the record of the checkpoint that is resumed, or None.
        path: of that checkpoint.

    Raises:
        UsageError: the run that is resumed had other images.
        DatasetError: images or masks can't be used.
    """
    root = find_root(config.data_path)
    groups = saved.get("groups") if saved else group_names(list_samples(root), config.group_regex, config.groups)
    split = split_samples(root, config.split, config.seed, fold=config.fold_of_folds, groups=groups)
    if config.train_fraction < 1:
        split = split._replace(train=stratified_subset(split.train, config.train_fraction, config.seed))
        if not split.train:
            raise UsageError(f"--train_fraction {config.train_fraction:g} leaves no image to train on; use more")
    if config.classes == "trimap" and any(sample.binary_mask for sample in split.train):
        raise UsageError(f"--classes trimap needs trimaps, but {root} has masks without a border; leave it out")
    record = _record(config, {mode: getattr(split, mode) for mode in MODES}, config.fold_of_folds, groups)
    _require_same_images(record, saved, path, root)
    if split.moved:
        what = "copies, or others of the groups," if groups else "copies"
        print(f"{split.moved} {what} of images in other parts were moved into training.")
    print_resized_masks([sample for part in split[:3] for sample in part])
    cache = open_cache(root, config.image_size, config.task, config.pixels) if config.cache == "on" else None
    options = {"split": split, "seed": config.seed, "image_size": config.image_size, "cache": cache}
    options |= {"task": config.task, "pixels": config.pixels}
    train_set = load_dataset(root, "train", augment_uncertain=config.augment_uncertain, **options)
    valid_set, test_set = (load_dataset(root, mode, **options) for mode in ("valid", "test"))
    if config.task.classes:
        require_classes(train_set, config.task, root)
    else:
        warn_if_inverted([mask[0].numpy() for mask in some_of(train_set, 64)["mask"]], root)
    return (train_set, valid_set, test_set), record


def open_images(config: TrainConfig, saved: dict | None, path: Path | None) -> tuple[Parts, dict]:
    """The images of a pre-training, and the checkpoint's record of them; arguments and errors as of `open_parts`.

    They are a dataset's training and validation images, or all in a folder, of which a tenth are for validation. So are
    own images that lack some of their masks.
    """
    root = Path(config.data_path)
    try:
        root = find_root(root)
        list_samples(root)
    except DatasetError as error:
        if has_lists(root):
            raise
        if (root / "images").is_dir():
            print(f"The masks are not used: {error}", flush=True)
    else:
        parts, record = open_parts(config, saved, path)
        return parts[:2], record
    samples = list_images(root, config.pixels)
    require_readable(samples, root)
    order = np.random.default_rng(config.seed).permutation(len(samples)).tolist()
    drawn = {"train": order[len(order) // 10 :], "valid": order[: len(order) // 10]}
    found = {mode: [samples[i] for i in sorted(some)] for mode, some in drawn.items()}
    if not found["valid"]:
        raise UsageError(f"{root} has {len(samples)} images; at least ten are needed")
    record = _record(config, found, None, None)
    _require_same_images(record, saved, path, root)
    return tuple(ImageDataset(some, config.image_size, root, mode) for mode, some in found.items()), record


def _record(config: TrainConfig, parts: dict[str, list], fold: list[int] | None, groups: dict | None) -> dict:
    return {
        "split": config.split,
        "seed": config.seed,
        "fold": fold,
        "groups": groups,
        "fingerprints": {mode: fingerprint(some) for mode, some in parts.items()},
        "train_names": [sample.name for sample in parts["train"]],
    }


def _require_same_images(record: dict, saved: dict | None, path: Path | None, root: Path) -> None:
    if saved is not None and saved["fingerprints"] != record["fingerprints"]:
        raise UsageError(
            f"{path} was trained on other images ({len(saved['train_names'])} for training, now "
            f"{len(record['train_names'])}): the dataset in {root} has changed; use the same one, or start a new run"
        )


def some_of(dataset: SimpleOxfordPetDataset, most: int = LOOKED_AT) -> dict:
    """A batch of up to so many samples, evenly spread."""
    return dataset.read_batch(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(int).tolist())


def require_classes(train_set: SimpleOxfordPetDataset, task: Task, root: Path) -> None:
    """Warns on stderr of classes without a pixel in up to LOOKED_AT training images.

    Raises:
        UsageError: none has any but background.
    """
    some = some_of(train_set)["trimap"]
    found = set(some.unique().tolist())
    absent = [name for value, name in enumerate(task.classes[1:], start=BACKGROUND + 1) if value not in found]
    if len(absent) == len(task.classes) - 1:
        raise UsageError(
            f"the masks of {len(some)} training images in {root} have no class but {task.classes[0]}; values must "
            f"be the numbers of the classes, and {IGNORED} is left out"
        )
    if absent:
        print(f"WARNING: no pixel is {', '.join(absent)} in {len(some)} training images.", file=sys.stderr)


def augmented(config: TrainConfig, dataset: SimpleOxfordPetDataset) -> SimpleOxfordPetDataset | AugmentedDataset:
    """The training set under --augment."""
    if not config.augments:
        return dataset
    return AugmentedDataset(
        dataset, config.seed, config.variants, config.color_jitter, config.augment_strength, config.distort or ""
    )
