"""Scores a network on images with known masks: quickly for validation, image by image for evaluation."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.dataset import ImageDataset
from evaluation.calibration import confidence_bins
from evaluation.config import EvalConfig
from evaluation.metrics import (
    COUNTS,
    boundary_f,
    confusion_matrix,
    dice_from_counts,
    image_dice,
    label_counts,
    pixel_counts,
    score_counts,
)
from evaluation.predict import Predicted, Predictor, predict_images
from models.task import BACKGROUND, BORDER, Task
from runtime.device import copy_to_device
from runtime.distributed import SINGLE_PROCESS, DistributedContext
from runtime.errors import DatasetError

TOLERANCE = 2  # pixels by which outlines may be apart and still agree


def validate(
    predictor: Predictor,
    loader: DataLoader,
    loss_fn: Callable,
    after_batch: Callable[[], None] = lambda: None,
    context: DistributedContext = SINGLE_PROCESS,
) -> tuple[torch.Tensor, float]:
    """Runs a network over a loader and counts pixels.

    Args:
        predictor: its model is put into evaluation mode and left there.
        loader: batches of `shard_batches`.
        loss_fn: see training/losses.py.
        after_batch: called after every batch; may raise to stop.
        context: the processes that share the batches; all of them get the whole result.

    Returns:
        `score_counts` of every image, int64 (n, K, 4) on the CPU in the loader's order, and the mean loss over images.
    """
    predictor.model.eval()
    results, task, device = [], predictor.task, predictor.precision.device
    with torch.inference_mode():
        for batch in tqdm(loader, desc="validating", unit="batch", leave=False, disable=None, delay=1):
            labels = copy_to_device(batch["labels"], device)
            logits = predictor.logits(batch["image"])
            counts = score_counts(task, task.decision_logits(logits), labels)
            results.append((counts, loss_fn(logits, labels, task) * len(labels)))
            after_batch()
    results = context.all_gather([(counts.cpu(), loss.item()) for counts, loss in results])
    counts = torch.cat([counts for counts, _ in results])
    return counts, sum(loss for _, loss in results) / len(counts)


def predictions_to_score(
    predictor: Predictor, dataset: ImageDataset, config: EvalConfig, title: str
) -> Iterator[Predicted]:
    """The predictions for a dataset with masks, at the size to score at, labels on the device.

    Raises:
        DatasetError: an image or a mask can't be read.
    """
    tile = config.resize == "tile"
    predictions = predict_images(predictor, dataset, config.batch_size, config.num_workers, tile)
    bar = tqdm(predictions, total=len(dataset), desc=title, unit="image", leave=False, disable=None, delay=1)
    for predicted in bar:
        if predicted.error:
            raise DatasetError(predicted.error)
        sample, plain, final, labels, _ = predicted
        if config.original_size or tile:
            labels = torch.from_numpy(dataset.view.read_labels(sample).copy())[None, None]
            plain, final = (F.interpolate(logits, labels.shape[-2:], mode="bilinear") for logits in (plain, final))
        device = predictor.precision.device  # tiles are joined on the CPU
        yield Predicted(sample, plain.to(device), final.to(device), labels.to(device))


@torch.inference_mode()
def score_images(
    predictor: Predictor,
    dataset: ImageDataset,
    config: EvalConfig,
    threshold: float = 0.0,
    context: DistributedContext = SINGLE_PROCESS,
) -> tuple[list[dict], np.ndarray]:
    """Scores a dataset image by image, on all processes of `context`, which all get the whole result.

    Args:
        predictor: its network is in evaluation mode.
        dataset: the images.
        config: at which size, and which pixels count.
        threshold: decision logits above it are foreground.
        context: the processes that share the images.

    Returns:
        A row for each image, see `score_image`. And sums over all images: of `confidence_bins`, or of
        `confusion_matrix` where the task has named classes.
    """
    task, size, results = predictor.task, config.batch_size, []
    # Whole batches are shared, so results don't depend on the number of processes.
    batches = context.shard([dataset.samples[i : i + size] for i in range(0, len(dataset), size)])
    part = copy.copy(dataset)
    part.samples = [sample for batch in batches for sample in batch]
    predictions = predictions_to_score(predictor, part, config, "evaluating")
    for batch in batches:
        rows, sums = [], []
        for predicted in itertools.islice(predictions, len(batch)):
            labels = predicted.labels
            rows.append(score_image(predicted, task, config, threshold))
            if task.classes:
                sums.append(confusion_matrix(task, task.label_map(predicted.final), labels))
            else:
                counted = labels != BORDER if config.ignore_border else None
                sums.append(confidence_bins(predicted.final[:, :1].sigmoid(), labels != BACKGROUND, counted))
        results.append((rows, sum(sums)))
    results = context.all_gather(results)
    return [row for rows, _ in results for row in rows], sum(sums for _, sums in results)


def score_image(predicted: Predicted, task: Task, config: EvalConfig, threshold: float = 0.0) -> dict:
    """The scores of one image by name: size scored at, counts, Dice, boundary F; with TTA `plain_dice`.

    With them are the Dice of a trimap's classes, where its border counts; or Dice, IoU and pixels of named classes, NaN
    for one that is neither in truth nor in prediction.
    """
    labels, plain, final = predicted.labels, predicted.plain, predicted.final
    counted = labels != BORDER if config.ignore_border else task.counted(labels)
    mask, foreground = labels != BACKGROUND, final[:, :1] > threshold
    if counted is not None:
        foreground, mask = foreground & counted, mask & counted
    (counts,) = pixel_counts(foreground, mask, counted)
    row = {"name": predicted.sample.name, "width": labels.shape[-1], "height": labels.shape[-2]}
    row |= {**dict(zip(COUNTS, counts.tolist())), "dice": dice_from_counts(counts).item()}
    # Without the border no outline is known.
    row["boundary_f"] = math.nan if config.ignore_border else boundary_f(foreground, mask, TOLERANCE, counted).item()
    if config.tta and not task.classes:
        row["plain_dice"] = dice_from_counts(pixel_counts(plain[:, :1] > threshold, mask, counted)).item()
    label_map = task.label_map(final, threshold)
    if task.classes:
        counts = label_counts(task, label_map, labels)
        row["dice"] = image_dice(counts).item()
        if config.tta:
            row["plain_dice"] = image_dice(label_counts(task, task.label_map(plain), labels)).item()
        for name, (tp, fp, fn, _) in zip(task.classes[1:], counts[0].tolist()):
            row[f"pixels_{name}"] = tp + fn
            row[f"dice_{name}"] = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan
            row[f"iou_{name}"] = tp / (tp + fp + fn) if tp + fp + fn else math.nan
    elif not (predicted.sample.binary_mask or config.ignore_border):
        for number, name in task.class_scores.items():
            row[name] = dice_from_counts(pixel_counts(label_map == number, labels == number)).item()
    return row


@torch.inference_mode()
def find_threshold(predictor: Predictor, dataset: ImageDataset, config: EvalConfig) -> tuple[float, float]:
    """The threshold of probability, in hundredths, with the best mean Dice under `config`; and that Dice."""
    rows = []
    for predicted in predictions_to_score(predictor, dataset, config, "threshold"):
        # A pixel of level k is foreground at thresholds of up to k hundredths.
        levels = (predicted.final[:, :1].sigmoid() * 100).ceil().long().clamp(1, 100) - 1
        codes = levels + 100 * (predicted.labels != BACKGROUND)
        counted = codes[predicted.labels != BORDER] if config.ignore_border else codes.flatten()
        # Pixels by truth and level; summed from above they are what each threshold predicts.
        rows.append(torch.bincount(counted, minlength=200).view(2, 100).flip(1).cumsum(1).flip(1).cpu())
    fp, tp = torch.stack(rows).double().unbind(1)
    total = fp + tp + tp[:, :1]  # predicted and true
    dice = torch.where(total > 0, 2 * tp / total.clamp(min=1), 1.0).mean(0)
    best = min(range(5, 96), key=lambda level: (-dice[level].item(), abs(level - 50)))
    return best / 100, dice[best].item()
