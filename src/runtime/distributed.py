"""Several processes in one run, on one machine or many, started by torchrun.

torchrun --nproc_per_node=2 src/train.py --data_path dataset

Every process holds the whole dataset and the whole model and takes a shard of the images. Only the first one prints and
writes.
"""

import contextlib
import gc
import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from runtime.errors import PeerLostError, RunError, UsageError, first_line


class DistributedContext:
    """The processes of a run as one of them sees them.

    Args:
        rank: number of this process, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size, self.first = rank, size, rank == 0

    @property
    def launcher(self) -> str:
        """The command that starts such a run."""
        if self.size == 1:
            return "python"
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        machines = f" --nnodes={self.size // here}" if here < self.size else ""
        return f"torchrun{machines} --nproc_per_node={here}"

    def shard(self, items: Sequence) -> Sequence:
        """This process's items of a list: every `size`-th."""
        return items[self.rank :: self.size]

    def all_gather(self, results: list) -> list:
        """The results for the shards of all processes, in the order of the list before `shard`."""
        if self.size == 1:
            return results
        shards: list = [None] * self.size
        with self.peers_needed():
            dist.all_gather_object(shards, results)
        return [shards[i % self.size][i // self.size] for i in range(sum(map(len, shards)))]

    def broadcast(self, value):
        """The first process's value, in all processes."""
        if self.size == 1:
            return value
        box = [value]
        with self.peers_needed():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Returns when all processes have called it."""
        self.broadcast(None)

    def all_reduce_max(self, *values: int) -> list[int]:
        """The maximum of each value over all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values)
        with self.peers_needed():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, as a new tensor on the CPU."""
        values = values.detach().cpu().clone()
        if self.size > 1:
            with self.peers_needed():
                dist.all_reduce(values)
        return values

    def average_batch_norm(self, model: nn.Module) -> None:
        """Averages the running statistics of batch norms, which differ by the last step's shard."""
        for name, buffer in model.named_buffers() if self.size > 1 else ():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(self.all_reduce_sum(buffer) / self.size)

    def broadcast_batch_norm(self, model: nn.Module) -> None:
        """Gives all processes the first one's running statistics, which are those it saves."""
        if self.size > 1:
            found = {key: value.cpu() for key, value in model.named_buffers() if key.endswith(("_mean", "_var"))}
            model.load_state_dict(self.broadcast(found), strict=False)

    def wrap_model(self, model: nn.Module) -> nn.Module:
        """Wraps a model for training, so that its gradients are averaged over all processes.

        On GPUs its batch norms see the whole batch. torch has no such batch norm for the CPU, where each process
        normalises by its own shard.
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
        """Turns torch's errors about a lost process into PeerLostError."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and _means_lost_peer(error):
                raise PeerLostError(
                    "another process of this run has ended or does not answer; see its output, and start again"
                ) from None
            raise


def _means_lost_peer(error: RuntimeError) -> bool:
    words = ("closed by peer", "reset by peer", "broken pipe", "connection refused", "timed out", "timeout", "nccl")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


SINGLE_PROCESS = DistributedContext()


@contextlib.contextmanager
def init_distributed(device: torch.device, peer_minutes: float = 60):
    """Joins the run that torchrun started. Without torchrun it yields SINGLE_PROCESS.

    Inside, all processes but the first print nothing but errors. On CUDA, `cuda` means the GPU of this process.

    Args:
        device: where to compute.
        peer_minutes: how long to wait for another process, which may be downloading or decoding the dataset for all.

    Yields:
        The DistributedContext.

    Raises:
        UsageError: there are more processes than GPUs here, or the device can't be shared.
    """
    size = int(os.environ.get("WORLD_SIZE", 1)) if {"RANK", "LOCAL_RANK"} <= os.environ.keys() else 1
    if size == 1:
        yield SINGLE_PROCESS
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
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=peer_minutes)
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"the processes could not find each other ({first_line(error)}); check torchrun's flags"
        ) from None
    with contextlib.ExitStack() as quiet:
        if rank:
            nowhere = quiet.enter_context(open(os.devnull, "w"))  # noqa: PTH123
            quiet.enter_context(contextlib.redirect_stdout(nowhere))
            quiet.enter_context(contextlib.redirect_stderr(nowhere))
        yield DistributedContext(rank, size)
    gc.collect()  # a DistributedDataParallel that outlives its group can abort the process when Python ends
    dist.destroy_process_group()  # not after an error: the others may no longer be there to answer
