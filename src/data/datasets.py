"""Datasets: samples as arrays at their own size, or as square tensors in whole batches."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from data.cache import open_cache, write_record
from data.copies import near_copies
from data.index import Sample, find_root, has_lists, list_samples, read_as
from data.names import SPLITS, SUBSETS
from data.pixels import RGB, Pixels, pixels_of, to_tensor
from data.splits import Split, part_samples, split_samples
from models.checkpoint import seen_names, task_of_checkpoint
from models.task import BACKGROUND, BORDER, TASKS, Task
from runtime.errors import UsageError
from runtime.seeding import UNCERTAIN_BORDER, sample_rng


class Preprocessing(NamedTuple):
    """How large the network sees images.

    Args:
        image_size: side of a square, in pixels.
        resize: `square` squashes images into it; `keep` keeps their shape, and the longer side gets that length.
    """

    image_size: int
    resize: str = "square"

    def size_of(self, sample: Sample) -> tuple[int, int]:
        """Width and height at which the network sees a Sample. Raises DatasetError: see `shown_size`."""
        return self.fit((1, 1) if self.resize == "square" else sample.displayed_size())

    def fit(self, sides: tuple[int, int]) -> tuple[int, int]:
        """Width and height at which the network sees an image of this width and height."""
        if self.resize == "square":
            return self.image_size, self.image_size
        return tuple(max(1, round(side * self.image_size / max(sides))) for side in sides)


def as_keys(keys: list) -> list[tuple[int, int]]:
    """Keys of samples as pairs (epoch, index); a plain index is of epoch 0."""
    return [key if isinstance(key, tuple) else (0, key) for key in keys]


class OxfordPetDataset(Dataset):
    """Images and masks at their own sizes.

    A sample is a dict: `image` uint8 (H, W, 3), `mask` uint8 (H, W) of 0 and 1, `trimap` uint8 (H, W) of 1, 2, 3, and
    `path`, the image's file. A key is an index, or a pair (epoch, index) where something is drawn anew every epoch.

    Args:
        data_path: see `find_root`.
        mode: `train`, `valid` or `test`; or `all`, every labelled image.
        transform: called with a sample, returns it changed.
        split: see `split_samples`; the name of one, or what it returned.
        augment_uncertain: border pixels become pet or background at random, half and half, instead of pet.
        seed: of the split and of everything drawn.
        task: what is learned: with named classes `trimap` is a label map of these; see models/task.py.
        pixels: which values of the images the network sees; see data/pixels.py.

    Raises:
        DatasetError: see `find_root`, `split_samples`, `read_as` and, when indexed, `Sample.read`.
        ValueError: there is no such mode or split.
    """

    def __init__(
        self,
        data_path,
        mode: str = "train",
        transform=None,
        split: str | Split = "80-10-10",
        augment_uncertain: bool = False,
        seed: int = 42,
        task: Task = TASKS["binary"],
        pixels: Pixels = RGB,
    ):
        if mode not in SUBSETS:
            raise ValueError(f"no mode is called {mode!r}; there are {', '.join(SUBSETS)}")
        self.root = find_root(data_path)
        given = isinstance(split, Split) and mode != "all"
        samples = getattr(split, mode) if given else part_samples(self.root, mode, split, seed)
        self.samples: list[Sample] = read_as(samples, task, pixels)
        self.mode, self.transform, self.augment_uncertain, self.seed = mode, transform, augment_uncertain, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key) -> dict:
        ((epoch, index),) = as_keys([key])
        sample = self.samples[index]
        image, trimap = sample.read()
        mask = self._preprocess_mask(trimap, self._mask_rng(epoch, sample))
        item = {"image": image, "mask": mask, "trimap": trimap, "path": str(sample.image_path)}
        return item if self.transform is None else self.transform(item)

    def _mask_rng(self, epoch: int, sample: Sample) -> np.random.Generator | None:
        return sample_rng(self.seed, epoch, sample.name, UNCERTAIN_BORDER) if self.augment_uncertain else None

    @staticmethod
    def _preprocess_mask(trimap: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Trimap (H, W) to mask (H, W): border pixels are pet, or with `rng` either at random, half and half."""
        mask = (trimap != BACKGROUND).astype(np.uint8)
        if rng is not None:
            border = trimap == BORDER
            mask[border] = rng.integers(0, 2, size=int(border.sum()), dtype=np.uint8)
        return mask


