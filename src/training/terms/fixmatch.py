"""Learning from images without masks: the averaged network labels them, and the network learns that.

FixMatch (Sohn et al., 2020: https://arxiv.org/abs/2001.07685) for pixels, the base of UniMatch (Yang et al., 2023:
https://arxiv.org/abs/2208.09910): labels come from weakly augmented images, those of confident pixels alone count, and
they are learned on strongly augmented ones: turned, scaled and colored further, and half of them with a rectangle of
another image.
"""

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
from training.terms import At, Part

REST = "rest"  # not a folder, but the training images whose masks are not used
CONFIDENCE = 0.95  # probability of the likeliest class from which on a pixel counts
STRONG_COLORS, STRONG = 0.5, "gamma,blur"  # of the strongly augmented images


class UnlabeledBatches(Batches):
    """As many images a step, in passes over all of them, each in an order of its own.

    A batch has `image`; `affine`, of the weak augmentation; `strong_affine`, `colors`, `distortions` and `seeds`, of
    the strong one; and `labels` where these are known. `steps` are those of an epoch of the labelled images.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        seed: int,
        steps: int,
        context: DistributedContext = SINGLE_PROCESS,
    ):
        self.dataset, self.batch_size, self.seed, self.steps, self.context = dataset, batch_size, seed, steps, context
        require_shares(batch_size, context)

    def length(self, step: int) -> int:
        return self.batch_size

    def keys(self, epoch: int, step: int) -> list[tuple[int, int]]:
        """(pass, index) of this process's images in a batch."""
        first, size = (epoch * self.steps + step) * self.batch_size, len(self.dataset)
        keys, orders = [], {}
        for place in range(first, first + self.batch_size):
            cycle, position = divmod(place, size)
            if cycle not in orders:
                orders[cycle] = np.random.default_rng([self.seed, cycle, UNLABELED]).permutation(size)
            keys.append((cycle, int(orders[cycle][position])))
        return self.context.shard(keys)

    def read(self, epoch: int, step: int) -> dict:
        keys = self.keys(epoch, step)
        batch, draws = self.dataset.read_batch(keys), []
        for cycle, index in keys:
            rng = sample_rng(self.seed, cycle, self.dataset.samples[index].name, UNLABELED)
            affines = [draw_augmentation(rng, *STRENGTHS[strength]) for strength in ("light", "strong")]
            colors, distortions = draw_colors(rng, STRONG_COLORS), draw_distortions(rng, STRONG, 1.0)
            draws.append((*affines, colors, distortions, rng.integers(2**62)))
        names = ("affine", "strong_affine", "colors", "distortions", "seeds")
        return {**batch, **{name: torch.from_numpy(np.stack(values)) for name, values in zip(names, zip(*draws))}}


