"""Scoring image by image."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from sklearn.metrics import f1_score

from data.datasets import load_dataset
from data.loader import make_loader, shard_batches
from evaluation.config import EvalConfig
from evaluation.evaluator import find_threshold, score_sample, score_samples
from evaluation.metrics import COUNTS, dice_score, intervals
from evaluation.predictor import Prediction, Predictor, resize_logits
from helpers import run_ok
from models.task import TASKS
from runtime.device import Precision
from stubs import Brightness


def test_ignore_border_leaves_the_border_out():
    trimap = torch.tensor([[1, 1, 3, 2], [1, 3, 3, 2]])[None, None]
    logits = torch.tensor([[1.0, -1, 1, 1], [1, 1, -1, -1]])[None, None]
    with_border = score_sample(Prediction(logits, logits), trimap, TASKS["binary"], EvalConfig())
    without = score_sample(Prediction(logits, logits), trimap, TASKS["binary"], EvalConfig(ignore_border=True))
    assert [with_border[name] for name in COUNTS] == [4, 1, 2, 1]
    assert [without[name] for name in COUNTS] == [2, 1, 1, 1]
    assert without["dice"] == pytest.approx(2 / 3)
    assert math.isnan(without["boundary_f"])
    assert (
        score_sample(Prediction(logits, logits), trimap, TASKS["binary"], EvalConfig(threshold=0.75))["true_positives"]
        == 0
    )


CPU = Precision(torch.device("cpu"))


def test_the_best_threshold_is_found(dataset):
    pets = load_dataset(dataset, "train", image_size=64)
    loader = make_loader(pets, torch.device("cpu"), shard_batches(pets, 5))
    threshold, dice = find_threshold(Predictor(Brightness(), CPU), pets, loader, EvalConfig())
    with torch.inference_mode():
        pixels = [(Brightness()(one["image"][None])[0].sigmoid(), one["mask"]) for one in pets]
    by_hand = {}
    for level in range(5, 96):
        dices = [dice_score(p[None] > level / 100, mask[None]).item() for p, mask in pixels]
        by_hand[level / 100] = np.mean(dices)
    assert dice == pytest.approx(max(by_hand.values()), abs=1e-4)
    assert by_hand[threshold] == pytest.approx(dice, abs=1e-4)
    assert dice > by_hand[0.5] + 0.001
    rows, _ = score_samples(Predictor(Brightness(), CPU), pets, loader, EvalConfig(threshold=threshold))
    assert np.mean([row["dice"] for row in rows]) == pytest.approx(dice, abs=1e-4)


def test_original_size_scores_the_resized_prediction(dataset):
    pets = load_dataset(dataset, "test", image_size=64)
    loader = make_loader(pets, torch.device("cpu"), shard_batches(pets, 3))
    rows, _ = score_samples(Predictor(Brightness(), CPU), pets, loader, EvalConfig(original_size=True))
    assert [row["name"] for row in rows] == [sample.name for sample in pets.samples]
    from data.datasets import OxfordPetDataset

    for row, own, small in zip(rows, OxfordPetDataset(dataset, "test"), pets):
        logits = Predictor(Brightness(), CPU).predict(small["image"][None]).final[0]
        mask = resize_logits(logits, *own["mask"].shape)[0].numpy() > 0
        assert (row["height"], row["width"]) == own["mask"].shape == (64, 80)
        assert row["dice"] == pytest.approx(sk.f1_score(own["mask"].ravel(), mask.ravel()), abs=1e-6)


def test_rows_do_not_depend_on_the_batch(trained, shared_dataset, tmp_path):
    path = trained / "saved_models/tiny_last.pth"
    for size in (1, 3):
        flags = ("--model_path", path, "--batch_size", size, "--csv", f"{size}.csv", "--amp", "off")
        run_ok("evaluate.py", "--data_path", shared_dataset, *flags, cwd=tmp_path)
    assert (tmp_path / "1.csv").read_text() == (tmp_path / "3.csv").read_text()


BINARY, TRIMAP = TASKS["binary"], TASKS["trimap"]


def test_class_dice_equals_scikit_learns():
    rows = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        trimap = torch.randint(1, 4, (1, 1, 20, 20), generator=generator, dtype=torch.uint8)
        view = TRIMAP.decision_logits(torch.randn(1, 3, 20, 20, generator=generator))
        row = score_sample(Prediction(view, view), trimap, TRIMAP, EvalConfig())
        expected = f1_score(trimap.flatten(), TRIMAP.label_map(view).flatten(), labels=[1, 2, 3], average=None)
        assert [row[name] for name in ("pet_dice", "background_dice", "border_dice")] == pytest.approx(expected)
        rows.append(row)
    found = intervals(rows)
    assert found["border_dice"].value == pytest.approx(np.mean([row["border_dice"] for row in rows]))
    assert found["border_dice"].low <= found["border_dice"].value <= found["border_dice"].high
