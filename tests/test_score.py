"""Scoring image by image."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from data.dataset import Dataset, ImageDataset
from data.view import View
from evaluation.config import EvalConfig, logit
from evaluation.metrics import COUNTS, dice_score, intervals, score_image
from evaluation.predict import Predictor, resize_logits
from evaluation.score import find_threshold, score_images
from models.task import BACKGROUND, IGNORED, TASKS, ClassesTask
from stubs import FP32, Brightness

TRIMAP, PREDICTOR = TASKS["trimap"], Predictor(Brightness(), FP32)


def scores_of(decision, labels, task=TASKS["binary"], threshold=0.5) -> dict:
    return score_image(task, task.label_map(decision, logit(threshold)), labels, trimap=True)


def test_border_counts_as_pet_and_ignored_pixels_not_at_all():
    labels = torch.tensor([[1, 1, 2, 0], [1, 2, 2, 0]])[None, None]
    logits = torch.tensor([[1.0, -1, 1, 1], [1, 1, -1, -1]])[None, None]
    assert [scores_of(logits, labels)[name] for name in COUNTS] == [4, 1, 2, 1]
    assert scores_of(logits, labels, threshold=0.75)["true_positives"] == 0
    two = ClassesTask(("background", "pet"))
    row = scores_of(logits.repeat(1, 2, 1, 1), labels.where(labels < 2, IGNORED), two)
    assert [row[name] for name in COUNTS] == [2, 1, 1, 1]
    assert (row["dice"], row["dice_pet"]) == pytest.approx((2 / 3, 2 / 3))


def part_of(root, mode: str) -> ImageDataset:
    return ImageDataset(Dataset(root).part(mode), View(64))


def test_the_best_threshold_is_found(shared_dataset):
    pets, config = part_of(shared_dataset, "train"), EvalConfig(batch_size=5)
    threshold, dice = find_threshold(PREDICTOR, pets, config)
    with torch.inference_mode():
        pixels = [(PREDICTOR.logits(pet["image"][None]).sigmoid(), pet["labels"][None] != BACKGROUND) for pet in pets]
    by_hand = {}
    for level in range(5, 96):
        by_hand[level / 100] = np.mean([dice_score(p > level / 100, mask).item() for p, mask in pixels])
    assert dice == pytest.approx(max(by_hand.values()), abs=1e-4)
    assert by_hand[threshold] == pytest.approx(dice, abs=1e-4)
    assert dice > by_hand[0.5] + 0.001
    rows, _ = score_images(PREDICTOR, pets, config, logit(threshold))
    assert np.mean([row["dice"] for row in rows]) == pytest.approx(dice, abs=1e-4)


def test_original_size_scores_the_resized_prediction(shared_dataset):
    pets = part_of(shared_dataset, "test")
    rows, _ = score_images(PREDICTOR, pets, EvalConfig(original_size=True, batch_size=3))
    assert [row["name"] for row in rows] == [sample.name for sample in pets.samples]
    for row, sample, small in zip(rows, pets.samples, pets):
        own = pets.view.read_labels(sample)
        mask = resize_logits(PREDICTOR.predict(small["image"][None])[0], *own.shape)[0].numpy() > 0
        assert (row["height"], row["width"]) == own.shape == (64, 80)
        assert row["dice"] == pytest.approx(f1_score((own != BACKGROUND).ravel(), mask.ravel()), abs=1e-6)


def test_class_dice_equals_scikit_learns():
    found = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 3, (1, 1, 20, 20), generator=generator, dtype=torch.uint8)
        decision = TRIMAP.decision_logits(torch.randn(1, 3, 20, 20, generator=generator))
        found.append(scores_of(decision, labels, TRIMAP))
        expected = f1_score(labels.flatten(), TRIMAP.label_map(decision).flatten(), labels=[1, 0, 2], average=None)
        names = ("pet_dice", "background_dice", "border_dice")
        assert [found[-1][name] for name in names] == pytest.approx(expected)
    border = intervals(found)["border_dice"]
    assert border.value == pytest.approx(np.mean([row["border_dice"] for row in found]), abs=1e-6)
    assert border.low <= border.value <= border.high
