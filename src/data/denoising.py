"""Images with noise, and the noise, for pretrain.py."""

import numpy as np
import torch
from torch.utils.data import Dataset

from data.datasets import SimpleOxfordPetDataset, as_keys
from data.unlabeled import ImageDataset
from runtime.seeding import NOISE, sample_rng

LEVEL = 0.2  # standard deviation of the noise, as a part of the range of values


class NoisyDataset(Dataset):
    """A dataset's images with normal noise, drawn anew every epoch (Brempong et al., 2022).

    A batch has `image`, float32 (N, C, S, S) of 0..255 and beyond; `noise`, the same in standard deviations; `path`.

    Args:
        dataset: without augmentation.
        root: the folder they come from.
        mode: the part that they are.
        seed: of the noise.

    Source: https://arxiv.org/abs/2205.11423.
    """

    def __init__(self, dataset: SimpleOxfordPetDataset | ImageDataset, root, mode: str, seed: int):
        self.dataset, self.samples, self.root, self.mode, self.seed = dataset, dataset.samples, root, mode, seed

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def decodes(self) -> bool:
        """See SimpleOxfordPetDataset."""
        return self.dataset.decodes

    def read_batch(self, keys: list) -> dict:
        """A whole batch."""
        batch = self.dataset.read_batch(keys)
        images = batch["image"].float()
        rngs = (sample_rng(self.seed, epoch, self.samples[index].name, NOISE) for epoch, index in as_keys(keys))
        drawn = [rng.standard_normal(images.shape[1:], dtype=np.float32) for rng in rngs]
        noise = torch.from_numpy(np.stack(drawn))
        return {"image": images + 255 * LEVEL * noise, "noise": noise, "path": batch["path"]}


def loss_of_statistics(images: torch.Tensor) -> float:
    """The squared error of the best linear guess of the noise from a pixel's value alone.

    The values of an image have the variance of the image plus that of the noise, which is known.

    Args:
        images: with noise, (N, C, H, W).
    """
    variances = images.double().var(dim=(2, 3))
    return (1 - (255 * LEVEL) ** 2 / variances).clamp(min=0).mean().item()
