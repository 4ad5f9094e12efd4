"""Distillation: a trained network's probabilities are learned beside the masks.

Hinton, Vinyals, Dean, 2015 (https://arxiv.org/abs/1503.02531); pixel by pixel as in Liu et al., 2019
(https://arxiv.org/abs/1903.04197).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from data.pixels import pixels_of
from evaluation.predictor import Predictor
from models.checkpoint import checkpoint_path, open_checkpoint, seen_names, weights_fingerprint
from models.task import Task
from runtime.device import choose_precision
from runtime.errors import UsageError
from training.config import TrainConfig


@dataclass(frozen=True)
class Teacher:
    """A trained network that is not trained further.

    Args:
        predictor: its network, in evaluation mode.
        image_size: side of the images that it was trained at, and sees.
        fingerprint: of its weights.
        seen_names: of the images that it, its initial weights or its teacher were trained on.
    """

    predictor: Predictor
    image_size: int
    fingerprint: str
    seen_names: set[str]

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, S, S) in 0..255 to probabilities (N, C, S, S), as large as the images whatever it sees."""
        side, own = images.shape[-1], (self.image_size, self.image_size)
        if side != self.image_size:
            images = F.interpolate(images.float(), own, mode="bilinear", antialias=True)
        logits = self.predictor.logits(images)
        if side != self.image_size:
            logits = F.interpolate(logits, (side, side), mode="bilinear")
        return self.predictor.task.probabilities(logits)


def load_teacher(config: TrainConfig, device: torch.device, task: Task, saved: str | None) -> Teacher | None:
    """The teacher that --teacher names; None for none.

    Args:
        config: the settings of the run.
        device: where it computes.
        task: what the student learns.
        saved: the fingerprint of the teacher so far, of a run that is resumed.

    Raises:
        UsageError: it learned another task, or is not the teacher so far; see also `open_checkpoint`.
    """
    if config.teacher is None:
        return None
    model, content, path = open_checkpoint(config.teacher, None, config.save_dir)
    own = [checkpoint_path(config.save_dir, config.model_name, kind) for kind in ("best", "last")]
    if saved is None and path.resolve() in [file.resolve() for file in own]:
        raise UsageError(f"this run replaces its teacher {path}; copy that elsewhere, or name another --save_dir")
    if model.task.name != task.name:
        raise UsageError(f"{path} has learned {model.task.name} classes, this run learns {task.name}; use another one")
    if pixels_of(content["preprocessing"]) != config.pixels:
        raise UsageError(f"{path} sees other channels or another window of the images than this run; use another one")
    fingerprint = weights_fingerprint(content["weights"])
    if saved not in (None, fingerprint):
        raise UsageError(f"{path} is not the teacher that this run began with; name that one with --teacher FILE")
    size = content["preprocessing"]["image_size"]
    precision = choose_precision(config.amp, device, size)
    predictor = Predictor(precision.to_device(model), precision)
    return Teacher(predictor, size, fingerprint, seen_names(content))
