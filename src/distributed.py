"""Several processes at one job, on one machine or many, started by torch's own launcher.

torchrun --nproc_per_node=2 src/train.py --data_path dataset

Every process has the whole dataset and the whole model, and takes its share of the images. The first one alone prints
and writes.
"""

import contextlib
import gc
import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from cli import RunError, UsageError

PATIENCE = timedelta(hours=1)  # for the slowest, who may be downloading or decoding the dataset for all


class PeerLostError(RunError):
    """Another process of the job has ended."""


class Team:
    """The processes at one job, as one of them sees it; alone, unless `join` says otherwise.

    Args:
        rank: number of this process, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size, self.first = rank, size, rank == 0

    @property
    def launcher(self) -> str:
        """What starts such a team."""
        if self.size == 1:
            return "python"
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        machines = f" --nnodes={self.size // here}" if here < self.size else ""
        return f"torchrun{machines} --nproc_per_node={here}"

    def share(self, items: Sequence) -> Sequence:
        """What of a list is this process's to do: every `size`-th."""
        return items[self.rank :: self.size]

    def collect(self, done: list) -> list:
        """Puts together what all processes made of their shares, in the order of the list that was shared out."""
        if self.size == 1:
            return done
        shares: list = [None] * self.size
        with self.peers_needed():
            dist.all_gather_object(shares, done)
        return [shares[i % self.size][i // self.size] for i in range(sum(map(len, shares)))]

    def tell(self, value):
        """What the first process has, in all of them."""
        if self.size == 1:
            return value
        box = [value]
        with self.peers_needed():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Goes on when all processes are here."""
        self.tell(None)

    def largest(self, *values: int) -> list[int]:
        """The largest of each value over all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values)
        with self.peers_needed():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, as a tensor of its own on the CPU."""
        values = values.detach().cpu().clone()
        if self.size > 1:
            with self.peers_needed():
                dist.all_reduce(values)
        return values

    def average_statistics(self, model: nn.Module) -> None:
        """Gives the batch norms of all processes the same running statistics: they differ by the last step's share."""
        for name, buffer in model.named_buffers() if self.size > 1 else ():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(self.total(buffer) / self.size)

    def take_statistics(self, model: nn.Module) -> None:
        """Gives the batch norms of all processes the first one's running statistics, which are those it saves."""
        if self.size > 1:
            found = {key: value.cpu() for key, value in model.named_buffers() if key.endswith(("_mean", "_var"))}
            model.load_state_dict(self.tell(found), strict=False)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model for the forward pass of training: its gradients are averaged over all processes.

        On GPUs its batch norms then see the whole batch; torch has no such batch norm on the CPU, where each process
        normalises by its own share.
        """
        if self.size == 1:
            return model
        where = next(model.parameters()).device
        if where.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        with self.peers_needed():
            return nn.parallel.DistributedDataParallel(
                model,
                device_ids=[where] if where.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )

    @contextlib.contextmanager
    def peers_needed(self):
        """Turns what torch raises when another process is gone into PeerLostError."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and lost_a_peer(error):
                raise PeerLostError(
                    "another process of this run has ended; see what it said, and start again"
                ) from None
            raise


def lost_a_peer(error: RuntimeError) -> bool:
    """Whether an error of torch means that another process no longer answers."""
    words = ("closed by peer", "reset by peer", "broken pipe", "connection refused", "timed out", "nccl")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


ALONE = Team()


@contextlib.contextmanager
def join(device: torch.device):
    """Joins the job that torchrun started; without torchrun this process is alone.

    While it lasts, all processes but the first print nothing but errors.

    Yields:
        The Team. On CUDA, `cuda` then means the GPU of this process.

    Raises:
        UsageError: there are more processes than GPUs here, or the device can't be shared.
    """
    size = int(os.environ.get("WORLD_SIZE", 1)) if {"RANK", "LOCAL_RANK"} <= os.environ.keys() else 1
    if size == 1:
        yield ALONE
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if device.type == "mps":
        raise UsageError("several processes can't share MPS; add --device cpu, or start one process without torchrun")
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun started more processes than there are GPUs ({torch.cuda.device_count()}); use "
                f"--nproc_per_node={torch.cuda.device_count()}, or add --device cpu"
            )
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise RunError(f"the processes could not find each other ({first_line}); look at torchrun's flags") from None
    with contextlib.ExitStack() as quiet:
        if rank:
            nowhere = quiet.enter_context(open(os.devnull, "w"))  # noqa: PTH123
            quiet.enter_context(contextlib.redirect_stdout(nowhere))
            quiet.enter_context(contextlib.redirect_stderr(nowhere))
        yield Team(rank, size)
    gc.collect()  # a DistributedDataParallel that outlives its group can abort the process when Python ends
    dist.destroy_process_group()  # not after an error: the others may no longer be there to answer
