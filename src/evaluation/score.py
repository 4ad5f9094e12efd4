"""Scores a network on images with known masks: quickly for validation, image by image for evaluation."""

import copy
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.dataset import ImageDataset
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
from models.task import BACKGROUND, Task
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
    """`score_counts` of every image, int64 (n, K, 4) on the CPU, and the mean of a loss over images.

    The processes of `context` share the batches of `shard_batches`, and all get the whole result, in the loader's
    order. `after_batch` may raise to stop. The network is left in evaluation mode.
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
    """Predictions and labels of a dataset, at the size to score at. Raises DatasetError: one can't be read."""
    tile = config.resize == "tile"
    predictions = predict_images(predictor, dataset, config.batch_size, config.num_workers, tile)
    bar = tqdm(predictions, total=len(dataset), desc=title, unit="image", leave=False, disable=None, delay=1)
    for sample, decision, labels, error in bar:
        if error:
            raise DatasetError(error)
        if config.original_size or tile:
            labels = torch.from_numpy(dataset.view.read_labels(sample).copy())[None, None]
            decision = F.interpolate(decision, labels.shape[-2:], mode="bilinear")
        device = predictor.precision.device  # tiles are joined on the CPU
        yield Predicted(sample, decision.to(device), labels.to(device))


@torch.inference_mode()
def score_images(
    predictor: Predictor,
    dataset: ImageDataset,
    config: EvalConfig,
    threshold: float = 0.0,
    context: DistributedContext = SINGLE_PROCESS,
) -> tuple[list[dict], np.ndarray | None]:
    """A row for each image, see `score_image`; and the `confusion_matrix` of all, or None without named classes.

    The processes of `context` share the images, and all get the whole result.
    """
    task, size, rows, confusion = predictor.task, config.batch_size, [], 0
    # Whole batches are shared, so results don't depend on the number of processes.
    batches = context.shard([dataset.samples[i : i + size] for i in range(0, len(dataset), size)])
    part = copy.copy(dataset)
    part.samples = [sample for batch in batches for sample in batch]
    for predicted in predictions_to_score(predictor, part, config, "evaluating"):
        rows.append(score_image(predicted, task, threshold))
        if task.classes:
            confusion = confusion + confusion_matrix(task, task.label_map(predicted.decision), predicted.labels)
    shared = context.all_gather([rows[i : i + size] for i in range(0, len(rows), size)])
    matrices = context.all_gather([confusion])
    return [row for batch in shared for row in batch], sum(matrices) if task.classes else None


def score_image(predicted: Predicted, task: Task, threshold: float = 0.0) -> dict:
    """The scores of one image by name: size scored at, counts, Dice, boundary F.

    With them are the Dice of a trimap's classes; or Dice, IoU and pixels of named classes, NaN for one that is neither
    in truth nor in prediction.
    """
    labels, label_map = predicted.labels, task.label_map(predicted.decision, threshold)
    found, mask, counted = label_map != BACKGROUND, labels != BACKGROUND, task.counted(labels)
    if counted is not None:
        found, mask = found & counted, mask & counted
    row = {"name": predicted.sample.name, "width": labels.shape[-1], "height": labels.shape[-2]}
    row |= zip(COUNTS, pixel_counts(found, mask, counted)[0].tolist())
    counts = label_counts(task, label_map, labels)
    row["dice"] = image_dice(counts).item()
    row["boundary_f"] = boundary_f(found, mask, TOLERANCE, counted).item()
    for name, (tp, fp, fn, _) in zip(task.classes[1:], counts[0].tolist()):
        row[f"pixels_{name}"] = tp + fn
        row[f"dice_{name}"] = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan
        row[f"iou_{name}"] = tp / (tp + fp + fn) if tp + fp + fn else math.nan
    if not task.classes and not predicted.sample.binary_mask:
        for number, name in task.class_scores.items():
            row[name] = dice_from_counts(pixel_counts(label_map == number, labels == number)).item()
    return row


@torch.inference_mode()
def find_threshold(predictor: Predictor, dataset: ImageDataset, config: EvalConfig) -> tuple[float, float]:
    """The threshold of probability, in hundredths, with the best mean Dice under `config`; and that Dice."""
    rows = []
    for predicted in predictions_to_score(predictor, dataset, config, "threshold"):
        # A pixel of level k is foreground at thresholds of up to k hundredths.
        levels = (predicted.decision[:, :1].sigmoid() * 100).ceil().long().clamp(1, 100) - 1
        codes = levels + 100 * (predicted.labels != BACKGROUND)
        # Pixels by truth and level; summed from above they are what each threshold predicts.
        rows.append(torch.bincount(codes.flatten(), minlength=200).view(2, 100).flip(1).cumsum(1).flip(1).cpu())
    fp, tp = torch.stack(rows).double().unbind(1)
    total = fp + tp + tp[:, :1]  # predicted and true
    dice = torch.where(total > 0, 2 * tp / total.clamp(min=1), 1.0).mean(0)
    best = min(range(5, 96), key=lambda level: (-dice[level].item(), abs(level - 50)))
    return best / 100, dice[best].item()
