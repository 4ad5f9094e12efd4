"""Learning from masks."""

from functools import partial

import torch

from data.augment import BatchAugmentation, augment_batch
from data.loader import Batches
from data.names import planned_sizes
from evaluation.evaluator import validate
from evaluation.metrics import image_dice, mean_dice, score_counts
from evaluation.predictor import Predictor
from training.losses import LOSSES
from training.terms import At, Part


class MasksTerm:
    """A loss of training/losses.py between logits and masks.

    Args:
        batches: of the labelled images.
        config: loss, class_weights and augmentation.
        predictor: of the network that is trained; it has the task and the device.
        valid_loader: batches of the validation images.
    """

    name, columns, seen = "masks", ("train_dice",), frozenset()
    score = "valid Dice"  # by which the best epoch is chosen

    def __init__(self, batches: Batches, config, predictor: Predictor, valid_loader):
        self.batches, self.valid_loader = batches, valid_loader
        self.task, self.device = predictor.task, predictor.precision.device
        words = config.class_weights and config.class_weights.split(",")
        weights = words and torch.tensor([float(word) for word in words], device=self.device)
        self.loss_fn = partial(LOSSES[config.loss], weights=weights)
        sizes = tuple(planned_sizes(config.progressive))
        self.augmentation = BatchAugmentation(
            config.mix, config.multi_scale, predictor.model.stride, config.seed, sizes
        )

    @torch.no_grad()
    def prepare(self, batch: dict, first: Part | None, at: At) -> Part:
        """See Term."""
        images, targets = augment_batch(batch, self.task, self.augmentation, self.device, *at)
        return Part(images, targets, scale=self.batches.context.size / self.batches.length(at.step))

    def loss(self, logits: torch.Tensor, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        """See Term."""
        with torch.no_grad():
            dice = image_dice(score_counts(self.task, self.task.decision_logits(logits), part.target)).sum()
        loss = self.loss_fn(logits, part.target, self.task) * len(logits)
        return loss, torch.stack([torch.full_like(dice, len(logits)), dice])

    def validate(self, predictor: Predictor, after_batch) -> tuple[float, float]:
        """Loss and Dice of the validation images."""
        context = self.batches.context
        counts, loss = validate(predictor, self.valid_loader, self.loss_fn, after_batch, context)
        return loss, mean_dice(counts, self.task)

    def record(self) -> dict:
        """See Term."""
        return {}


def open_masks(setup) -> MasksTerm | None:
    """The term of every run but a pre-training."""
    if setup.config.denoises:
        return None
    net = setup.state.net
    return MasksTerm(setup.batches, setup.config, Predictor(net.model, net.precision), setup.loader(setup.parts[1]))
