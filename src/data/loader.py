"""From samples to batches: in which order, read by which processes."""

import math
import os
import signal
from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from runtime.cli import STOPPING, quiet_pillow
from runtime.distributed import SINGLE_PROCESS, DistributedContext
from runtime.errors import UsageError, note, plural, take_notes


class Batches:
    """The batches of a training set: order and content are pure functions of (seed, epoch, step).

    Batches are as equal as can be: none is too small for batch norm. Each process reads its share of every batch.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, context: DistributedContext = SINGLE_PROCESS):
        self.dataset, self.seed, self.context = dataset, seed, context
        self.steps = math.ceil(len(dataset) / batch_size)
        require_shares(len(dataset) // self.steps, context)

    def length(self, step: int) -> int:
        """Images in the batch of a step, over all processes."""
        whole, rest = divmod(len(self.dataset), self.steps)
        return whole + (step < rest)

    def keys(self, epoch: int, step: int) -> list[tuple[int, int]]:
        """(epoch, index) of this process's images in a batch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))
        batch = np.array_split(order, self.steps)[step]
        return [(epoch, int(index)) for index in self.context.shard(batch)]

    def read(self, epoch: int, step: int) -> dict:
        """This process's share of a batch; see `ImageDataset.read_batch`."""
        return self.dataset.read_batch(self.keys(epoch, step))


def require_shares(images: int, context: DistributedContext) -> None:
    """Raises UsageError where a batch has fewer images than there are processes."""
    if images < context.size:
        text = f"steps of {plural(images, 'image')} can't be shared by {context.size} processes"
        raise UsageError(f"{text}; use a larger --batch_size, or fewer processes")


class StepSampler:
    """The steps of an epoch as (epoch, step), from any step on. Set `epoch` and `start` before each pass."""

    def __init__(self, steps: int):
        self.steps, self.epoch, self.start = steps, 0, 0

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self):
        return ((self.epoch, step) for step in range(self.start, self.steps))


class StepReader:
    """Whole steps: a list with a batch of each of several Batches; None where there is nothing to read."""

    def __init__(self, sources: list[Batches | None]):
        self.sources, self.decodes = sources, any(source and source.dataset.decodes for source in sources)

    def read_batch(self, at: tuple[int, int]) -> list[dict | None]:
        """The batches of the step `at`, (epoch, step)."""
        return [source and source.read(*at) for source in self.sources]


def shard_batches(dataset: Dataset, batch_size: int, context: DistributedContext = SINGLE_PROCESS) -> list[list[int]]:
    """This process's batches of every image once, in order. They are sharded whole: processes don't change results."""
    return context.shard(list(BatchSampler(range(len(dataset)), batch_size, drop_last=False)))


class _WholeBatches(Dataset):
    """Batches, and what was noted of their files in this process, which may be a worker."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, keys) -> tuple:
        return self.dataset.read_batch(keys), take_notes()


class _Loader(DataLoader):
    """Starts its workers with signals blocked, which they inherit until `_init_worker` has set their handlers."""

    def __iter__(self):
        masks = hasattr(signal, "pthread_sigmask")  # not on Windows
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING) if masks else None
        try:
            batches = super().__iter__()
        finally:
            if masks:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for batch, notes in batches:
            for sentence, path in notes:
                note(sentence, path)
            yield batch


def make_loader(dataset, device: torch.device, batches: Iterable, num_workers: int | None = None) -> DataLoader:
    """A DataLoader of what `dataset.read_batch` gives for each of `batches`, pinned where it goes to a GPU."""
    if not dataset.decodes:  # from a cache images are read ten times faster than a process could pass them on
        num_workers = 0
    elif num_workers is None:  # a network on the CPU has its cores already
        num_workers = 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
    return _Loader(
        _WholeBatches(dataset),
        sampler=batches,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
        worker_init_fn=_init_worker,
        generator=torch.Generator(),  # else every pass would draw from torch's global random numbers
    )


def _init_worker(_worker: int) -> None:
    quiet_pillow()  # a spawned process has not inherited that
    # Ctrl-C, a closed terminal and a cluster's SIGTERM reach every process of the run, and workers must live until the
    # parent has saved. SIGTERM is also how a parent that exits ends its workers, so it only waits.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(20))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
