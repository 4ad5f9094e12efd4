"""Scores networks on images with known masks: quickly for validation, image by image for evaluation."""

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.datasets import SimpleOxfordPetDataset, open_checkpoint_part, preprocessing_of, refuse_seen
from data.loader import make_loader, shard_batches
from evaluation.calibration import (
    BINS,
    calibration_error,
    collect_logits,
    confidence_bins,
    fit_temperature,
    scale_head,
)
from evaluation.config import EvalConfig
from evaluation.confusion import confusion_matrix
from evaluation.ensemble import open_checkpoints
from evaluation.metrics import (
    COUNTS,
    boundary_f,
    dice_from_counts,
    image_dice,
    label_counts,
    pixel_counts,
    score_counts,
)
from evaluation.predictor import Prediction, Predictor
from evaluation.tiles import predict_tiles
from models.checkpoint import save_checkpoint, without_training_state
from models.task import BACKGROUND, BORDER, Task
from runtime.device import choose_precision, copy_to_device
from runtime.distributed import SINGLE_PROCESS, DistributedContext


def _progress_bar(items, total: int, title: str) -> tqdm:
    return tqdm(items, total=total, desc=title, unit="batch", leave=False, disable=None, delay=1)


def validate(
    predictor: Predictor,
    loader: DataLoader,
    loss_fn: Callable | None = None,
    after_batch: Callable[[], None] = lambda: None,
    context: DistributedContext = SINGLE_PROCESS,
) -> tuple[torch.Tensor, float]:
    """Runs a network over a loader and counts pixels.

    Args:
        predictor: its model is put into evaluation mode and left there.
        loader: batches of `shard_batches`.
        loss_fn: see training/losses.py; None computes no loss.
        after_batch: called after every batch; may raise to stop.
        context: the processes that share the batches; all of them get the whole result.

    Returns:
        `score_counts` of every image, int64 (n, K, 4) on the CPU in the loader's order, and the mean loss over images
        (NaN without `loss_fn`).
    """
    predictor.model.eval()
    results, task, device = [], predictor.task, predictor.precision.device
    with torch.inference_mode():
        for batch in _progress_bar(loader, len(loader), "validating"):
            targets = copy_to_device(batch[task.target], device)
            logits = predictor.logits(batch["image"])
            loss = logits.new_tensor(math.nan) if loss_fn is None else loss_fn(logits, targets, task)
            counts = score_counts(task, task.decision_logits(logits), targets)
            results.append((counts, loss * len(targets)))
            after_batch()
    results = context.all_gather([(counts.cpu(), loss.item()) for counts, loss in results])
    counts = torch.cat([counts for counts, _ in results])
    return counts, sum(loss for _, loss in results) / len(counts)


def predict_samples(predictor: Predictor, dataset: SimpleOxfordPetDataset, loader: DataLoader, config: EvalConfig):
    """Runs a network over a dataset, in tiles where `config.tile` says so and an image is larger than one.

    Yields:
        For each batch a list: of each image its Sample, its Prediction (1, D, H, W) and its trimap (1, 1, H, W), on the
        device and at the size to score at.
    """
    samples = {str(sample.image_path): sample for sample in dataset.samples}
    size = dataset.image_size
    with torch.inference_mode():
        for batch in loader:
            found, some = [], [samples[path] for path in batch["path"]]
            if config.tile and max(some[0].displayed_size()) > size:  # batches are of one image
                decision = predict_tiles(predictor, some[0].read()[0], size, config.batch_size)[None]
                decision = decision.to(predictor.precision.device)
                prediction = Prediction(decision, decision)
            else:
                prediction = predictor.predict(batch["image"])
            for i, sample in enumerate(some):
                trimap = batch["trimap"][i : i + 1]
                views = Prediction(*(view[i : i + 1] for view in prediction))
                if config.original_size:
                    trimap = torch.from_numpy(sample.read_labels().copy())[None, None]
                    views = Prediction(*(F.interpolate(view, trimap.shape[-2:], mode="bilinear") for view in views))
                found.append((sample, views, trimap.to(predictor.precision.device)))
            yield found


