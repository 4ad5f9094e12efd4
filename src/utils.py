"""What several scripts need: device, seeds, the Dice score, augmentation, files that are never half written."""

import contextlib
import csv
import io
import math
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from cli import UsageError
from oxford_pet import sample_rng

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

UMASK = os.umask(0)  # once, since asking for it changes it, in all threads
os.umask(UMASK)
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


def pixel_counts(prediction: torch.Tensor, mask: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Counts pixels of each image by what was predicted and what is true.

    Args:
        prediction: (N, 1, H, W) or (N, H, W), zero for background.
        mask: the same shape, zero for background.
        counted: the same shape, zero for pixels to leave out; None leaves none out.

    Returns:
        int64 (N, 4): true positives, false positives, false negatives, true negatives.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != mask.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and mask {tuple(mask.shape)} differ in shape")
    p, m = (prediction != 0).flatten(1), (mask != 0).flatten(1)
    pixels = torch.full((len(p),), p.shape[1], device=p.device)
    if counted is not None:
        c = (counted != 0).flatten(1)
        p, m, pixels = p & c, m & c, c.sum(1)
    both, predicted, true = (p & m).sum(1), p.sum(1), m.sum(1)
    return torch.stack([both, predicted - both, true - both, pixels - predicted - true + both], dim=1)


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


# How strong augmentation is: the largest rotation in degrees, and the sides of the crop as shares of the picture's.
STRENGTHS = {"light": (8.0, 0.85, 1.0), "medium": (10.0, 0.8, 1.0), "strong": (20.0, 0.6, 1.1)}


def draw_augmentation(
    rng: np.random.Generator, degrees: float = 10.0, min_scale: float = 0.8, max_scale: float = 1.0
) -> np.ndarray:
    """Draws a rotation, a horizontal flip, a scaled crop, or any combination of them.

    Args:
        rng: where the random numbers come from.
        degrees: the largest rotation to either side.
        min_scale: the smallest side of the crop, as a share of the picture's.
        max_scale: the largest; above 1 the picture shrinks, and its mirror images surround it.

    Returns:
        float32 (2, 3): the matrix that takes output to input coordinates, both from -1 to 1 across the picture. It is
        one matrix whatever is combined, so pixels are resampled once.
    """
    rotate, flip, crop = [(bits >> i) & 1 for bits in [int(rng.integers(1, 8))] for i in range(3)]
    angle = math.radians(rng.uniform(-degrees, degrees)) * rotate
    scale = rng.uniform(min_scale, max_scale) if crop else 1.0
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
        mask: (1, H, W) or (N, 1, H, W), a mask of 0 and 1 or a trimap of 1, 2 and 3.
        affine: (2, 3) or (N, 2, 3), from `draw_augmentation`.

    Returns:
        The image as float32, bilinear, and the mask as uint8, nearest neighbour and so of the same values.
    """
    if image.ndim == 3:
        images, masks = apply_augmentations(image[None], mask[None], affine[None])
        return images[0], masks[0]
    if image.device.type != "cpu":
        return _resample(image, mask, affine)
    # On a CPU in small portions: what one needs stays in the caches, where a whole batch would be fetched from memory
    # again and again.
    images, masks = torch.empty(image.shape), torch.empty(mask.shape, dtype=torch.uint8)
    for i in range(0, len(image), portion := 2 * torch.get_num_threads()):
        part = slice(i, i + portion)
        images[part], masks[part] = _resample(image[part], mask[part], affine[part])
    return images, masks


def _resample(image: torch.Tensor, mask: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # F.affine_grid gives the same grid by a product of thin matrices, which takes ten times as long on a CPU.
    height, width = image.shape[-2:]
    x = (torch.arange(width, device=image.device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=image.device) * 2 + 1) / height - 1
    a = affine[:, :, :, None, None]
    grid = torch.stack([a[:, k, 0] * x + (a[:, k, 1] * y[:, None] + a[:, k, 2]) for k in (0, 1)], dim=-1)
    options = {"padding_mode": "reflection", "align_corners": False}
    images = F.grid_sample(image.float(), grid, mode="bilinear", **options)
    return images, F.grid_sample(mask.float(), grid, mode="nearest", **options).to(torch.uint8)


def draw_colours(rng: np.random.Generator, strength: float = 0.25) -> np.ndarray:
    """Draws factors of brightness, contrast and saturation, float32 (3,), each within 1 +- strength."""
    return rng.uniform(1 - strength, 1 + strength, size=3).astype(np.float32)


def apply_colours(images: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Changes brightness, contrast and saturation.

    Args:
        images: (N, 3, H, W) in 0..255.
        colours: (N, 3) factors, from `draw_colours`; 1 leaves a picture as it is.

    Returns:
        float32 (N, 3, H, W) in 0..255.
    """
    brightness, contrast, saturation = (colours[:, i, None, None, None] for i in range(3))
    images = images.float() * brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    red, green, blue = images.split(1, dim=1)
    gray = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    return (gray + (images - gray) * saturation).clamp(0, 255)


def augment_dataset(dataset, num_augmentations: int = 3, seed: int = 42, colour_jitter=False, strength="medium"):
    """Enlarges a training set in bulk: every picture, and `num_augmentations` variants of it.

    A variant is a picture and what was drawn for it from (seed, name, number of the variant). So the same variants come
    back in every epoch and every later run, none is made twice, and no pixel of them is ever stored.

    Args:
        dataset: a SimpleOxfordPetDataset.
        num_augmentations: variants a picture.
        seed: of the draw.
        colour_jitter: vary colours too.
        strength: a key of STRENGTHS.

    Returns:
        An AugmentedDataset.
    """
    return AugmentedDataset(dataset, seed, num_augmentations, colour_jitter, strength)


class AugmentedDataset(Dataset):
    """The samples of a dataset and their variants, or with no variants its samples varied anew every epoch.

    A sample gains `affine`, float32 (2, 3), and with `colour_jitter` `colours`, float32 (3,): a training step applies
    them to its whole batch at once on the device, with `apply_augmentations` and `apply_colours`.

    Args:
        dataset: of n samples, with `pets`, and whole batches from `read_batch`.
        seed: of the draw.
        variants: k > 0 makes n originals and n * k variants of them (bulk); 0 draws n anew every epoch (online), of
            which one in eight stays as it is: the eighth combination of doing or not doing rotation, flip and crop.
        colour_jitter: vary colours too.
        strength: a key of STRENGTHS.
    """

    def __init__(self, dataset, seed: int = 42, variants: int = 0, colour_jitter=False, strength="medium"):
        self.dataset, self.seed, self.variants, self.colour_jitter = dataset, seed, variants, colour_jitter
        self.limits = STRENGTHS[strength]

    def __len__(self) -> int:
        return len(self.dataset) * (1 + self.variants)

    def _draw(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        variant, source = divmod(index, len(self.dataset))
        version = variant - 1 if self.variants else epoch
        rng = sample_rng(self.seed, max(0, version), self.dataset.pets[source].name, AUGMENTATION)
        if version < 0:
            return IDENTITY, np.ones(3, np.float32)
        keep = not self.variants and rng.random() < 1 / 8
        return IDENTITY if keep else draw_augmentation(rng, *self.limits), draw_colours(rng)

    def __getitem__(self, key) -> dict:
        return {name: values[0] for name, values in self.read_batch([key]).items()}

    @property
    def decodes(self) -> bool:
        """Whether reading a sample takes work that other processes could share."""
        return self.dataset.decodes

    def read_batch(self, keys: list) -> dict:
        """A whole batch; see SimpleOxfordPetDataset."""
        keys = [key if isinstance(key, tuple) else (0, key) for key in keys]
        batch = self.dataset.read_batch([(epoch, index % len(self.dataset)) for epoch, index in keys])
        affines, colours = zip(*(self._draw(epoch, index) for epoch, index in keys))
        batch["affine"] = torch.from_numpy(np.stack(affines))
        if self.colour_jitter:
            batch["colours"] = torch.from_numpy(np.stack(colours))
        return batch


# --------------------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def lock_file(path, wait: bool):
    """Holds a lock on a file while the context lasts, or until the process ends, however it ends.

    Yields:
        The open file.

    Raises:
        BlockingIOError: another process has the lock, and `wait` is false.
    """
    with Path(path).open("a+") as file:
        file.seek(2**30)  # far behind what the file says, which others may read: Windows guards what is locked
        while True:
            try:
                if fcntl is None:
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                else:  # lockf, because unlike that of flock its lock is not given to workers
                    fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                break
            except (BlockingIOError, PermissionError) as error:  # POSIX allows either
                if not wait:
                    raise BlockingIOError(f"{path} is locked") from error
                time.sleep(0.2)
        yield file


@contextlib.contextmanager
def atomic_write(path, mode: str = "w", sync: bool = True):
    """Opens a file for writing that appears under its name only when it is whole and on the disk.

    It is written beside `path`, or beside what `path` links to, under a temporary name `.<name>.<random>.tmp`, flushed,
    synced and renamed; then the folder is synced, so that the new name outlives a power cut too. On an error the
    temporary file goes and what was at `path` stays. Without `sync` the power must stay on: for what is easily made
    again.
    """
    path, text = Path(path).resolve(), {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
    if path.exists() and not path.is_file():  # a pipe or a device: there is nothing to replace
        with path.open(mode, **({} if "b" in mode else text)) as file:
            yield file
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:60]}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, mode, **({} if "b" in mode else text)) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.chmod(0o666 & ~UMASK)  # mkstemp makes files that only their owner reads
        temporary.replace(path)
        if sync:
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