class FixMatchTerm:
    """Cross-entropy between logits of strongly augmented images and labels of the averaged network.

    Args:
        batches: of the images.
        predictor: of the averaged network.
        confidence: probability of the likeliest class from which on a pixel counts.
        labelled: labels are known; they score those of the network.
        fingerprint: of the images' names and sizes.
        seen: names of images of the dataset.
    """

    name = "unlabeled"

    def __init__(
        self,
        batches: UnlabeledBatches,
        predictor: Predictor,
        confidence: float = CONFIDENCE,
        labelled: bool = False,
        fingerprint: str = "",
        seen: set[str] = frozenset(),
    ):
        self.batches, self.predictor, self.confidence, self.labelled = batches, predictor, confidence, labelled
        self.fingerprint, self.seen = fingerprint, seen
        self.columns = ("confident_share", "pseudo_dice") if labelled else ("confident_share",)

    @torch.no_grad()
    def prepare(self, batch: dict, first: Part, at: At) -> Part:
        """Images at the size of the first term's; the target is the labels, one-hot (N, C, H, W)."""
        predictor, batches = self.predictor, self.batches
        task, device = predictor.task, predictor.precision.device
        images = copy_to_device(batch["image"], device)
        truth = batch["labels"] if self.labelled else torch.zeros_like(batch["image"][:, :1], dtype=torch.uint8)
        affine = copy_to_device(batch["affine"], device)
        images, truth = apply_augmentations(images, copy_to_device(truth, device), affine)
        images, truth = resize_batch(images, truth, first.images.shape[-1])
        batches.context.broadcast_batch_norm(predictor.model)
        predictor.model.eval()
        logits = predictor.logits(images)
        labels, likeliest = task.most_likely(task.probabilities(logits))
        confident = (likeliest >= self.confidence).float()
        metrics = [torch.ones_like(confident[:, 0, 0, 0]), confident.mean(dim=(1, 2, 3))]
        if self.labelled:
            metrics.append(image_dice(score_counts(task, task.decision_logits(logits), truth)))
        targets = torch.cat([labels, confident], dim=1).to(torch.uint8)
        images, targets = apply_augmentations(images, targets, copy_to_device(batch["strong_affine"], device))
        images = apply_colors(images, copy_to_device(batch["colors"], device))
        images, _ = apply_distortions(images, truth, batch["distortions"], batch["seeds"])
        images, targets = mix(images, targets, "cutmix", step_rng(batches.seed, *at, UNLABELED))
        scale = batches.context.size / batches.batch_size
        return Part(images, targets[:, :-1].float(), targets[:, -1:] > 0, torch.stack(metrics, dim=1), scale)

    def loss(self, logits: torch.Tensor, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = self.predictor.task.cross_entropy(logits, part.target, None, "none") * part.counted
        return pixels.flatten(1).mean(1).sum(), part.metrics.sum(0)

    def record(self) -> dict:
        return {"fingerprint": self.fingerprint}


def open_fixmatch(setup) -> FixMatchTerm | None:
    """The term of --unlabeled; None without it. Raises UsageError: there are no images, or no --ema."""
    config, net = setup.config, setup.state.net
    if config.unlabeled is None:
        return None
    if not config.ema:
        raise UsageError("--unlabeled needs an average of the weights, which labels the images; add --ema")
    labelled = config.unlabeled == REST
    dataset, copies = open_rest(setup) if labelled else open_folder(setup)
    left_out = f", {copies} copies of validation and test images left out" if copies else ""
    print(f"{plural(len(dataset), 'image')} without masks{left_out}, {config.unlabeled}.", flush=True)
    batches = UnlabeledBatches(dataset, config.batch_size, config.seed, setup.batches.steps, net.context)
    predictor, digest = Predictor(setup.state.ema.model, net.precision), fingerprint(dataset.samples)
    seen = {sample.name for sample in dataset.samples} if labelled else set()
    return FixMatchTerm(batches, predictor, CONFIDENCE, labelled, digest, seen)


def open_folder(setup) -> tuple[ImageDataset, int]:
    """The images of a folder without copies of validation and test images; and how many were left out."""
    folder, view = setup.config.unlabeled, setup.config.view
    scored = [sample for part in setup.parts[1:] for sample in part.samples]
    samples = list_images(Path(folder))
    require_readable(samples, view, folder)
    ours = set(samples)
    groups = [*find_copies([*samples, *scored]), *find_near_copies(samples, scored)]
    copies = {sample for group in groups if not ours.issuperset(group) for sample in group} & ours
    kept = [sample for sample in samples if sample not in copies]
    if not kept:
        raise UsageError(
            f"--unlabeled {folder} has no images but copies of validation and test images; name another one"
        )
    return ImageDataset(kept, view), len(copies)


def open_rest(setup) -> tuple[ImageDataset, int]:
    """The images that --train_fraction leaves out; else as `open_folder`. Their masks are scored, not learned."""
    config, labelled = setup.config, setup.parts[0]
    if config.train_fraction == 1:
        raise UsageError("--unlabeled rest are the images that --train_fraction leaves out; give one below 1")
    split = setup.dataset.split(config.split, config.seed, config.fold_of_folds)
    scored = {sample.name for part in setup.parts[1:] for sample in part.samples}
    near = {sample.name for pair in setup.dataset.near_copies for sample in pair if scored & {s.name for s in pair}}
    learned = {sample.name for sample in labelled.samples}
    rest = [sample for sample in split.train if sample.name not in learned]
    kept = [sample for sample in rest if sample.name not in near]
    if not kept:
        raise UsageError("--unlabeled rest: --train_fraction leaves out no image; use less")
    dataset = ImageDataset(
        kept, config.view, labelled.cache, labelled.root, "rest", config.augment_uncertain, config.seed
    )
    return dataset, len(rest) - len(kept)