def score_samples(
    predictor: Predictor,
    dataset: SimpleOxfordPetDataset,
    loader: DataLoader,
    config: EvalConfig,
    context: DistributedContext = SINGLE_PROCESS,
) -> tuple[list[dict], np.ndarray]:
    """Scores a dataset image by image, on all processes of `context`, which all get the whole result.

    Returns:
        A row per image: name, size scored at, counts, Dice, boundary F; with TTA also `plain_dice`. And sums over all
        images: of `confidence_bins`, or of `confusion_matrix` where the task has named classes.
    """
    batches, results, task = predict_samples(predictor, dataset, loader, config), [], predictor.task
    for some in _progress_bar(batches, len(loader), "evaluating"):
        rows, sums = [], []
        for sample, prediction, labels in some:
            scores = score_sample(prediction, labels, task, config, sample.binary_mask)
            rows.append({"name": sample.name, **scores})
            if task.classes:
                sums.append(confusion_matrix(task, task.label_map(prediction.final), labels))
            else:
                counted = labels != BORDER if config.ignore_border else None
                sums.append(confidence_bins(prediction.final[:, :1].sigmoid(), labels != BACKGROUND, counted))
        results.append((rows, sum(sums)))
    results = context.all_gather(results)
    return [row for rows, _ in results for row in rows], sum(sums for _, sums in results)


def score_sample(
    prediction: Prediction, trimap: torch.Tensor, task: Task, config: EvalConfig, binary_mask: bool = False
) -> dict:
    """Scores a Prediction (1, D, H, W) against a trimap (1, 1, H, W).

    The classes of the task are scored too, where the trimap has a border and it counts.
    """
    mask, counted = trimap != BACKGROUND, trimap != BORDER if config.ignore_border else task.counted(trimap)
    plain, final = (view[:, :1] > config.logit_threshold for view in prediction)
    if counted is not None:
        final, mask = final & counted, mask & counted
    (counts,) = pixel_counts(final, mask, counted)
    row = dict(zip(COUNTS, counts.tolist()))
    row["dice"] = dice_from_counts(counts).item()
    # Without the border no outline is known.
    row["boundary_f"] = math.nan if config.ignore_border else boundary_f(final, mask, config.tolerance, counted).item()
    if config.tta:
        row["plain_dice"] = dice_from_counts(pixel_counts(plain, mask, counted)).item()
    if task.classes:
        of_classes = [label_counts(task, task.label_map(view), trimap) for view in prediction]
        row["dice"] = image_dice(of_classes[1]).item()
        if config.tta:
            row["plain_dice"] = image_dice(of_classes[0]).item()
        for name, (tp, fp, fn, _) in zip(task.classes[1:], of_classes[1][0].tolist()):
            there = tp + fp + fn > 0
            row[f"pixels_{name}"] = tp + fn
            row[f"dice_{name}"] = 2 * tp / (2 * tp + fp + fn) if there else math.nan
            row[f"iou_{name}"] = tp / (tp + fp + fn) if there else math.nan
    elif not (binary_mask or config.ignore_border):
        labels = task.label_map(prediction.final, config.logit_threshold)
        for value, name in task.class_scores.items():
            row[name] = dice_from_counts(pixel_counts(labels == value, trimap == value)).item()
    return {"width": trimap.shape[-1], "height": trimap.shape[-2], **row}


def find_threshold(
    predictor: Predictor,
    dataset: SimpleOxfordPetDataset,
    loader: DataLoader,
    config: EvalConfig,
    context: DistributedContext = SINGLE_PROCESS,
) -> tuple[float, float]:
    """The threshold of probability, in hundredths, with the best mean Dice under `config`; and that Dice."""
    results = []
    batches = predict_samples(predictor, dataset, loader, config)
    for found in _progress_bar(batches, len(loader), "threshold"):
        rows = []
        for _, prediction, trimap in found:
            # A pixel of level k is foreground at thresholds below k hundredths.
            levels = (prediction.final[:, :1].sigmoid() * 100).ceil().long().clamp(1, 100) - 1
            codes = levels + 100 * (trimap != BACKGROUND)
            counted = codes[trimap != BORDER] if config.ignore_border else codes.flatten()
            # Pixels by truth and level; summed from above they are what each threshold predicts.
            rows.append(torch.bincount(counted, minlength=200).view(2, 100).flip(1).cumsum(1).flip(1).cpu())
        results.append(torch.stack(rows))
    counts = torch.cat(context.all_gather(results)).double()
    fp, tp = counts.unbind(1)
    total = fp + tp + tp[:, :1]  # predicted and true
    dice = torch.where(total > 0, 2 * tp / total.clamp(min=1), 1.0).mean(0)
    best = min(range(5, 96), key=lambda level: (-dice[level].item(), abs(level - 50)))
    return best / 100, dice[best].item()


