"""What a network learns: the meaning of its logits, from the loss to the label map.

A label map holds the numbers of classes: 0 is the background, and 255 marks pixels that are neither learned nor scored,
as in Pascal VOC. Of a trimap 1 is the pet and 2 its border; the binary task takes both as one class. Every task decides
pixels by *decision logits* (N, D, H, W): the first channel is foreground against background, above 0 where a pixel is
no background.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from models.names import DENOISING, MAX_CLASSES, SPECIES_CLASSES, are_class_names

BACKGROUND, PET, BORDER, IGNORED = 0, 1, 2, 255
TRIMAP_COLORS = ((255, 127, 14), (31, 119, 180), (40, 40, 40))  # orange, blue, dark


class Task:
    """Pet, border included, against background, by one logit; and what the tasks below share."""

    name, out_channels = "binary", 1
    outputs: dict = {"out_channels": 1}  # arguments of a network's constructor that give it this task
    classes: tuple[str, ...] = ()  # names of the classes, where they have any
    class_scores: dict[int, str] = {}  # names of the scores of single classes, by number
    colors: Sequence[tuple[int, int, int]] = TRIMAP_COLORS  # by number

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """(..., C, H, W) to the same shape."""
        return logits.sigmoid()

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (V, N, C, H, W) of V views to the logits (N, C, H, W) of their mean probabilities."""
        return self.probabilities(logits).mean(0).logit(eps=1e-7)

    def one_hot(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels (N, 1, H, W) to float32 of the logits' shape."""
        return (labels != BACKGROUND).float()

    def cross_entropy(self, logits, probabilities, weights=None, reduction: str = "mean") -> torch.Tensor:
        """Of logits (N, C, H, W) against probabilities of that shape; reduction `none` gives it by pixel, (N, 1, H, W).

        Weights (C,) are those of the classes; a single one is how much more the pet counts than the background.
        """
        return F.binary_cross_entropy_with_logits(logits, probabilities, pos_weight=weights, reduction=reduction)

    def most_likely(self, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities (N, C, H, W) to the likeliest class, one-hot, and its probability, (N, 1, H, W)."""
        return (probabilities > 0.5).float(), torch.maximum(probabilities, 1 - probabilities)

    def counted(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Which pixels are learned and scored, bool (N, 1, H, W); None means all."""
        return None

    def decision_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """(..., C, H, W) to (..., D, H, W), foreground first."""
        return logits

    def label_map(self, decision: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
        """Decision logits (..., D, H, W) to uint8 (..., 1, H, W): those above the threshold are foreground."""
        return (decision.narrow(-3, 0, 1) > threshold).to(torch.uint8)

    def decided(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities (N, C, H, W) to the class of each pixel, (N, H, W)."""
        return probabilities[:, 0] > 0.5 if self.out_channels == 1 else probabilities.argmax(1)


class SoftmaxTask(Task):
    """Classes that exclude each other: a logit for each, in the order of their numbers."""

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(dim=-3)

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        return self.probabilities(logits).mean(0).clamp(min=1e-7).log()

    def one_hot(self, labels: torch.Tensor) -> torch.Tensor:
        return (labels == torch.arange(self.out_channels, device=labels.device).view(1, -1, 1, 1)).float()

    def cross_entropy(self, logits, probabilities, weights=None, reduction="mean") -> torch.Tensor:
        # Not of class indices: torch has no deterministic kernel for those on CUDA.
        loss = F.cross_entropy(logits, probabilities, weights, reduction=reduction)
        return loss if reduction == "mean" else loss[:, None]

    def most_likely(self, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        likeliest, index = probabilities.max(dim=1, keepdim=True)
        return torch.zeros_like(probabilities).scatter_(1, index, 1.0), likeliest


class TrimapTask(SoftmaxTask):
    """Background, pet and border: three logits in this order."""

    name, out_channels, outputs = "trimap", 3, {"out_channels": 3}
    class_scores = {PET: "pet_dice", BACKGROUND: "background_dice", BORDER: "border_dice"}

    def decision_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Pet or border against background; then border against pet."""
        background, pet, border = logits.float().split(1, dim=-3)
        return torch.cat([torch.logaddexp(pet, border) - background, border - pet], dim=-3)

    def label_map(self, decision: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
        labels = super().label_map(decision, threshold)
        return labels.masked_fill_((labels == PET) & (decision.narrow(-3, 1, 1) > 0), BORDER)


class ClassesTask(SoftmaxTask):
    """Named classes, the first of them background. The task is called like them, unless it has a name."""

    def __init__(self, classes: Sequence[str], name: str = ""):
        self.name, self.classes, self.out_channels = name or ",".join(classes), tuple(classes), len(classes)
        self.outputs = {"classes": list(classes)}
        self.class_scores = {number: f"dice_{name}" for number, name in enumerate(classes) if number}
        self.colors = class_colors(len(classes))

    def counted(self, labels: torch.Tensor) -> torch.Tensor:
        return labels != IGNORED

    def decision_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """The largest of the other classes against background; then the other classes."""
        background, classes = logits.float().split([1, self.out_channels - 1], dim=-3)
        return torch.cat([classes.amax(dim=-3, keepdim=True) - background, classes], dim=-3)

    def label_map(self, decision: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
        foreground, classes = decision.split([1, self.out_channels - 1], dim=-3)
        likeliest = classes.argmax(dim=-3, keepdim=True).to(torch.uint8) + 1
        return likeliest.masked_fill_(foreground <= threshold, BACKGROUND)


class DenoisingTask(Task):
    """The noise in each channel of an image, in standard deviations: what pretrain.py learns. It decides no pixel."""

    name, outputs = DENOISING, {"out_channels": 0}

    def __init__(self, channels: int):
        self.out_channels = channels


def class_colors(count: int) -> list[tuple[int, int, int]]:
    """Pascal VOC's palette, black first: the bits of a number, spread over the channels (Everingham et al., 2010)."""
    bits = [[(number >> shift) & 1 for shift in range(9)] for number in range(count)]
    return [tuple(sum(b[3 * i + channel] << (7 - i) for i in range(3)) for channel in range(3)) for b in bits]


SPECIES = ClassesTask(SPECIES_CLASSES, "species")
TASKS: dict[str, Task] = {task.name: task for task in (Task(), TrimapTask(), SPECIES)}


def task_named(classes: str, channels: int = 3) -> Task:
    """The task of a value of `class_names`, or of `denoising` images of so many channels."""
    if classes == DENOISING:
        return DenoisingTask(channels)
    return TASKS.get(classes) or task_of(classes=classes.split(","))


def task_of(out_channels: int = 1, classes: Sequence[str] | None = None, in_channels: int = 3) -> Task:
    """The task of a network, from the arguments of its constructor. Raises ValueError: there is none."""
    if classes is not None:
        if not are_class_names(list(classes)):
            raise ValueError(f"{classes} are no names of classes: 2 to {MAX_CLASSES} different ones")
        return SPECIES if tuple(classes) == SPECIES.classes else ClassesTask(classes)
    tasks = {0: DenoisingTask(in_channels), 1: TASKS["binary"], 3: TASKS["trimap"]}
    if out_channels not in tasks:
        raise ValueError(f"no task has {out_channels} channels; there are {', '.join(TASKS)}")
    return tasks[out_channels]
