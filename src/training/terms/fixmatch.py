"""Learning from images without masks: the averaged network labels them, and the network learns that.

FixMatch (Sohn et al., 2020: https://arxiv.org/abs/2001.07685) for pixels, the base of UniMatch (Yang et al., 2023:
https://arxiv.org/abs/2208.09910): labels come from weakly augmented images, those of confident pixels alone count, and
they are learned on strongly augmented ones, half of them with a rectangle of another image.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from data.augment import apply_augmentations, apply_colors, draw_augmentation, draw_colors, mix, resize_batch
from data.check import require_readable
from data.copies import find_copies, find_near_copies
from data.dataset import ImageDataset
from data.distortions import apply_distortions, draw_distortions
from data.inputs import list_images
from data.layout import fingerprint
from data.loader import Batches, require_shares
from data.names import STRENGTHS
from evaluation.metrics import image_dice, score_counts
from evaluation.predict import Predictor
from runtime.device import copy_to_device
from runtime.distributed import SINGLE_PROCESS, DistributedContext
from runtime.errors import UsageError, plural
from runtime.seeding import UNLABELED, sample_rng, step_rng
from training.config import TrainConfig
from training.data import Data
from training.step import Net
from training.terms import Batch, Term

REST = "rest"  # not a folder, but the training images whose masks are not used
CONFIDENCE = 0.95  # probability of the likeliest class from which on a pixel counts
STRONG_COLORS, STRONG = 0.5, "gamma,blur"  # of the strongly augmented images


class UnlabeledBatches(Batches):
    """As many images a step, in passes over all of them, each in an order of its own.

    Read is `image`; `affine`, of the weak augmentation; `strong_affine`, `colors`, `distortions` and `seeds`, of the
    strong one; and `labels` where these are known. `steps` are those of an epoch of the labelled images.
    """

    def __init__(self, dataset, batch_size: int, seed: int, steps: int, context: DistributedContext = SINGLE_PROCESS):
        self.dataset, self.batch_size, self.seed, self.steps, self.context = dataset, batch_size, seed, steps, context
        require_shares(batch_size, context)

    def length(self, step: int) -> int:
        return self.batch_size

    def keys(self, epoch: int, step: int) -> list[tuple[int, int]]:
        """(pass, index) of this process's images in a batch."""
        first = (epoch * self.steps + step) * self.batch_size
        places = [divmod(first + i, len(self.dataset)) for i in range(self.batch_size)]
        orders = {
            cycle: np.random.default_rng([self.seed, cycle, UNLABELED]).permutation(len(self.dataset))
            for cycle in {cycle for cycle, _ in places}
        }
        return self.context.shard([(cycle, int(orders[cycle][position])) for cycle, position in places])

    def read(self, epoch: int, step: int) -> dict:
        keys = self.keys(epoch, step)
        batch, draws = self.dataset.read_batch(keys), []
        for cycle, index in keys:
            rng = sample_rng(self.seed, cycle, self.dataset.samples[index].name, UNLABELED)
            affines = [draw_augmentation(rng, *STRENGTHS[strength]) for strength in ("light", "strong")]
            colors, distortions = draw_colors(rng, STRONG_COLORS), draw_distortions(rng, STRONG, 1.0)
            draws.append((*affines, colors, distortions, rng.integers(2**62)))
        names = ("affine", "strong_affine", "colors", "distortions", "seeds")
        return batch | {name: torch.from_numpy(np.stack(values)) for name, values in zip(names, zip(*draws))}


