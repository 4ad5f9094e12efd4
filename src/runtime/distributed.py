"""Several processes in one run, on one machine or many, started by torchrun.

Every process holds the whole dataset and the whole model and takes a shard of the images; only the first one writes.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from runtime.errors import UsageError

STATISTICS = ("running_mean", "running_var")  # of batch norms, in which processes differ by the last step's shard
PATIENCE = timedelta(hours=1)  # for another process, which may be downloading or decoding the dataset for all


class DistributedContext:
    """The processes of a run, `size` in all, as the one numbered `rank` sees them."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size, self.first = rank, size, rank == 0

    @property
    def launcher(self) -> str:
        """The command that starts such a run."""
        if self.size == 1:
            return "python"
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        machines = f" --nnodes={self.size // local_size}" if local_size < self.size else ""
        return f"torchrun{machines} --nproc_per_node={local_size}"

    def shard(self, items: Sequence) -> Sequence:
        """This process's items of a list: every `size`-th."""
        return items[self.rank :: self.size]

    def all_gather(self, results: list) -> list:
        """The results for the shards of all processes, in the order of the list before `shard`."""
        shards: list = [results] * self.size
        if self.size > 1:
            dist.all_gather_object(shards, results)
        return [shards[i % self.size][i // self.size] for i in range(sum(map(len, shards)))]

    def broadcast(self, value):
        """The first process's value, in all processes."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def all_reduce(self, values: torch.Tensor, operation=dist.ReduceOp.SUM) -> torch.Tensor:
        """The sum, or another operation, of a tensor over all processes, as a new tensor on the CPU."""
        values = values.detach().cpu().clone()
        if self.size > 1:
            dist.all_reduce(values, operation)
        return values

    def all_reduce_max(self, *values: int) -> list[int]:
        """The maximum of each value over all processes."""
        return self.all_reduce(torch.tensor(values), dist.ReduceOp.MAX).tolist()

    def average_batch_norm(self, model: nn.Module) -> None:
        """Averages the running statistics of batch norms."""
        for name, buffer in model.named_buffers() if self.size > 1 else ():
            if name.endswith(STATISTICS):
                buffer.copy_(self.all_reduce(buffer) / self.size)

    def broadcast_batch_norm(self, model: nn.Module) -> None:
        """Gives all processes the first one's running statistics, which are those it saves."""
        if self.size > 1:
            statistics = {name: value.cpu() for name, value in model.named_buffers() if name.endswith(STATISTICS)}
            model.load_state_dict(self.broadcast(statistics), strict=False)

    def wrap_model(self, model: nn.Module) -> nn.Module:
        """Wraps a model for training, so that its gradients are averaged over all processes.

        On GPUs its batch norms see the whole batch. torch has no such batch norm for the CPU.
        """
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        if on_gpu := device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        devices = [device] if on_gpu else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


SINGLE_PROCESS = DistributedContext()


@contextlib.contextmanager
def init_distributed(device: torch.device):
    """Joins the run that torchrun started and yields its DistributedContext, or else SINGLE_PROCESS.

    Inside, all processes but the first print nothing but errors. On CUDA, `cuda` means the GPU of this process.

    Raises UsageError: there are more processes than GPUs here, or the device can't be shared.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "LOCAL_RANK" not in os.environ:
        yield SINGLE_PROCESS
        return
    rank, local_rank, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if device.type == "mps":
        raise UsageError("several processes can't share MPS; add --device cpu, or start one process without torchrun")
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        if local_rank >= gpus:
            raise UsageError(f"there is no GPU for each process; use --nproc_per_node={gpus}, or add --device cpu")
        torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        out, err = (nowhere, nowhere) if rank else (sys.stdout, sys.stderr)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield DistributedContext(rank, size)
    gc.collect()  # a DistributedDataParallel that outlives its group can abort the process when Python ends
    dist.destroy_process_group()  # not after an error: the others may no longer be there to answer
