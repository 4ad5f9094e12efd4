"""Distillation: a trained network's probabilities are learned beside the masks.

Hinton, Vinyals, Dean, 2015 (https://arxiv.org/abs/1503.02531); pixel by pixel as in Liu et al., 2019
(https://arxiv.org/abs/1903.04197).
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from data.view import View
from evaluation.predict import Predictor
from models.checkpoint import open_checkpoint
from runtime.device import choose_precision
from runtime.errors import UsageError
from training.config import TrainConfig
from training.step import Net
from training.terms import Batch, Term


class DistillTerm(Term):
    """Cross-entropy between logits and the probabilities of a teacher, which sees images of its own size."""

    name = "teacher"

    def __init__(self, predictor: Predictor, image_size: int, fingerprint: str = "", seen: set[str] = frozenset()):
        self.predictor, self.image_size, self.fingerprint, self.seen = predictor, image_size, fingerprint, seen

    @torch.no_grad()
    def prepare(self, read: None, first: Batch, epoch: int, step: int) -> Batch:
        """See Term. The target is the teacher's probabilities, (N, C, S, S), as large as the first term's images."""
        images, size, own = first.images, first.images.shape[-2:], (self.image_size, self.image_size)
        if size != own:
            images = F.interpolate(images.float(), own, mode="bilinear", antialias=True)
        logits = self.predictor.logits(images)
        if size != own:
            logits = F.interpolate(logits, size, mode="bilinear")
        return Batch(None, self.predictor.task.probabilities(logits), scale=first.scale)

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, tuple]:
        return self.predictor.task.cross_entropy(logits, batch.target) * len(logits), ()

    def record(self) -> dict:
        return {"fingerprint": self.fingerprint}


def open_distillation(config: TrainConfig, net: Net) -> DistillTerm:
    """The term of --teacher. Raises UsageError: it learned another task; see also `open_checkpoint`."""
    model, checkpoint, path = open_checkpoint(config.teacher, None, config.save_dir)
    own = path.parent.resolve() == Path(config.save_dir).resolve() and path.stem.startswith(f"{config.model_name}_")
    if config.resume is None and own:
        raise UsageError(f"this run may rename its teacher {path}; copy that elsewhere, or name another --save_dir")
    learned, classes = model.task.name, config.task.name
    if learned != classes:
        raise UsageError(f"{path} has learned {learned} classes, this run learns {classes}; use another one")
    if View.of(checkpoint, config.image_size) != config.view:
        raise UsageError(f"{path} sees other channels of the images than this run; use another one")
    precision = choose_precision(config.amp, net.precision.device, checkpoint.image_size)
    predictor = Predictor(precision.to_device(model), precision)
    return DistillTerm(predictor, checkpoint.image_size, checkpoint.fingerprint(), checkpoint.seen_names())
