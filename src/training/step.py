"""One step of the optimizer, for any list of terms."""

import contextlib
from dataclasses import dataclass

import torch
from torch import nn

from runtime.device import Precision
from runtime.distributed import SINGLE_PROCESS, DistributedContext
from training.terms import Part, Term

MAX_NORM = 1.0  # of the gradients of all parameters together


@dataclass
class Net:
    """A network on its device and what trains it: `model` is bare, `forward` the same wrapped; see `wrap`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss, for fp16
    precision: Precision
    context: DistributedContext = SINGLE_PROCESS
    compiled: bool = False
    forward: nn.Module | None = None

    def wrap(self) -> None:
        """Makes `forward` of the model: wrapped for several processes, compiled. Needed again when parameters thaw."""
        wrapped = self.context.wrap_model(self.model)
        self.forward = torch.compile(wrapped) if self.compiled else wrapped


def training_step(net: Net, terms: list[Term], parts: list[Part], micro_batches: int = 1) -> torch.Tensor:
    """One step of the optimizer. Nothing in here waits for the device.

    Args:
        net: what is trained.
        terms: what it learns from. The first one has images.
        parts: of the step, one of each term; with several processes this process's shares.
        micro_batches: the batch is computed in so many, and gradients are accumulated: less memory.

    Returns:
        float (K,) on the device: the loss, and the sums of the terms' columns, in order.
    """
    net.optimizer.zero_grad(set_to_none=True)
    rows = []
    for number, shares in enumerate(zip(*(part.split(micro_batches) for part in parts)), start=1):
        # Gradients are exchanged between processes once, with the last piece.
        exchanges = number == micro_batches or net.context.size == 1
        with contextlib.nullcontext() if exchanges else net.forward.no_sync():
            images = [net.precision.prepare_images(part.images) for part in shares if part.images is not None]
            with net.precision.autocast():
                logits = net.forward(images[0] if len(images) == 1 else torch.cat(images)).float()
            outputs = logits.split([len(batch) for batch in images])
            own, loss, metrics = iter(outputs), logits.new_zeros(()), []
            for term, part in zip(terms, shares):
                value, sums = term.loss(outputs[0] if part.images is None else next(own), part)
                loss = loss + part.scale * value
                metrics.append(sums)
            net.scaler.scale(loss).backward()
        rows.append(torch.cat([loss.detach()[None], *metrics]))
    net.scaler.unscale_(net.optimizer)
    nn.utils.clip_grad_norm_(net.model.parameters(), MAX_NORM)
    net.scaler.step(net.optimizer)
    net.scaler.update()
    return torch.stack(rows).sum(0)
