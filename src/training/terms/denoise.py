"""Pre-training on images alone: the network finds noise that is added to them.

Brempong et al., 2022: https://arxiv.org/abs/2205.11423.
"""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.dataset import ImageDataset, as_keys
from data.loader import Batches, make_loader, shard_batches
from evaluation.predict import Predictor
from runtime.device import copy_to_device
from runtime.seeding import NOISE, sample_rng
from training.config import TrainConfig
from training.data import Data
from training.step import Net
from training.terms import Batch, Term

LEVEL = 0.2  # standard deviation of the noise, as a part of the range of values


class NoisyDataset(Dataset):
    """The images of a dataset with normal noise, drawn anew every epoch.

    A batch has `image`, float32 (N, C, S, S) of 0..255 and beyond; `noise`, the same in standard deviations; `path`.
    """

    def __init__(self, dataset: ImageDataset, seed: int):
        self.dataset, self.samples, self.decodes, self.seed = dataset, dataset.samples, dataset.decodes, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def read_batch(self, keys: list) -> dict:
        """A whole batch."""
        batch = self.dataset.read_batch(keys)
        shape = batch["image"].shape[1:]
        rngs = [sample_rng(self.seed, epoch, self.samples[index].name, NOISE) for epoch, index in as_keys(keys)]
        noise = torch.from_numpy(np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in rngs]))
        return {"image": batch["image"].float() + 255 * LEVEL * noise, "noise": noise, "path": batch["path"]}


def loss_of_statistics(images: torch.Tensor) -> float:
    """The squared error of the best linear guess of the noise in images (N, C, H, W) from each pixel's value alone.

    Pixels have the variance of the image plus that of the noise, which is known.
    """
    variances = images.double().var(dim=(2, 3))
    return (1 - (255 * LEVEL) ** 2 / variances).clamp(min=0).mean().item()


class DenoiseTerm(Term):
    """The squared error between logits and the noise, in its standard deviations; `batches` are of a NoisyDataset."""

    name = "noise"
    score = "valid loss"  # by which the best epoch is chosen

    def __init__(self, batches: Batches, device: torch.device, valid_loader: DataLoader | None = None):
        self.batches, self.device, self.valid_loader = batches, device, valid_loader

    def prepare(self, read: dict, first: None, epoch: int, step: int) -> Batch:
        """See Term. The target is the noise, (N, C, H, W)."""
        images, noise = (copy_to_device(read[name], self.device) for name in ("image", "noise"))
        return Batch(images, noise, scale=self.batches.context.size / self.batches.length(step))

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, tuple]:
        return (logits - batch.target).square().flatten(1).mean(1).sum(), ()

    @torch.inference_mode()
    def validate(self, predictor: Predictor, after_batch) -> tuple[float, None]:
        """The mean loss of the validation images, and no Dice."""
        predictor.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for read in tqdm(self.valid_loader, desc="validating", unit="batch", leave=False, disable=None, delay=1):
            batch = self.prepare(read, None, 0, 0)
            loss, _ = self.loss(predictor.logits(batch.images), batch)
            sums += torch.tensor([loss.item(), len(batch.target)], dtype=torch.float64)
            after_batch()
        loss, count = self.batches.context.all_reduce(sums).tolist()
        return loss / count, None


def open_denoising(config: TrainConfig, net: Net, data: Data, batches: Batches) -> DenoiseTerm:
    """The first term of a pre-training. Says what a guess without a network would reach."""
    batches.dataset = NoisyDataset(batches.dataset, config.seed)
    valid_set = NoisyDataset(data.valid, config.seed)
    guess = loss_of_statistics(valid_set.read_batch(list(range(min(64, len(valid_set)))))["image"])
    print(f"A guess from each pixel's value alone has a loss of {guess:.4f}; a network that learns falls below.")
    valid_batches = shard_batches(valid_set, config.batch_size, net.context)
    valid_loader = make_loader(valid_set, net.precision.device, valid_batches, config.num_workers)
    return DenoiseTerm(batches, net.precision.device, valid_loader)
