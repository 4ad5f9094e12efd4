"""Scores a network on images with known masks: quickly for validation, image by image for evaluation."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.dataset import ImageDataset
from evaluation.config import EvalConfig
from evaluation.metrics import confusion_matrix, score_counts, score_image
from evaluation.predict import Predicted, Predictor, predict_images
from models.task import BACKGROUND
from runtime.device import copy_to_device
from runtime.distributed import SINGLE_PROCESS
from runtime.errors import DatasetError


def validate(
    predictor: Predictor, loader: DataLoader, loss_fn: Callable, after_batch=lambda: None, context=SINGLE_PROCESS
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
    for sample, decision, labels, error in predict_images(predictor, dataset, config, title):
        if error:
            raise DatasetError(error)
        if config.original_size or config.resize == "tile":
            labels = torch.from_numpy(dataset.view.read_labels(sample).copy())[None, None]
            decision = F.interpolate(decision, labels.shape[-2:], mode="bilinear")
        device = predictor.precision.device  # tiles are joined on the CPU
        yield Predicted(sample, decision.to(device), labels.to(device))


@torch.inference_mode()
def score_images(
    predictor: Predictor, dataset: ImageDataset, config: EvalConfig, threshold: float = 0.0
) -> tuple[list[dict], np.ndarray | None]:
    """A row for each image, see `score_image`; and the `confusion_matrix` of all, or None without named classes."""
    task, rows, confusion = predictor.task, [], None
    for sample, decision, labels, _ in predictions_to_score(predictor, dataset, config, "evaluating"):
        label_map = task.label_map(decision, threshold)
        rows.append({"name": sample.name, **score_image(task, label_map, labels, not sample.binary_mask)})
        if task.classes:
            confusion = confusion_matrix(task, label_map, labels) + (0 if confusion is None else confusion)
    return rows, confusion


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
