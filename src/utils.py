"""What several scripts need: device, seeds, the Dice score, augmentation, files that are never half written."""

import contextlib
import csv
import math
import os
import random
import tempfile
from pathlib import Path
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from cli import UsageError
from oxford_pet import sample_rng

AUGMENTATION = 1  # the `purpose` under which augmentation draws its random numbers


# ---------------------------------------------------------------------------------------------------- device and seeds


def get_device(name: str = "auto") -> torch.device:
    """The device to compute on: CUDA, else MPS, else the CPU; or the one that is named.

    Raises:
        UsageError: the named device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        there = ", ".join(kind for kind, present in available.items() if present)
        raise UsageError(f"--device {name} is not available here; there is {there}")
    return torch.device(name)


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, NumPy and torch on all devices. Samples draw from `sample_rng` instead and need none of these.

    Args:
        seed: of them all.
        deterministic: let torch use only algorithms that always give the same bits, and raise where there is none. On
            the CPU it always does; on CUDA some are faster without (https://pytorch.org/docs/stable/notes/randomness).
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)


# -------------------------------------------------------------------------------------------------------------- scores


def pixel_counts(prediction: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Counts pixels of each image by what was predicted and what is true.

    Args:
        prediction: (N, 1, H, W) or (N, H, W), zero for background.
        mask: the same shape, zero for background.

    Returns:
        int64 (N, 4): true positives, false positives, false negatives, true negatives.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != mask.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and mask {tuple(mask.shape)} differ in shape")
    p, m = (prediction != 0).flatten(1), (mask != 0).flatten(1)
    both, predicted, true = (p & m).sum(1), p.sum(1), m.sum(1)
    return torch.stack([both, predicted - both, true - both, p.shape[1] - predicted - true + both], dim=1)


def dice_from_counts(counts: torch.Tensor) -> torch.Tensor:
    """Dice from `pixel_counts`: (..., 4) to (...), 2 TP / (2 TP + FP + FN); empty against empty is 1."""
    tp, fp, fn = counts[..., 0], counts[..., 1], counts[..., 2]
    total = 2 * tp + fp + fn
    return torch.where(total == 0, 1.0, 2 * tp / total.clamp(min=1))


def dice_score(prediction: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Dice of each image (Dice, 1945; Sorensen, 1948), the one that training, evaluation and inference report.

    Args:
        prediction: (N, 1, H, W) or (N, H, W), zero for background: logits > 0, which is probability > 0.5.
        mask: the same shape, zero for background.

    Returns:
        float (N,); 1 where both are empty. Average it over images, not over batches.

    Raises:
        ValueError: the shapes differ.
    """
    return dice_from_counts(pixel_counts(prediction, mask))


# -------------------------------------------------------------------------------------------------------- augmentation


def draw_augmentation(rng: np.random.Generator, degrees: float = 10.0, min_scale: float = 0.8) -> np.ndarray:
    """Draws a rotation, a horizontal flip, a scaled crop, or any combination of them.

    Args:
        rng: where the random numbers come from.
        degrees: the largest rotation to either side.
        min_scale: the smallest side of the crop, as a share of the picture's.

    Returns:
        float32 (2, 3): the matrix that takes output to input coordinates, both from -1 to 1 across the picture. It is
        one matrix whatever is combined, so pixels are resampled once.
    """
    rotate, flip, crop = [(bits >> i) & 1 for bits in [int(rng.integers(1, 8))] for i in range(3)]
    angle = math.radians(rng.uniform(-degrees, degrees)) * rotate
    scale = rng.uniform(min_scale, 1.0) if crop else 1.0
    shift = rng.uniform(-1, 1, size=2) * (1 - scale)  # a crop of this scale anywhere inside the picture
    mirror = -1.0 if flip else 1.0
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    return np.array([[mirror * cos, -sin, shift[0]], [mirror * sin, cos, shift[1]]], dtype=np.float32)


IDENTITY = np.eye(2, 3, dtype=np.float32)


