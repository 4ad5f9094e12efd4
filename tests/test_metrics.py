"""Scores against other implementations, by hand where masks are empty, full or one pixel, intervals, and thresholds."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn import metrics as sk
from sklearn.metrics import f1_score

import utils
from data.dataset import Dataset, ImageDataset
from data.view import View
from evaluation.config import EvalConfig, logit
from evaluation.metrics import COUNTS, boundary_f, dice_score, intervals, score_image
from evaluation.predict import Predictor, resize_logits
from evaluation.score import find_threshold, score_images
from models.task import BACKGROUND, IGNORED, TASKS, ClassesTask
from stubs import FP32, Brightness


def test_dice_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="differ in shape"):
        utils.dice_score(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))


def blobs(count: int, seed: int, height: int = 40, width: int = 56) -> torch.Tensor:
    """Masks (N, 1, H, W) of smooth shapes."""
    noise = np.random.default_rng(seed).normal(size=(count, height, width))
    smooth = np.stack([ndimage.gaussian_filter(one, 4) for one in noise])
    return torch.from_numpy(smooth > 0)[:, None]


def rows_of(predictions: torch.Tensor, masks: torch.Tensor, tolerance: int = 2) -> list[dict]:
    counts = utils.pixel_counts(predictions, masks)
    scores = zip(counts.tolist(), utils.dice_from_counts(counts), boundary_f(predictions, masks, tolerance))
    return [{**dict(zip(COUNTS, c)), "dice": d.item(), "boundary_f": b.item()} for c, d, b in scores]


def test_scores_equal_scikit_learns():
    predictions, masks = blobs(6, 1), blobs(6, 2)
    ours = {name: score.value for name, score in intervals(rows_of(predictions, masks)).items()}
    pairs = [(m.flatten().numpy(), p.flatten().numpy()) for m, p in zip(masks, predictions)]
    every = masks.flatten().numpy(), predictions.flatten().numpy()
    expected = {
        "dice": np.mean([sk.f1_score(*pair) for pair in pairs]),
        "iou": np.mean([sk.jaccard_score(*pair) for pair in pairs]),
        "dataset_dice": sk.f1_score(*every),
        "dataset_iou": sk.jaccard_score(*every),
        "pixel_accuracy": sk.accuracy_score(*every),
        "precision": sk.precision_score(*every),
        "recall": sk.recall_score(*every),
        "empty_predictions": 0,
        "full_predictions": 0,
    }
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("tolerance", [0, 1, 2, 5])
def test_boundary_score_equals_exact_distances(tolerance):
    predictions, masks = blobs(4, 3), blobs(4, 4)

    def outline(mask):  # pixels of the mask with a 4-neighbour outside, the picture being mirrored at its edge
        return mask & ~ndimage.binary_erosion(np.pad(mask, 1, mode="edge"), border_value=1)[1:-1, 1:-1]

    for ours, p, m in zip(boundary_f(predictions, masks, tolerance), predictions[:, 0], masks[:, 0]):
        p, m = outline(p.numpy()), outline(m.numpy())
        precision = (ndimage.distance_transform_edt(~m)[p] <= tolerance).mean()
        recall = (ndimage.distance_transform_edt(~p)[m] <= tolerance).mean()
        expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert ours.item() == pytest.approx(expected, abs=1e-6)


def test_empty_full_and_one_pixel_by_hand():
    empty = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    full, one = ~empty, empty.clone()
    one[0, 0, 3, 3] = True
    aside = one.roll(2, dims=3)
    for p, m, dice, boundary in (
        (empty, empty, 1, 1),
        (full, full, 1, 1),
        (empty, one, 0, 0),
        (one, empty, 0, 0),
        (full, empty, 0, 1),  # neither has an outline
        (one, one, 1, 1),
        (one, aside, 0, 1),  # two pixels apart is near enough
        (one, one.roll(3, dims=3), 0, 0),
        (full, one, 2 / 65, 0),
    ):
        (row,) = rows_of(p, m)
        assert (row["dice"], row["boundary_f"]) == pytest.approx((dice, boundary))
    both = intervals(rows_of(torch.cat([empty, full, one]), torch.cat([one, one, one])))
    assert both["empty_predictions"].value == pytest.approx(1 / 3)
    assert both["full_predictions"].value == pytest.approx(1 / 3)
    nothing = {name: score.value for name, score in intervals(rows_of(empty, empty)).items()}
    assert nothing["precision"] == nothing["recall"] == nothing["dataset_dice"] == nothing["dataset_iou"] == 1


def test_intervals_equal_those_of_theory():
    rng = np.random.default_rng(5)
    rows = [
        {**dict.fromkeys(COUNTS, 1), "dice": float(d), "boundary_f": 0.5} for d in rng.normal(0.8, 0.1, 400).clip(0, 1)
    ]
    dice = np.array([row["dice"] for row in rows])
    found, error = intervals(rows), dice.std(ddof=1) / 20
    assert found["dice"].value == pytest.approx(dice.mean())
    assert found["dice"].low == pytest.approx(dice.mean() - 1.96 * error, abs=0.1 * error)
    assert found["dice"].high == pytest.approx(dice.mean() + 1.96 * error, abs=0.1 * error)
    assert found["boundary_f"] == pytest.approx((0.5, 0.5, 0.5))
    assert intervals(rows) == found
    # A model that is a little better on every picture: paired the difference is sure, though the intervals overlap.
    better = [{**row, "dice": row["dice"] + 0.002 + 0.001 * rng.random()} for row in rows]
    value, low, high = intervals(better, minus=rows)["dice"]
    assert 0.002 < low < value < high < 0.003
    assert intervals(better)["dice"].low < found["dice"].high
    assert intervals(rows, minus=rows)["dice"] == (0, 0, 0)


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
