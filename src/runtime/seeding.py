"""Random numbers as pure functions of what they are for.

No generator state lives in worker processes or between steps, so a run does not depend on the number of workers and can
be resumed at any step.
"""

import os
import random
import zlib

import numpy as np
import torch

# What random numbers are drawn for: each purpose has a stream of its own.
UNCERTAIN_BORDER, AUGMENTATION, SIZE, MIX, UNLABELED, NOISE = range(6)


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, NumPy and torch on all devices.

    With `deterministic`, torch raises where it has no algorithm that always gives the same bits
    (https://pytorch.org/docs/stable/notes/randomness). On the CPU it always does.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)


def sample_rng(seed: int, epoch: int, name: str, purpose: int) -> np.random.Generator:
    """The random numbers of one sample in one epoch."""
    return np.random.default_rng([seed, epoch, zlib.crc32(name.encode("utf-8", "surrogateescape")), purpose])


def step_rng(seed: int, epoch: int, step: int, purpose: int) -> np.random.Generator:
    """The random numbers of one training step, the same in all processes."""
    return np.random.default_rng([seed, epoch, step, purpose])