class SimpleOxfordPetDataset(OxfordPetDataset):
    """The same samples as a network takes them: square, as tensors.

    A sample is a dict: `image` uint8 (3, S, S), `mask` uint8 (1, S, S) of 0 and 1, `trimap` uint8 (1, S, S), `path`. It
    stays in bytes until it is on the device; the model normalises. Images that are not RGB are float32 in 0..255.

    Args:
        *args: as for OxfordPetDataset.
        image_size: S, in pixels.
        resize: `keep` keeps shapes, (H, W) instead of (S, S) with the longer side S; images of different shapes can't
            be in one batch, and there is no cache.
        cache: decoded images, see `data.cache.open_cache`; None decodes them at every access.
        **kwargs: as for OxfordPetDataset.
    """

    def __init__(self, *args, image_size: int = 256, resize: str = "square", cache=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.preprocessing, self.cache = Preprocessing(image_size, resize), cache

    @property
    def image_size(self) -> int:
        """See the arguments."""
        return self.preprocessing.image_size

    @property
    def decodes(self) -> bool:
        """Whether reading a sample takes work that other processes could share."""
        return self.cache is None

    def __getitem__(self, key) -> dict:
        item = {name: values[0] for name, values in self.read_batch([key]).items()}
        return item if self.transform is None else self.transform(item)

    def _record(self, sample: Sample) -> np.ndarray:
        pixels = sample.pixels
        record = np.empty((pixels.channels + 1, *self.preprocessing.size_of(sample)[::-1]), pixels.dtype)
        write_record(record, sample)
        return record

    def read_batch(self, keys: list) -> dict:
        """Many samples at once, before `transform`: the sample's entries with N in front, paths as a list."""
        keys = as_keys(keys)
        samples = [self.samples[index] for _, index in keys]
        if self.cache is not None:
            records = self.cache.read([sample.name for sample in samples])
        else:
            records = np.stack([self._record(sample) for sample in samples])
        trimaps = records[:, -1:].astype(np.uint8)
        masks = np.empty_like(trimaps)
        for mask, sample, (epoch, _), (trimap,) in zip(masks, samples, keys, trimaps):
            trimap[:] = sample.labels_from(trimap)
            mask[0] = self._preprocess_mask(trimap, self._mask_rng(epoch, sample))
        images = records[:, :-1] if records.dtype == np.uint8 else records[:, :-1].astype(np.float32) / 257
        return {
            "image": torch.from_numpy(images),
            "mask": torch.from_numpy(masks),
            "trimap": torch.from_numpy(trimaps),
            "path": [str(sample.image_path) for sample in samples],
        }


class ImageDataset(Dataset):
    """The images of a folder, without masks, as SimpleOxfordPetDataset gives them in whole batches.

    Args:
        samples: the images.
        image_size: side of the square that they are resized to.
        root: the folder that they come from.
        mode: the part that they are.
    """

    def __init__(self, samples: list[Sample], image_size: int, root: Path = Path(), mode: str = "all"):
        self.samples, self.preprocessing, self.root, self.mode = samples, Preprocessing(image_size), root, mode

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def decodes(self) -> bool:
        """See SimpleOxfordPetDataset."""
        return True

    def read_batch(self, keys: list) -> dict:
        """`image`, (N, C, S, S), and `path`."""
        samples = [self.samples[index] for _, index in as_keys(keys)]
        images = [to_tensor(sample.read(self.preprocessing.size_of(sample))[0]) for sample in samples]
        return {"image": torch.stack(images), "path": [str(sample.image_path) for sample in samples]}


def load_dataset(data_path, mode: str = "train", **options) -> SimpleOxfordPetDataset:
    """Opens one part of a dataset; see SimpleOxfordPetDataset for options, samples and errors."""
    return SimpleOxfordPetDataset(data_path, mode, **options)


def preprocessing_of(content: dict, image_size: int | None = None, resize: str | None = None) -> Preprocessing:
    """How large the network of a checkpoint is to see images: as the checkpoint says, or as given."""
    saved = content["preprocessing"]
    return Preprocessing(image_size or saved["image_size"], resize or "square")


def open_checkpoint_part(
    data_path, content: dict, mode: str, use_cache: bool, preprocessing: Preprocessing | None = None
) -> SimpleOxfordPetDataset:
    """A part of a dataset under the split and the preprocessing, unless given, of a checkpoint.

    A dataset without lists, for which there is no official split, is divided like own images.
    """
    data, root = content["data"], find_root(data_path)
    size, resize = preprocessing or preprocessing_of(content)
    task, pixels = task_of_checkpoint(content), pixels_of(content["preprocessing"])
    cache = open_cache(root, size, task, pixels) if use_cache and resize == "square" else None
    split = data["split"] if has_lists(root) else SPLITS[0]
    if mode != "all":
        split = split_samples(root, split, data["seed"], (mode,), data.get("fold"), data.get("groups"))
    options = {"split": split, "seed": data["seed"], "task": task, "pixels": pixels, "cache": cache}
    return load_dataset(root, mode, image_size=size, resize=resize, **options)


def copies_of_training(root: Path, content: dict, samples: list[Sample]) -> set[str]:
    """Names of those samples that a checkpoint was not trained on, but on a near copy of."""
    seen = seen_names(content)
    if not any(sample.name in seen for sample in list_samples(root)):
        return set()
    pairs = [(a.name, b.name) for a, b in near_copies(root)]
    copied = {a for a, b in pairs if b in seen} | {b for a, b in pairs if a in seen}
    return (copied - seen) & {sample.name for sample in samples}


def refuse_seen(content: dict, samples: list[Sample], path: Path) -> None:
    """Raises UsageError where a checkpoint was trained on some of these samples."""
    seen = seen_names(content)
    hits = [sample.name for sample in samples if sample.name in seen]
    if hits:
        raise UsageError(
            f"{path} was trained on {len(hits)} of these {len(samples)} images ({hits[0]}, ...), so a score on them "
            "would be inflated by leakage; use --subset test, or say --allow_seen"
        )
