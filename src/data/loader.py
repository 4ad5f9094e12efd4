"""From samples to batches: in which order, read by which processes."""

import contextlib
import math
import os
import signal
from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from runtime.cli import quiet_pillow
from runtime.distributed import SINGLE_PROCESS, DistributedContext
from runtime.errors import UsageError
from runtime.seeding import UNLABELED

STOPPING = (signal.SIGINT, signal.SIGTERM)


class ResumableBatchSampler:
    """Batch sampler of (epoch, index) keys, shuffled as a pure function of (seed, epoch), from any step on.

    Batches are as equal as can be, so that none is too small for batch norm: 9 images in batches of at most 8 are 5
    and 4.

    Args:
        size: images in the training set.
        batch_size: images a step, at most.
        seed: of the shuffle.
        context: the processes among which every batch is sharded.
        unlabeled: images without masks, whose indexes are those from `size` on; see WithUnlabeled.
        unlabeled_batch: of them in a step.

    Raises:
        UsageError: batches have fewer images than there are processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        context: DistributedContext = SINGLE_PROCESS,
        unlabeled: int = 0,
        unlabeled_batch: int = 0,
    ):
        self.size, self.seed, self.context = size, seed, context
        self.unlabeled, self.unlabeled_batch = unlabeled, unlabeled_batch if unlabeled else 0
        self.steps = math.ceil(size / batch_size)
        self.epoch = self.start = 0
        self._require_shares(size // self.steps, "--batch_size")
        if unlabeled:
            self._require_shares(unlabeled_batch, "--unlabeled_batch")

    def _require_shares(self, images: int, flag: str) -> None:
        """Raises UsageError where a step has fewer images than there are processes."""
        if images < self.context.size:
            raise UsageError(
                f"steps of {images} images can't be shared by {self.context.size} processes; use a larger {flag}, or "
                "fewer processes"
            )

    def batch_length(self, step: int) -> int:
        """Images in the batch of a step, over all processes."""
        return self.size // self.steps + (step < self.size % self.steps)

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        for step, batch in enumerate(np.array_split(order, self.steps)[self.start :], start=self.start):
            keys = [(self.epoch, int(index)) for index in self.context.shard(batch)]
            yield keys + self.context.shard(self._unlabeled_keys(self.epoch * self.steps + step))

    def _unlabeled_keys(self, step: int) -> list[tuple[int, int]]:
        """Of a step since the first: (pass over the images without masks, index), each pass in an order of its own."""
        places = range(step * self.unlabeled_batch, (step + 1) * self.unlabeled_batch)
        orders = {
            cycle: np.random.default_rng([self.seed, cycle, UNLABELED]).permutation(self.unlabeled)
            for cycle in {place // self.unlabeled for place in places}
        }
        return [
            (place // self.unlabeled, self.size + int(orders[place // self.unlabeled][place % self.unlabeled]))
            for place in places
        ]


def shard_batches(dataset: Dataset, batch_size: int, context: DistributedContext = SINGLE_PROCESS) -> list[list[int]]:
    """Every image once, in order, in batches. Batches are sharded whole, so results don't depend on the processes.

    Returns:
        This process's batches, for `make_loader`.
    """
    return context.shard(list(BatchSampler(range(len(dataset)), batch_size, drop_last=False)))


def _no_collate(batch):
    return batch


class _WholeBatches(Dataset):
    """A dataset whose items are whole batches of another, by lists of keys."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, keys: list) -> dict:
        return self.dataset.read_batch(keys)


class _Loader(DataLoader):
    """A DataLoader whose workers are safe from signals from their first moment on."""

    def __iter__(self):
        with _signals_blocked():
            return super().__iter__()


@contextlib.contextmanager
def _signals_blocked():
    """Ctrl-C and SIGTERM arrive afterwards; processes started meanwhile inherit the block."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def make_loader(dataset: Dataset, device: torch.device, batches: Iterable, num_workers=None) -> DataLoader:
    """A DataLoader for this device.

    Args:
        dataset: gives whole batches with `read_batch`, as SimpleOxfordPetDataset does.
        device: where the batches go.
        batches: lists of keys.
        num_workers: processes that decode images. None takes none beside a network on the CPU, which has its cores
            already, and else one a core, 8 at most. From a cache images are read ten times faster than a process could
            pass them on, so there are none.
    """
    if not getattr(dataset, "decodes", True):
        num_workers = 0
    elif num_workers is None:
        num_workers = 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
    return _Loader(
        _WholeBatches(dataset),
        sampler=batches,
        batch_size=None,
        collate_fn=_no_collate,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
        worker_init_fn=_init_worker,
        generator=torch.Generator(),  # else every pass would draw from torch's global random numbers
    )


def _init_worker(_worker: int) -> None:
    quiet_pillow()  # a spawned process has not inherited that
    # Ctrl-C and a cluster's SIGTERM reach every process of the run, and workers must live until the parent has saved.
    # Only for a while: SIGTERM is also how a parent that exits ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(20))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
