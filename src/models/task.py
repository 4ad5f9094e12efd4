"""What a network learns: the meaning of its logits, from loss target to label map.

A trimap is 1 = pet, 2 = background, 3 = border (Parkhi et al., 2012). The binary task takes pet and border as one
class. Named classes are numbered from 0, background, as in the files; in a label map number k stands as k + 2, so that
2 is background in every label map, and 255 is left out, as in Pascal VOC. Every task decides pixels by *decision
logits* (N, D, H, W): the first channel is foreground against background, above 0 where a pixel is no background.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from models.names import DENOISING, MAX_CLASSES, are_class_names

PET, BACKGROUND, BORDER = 1, 2, 3  # the values of a trimap and of a label map
IGNORED = 255  # in a label map of named classes: pixels that are neither learned nor scored
PET_BLUE, BACKGROUND_ORANGE, BORDER_DARK = (31, 119, 180), (255, 127, 14), (40, 40, 40)


class Task:
    """What a network learns: here pet, border included, against background, by one logit. Others override this."""

    name, title, out_channels = "binary", "", 1
    classes: tuple[str, ...] = ()  # names of the classes, where they have any
    target = "mask"  # the entry of a batch that is learned
    class_scores: Mapping[int, str] = {}  # score of each class of its own, by the class's value in a label map
    colors: Mapping[int, tuple] = {PET: PET_BLUE, BACKGROUND: BACKGROUND_ORANGE, BORDER: BORDER_DARK}

    @property
    def outputs(self) -> dict:
        """Arguments of a network's constructor that give it this task."""
        return {"classes": list(self.classes)} if self.classes else {"out_channels": self.out_channels}

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """(..., 1, H, W) to the same shape."""
        return logits.sigmoid()

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (V, N, C, H, W) of V views to the logits (N, C, H, W) of their mean probabilities."""
        return self.probabilities(logits).mean(0).logit(eps=1e-7)

    def one_hot(self, target: torch.Tensor) -> torch.Tensor:
        """Target (N, 1, H, W) to float32 of the logits' shape."""
        return target.float()

    def cross_entropy(
        self,
        logits: torch.Tensor,
        probabilities: torch.Tensor,
        weights: torch.Tensor | None = None,
        reduction: str = "mean",
    ) -> torch.Tensor:
        """Of logits against probabilities of the same shape, mean over pixels and images.

        Args:
            logits: (N, C, H, W).
            probabilities: the same shape.
            weights: (C,), of the classes; of a single one, how much more it counts than the background.
            reduction: `none` gives that of each pixel, (N, 1, H, W).
        """
        return F.binary_cross_entropy_with_logits(logits, probabilities, pos_weight=weights, reduction=reduction)

    def most_likely(self, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities (N, C, H, W) to the likeliest class, one-hot, and its probability, (N, 1, H, W)."""
        return (probabilities > 0.5).float(), torch.maximum(probabilities, 1 - probabilities)

    def counted(self, target: torch.Tensor) -> torch.Tensor | None:
        """Which pixels of a target are learned and scored, bool (N, 1, H, W); None means all."""
        return None

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

    def decided(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities (N, C, H, W) to the class of each pixel, (N, H, W)."""
        return probabilities[:, 0] > 0.5


class SoftmaxTask(Task):
    """Classes that exclude each other: a logit for each, in the order of their values from `first_value` on."""

    target, first_value = "trimap", PET

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(dim=-3)

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        return self.probabilities(logits).mean(0).clamp(min=1e-7).log()

    def one_hot(self, target: torch.Tensor) -> torch.Tensor:
        values = torch.arange(self.first_value, self.first_value + self.out_channels, device=target.device)
        return (target == values.view(1, -1, 1, 1)).float()

    def cross_entropy(self, logits, probabilities, weights=None, reduction="mean") -> torch.Tensor:
        # Not of class indices: torch has no deterministic kernel for those on CUDA.
        loss = F.cross_entropy(logits, probabilities, weights, reduction=reduction)
        return loss if reduction == "mean" else loss[:, None]

    def most_likely(self, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        likeliest, index = probabilities.max(dim=1, keepdim=True)
        return torch.zeros_like(probabilities).scatter_(1, index, 1.0), likeliest

    def foreground(self, target: torch.Tensor) -> torch.Tensor:
        return target != BACKGROUND

    def visible(self, trimap: np.ndarray) -> np.ndarray:
        return trimap

    def decided(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities.argmax(1)


class TrimapTask(SoftmaxTask):
    """Pet, background and border: three logits in this order."""

    name, title, out_channels = "trimap", "three classes", 3
    class_scores = {PET: "pet_dice", BACKGROUND: "background_dice", BORDER: "border_dice"}

    def decision_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Pet or border against background; then border against pet."""
        pet, background, border = logits.float().split(1, dim=-3)
        return torch.cat([torch.logaddexp(pet, border) - background, border - pet], dim=-3)

    def label_map(self, decision: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
        labels = super().label_map(decision, threshold)
        return labels.masked_fill_((labels == PET) & (decision.narrow(-3, 1, 1) > 0), BORDER)


class ClassesTask(SoftmaxTask):
    """Named classes, the first of them background: a logit for each.

    Args:
        classes: their names.
        name: of the task; by default the names.
    """

    first_value = BACKGROUND

    def __init__(self, classes: Sequence[str], name: str = ""):
        self.classes, self.out_channels = tuple(classes), len(classes)
        self.name, self.title = name or ",".join(classes), f"{len(classes)} classes"
        self.class_scores = {value: f"dice_{name}" for value, name in enumerate(classes[1:], start=BACKGROUND + 1)}
        self.colors = {
            BACKGROUND + number: tuple(map(int, color)) for number, color in enumerate(class_colors(len(classes)))
        } | {IGNORED: (255, 255, 255)}

    def counted(self, target: torch.Tensor) -> torch.Tensor:
        return target != IGNORED

    def decision_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """The largest of the other classes against background; then the other classes."""
        background, others = logits.float().split([1, self.out_channels - 1], dim=-3)
        return torch.cat([others.amax(dim=-3, keepdim=True) - background, others], dim=-3)

    def label_map(self, decision: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
        foreground, others = decision.split([1, self.out_channels - 1], dim=-3)
        likeliest = others.argmax(dim=-3, keepdim=True).to(torch.uint8) + (BACKGROUND + 1)
        return likeliest.masked_fill_(foreground <= threshold, BACKGROUND)


class DenoisingTask(Task):
    """The noise in each channel of an image, in its standard deviations: what pretrain.py learns. It decides no pixel.

    Args:
        channels: of the images.
    """

    name = title = DENOISING

    def __init__(self, channels: int = 3):
        self.out_channels = channels

    @property
    def outputs(self) -> dict:
        return {"out_channels": 0}


def class_colors(count: int) -> np.ndarray:
    """Colors of classes, uint8 (count, 3), black first: those of Pascal VOC's palette, which many programs use.

    The bits of a number are spread over the three channels (Everingham et al., 2010).
    """
    numbers = np.arange(count)
    channels = [sum(((numbers >> (3 * i + c)) & 1) << (7 - i) for i in range(3)) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


SPECIES = ClassesTask(("background", "cat", "dog"), "species")
TASKS: dict[str, Task] = {task.name: task for task in (Task(), TrimapTask(), SPECIES)}


def task_named(classes: str, channels: int = 3) -> Task:
    """The task of a value of `class_names`, or of `denoising` images of so many channels."""
    if classes == DENOISING:
        return DenoisingTask(channels)
    return TASKS[classes] if classes in TASKS else task_of(classes=classes.split(","))


def task_of(out_channels: int = 1, classes: Sequence[str] | None = None, in_channels: int = 3) -> Task:
    """The task of a network, from the arguments of its constructor.

    Raises:
        ValueError: there is none.
    """
    if classes is not None:
        if not are_class_names(list(classes)):
            raise ValueError(f"{classes} are no names of classes: 2 to {MAX_CLASSES} different ones")
        return SPECIES if tuple(classes) == SPECIES.classes else ClassesTask(classes)
    if out_channels == 0:
        return DenoisingTask(in_channels)
    for task in TASKS.values():
        if task.out_channels == out_channels and not task.classes:
            return task
    raise ValueError(f"no task has {out_channels} channels; there are {', '.join(TASKS)}")
