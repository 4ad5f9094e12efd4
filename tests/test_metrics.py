"""Scores against other implementations, by hand where masks are empty, full or one pixel, and intervals."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn import metrics as sk

import utils
from evaluation.metrics import COUNTS, boundary_f, intervals


def masks(*rows):
    return torch.tensor(rows, dtype=torch.uint8)[:, None, None, :]


def test_counts_and_dice_are_per_image():
    predictions, truths = masks([1, 1, 0, 0, 0], [0] * 5), masks([0, 1, 1, 0, 0], [0] * 5)
    assert utils.dice_score(predictions, truths).tolist() == [0.5, 1.0]  # empty against empty is 1
    assert utils.pixel_counts(predictions, truths).tolist() == [[1, 1, 1, 2], [0, 0, 0, 5]]


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