def write_rows(path, rows: list[dict], header: list[str] | None = None) -> None:
    """Writes a CSV file whole, atomically. The header is that of the first row unless given."""
    with atomic_write(path) as file:
        writer = csv.DictWriter(file, header or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path) -> list[dict]:
    """Reads a CSV file with a header; a file that is not there has no rows.

    Raises:
        UsageError: it is no CSV file, or its rows don't fit its header.
    """
    path = Path(path)
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
    except csv.Error as error:
        raise UsageError(f"{path} is no CSV file ({error}); move it away") from None
    if any(None in row for row in rows):
        raise UsageError(f"{path} has a row with more columns than its header; mend it, or move it away")
    return rows


def append_rows(path, rows: list[dict]) -> None:
    """Adds rows to a CSV log, with a header where the log begins; columns that it lacks are added to it.

    Where it lacks none the rows are appended in one go, so that several processes may write to one log.
    """
    path = Path(path)
    old = read_rows(path)
    header = list(dict.fromkeys([*(old[0] if old else []), *rows[0]]))
    if not old or len(header) > len(old[0]):
        write_rows(path, [*old, *rows], header)
        return
    text = io.StringIO()
    csv.DictWriter(text, header, lineterminator="\n").writerows(rows)
    unended = not path.read_bytes().endswith(b"\n")  # as some editors leave the last line
    with path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\n" * unended + text.getvalue())
