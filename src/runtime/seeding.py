"""Random numbers as pure functions of what they are for: runs don't depend on workers, and resume at any step."""

import random
import zlib

import numpy as np
import torch

# What random numbers are drawn for: each purpose has a stream of its own.
UNCERTAIN_BORDER, AUGMENTATION, MIX, UNLABELED, NOISE = 0, 1, 3, 4, 5


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def sample_rng(seed: int, epoch: int, name: str, purpose: int) -> np.random.Generator:
    """The random numbers of one sample in one epoch."""
    return np.random.default_rng([seed, epoch, zlib.crc32(name.encode("utf-8", "surrogateescape")), purpose])


def step_rng(seed: int, epoch: int, step: int, purpose: int) -> np.random.Generator:
    """The random numbers of one training step, the same in all processes."""
    return np.random.default_rng([seed, epoch, step, purpose])
