"""Pre-training on images alone: the network finds noise that is added to them.

Brempong et al., 2022: https://arxiv.org/abs/2205.11423.
"""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.dataset import ImageDataset, as_keys
from data.loader import Batches
from evaluation.predict import Predictor
from runtime.device import copy_to_device
from runtime.seeding import NOISE, sample_rng
from training.terms import At, Part

LEVEL = 0.2  # standard deviation of the noise, as a part of the range of values


class NoisyDataset(Dataset):
    """The images of a dataset with normal noise, drawn anew every epoch.

    A batch has `image`, float32 (N, C, S, S) of 0..255 and beyond; `noise`, the same in standard deviations; `path`.
    """

    def __init__(self, dataset: ImageDataset, seed: int):
        self.dataset, self.samples, self.seed = dataset, dataset.samples, seed

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def decodes(self) -> bool:
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
    """The squared error of the best linear guess of the noise in images (N, C, H, W) from each pixel's value alone.

    Pixels have the variance of the image plus that of the noise, which is known.
    """
    variances = images.double().var(dim=(2, 3))
    return (1 - (255 * LEVEL) ** 2 / variances).clamp(min=0).mean().item()


class DenoiseTerm:
    """The squared error between logits and the noise, in its standard deviations; `batches` are of a NoisyDataset."""

    name, columns, seen = "noise", (), frozenset()
    score = "valid loss"  # by which the best epoch is chosen

    def __init__(self, batches: Batches, device: torch.device, valid_loader: DataLoader):
        self.batches, self.device, self.valid_loader = batches, device, valid_loader

    def prepare(self, batch: dict, first: Part | None, at: At) -> Part:
        """See Term. The target is the noise, (N, C, H, W)."""
        images, noise = (copy_to_device(batch[name], self.device) for name in ("image", "noise"))
        return Part(images, noise, scale=self.batches.context.size / self.batches.length(at.step))

    def loss(self, logits: torch.Tensor, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        errors = (logits - part.target).square().flatten(1).mean(1)
        return errors.sum(), errors.new_full((1,), len(errors))

    @torch.inference_mode()
    def validate(self, predictor: Predictor, after_batch) -> tuple[float, None]:
        """The mean loss of the validation images, and no Dice."""
        predictor.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in tqdm(self.valid_loader, desc="validating", unit="batch", leave=False, disable=None, delay=1):
            part = self.prepare(batch, None, At(0, 0))
            loss, count = self.loss(predictor.logits(part.images), part)
            sums += torch.tensor([loss.item(), count.item()], dtype=torch.float64)
            after_batch()
        loss, count = self.batches.context.all_reduce_sum(sums).tolist()
        return loss / count, None

    def record(self) -> dict:
        return {}


def open_denoising(setup) -> DenoiseTerm | None:
    """The term of a pre-training. Says what a guess without a network would reach."""
    if not setup.config.denoises:
        return None
    batches, seed = setup.batches, setup.config.seed
    batches.dataset = NoisyDataset(batches.dataset, seed)
    valid_set = NoisyDataset(setup.parts[1], seed)
    guess = loss_of_statistics(valid_set.read_batch(list(range(min(64, len(valid_set)))))["image"])
    print(f"A guess from each pixel's value alone has a loss of {guess:.4f}; a network that learns falls below.")
    return DenoiseTerm(batches, setup.state.net.precision.device, setup.loader(valid_set))
