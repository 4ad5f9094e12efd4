"""Images without masks for semi-supervised training: which they are, and their part in each batch."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from data.augment import STRENGTHS, draw_augmentation, draw_colors
from data.check import require_readable
from data.copies import find_copies, find_near_copies, near_copies
from data.datasets import Preprocessing, SimpleOxfordPetDataset, as_keys
from data.distortions import draw_distortions
from data.index import Sample
from data.inputs import list_images, read_input
from data.pixels import Pixels
from runtime.errors import UsageError
from runtime.seeding import UNLABELED, sample_rng

REST = "rest"  # not a folder, but the training images whose masks are not used
STRONG_COLORS, STRONG = 0.5, "gamma,blur"  # of the strongly augmented images


class ImageDataset(Dataset):
    """The images of a folder, without masks, as SimpleOxfordPetDataset gives them in whole batches.

    Args:
        samples: the images.
        image_size: side of the square that they are resized to.
    """

    def __init__(self, samples: list[Sample], image_size: int):
        self.samples, self.preprocessing = samples, Preprocessing(image_size)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def decodes(self) -> bool:
        """See SimpleOxfordPetDataset."""
        return True

    def read_batch(self, keys: list) -> dict:
        """`image`, (N, C, S, S), and `path`."""
        samples = [self.samples[index] for _, index in as_keys(keys)]
        images = [read_input(sample, self.preprocessing)[0] for sample in samples]
        return {"image": torch.stack(images), "path": [str(sample.image_path) for sample in samples]}


def open_folder(folder: str, known: list[Sample], image_size: int, pixels: Pixels) -> tuple[ImageDataset, int]:
    """The images of a folder and those in it, without copies and near copies of `known`.

    Returns:
        The dataset, and how many images were left out.

    Raises:
        UsageError: there are none.
        DatasetError: some can't be read.
    """
    samples = list_images(Path(folder), pixels)
    require_readable(samples, folder)
    ours = set(samples)
    groups = [*find_copies([*samples, *known]), *find_near_copies(samples, known)]
    copies = {one for group in groups if not ours.issuperset(group) for one in group} & ours
    kept = [sample for sample in samples if sample not in copies]
    if not kept:
        raise UsageError(
            f"--unlabeled {folder} has no images but copies of validation and test images; name another one"
        )
    return ImageDataset(kept, image_size), len(copies)


def open_rest(
    labelled: SimpleOxfordPetDataset, train: list[Sample], known: list[Sample]
) -> tuple[SimpleOxfordPetDataset, int]:
    """The training images that are not in `labelled`; else as `open_folder`. Their masks are scored, not learned."""
    names = {sample.name for sample in labelled.samples}
    apart = {sample.name for sample in known}
    near = {a.name if b.name in apart else b.name for a, b in near_copies(labelled.root) if apart & {a.name, b.name}}
    rest = [sample for sample in train if sample.name not in names]
    dataset = copy.copy(labelled)
    dataset.samples = [sample for sample in rest if sample.name not in near]
    if not dataset.samples:
        raise UsageError("--unlabeled rest: --train_fraction leaves out no image; use less")
    return dataset, len(rest) - len(dataset.samples)


def names_digest(samples: list[Sample]) -> str:
    """SHA-256 over names and sizes of the images: tells whether a run is resumed with the same ones."""
    rows = "\n".join(f"{sample.name} {sample.image_path.stat().st_size}" for sample in samples)
    return hashlib.sha256(rows.encode("utf-8", "surrogateescape")).hexdigest()


class WithUnlabeled(Dataset):
    """Labelled batches with images of another dataset: indexes from the number of labelled samples on are theirs.

    A batch gains `unlabeled`: `image`; `affine`, which is applied to them; `strong_affine`, `colors`, `distortions` and
    `seeds`, of the strongly augmented images; and, where masks are known, `mask` and `trimap`. The epoch of their keys
    counts passes over them.

    Args:
        labelled: the training set, augmented or not.
        unlabeled: SimpleOxfordPetDataset, or ImageDataset.
        seed: of the draws.
    """

    def __init__(self, labelled: Dataset, unlabeled: SimpleOxfordPetDataset | ImageDataset, seed: int):
        self.labelled, self.unlabeled, self.seed = labelled, unlabeled, seed

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabeled)

    @property
    def decodes(self) -> bool:
        """See SimpleOxfordPetDataset."""
        return self.labelled.decodes or self.unlabeled.decodes

    def read_batch(self, keys: list) -> dict:
        """A whole batch."""
        count = len(self.labelled)
        batch = self.labelled.read_batch([key for key in keys if key[1] < count])
        others = [(cycle, index - count) for cycle, index in keys if index >= count]
        extra, draws = self.unlabeled.read_batch(others), []
        for cycle, index in others:
            rng = sample_rng(self.seed, cycle, self.unlabeled.samples[index].name, UNLABELED)
            affines = [draw_augmentation(rng, *STRENGTHS[strength]) for strength in ("light", "strong")]
            colors, distortions = draw_colors(rng, STRONG_COLORS), draw_distortions(rng, STRONG, 1.0)
            draws.append((*affines, colors, distortions, rng.integers(2**62)))
        names = ("affine", "strong_affine", "colors", "distortions", "seeds")
        extra.update((name, torch.from_numpy(np.stack(values))) for name, values in zip(names, zip(*draws)))
        return {**batch, "unlabeled": extra}