class CheckpointEvaluator:
    """A checkpoint, the images as it wants them, and its scores.

    Args:
        config: the settings; after `score` with the threshold that was used.
        device: where to compute.
        context: the processes that share the work.

    Raises:
        UsageError: see `open_checkpoints` and `refuse_seen`.
    """

    def __init__(self, config: EvalConfig, device: torch.device, context: DistributedContext):
        self.config, self.context = config, context
        model, self.content, self.path = open_checkpoints(config.model_path, config.model_name, config.save_dir)
        self.name = self.content["model"]["name"]
        config.refuse_thresholds(model.task)
        self.dataset = self.part(config.subset)
        precision = choose_precision(config.amp, device, self.dataset.image_size)
        self.predictor = Predictor(precision.to_device(model), precision, config.tta)
        self.rows: list[dict] = []
        self.bins = np.zeros((BINS, 3))
        self.confusion: np.ndarray | None = None  # of named classes
        self.seconds = 0.0

    def part(self, mode: str) -> SimpleOxfordPetDataset:
        """A part of the dataset as the checkpoint wants it. Raises UsageError: see `refuse_seen`."""
        config = self.config
        preprocessing = preprocessing_of(self.content, config.image_size, config.resize)
        use_cache = config.cache == "on" and not config.tile  # tiles are cut from the images themselves
        dataset = open_checkpoint_part(config.data_path, self.content, mode, use_cache, preprocessing)
        if mode != self.config.subset or not self.config.allow_seen:
            refuse_seen(self.content, dataset.samples, self.path)
        return dataset

    def loader(self, dataset: SimpleOxfordPetDataset, alone: bool = False) -> DataLoader:
        """Batches of a dataset, sharded among the processes unless this one is to do it `alone`."""
        alike = dataset.preprocessing.resize == "square" and not self.config.tile
        batches = shard_batches(
            dataset, self.config.batch_size if alike else 1, SINGLE_PROCESS if alone else self.context
        )
        return make_loader(dataset, self.predictor.precision.device, batches, self.config.num_workers)

    def calibrate(self) -> Path:
        """Fits a temperature to the validation images, scores again with it, and writes a checkpoint that has it."""
        valid, before, config = self.part("valid"), calibration_error(self.bins), self.config
        temperature = fit_temperature(*collect_logits(self.predictor, valid, self.loader(valid, alone=True)))
        model = copy.deepcopy(self.predictor.model)
        scale_head(model, 1 / temperature)
        predictor = dataclasses.replace(self.predictor, model=model)
        _, bins = score_samples(predictor, self.dataset, self.loader(self.dataset, alone=True), config)
        print(f"Temperature {temperature:.3f}, fitted to {len(valid)} validation images: calibration error ", end="")
        print(f"{before:.4f} before, {calibration_error(bins):.4f} after")
        weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
        path = self.calibrated_path
        save_checkpoint(without_training_state({**self.content, "weights": weights}), [path])
        return path

    @property
    def calibrated_path(self) -> Path:
        """Where `calibrate` writes."""
        return self.path.with_name(f"{self.path.stem}_calibrated.pth")

    @property
    def files(self) -> str:
        """The checkpoints, as they were named."""
        return " ".join(self.config.model_path or [str(self.path)])

    def score(self) -> None:
        """Finds the threshold, if asked to, and scores the images at it."""
        if self.config.find_threshold:
            valid = self.part("valid")
            found, dice = find_threshold(self.predictor, valid, self.loader(valid), self.config, self.context)
            self.config = dataclasses.replace(self.config, threshold=found)
            print(f"Threshold {found:.2f}: Dice {dice:.4f} on the {len(valid)} validation images")
        start, loader = time.perf_counter(), self.loader(self.dataset)
        self.rows, sums = score_samples(self.predictor, self.dataset, loader, self.config, self.context)
        if self.predictor.task.classes:
            self.confusion = sums
        else:
            self.bins = sums
        self.seconds = time.perf_counter() - start
