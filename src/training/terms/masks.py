"""Learning from masks."""

from functools import partial

import torch

from data.augment import augment_batch, mix, resize_batch
from data.loader import Batches, make_loader, shard_batches
from data.names import MIXES, planned_sizes
from evaluation.metrics import image_dice, mean_dice, score_counts
from evaluation.predict import Predictor
from evaluation.score import validate
from runtime.errors import UsageError
from runtime.seeding import MIX, step_rng
from training.config import TrainConfig
from training.data import Data, spread_batch
from training.losses import LOSSES, balanced_weights
from training.step import Net
from training.terms import Batch, Term


class MasksTerm(Term):
    """A loss of training/losses.py between logits and masks; `predictor` knows the network's task and its device."""

    name, columns = "masks", ("train_dice",)
    score = "valid Dice"  # by which the best epoch is chosen

    def __init__(self, batches: Batches, config: TrainConfig, predictor: Predictor, valid_loader=None, weights=None):
        self.batches, self.valid_loader = batches, valid_loader
        self.task, self.device = predictor.task, predictor.precision.device
        self.loss_fn = partial(LOSSES[config.loss], weights=weights and torch.tensor(weights, device=self.device))
        self.mix, self.seed = next((name for name in config.changes if name in MIXES), None), config.seed
        self.sizes = planned_sizes(config.sizes)  # of the first epochs

    @torch.no_grad()
    def prepare(self, read: dict, first: None, epoch: int, step: int) -> Batch:
        images, labels = augment_batch(read, self.device)
        if self.mix:
            images, labels = mix(images, labels, self.mix, step_rng(self.seed, epoch, step, MIX))
        if epoch < len(self.sizes):
            images, labels = resize_batch(images, labels, self.sizes[epoch])
        # Losses are summed over images, and DDP averages gradients over processes.
        return Batch(images, labels, scale=self.batches.context.size / self.batches.length(step))

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        with torch.no_grad():
            dice = image_dice(score_counts(self.task, self.task.decision_logits(logits), batch.target)).sum()
        return self.loss_fn(logits, batch.target, self.task) * len(logits), [dice]

    def validate(self, predictor: Predictor, after_batch) -> tuple[float, float]:
        """Loss and Dice of the validation images."""
        counts, loss = validate(predictor, self.valid_loader, self.loss_fn, after_batch, self.batches.context)
        return loss, mean_dice(counts, self.task)


def open_masks(config: TrainConfig, net: Net, data: Data, batches: Batches) -> MasksTerm:
    """The first term of every run but a pre-training."""
    valid_batches = shard_batches(data.valid, config.batch_size, net.context)
    valid_loader = make_loader(data.valid, net.precision.device, valid_batches, config.num_workers)
    return MasksTerm(batches, config, Predictor(net.model, net.precision), valid_loader, class_weights(config, data))


def class_weights(config: TrainConfig, data: Data) -> list[float] | None:
    """The weights of --class_weights. Raises UsageError: they do not fit the task or the loss."""
    given, channels = config.class_weights, config.task.out_channels
    if given is None:
        return None
    by_class = config.loss in ("dice", "tversky", "focal_tversky")  # these count all classes alike already
    if by_class and (channels == 1 or given == "auto"):
        raise UsageError(f"--class_weights {given} does nothing with --loss {config.loss}; leave it out")
    if given == "auto":
        return balanced_weights(spread_batch(data.train)["labels"], config.task)
    weights = [float(word) for word in given.split(",")]
    if len(weights) != channels:
        raise UsageError(f"--class_weights: {config.classes} needs {channels} numbers, not {len(weights)}")
    return weights
