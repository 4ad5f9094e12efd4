"""The data of a training run: its parts, images without masks, and what the checkpoint says of them."""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from data.augment import AugmentedDataset
from data.cache import open_cache
from data.check import print_resized_masks, require_readable, warn_if_inverted
from data.datasets import SimpleOxfordPetDataset, load_dataset
from data.denoising import NoisyDataset, loss_of_statistics
from data.index import find_root, fingerprint, has_lists, list_samples, read_as
from data.inputs import list_images
from data.loader import ResumableBatchSampler
from data.splits import MODES, group_names, split_samples, stratified_subset
from data.unlabeled import REST, ImageDataset, WithUnlabeled, names_digest, open_folder, open_rest
from models.task import BACKGROUND, IGNORED, Task
from runtime.distributed import DistributedContext
from runtime.errors import DatasetError, UsageError
from training.config import TrainConfig
from training.losses import balanced_weights

LOOKED_AT = 256  # training images, at most, whose classes are counted
Parts = tuple[SimpleOxfordPetDataset, SimpleOxfordPetDataset, SimpleOxfordPetDataset]


def open_data(
    config: TrainConfig, content: dict | None, path: Path | None
) -> tuple[SimpleOxfordPetDataset, SimpleOxfordPetDataset, SimpleOxfordPetDataset, dict]:
    """The three parts of the dataset, and the checkpoint's record of them.

    Raises:
        UsageError: the run that is resumed had other images.
    """
    root = find_root(config.data_path)
    if content is None:
        groups = group_names(list_samples(root), config.group_regex, config.groups)
    else:
        groups = content["data"].get("groups")
    split = split_samples(root, config.split, config.seed, fold=config.fold_of_folds, groups=groups)
    if config.train_fraction < 1:
        split = split._replace(train=stratified_subset(split.train, config.train_fraction, config.seed))
        if not split.train:
            raise UsageError(f"--train_fraction {config.train_fraction:g} leaves no image to train on; use more")
    if config.classes == "trimap" and any(sample.binary_mask for sample in split.train):
        raise UsageError(f"--classes trimap needs trimaps, but {root} has masks without a border; leave it out")
    data = {
        "split": config.split,
        "seed": config.seed,
        "fold": config.fold_of_folds,
        "groups": groups,
        "fingerprints": {mode: fingerprint(getattr(split, mode)) for mode in MODES},
        "train_names": [sample.name for sample in split.train],
    }
    if content is not None and content["data"]["fingerprints"] != data["fingerprints"]:
        raise UsageError(
            f"{path} was trained on other images ({len(content['data']['train_names'])} for training, now "
            f"{len(split.train)}): the dataset in {root} has changed; use the same one, or start a new run"
        )
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
        warn_if_inverted([mask[0].numpy() for mask in _some_of(train_set, 64)["mask"]], root)
    return train_set, valid_set, test_set, data


