"""What a network learns: the meaning of its logits, from loss target to label map.

A trimap is 1 = pet, 2 = background, 3 = border (Parkhi et al., 2012). The binary task takes pet and border as one
class. Every task decides pixels by *decision logits* (N, D, H, W): the first channel is foreground against background,
so that a threshold means the same for all tasks.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

PET, BACKGROUND, BORDER = 1, 2, 3  # the values of a trimap and of a label map
PET_BLUE, BACKGROUND_ORANGE, BORDER_DARK = (31, 119, 180), (255, 127, 14), (40, 40, 40)
COLORS = {PET: PET_BLUE, BACKGROUND: BACKGROUND_ORANGE, BORDER: BORDER_DARK}


class Task:
    """What a network learns: here pet, border included, against background, by one logit. Others override this."""

    name, title, out_channels = "binary", "", 1
    target = "mask"  # the entry of a batch that is learned
    class_scores: Mapping[int, str] = {}  # score of each class of its own, by the class's value in a trimap

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """(..., 1, H, W) to the same shape."""
        return logits.sigmoid()

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (V, N, C, H, W) of V views to the logits (N, C, H, W) of their mean probabilities."""
        return self.probabilities(logits).mean(0).logit(eps=1e-7)

    def one_hot(self, target: torch.Tensor) -> torch.Tensor:
        """Target (N, 1, H, W) to float32 of the logits' shape."""
        return target.float()

    def cross_entropy(self, logits: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """Of logits against probabilities of the same shape, mean over pixels and images."""
        return F.binary_cross_entropy_with_logits(logits, probabilities)

    def foreground(self, target: torch.Tensor) -> torch.Tensor:
        """Where a target is pet or border, bool."""
        return target != 0

    def decision_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """(..., C, H, W) to (..., D, H, W), foreground first."""
        return logits

    def label_map(self, decision: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
        """Decision logits (..., D, H, W) to uint8 (..., 1, H, W) of PET, BACKGROUND and, if learned, BORDER.

        Args:
            decision: from `decision_logits`.
            threshold: decision logits above it are foreground; 0 is probability 0.5.
        """
        foreground = decision.narrow(-3, 0, 1) > threshold
        return torch.full_like(foreground, BACKGROUND, dtype=torch.uint8).masked_fill_(foreground, PET)

    def visible(self, trimap: np.ndarray) -> np.ndarray:
        """A trimap as this task knows it."""
        return np.where(trimap == BORDER, np.uint8(PET), trimap)

    def foreground_probability(self, probabilities: np.ndarray) -> np.ndarray:
        """(N, C, H, W) to (N, H, W)."""
        return probabilities[:, 0]


class TrimapTask(Task):
    """Pet, background and border: three logits in this order."""

    name, title, out_channels, target = "trimap", "three classes", 3, "trimap"
    class_scores = {PET: "pet_dice", BACKGROUND: "background_dice", BORDER: "border_dice"}

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(dim=-3)

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        return self.probabilities(logits).mean(0).clamp(min=1e-7).log()

    def one_hot(self, target: torch.Tensor) -> torch.Tensor:
        return (target == torch.arange(1, 4, device=target.device).view(1, 3, 1, 1)).float()

    def cross_entropy(self, logits: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        # Not of class indices: torch has no deterministic kernel for those on CUDA.
        return F.cross_entropy(logits, probabilities)

    def foreground(self, target: torch.Tensor) -> torch.Tensor:
        return target != BACKGROUND

    def decision_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Pet or border against background; then border against pet."""
        pet, background, border = logits.float().split(1, dim=-3)
        return torch.cat([torch.logaddexp(pet, border) - background, border - pet], dim=-3)

    def label_map(self, decision: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
        labels = super().label_map(decision, threshold)
        return labels.masked_fill_((labels == PET) & (decision.narrow(-3, 1, 1) > 0), BORDER)

    def visible(self, trimap: np.ndarray) -> np.ndarray:
        return trimap

    def foreground_probability(self, probabilities: np.ndarray) -> np.ndarray:
        return 1 - probabilities[:, 1]


TASKS: dict[str, Task] = {task.name: task for task in (Task(), TrimapTask())}


def task_of(out_channels: int) -> Task:
    """The task of a network by the channels of its logits.

    Raises:
        ValueError: there is none.
    """
    for task in TASKS.values():
        if task.out_channels == out_channels:
            return task
    raise ValueError(f"no task has {out_channels} channels; there are {', '.join(TASKS)}")