class FixMatchTerm(Term):
    """Cross-entropy between logits of strongly augmented images and what the averaged network, `predictor`, labels.

    Pixels count from a probability `confidence` of the likeliest class on. Of `labelled` images its labels are scored.
    """

    name = "unlabeled"

    def __init__(self, batches: UnlabeledBatches, predictor: Predictor, confidence=CONFIDENCE, labelled=False):
        self.batches, self.predictor, self.confidence, self.labelled = batches, predictor, confidence, labelled
        self.columns = ("confident_share", "pseudo_dice") if labelled else ("confident_share",)

    @torch.no_grad()
    def prepare(self, read: dict, first: Batch, epoch: int, step: int) -> Batch:
        """See Term. Images have the size of the first term's; the target is the labels, one-hot (N, C, H, W)."""
        predictor, batches = self.predictor, self.batches
        task, device = predictor.task, predictor.precision.device
        names = ("image", "affine", "strong_affine", "colors")
        images, affine, strong_affine, colors = (copy_to_device(read[name], device) for name in names)
        truth = copy_to_device(read["labels"], device) if self.labelled else torch.zeros_like(images[:, :1])
        images, truth = apply_augmentations(images, truth, affine)
        images, truth = resize_batch(images, truth, first.images.shape[-1])
        batches.context.broadcast_batch_norm(predictor.model)
        logits = predictor.logits(images)
        labels, likeliest = task.most_likely(task.probabilities(logits))
        confident = (likeliest >= self.confidence).float()
        metrics = [confident.mean(dim=(1, 2, 3))]
        if self.labelled:
            metrics.append(image_dice(score_counts(task, task.decision_logits(logits), truth)))
        targets = torch.cat([labels, confident], dim=1).to(torch.uint8)
        images, targets = apply_augmentations(images, targets, strong_affine)
        images, _ = apply_distortions(apply_colors(images, colors), truth, read["distortions"], read["seeds"])
        images, targets = mix(images, targets, "cutmix", step_rng(batches.seed, epoch, step, UNLABELED))
        scale = batches.context.size / batches.batch_size
        return Batch(images, targets[:, :-1].float(), targets[:, -1:] > 0, torch.stack(metrics, dim=1), scale)

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = self.predictor.task.cross_entropy(logits, batch.target, None, "none") * batch.counted
        return pixels.flatten(1).mean(1).sum(), batch.metrics.sum(0)

    def record(self) -> dict:
        return {"fingerprint": fingerprint(self.batches.dataset.samples)}


def open_fixmatch(config: TrainConfig, net: Net, data: Data, steps: int) -> FixMatchTerm:
    """The term of --unlabeled, for epochs of so many steps. Raises UsageError: there are no images, or no --ema."""
    if not config.ema:
        raise UsageError("--unlabeled needs an average of the weights, which labels the images; add --ema")
    labelled = config.unlabeled == REST
    dataset, copies = (open_rest if labelled else open_folder)(config, data)
    left_out = f", {copies} copies of validation and test images left out" if copies else ""
    if not len(dataset):
        raise UsageError(f"--unlabeled {config.unlabeled} gives no image{left_out}; name others, or more")
    print(f"{plural(len(dataset), 'image')} without masks{left_out}, {config.unlabeled}.", flush=True)
    batches = UnlabeledBatches(dataset, config.batch_size, config.seed, steps, net.context)
    term = FixMatchTerm(batches, Predictor(net.ema.model, net.precision), labelled=labelled)
    term.seen = {sample.name for sample in dataset.samples} if labelled else set()
    return term


def open_folder(config: TrainConfig, data: Data) -> tuple[ImageDataset, int]:
    """The images of a folder without copies of validation and test images; and how many were left out."""
    scored = [*data.valid.samples, *data.test.samples]
    samples = list_images(Path(config.unlabeled))
    require_readable(samples, config.view, config.unlabeled)
    ours = set(samples)
    groups = [*find_copies([*samples, *scored]), *find_near_copies(samples, scored)]
    copies = {sample for group in groups if not ours.issuperset(group) for sample in group} & ours
    return ImageDataset([sample for sample in samples if sample not in copies], config.view), len(copies)


def open_rest(config: TrainConfig, data: Data) -> tuple[ImageDataset, int]:
    """The images that --train_fraction leaves out; else as `open_folder`. Their masks are scored, not learned."""
    if config.train_fraction == 1:
        raise UsageError("--unlabeled rest are the images that --train_fraction leaves out; give one below 1")
    learned = {sample.name for sample in data.train.samples}
    scored = {sample.name for sample in [*data.valid.samples, *data.test.samples]}
    split = data.dataset.split(config.split, config.seed, config.fold_numbers)
    rest = [sample for sample in split.train if sample.name not in learned]
    pairs = [{sample.name for sample in pair} for pair in data.dataset.near_copies]
    near = set().union(*(pair for pair in pairs if pair & scored))
    kept = [sample for sample in rest if sample.name not in near]
    return dataclasses.replace(data.train, samples=kept, mode="rest"), len(rest) - len(kept)