def apply_augmentations(
    image: torch.Tensor, mask: torch.Tensor, affine: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Applies a drawn augmentation to an image and its mask, or to a whole batch on whatever device it is.

    What lies outside the picture is filled with its mirror image, in image and mask alike.

    Args:
        image: (C, H, W) or (N, C, H, W), any type.
        mask: (1, H, W) or (N, 1, H, W), of 0 and 1.
        affine: (2, 3) or (N, 2, 3), from `draw_augmentation`.

    Returns:
        The image as float32, bilinear, and the mask as uint8, nearest neighbour and so still 0 and 1.
    """
    if image.ndim == 3:
        images, masks = apply_augmentations(image[None], mask[None], affine[None])
        return images[0], masks[0]
    grid = F.affine_grid(affine, list(image.shape), align_corners=False)
    options = {"padding_mode": "reflection", "align_corners": False}
    images = F.grid_sample(image.float(), grid, mode="bilinear", **options)
    return images, F.grid_sample(mask.float(), grid, mode="nearest", **options).to(torch.uint8)


def augment_dataset(dataset, num_augmentations: int = 3, seed: int = 42) -> "AugmentedDataset":
    """Enlarges a training set in bulk: every picture, and `num_augmentations` variants of it.

    A variant is a picture and a matrix drawn from (seed, name, number of the variant). So the same variants come back
    in every epoch and every later run, none is made twice, and nothing but matrices is kept.

    Args:
        dataset: an OxfordPetDataset or one like it, with `pets`.
        num_augmentations: variants a picture.
        seed: of the draw.
    """
    variants = [
        [draw_augmentation(sample_rng(seed, variant, pet.name, AUGMENTATION)) for variant in range(num_augmentations)]
        for pet in dataset.pets
    ]
    return AugmentedDataset(dataset, np.array(variants, dtype=np.float32))


class AugmentedDataset(Dataset):
    """The samples of a dataset, followed by their variants.

    A sample gains `affine`, float32 (2, 3), for `apply_augmentations`: a training step applies it to its whole batch at
    once on the device.

    Args:
        dataset: of n samples.
        variants: float32 (n, k, 2, 3), k matrices a sample.
    """

    def __init__(self, dataset, variants: np.ndarray):
        self.dataset, self.variants = dataset, variants

    def __len__(self) -> int:
        return len(self.dataset) * (1 + self.variants.shape[1])

    def __getitem__(self, key) -> dict:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        variant, source = divmod(index, len(self.dataset))
        affine = IDENTITY if variant == 0 else self.variants[source, variant - 1]
        return {**self.dataset[epoch, source], "affine": torch.from_numpy(affine.copy())}


class OnlineAugmentation(Dataset):
    """The samples of a dataset, each with an `affine` drawn anew every epoch from (seed, epoch, name).

    One in eight stays as it is: the eighth combination of doing or not doing each of the three.
    """

    def __init__(self, dataset, seed: int = 42):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key) -> dict:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng = sample_rng(self.seed, epoch, self.dataset.pets[index].name, AUGMENTATION)
        affine = IDENTITY if rng.random() < 1 / 8 else draw_augmentation(rng)
        return {**self.dataset[epoch, index], "affine": torch.from_numpy(affine.copy())}


# --------------------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def atomic_write(path, mode: str = "w"):
    """Opens a file for writing that appears under its name only when it is whole and on the disk.

    It is written beside `path` under a temporary name `.<name>.<random>.tmp`, flushed, synced and renamed; then the
    folder is synced, so that the new name outlives a power cut too. On an error the temporary file goes and what was at
    `path` stays.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, mode, **({} if "b" in mode else {"newline": "", "encoding": "utf-8"})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner reads
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder outlive a power cut, where the system can (Windows can't open a folder)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_rows(path, rows: list[dict], header: Optional[list[str]] = None) -> None:
    """Writes a CSV file whole, atomically. The header is that of the first row unless given."""
    with atomic_write(path) as file:
        writer = csv.DictWriter(file, header or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path) -> list[dict]:
    """Reads a CSV file with a header; a file that is not there has no rows."""
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_rows(path, rows: list[dict]) -> None:
    """Adds rows to a CSV log, with a header where the log begins; columns that it lacks are added to it."""
    if rows:
        old = read_rows(path)
        header = list(dict.fromkeys([*(old[0] if old else []), *rows[0]]))
        write_rows(path, [*old, *rows], header)
