"""Learning from masks."""

from functools import partial

import torch

from data.augment import augment_batch, mix, resize_batch
from data.loader import Batches
from data.names import MIXES, planned_sizes
from evaluation.metrics import image_dice, mean_dice, score_counts
from evaluation.predict import Predictor
from evaluation.score import validate
from runtime.errors import UsageError
from runtime.seeding import MIX, step_rng
from training.data import spread_batch
from training.losses import LOSSES, balanced_weights
from training.terms import At, Part


class MasksTerm:
    """A loss of training/losses.py between logits and masks.

    Args:
        batches: of the labelled images.
        config: loss and augmentation.
        predictor: of the network that is trained; it has the task and the device.
        valid_loader: batches of the validation images.
        weights: of the classes, or None.
    """

    name, columns, seen = "masks", ("train_dice",), frozenset()
    score = "valid Dice"  # by which the best epoch is chosen

    def __init__(
        self, batches: Batches, config, predictor: Predictor, valid_loader, weights: list[float] | None = None
    ):
        self.batches, self.valid_loader = batches, valid_loader
        self.task, self.device = predictor.task, predictor.precision.device
        self.loss_fn = partial(LOSSES[config.loss], weights=weights and torch.tensor(weights, device=self.device))
        self.mix, self.seed = next((name for name in config.changes if name in MIXES), None), config.seed
        self.sizes = planned_sizes(config.sizes)  # of the first epochs

    @torch.no_grad()
    def prepare(self, batch: dict, first: Part | None, at: At) -> Part:
        images, labels = augment_batch(batch, self.device)
        if self.mix:
            images, labels = mix(images, labels, self.mix, step_rng(self.seed, *at, MIX))
        if at.epoch < len(self.sizes):
            images, labels = resize_batch(images, labels, self.sizes[at.epoch])
        # Losses are summed over images, and DDP averages gradients over processes.
        return Part(images, labels, scale=self.batches.context.size / self.batches.length(at.step))

    def loss(self, logits: torch.Tensor, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
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
        return {}


def open_masks(setup) -> MasksTerm | None:
    """The term of every run but a pre-training. Raises UsageError: --class_weights do not fit the task or the loss."""
    if setup.config.denoises:
        return None
    net, config, weights = setup.state.net, setup.config, None
    if config.class_weights:
        words, channels = config.class_weights.split(","), config.task.out_channels
        by_class = config.loss in ("dice", "tversky", "focal_tversky")  # these count all classes alike already
        if by_class and (channels == 1 or words == ["auto"]):
            raise UsageError(
                f"--class_weights {config.class_weights} does nothing with --loss {config.loss}; leave it out"
            )
        if words != ["auto"] and len(words) != channels:
            raise UsageError(f"--class_weights: {config.classes} needs {channels} numbers, not {len(words)}")
        labels = spread_batch(setup.parts[0])["labels"] if words == ["auto"] else None
        weights = [float(word) for word in words] if labels is None else balanced_weights(labels, config.task)
    predictor = Predictor(net.model, net.precision)
    return MasksTerm(setup.batches, config, predictor, setup.loader(setup.parts[1]), weights)
