"""The helpers that scripts and notebooks look for here; each lives in a room of src/."""
# ruff: noqa: F401

from data.augment import AugmentedDataset, apply_augmentations, augment_dataset, draw_augmentation
from evaluation.metrics import dice_from_counts, dice_score, pixel_counts
from runtime.device import get_device
from runtime.files import append_rows, atomic_write, lock_file, read_rows, write_rows
from runtime.seeding import seed_everything
