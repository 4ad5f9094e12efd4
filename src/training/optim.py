"""Optimizers, learning-rate schedules, the moving average of weights, and their states from a checkpoint."""

import copy
import math

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from models.checkpoint import Progress
from training.config import WEIGHT_DECAY, TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Adam; or AdamW, without decay of norms and biases (He et al., 2019: https://arxiv.org/abs/1812.01187).

    Parameters of one learning rate and weight decay form a group; those of the encoder come first.
    """
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        scale = config.encoder_lr_scale if name.startswith("encoder.") else 1.0
        decay = WEIGHT_DECAY if config.optimizer == "adamw" and parameter.ndim > 1 else 0.0
        new = {"params": [], "lr": config.learning_rate * scale, "lr_scale": scale, "weight_decay": decay}
        groups.setdefault((scale, decay), new)["params"].append((name, parameter))
    optimizer = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    # Fused is one pass over all parameters: half the time of a step of Adam on the CPU.
    return optimizer([*groups.values()], fused=next(model.parameters()).device.type in ("cpu", "cuda"))


def build_scheduler(name: str, optimizer: torch.optim.Optimizer, total_steps: int):
    """The learning-rate schedule, or None: plateau steps once an epoch, cosine once a step."""
    if name == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, "max", factor=0.5, patience=3, threshold_mode="abs", min_lr=1e-6
        )
    if name == "cosine":
        warm_up = max(1, total_steps // 10)

        def factor(step: int) -> float:
            done = min(1.0, max(0, step - warm_up) / max(1, total_steps - warm_up))
            return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * done))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return None


def change_learning_rate(optimizer: torch.optim.Optimizer, scheduler, learning_rate: float) -> None:
    """Goes on at another learning rate; with cosine it is the peak of the rest of the curve."""
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = group["initial_lr"] = learning_rate * group["lr_scale"]
        if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            scheduler.base_lrs[number] = group["initial_lr"]
            group["lr"] *= scheduler.lr_lambdas[0](scheduler.last_epoch)


class ModelEMA:
    """An exponential moving average of a network's weights and running statistics (Tarvainen, Valpola, 2017).

    Each update keeps a share `decay` of the average, at first a smaller one, to forget the initial weights soon.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.updates = copy.deepcopy(model).requires_grad_(False).eval(), decay, 0
        # The average's tensors and the network's, which are changed, but never replaced.
        pairs = [*zip(self.model.state_dict().values(), model.state_dict().values())]
        self.averaged = [*zip(*(pair for pair in pairs if pair[0].is_floating_point()))]
        self.counts = [pair for pair in pairs if not pair[0].is_floating_point()]  # of batch norms

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the network's weights after a step."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        get_ema_multi_avg_fn(decay)(*self.averaged, None)
        for average, value in self.counts:
            average.copy_(value)


def score_of(row: dict) -> float:
    """By which the best epoch is chosen, from its row of the log: validation Dice, or where there is none -loss.

    Of epochs with the same Dice, such as 0, the one with the lower validation loss is the best.
    """
    return -row["val_loss"] if row["val_dice"] is None else row["val_dice"]


def restore_scheduler(scheduler, progress: Progress, steps: int) -> None:
    """Takes a new schedule to where a run stands, in epochs of so many steps."""
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        for row in progress.history:
            scheduler.step(score_of(row))
    elif scheduler:
        scheduler.last_epoch = progress.epoch * steps + progress.step


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Loads a saved state. Raises ValueError: it is of other parameters, or of another kind of optimizer."""
    groups = optimizer.state_dict()["param_groups"]
    if [group["param_names"] for group in groups] != [group.get("param_names") for group in saved["param_groups"]]:
        raise ValueError("its optimizer has other parameters")
    for group, before in zip(groups, saved["param_groups"]):
        # All else follows from the settings and, as `fused` does, from the device.
        rates = {name: before[name] for name in ("lr", "initial_lr") if name in group}
        if not all(map(math.isfinite, rates.values())):
            raise ValueError("its learning rate is not finite")
        group |= rates
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    for parameter, state in optimizer.state.items():
        shapes = {"step": torch.Size(), **dict.fromkeys(MOMENTS, parameter.shape)}
        if {name: value.shape for name, value in state.items()} != shapes:
            raise ValueError("its optimizer's state does not fit")
        for name in MOMENTS:  # the fused kernel takes it for granted that memory layouts agree
            state[name] = torch.empty_like(parameter).copy_(state[name])
