"""Distillation: a trained network's probabilities are learned beside the masks.

Hinton, Vinyals, Dean, 2015 (https://arxiv.org/abs/1503.02531); pixel by pixel as in Liu et al., 2019
(https://arxiv.org/abs/1903.04197).
"""

import torch
import torch.nn.functional as F

from data.view import View
from evaluation.predict import Predictor
from models.checkpoint import checkpoint_path, open_checkpoint
from runtime.device import choose_precision
from runtime.errors import UsageError
from training.terms import At, Part


class DistillTerm:
    """Cross-entropy between logits and the probabilities of a teacher, which is not trained further.

    Args:
        predictor: its network is the teacher, in evaluation mode.
        image_size: side of the images that the teacher was trained at, and sees.
        fingerprint: of its weights.
        seen: names of the images that it was trained on.
    """

    name, batches, columns = "teacher", None, ()

    def __init__(self, predictor: Predictor, image_size: int, fingerprint: str = "", seen: set[str] = frozenset()):
        self.predictor, self.image_size, self.fingerprint, self.seen = predictor, image_size, fingerprint, seen

    @torch.no_grad()
    def prepare(self, batch: None, first: Part, at: At) -> Part:
        """The probabilities of the first term's images, (N, C, S, S)."""
        return Part(None, self.probabilities(first.images), scale=first.scale)

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

    def loss(self, logits: torch.Tensor, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        loss = self.predictor.task.cross_entropy(logits, part.target) * len(logits)
        return loss, logits.new_full((1,), len(logits))

    def record(self) -> dict:
        return {"fingerprint": self.fingerprint}


def open_distillation(setup) -> DistillTerm | None:
    """The term of --teacher; None without one.

    Raises:
        UsageError: it learned another task; see also `open_checkpoint`.
    """
    config = setup.config
    if config.teacher is None:
        return None
    model, checkpoint, path = open_checkpoint(config.teacher, None, config.save_dir)
    own = [checkpoint_path(config.save_dir, config.model_name, kind).resolve() for kind in ("best", "last")]
    if setup.source.resumed is None and path.resolve() in own:
        raise UsageError(f"this run replaces its teacher {path}; copy that elsewhere, or name another --save_dir")
    if model.task.name != config.task.name:
        raise UsageError(
            f"{path} has learned {model.task.name} classes, this run learns {config.task.name}; use another one"
        )
    if View.of(checkpoint, config.image_size) != config.view:
        raise UsageError(f"{path} sees other channels of the images than this run; use another one")
    precision = choose_precision(config.amp, setup.state.net.precision.device, checkpoint.image_size)
    predictor = Predictor(precision.to_device(model), precision)
    return DistillTerm(predictor, checkpoint.image_size, checkpoint.fingerprint(), checkpoint.seen_names())
