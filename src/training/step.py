"""One step of the optimizer, for any list of terms, and the figures of an epoch of steps."""

import contextlib
import math
from dataclasses import dataclass, field

import torch
from torch import nn

from runtime.device import Precision
from runtime.distributed import SINGLE_PROCESS, DistributedContext
from runtime.errors import RunError
from training.optim import ModelEMA
from training.terms import Batch, Term

MAX_NORM = 1.0  # of the gradients of all parameters together


@dataclass
class Net:
    """A network on its device and what trains it: `model` is bare, `forward` the same wrapped for several processes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss, for fp16
    precision: Precision
    context: DistributedContext = SINGLE_PROCESS
    ema: ModelEMA | None = None  # moving average of the weights
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    forward: nn.Module = field(init=False)

    def __post_init__(self):
        self.wrap()

    def wrap(self) -> None:
        """Makes `forward` of the model. Needed again when parameters thaw."""
        self.forward = self.context.wrap_model(self.model)


def training_step(net: Net, terms: list[Term], batches: list[Batch], micro_batches: int = 1) -> torch.Tensor:
    """One step of the optimizer, in which nothing waits for the device.

    `batches` are this process's shares, one of each term. Computed in `micro_batches` they take less memory.

    Returns:
        float (K,) on the device: the loss, and of each term the number of images and the sums of its columns.
    """
    net.optimizer.zero_grad()
    rows = []
    for number, shares in enumerate(zip(*(batch.split(micro_batches) for batch in batches)), start=1):
        # Gradients are exchanged between processes once, with the last micro-batch.
        exchanges = number == micro_batches or net.context.size == 1
        with contextlib.nullcontext() if exchanges else net.forward.no_sync():
            images = [net.precision.prepare_images(share.images) for share in shares if share.images is not None]
            with net.precision.autocast():
                logits = net.forward(images[0] if len(images) == 1 else torch.cat(images)).float()
            outputs = logits.split([len(part) for part in images])
            own, loss, metrics = iter(outputs), logits.new_zeros(()), []
            for term, share in zip(terms, shares):
                of_share = outputs[0] if share.images is None else next(own)
                value, sums = term.loss(of_share, share)
                loss = loss + share.scale * value
                metrics += [logits.new_full((), len(of_share)), *sums]
            net.scaler.scale(loss).backward()
        rows.append(torch.stack([loss.detach(), *metrics]))
    net.scaler.unscale_(net.optimizer)
    nn.utils.clip_grad_norm_(net.model.parameters(), MAX_NORM)
    net.scaler.step(net.optimizer)
    net.scaler.update()
    return torch.stack(rows).sum(0)


class MetricLogger:
    """Averages over the images of an epoch: of the loss, and of the columns of all terms.

    `sums`, float64 (K,), of this process: loss times images, images, then for each term its images and its columns. On
    a GPU the metrics of 16 steps are fetched at once, because the program waits there for the GPU.
    """

    def __init__(self, terms: list[Term], sums: torch.Tensor | None = None):
        self.columns, self.waiting = [term.columns for term in terms], []
        self.sums = torch.zeros(2 + sum(len(columns) + 1 for columns in self.columns), dtype=torch.float64)
        if sums is not None:
            self.sums.add_(sums)

    def add(self, metrics: torch.Tensor, images: float, place: str) -> None:
        """Takes what `training_step` returns of a step of so many images; `place` says which step it is."""
        self.waiting.append((metrics, images, place))
        if metrics.device.type == "cpu" or len(self.waiting) == 16:
            self.fetch()

    def fetch(self) -> None:
        """Adds what waits to the sums, step by step. Raises RunError: a loss is not finite."""
        for metrics, images, place in self.waiting:
            loss, *sums = metrics.tolist()
            if not math.isfinite(loss):
                raise RunError(f"the loss is {loss} in {place}; use a smaller --learning_rate")
            self.sums += torch.tensor([loss * images, images, *sums], dtype=torch.float64)
        self.waiting.clear()

    def averages(self, sums: torch.Tensor | None = None) -> dict[str, float]:
        """The columns of the log; of the `sums` of all processes, or else of this one."""
        loss, images, *sums = (self.sums if sums is None else sums).tolist()
        row = {"train_loss": loss / images}
        for columns in self.columns:
            images, *values = sums[: len(columns) + 1]
            row |= {name: value / images for name, value in zip(columns, values)}
            sums = sums[len(columns) + 1 :]
        return row