def open_images(
    config: TrainConfig, content: dict | None, path: Path | None
) -> tuple[NoisyDataset, NoisyDataset, dict]:
    """The images of a pre-training, and the checkpoint's record of them.

    They are a dataset's training and validation images, or all in a folder, of which a tenth are for validation. So are
    own images that lack some of their masks.

    Raises:
        UsageError: there are none; or the run that is resumed had others.
        DatasetError: some can't be read.
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
        samples = list_images(root, config.pixels)
        require_readable(samples, root)
        order = np.random.default_rng(config.seed).permutation(len(samples)).tolist()
        drawn = {"train": order[len(order) // 10 :], "valid": order[: len(order) // 10]}
        parts = {mode: [samples[i] for i in sorted(some)] for mode, some in drawn.items()}
        if not parts["valid"]:
            raise UsageError(f"{root} has {len(samples)} images; at least ten are needed") from None
        data = {
            "split": config.split,
            "seed": config.seed,
            "fold": None,
            "groups": None,
            "fingerprints": {mode: names_digest(some) for mode, some in parts.items()},
            "train_names": [sample.name for sample in parts["train"]],
        }
        if content and content["data"]["fingerprints"] != data["fingerprints"]:
            raise UsageError(
                f"{path} was trained on other images than {root} has now; use the same ones, or start a new run"
            ) from None
        train_set, valid_set = (ImageDataset(some, config.image_size) for some in parts.values())
    else:
        train_set, valid_set, _, data = open_data(config, content, path)
    train_set = NoisyDataset(train_set, root, "train", config.seed)
    valid_set = NoisyDataset(valid_set, root, "valid", config.seed)
    guess = loss_of_statistics(_some_of(valid_set, 64)["image"])
    print(f"A guess from each pixel's value alone has a loss of {guess:.4f}; a network that learns falls below.")
    return train_set, valid_set, data


def _some_of(dataset: SimpleOxfordPetDataset, most: int) -> dict:
    """A batch of up to so many samples, evenly spread."""
    return dataset.read_batch(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(int).tolist())


def require_classes(train_set: SimpleOxfordPetDataset, task: Task, root: Path) -> None:
    """Warns on stderr of classes without a pixel in up to LOOKED_AT training images.

    Raises:
        UsageError: none has any but background.
    """
    some = _some_of(train_set, LOOKED_AT)["trimap"]
    found = set(some.unique().tolist())
    absent = [name for value, name in enumerate(task.classes[1:], start=BACKGROUND + 1) if value not in found]
    if len(absent) == len(task.classes) - 1:
        raise UsageError(
            f"the masks of {len(some)} training images in {root} have no class but {task.classes[0]}; values must "
            f"be the numbers of the classes, and {IGNORED} is left out"
        )
    if absent:
        print(f"WARNING: no pixel is {', '.join(absent)} in {len(some)} training images.", file=sys.stderr)


def with_class_weights(config: TrainConfig, dataset: SimpleOxfordPetDataset) -> TrainConfig:
    """The config with --class_weights auto written out for up to LOOKED_AT of these training images."""
    if config.class_weights != "auto":
        return config
    weights = balanced_weights(_some_of(dataset, LOOKED_AT)[config.task.target], config.task)
    return dataclasses.replace(config, class_weights=",".join(f"{weight:g}" for weight in weights))


def open_unlabeled(
    config: TrainConfig, content: dict | None, path: Path | None, data: dict, parts: Parts
) -> SimpleOxfordPetDataset | ImageDataset | None:
    """The images without masks, if there are any; their fingerprint, and the names of the rest, go into `data`.

    Raises:
        UsageError: see `open_folder` and `open_rest`; or the run that is resumed had others.
    """
    if config.unlabeled is None:
        return None
    train_set, *scored = parts
    known = [sample for part in scored for sample in part.samples]
    if config.unlabeled == REST:
        split = split_samples(train_set.root, config.split, config.seed, fold=data["fold"], groups=data["groups"])
        dataset, copies = open_rest(train_set, read_as(split.train, config.task, config.pixels), known)
        data["seen_names"] = [sample.name for sample in dataset.samples]
    else:
        dataset, copies = open_folder(config.unlabeled, known, config.image_size, config.pixels)
    data["unlabeled"] = names_digest(dataset.samples)
    if content and content["data"].get("unlabeled") != data["unlabeled"]:
        raise UsageError(f"{path} learned from other images without masks than {config.unlabeled} has now")
    left_out = f", {copies} copies of validation and test images left out" if copies else ""
    print(f"{len(dataset):,} images without masks{left_out}, {config.unlabeled}.", flush=True)
    return dataset


def augmented(config: TrainConfig, dataset: SimpleOxfordPetDataset) -> SimpleOxfordPetDataset | AugmentedDataset:
    """The training set under --augment."""
    if not config.augments:
        return dataset
    return AugmentedDataset(
        dataset, config.seed, config.variants, config.color_jitter, config.augment_strength, config.distort or ""
    )


def open_training_set(
    config: TrainConfig, train_set: SimpleOxfordPetDataset, unlabeled, context: DistributedContext
) -> tuple[SimpleOxfordPetDataset | AugmentedDataset | WithUnlabeled, ResumableBatchSampler]:
    """The training set, augmented and with images without masks as the config says, and the order of its batches."""
    train_set = augmented(config, train_set)
    others = (0 if unlabeled is None else len(unlabeled), config.unlabeled_batch or config.batch_size)
    sampler = ResumableBatchSampler(len(train_set), config.batch_size, config.seed, context, *others)
    if unlabeled is not None:
        train_set = WithUnlabeled(train_set, unlabeled, config.seed)
    return train_set, sampler
