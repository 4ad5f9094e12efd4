"""An exponential moving average of a network's weights, which is steadier than the weights of any one step."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Keeps the average beside a network that is being trained (Polyak, Juditsky, 1992; Tarvainen, Valpola, 2017).

    Batch norms' running statistics are averaged like weights. In the beginning the average follows more closely than
    `decay` says, so that it soon forgets the weights that were drawn.

    Args:
        model: the network, on its device.
        decay: what is kept of the average at each update; 0.99 averages over about the last hundred steps.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.updates = copy.deepcopy(model).requires_grad_(False).eval(), decay, 0
        self.floating: list[tuple] = []  # pairs of tensors, the average's and the network's
        self.counting: list[tuple] = []

    def update(self, model: nn.Module) -> None:
        """Takes the network's weights in, after a step."""
        if not self.floating:  # found once: neither network's tensors are ever replaced, only changed
            for pair in zip(self.model.state_dict().values(), model.state_dict().values()):
                (self.floating if pair[0].is_floating_point() else self.counting).append(pair)
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        with torch.no_grad():
            get_ema_multi_avg_fn(decay)(*map(list, zip(*self.floating)), None)
            for mine, theirs in self.counting:
                mine.copy_(theirs)
