"""The datasets that both reports name, with masks of 0 and 1 and trimaps of 1 = pet, 2 = background, 3 = border."""

import numpy as np

from data.cache import open_cache
from data.dataset import Dataset, ImageDataset, as_keys
from data.names import SUBSETS
from data.view import View
from models.task import BACKGROUND

TO_TRIMAP = np.array([2, 1, 3], np.uint8)  # by the values of label maps


class SimpleOxfordPetDataset(ImageDataset):
    """One part of a dataset, or with mode `all` every labelled image, square and as tensors.

    A sample is a dict: `image` uint8 (3, S, S), `mask` uint8 (1, S, S) of 0 and 1, `trimap` uint8 (1, S, S), `labels`
    likewise, and `path`, the image's file. `transform` is called with it and returns it changed. With
    `augment_uncertain` border pixels of masks are pet or background at random, half and half, instead of pet.
    """

    def __init__(
        self,
        data_path,
        mode: str = "train",
        transform=None,
        split: str = "80-10-10",
        augment_uncertain: bool = False,
        seed: int = 42,
        image_size: int = 256,
        cache: bool = False,
    ):
        if mode not in SUBSETS:
            raise ValueError(f"no mode is called {mode!r}; there are {', '.join(SUBSETS)}")
        dataset, view = Dataset(data_path), View(image_size)
        pixels = open_cache(dataset.root, dataset.samples, view) if cache else None
        super().__init__(dataset.part(mode, split, seed), view, pixels, dataset.root, mode, augment_uncertain, seed)
        self.transform = transform

    def __getitem__(self, key) -> dict:
        sample = super().__getitem__(key)
        return self.transform(sample) if self.transform else sample

    def targets(self, keys: list[tuple[int, int]], labels: np.ndarray) -> dict[str, np.ndarray]:
        drawn = super().targets(keys, labels)["labels"]
        return {"labels": drawn, "mask": (drawn != BACKGROUND).astype(np.uint8), "trimap": TO_TRIMAP[labels]}


class OxfordPetDataset(SimpleOxfordPetDataset):
    """The same as NumPy arrays at the images' own sizes: `image` uint8 (H, W, 3), the others uint8 (H, W)."""

    def __getitem__(self, key) -> dict:
        ((epoch, index),) = as_keys([key])
        image, labels = self.view.read_at(self.samples[index])
        targets = {name: values[0] for name, values in self.targets([(epoch, index)], labels[None]).items()}
        sample = {"image": image, "path": str(self.samples[index].image_path), **targets}
        return self.transform(sample) if self.transform else sample


def load_dataset(data_path, mode: str = "train", **options) -> SimpleOxfordPetDataset:
    """Opens one part of a dataset; see SimpleOxfordPetDataset for options, samples and errors."""
    return SimpleOxfordPetDataset(data_path, mode, **options)
