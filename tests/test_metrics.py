"""Scores against other people's implementations, by hand where masks are empty, full or one pixel, and intervals."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn import metrics as sk

import utils
from data.datasets import load_dataset
from data.loader import make_loader, shard_batches
from evaluation.config import EvalConfig
from evaluation.evaluator import find_threshold, score_sample, score_samples
from evaluation.metrics import COUNTS, boundary_f, differences, intervals, summarize
from evaluation.predictor import Prediction, Predictor, resize_logits
from helpers import assert_one_error, run_ok, run_script
from models import SegmentationModel
from models.task import TASKS
from runtime.device import Precision

CPU = Precision(torch.device("cpu"))


def blobs(count: int, seed: int, height: int = 40, width: int = 56) -> torch.Tensor:
    """Masks (N, 1, H, W) of smooth shapes."""
    noise = np.random.default_rng(seed).normal(size=(count, height, width))
    smooth = np.stack([ndimage.gaussian_filter(one, 4) for one in noise])
    return torch.from_numpy(smooth > 0)[:, None]


def rows_of(predictions: torch.Tensor, masks: torch.Tensor, tolerance: int = 2) -> list[dict]:
    counts = utils.pixel_counts(predictions, masks)
    scores = zip(counts.tolist(), utils.dice_from_counts(counts), boundary_f(predictions, masks, tolerance))
    return [{**dict(zip(COUNTS, c)), "dice": d.item(), "boundary_f": b.item()} for c, d, b in scores]


def test_every_score_is_scikit_learns():
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
    quick = summarize(utils.pixel_counts(predictions, masks))
    assert quick == pytest.approx({name: ours[name] for name in quick})


@pytest.mark.parametrize("tolerance", [0, 1, 2, 5])
def test_the_boundary_score_is_that_of_exact_distances(tolerance):
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


def test_the_border_can_be_left_out():
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


def test_intervals_are_those_of_statistics():
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
    value, low, high = differences(better, rows)["dice"]
    assert 0.002 < low < value < high < 0.003
    assert intervals(better)["dice"].low < found["dice"].high
    assert differences(rows, rows)["dice"] == (0, 0, 0)


# ---------------------------------------------------------------------------------------------------------- predictions


class Brightness(SegmentationModel):
    """Logits are how bright a pixel is: what it predicts is known without training."""

    stride = 16

    def body(self, x):
        return x.mean(1, keepdim=True)


class Leaning(Brightness):
    """Brightness, but surer of pet on the left."""

    def body(self, x):
        return super().body(x) + torch.linspace(1, -1, x.shape[-1])


def test_tta_flips_there_and_back():
    gray = Leaning().mean.expand(2, 3, 64, 64)
    plain, tta = Predictor(Leaning(), CPU, tta=True).predict(gray)
    assert torch.allclose(plain, torch.linspace(1, -1, 64).expand(2, 1, 64, 64), atol=1e-5)
    assert torch.equal(plain, Predictor(Leaning(), CPU).predict(gray).final)
    assert torch.allclose(tta, torch.zeros(2, 1, 64, 64), atol=1e-5)  # straight and flipped, the leaning is gone


def test_tta_scales_there_and_back():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    images = (128 + 60 * torch.sin(x / 9) * torch.cos(y / 11)).expand(1, 3, 64, 64)
    plain, tta = Predictor(Brightness(), CPU, tta=True).predict(images)
    assert tta.shape == plain.shape
    assert (tta - plain).abs().max() < 0.05
    assert not torch.equal(tta, plain)


class Watched(Brightness):
    """Remembers the sizes that it sees."""

    stride = 32

    def body(self, x):
        self.seen = [*getattr(self, "seen", []), x.shape[-1]]
        return super().body(x)


@pytest.mark.parametrize(("size", "scales"), [(64, (64, 32, 96)), (100, (128, 96, 160)), (256, (256, 192, 320))])
def test_tta_has_three_scales_at_any_size_and_takes_six_passes(size, scales):
    model = Watched()
    Predictor(model, CPU, tta=True).predict(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert model.seen == [scale for scale in scales for _ in range(2)]


def test_the_best_threshold_is_found(dataset):
    pets = load_dataset(dataset, "train", image_size=64)
    loader = make_loader(pets, torch.device("cpu"), shard_batches(pets, 5))
    threshold, dice = find_threshold(Predictor(Brightness(), CPU), pets, loader, EvalConfig())
    by_hand = {}
    for level in range(5, 96):
        rows = score_samples(Predictor(Brightness(), CPU), pets, loader, EvalConfig(threshold=level / 100))
        by_hand[level / 100] = np.mean([row["dice"] for row in rows])
    assert dice == pytest.approx(max(by_hand.values()), abs=1e-4)
    assert by_hand[threshold] == pytest.approx(dice, abs=1e-4)
    assert dice > by_hand[0.5] + 0.001


def test_scores_at_the_own_size_are_those_of_the_resized_prediction(dataset):
    pets = load_dataset(dataset, "test", image_size=64)
    loader = make_loader(pets, torch.device("cpu"), shard_batches(pets, 3))
    rows = score_samples(Predictor(Brightness(), CPU), pets, loader, EvalConfig(original_size=True))
    assert [row["name"] for row in rows] == [sample.name for sample in pets.samples]
    from data.datasets import OxfordPetDataset

    for row, own, small in zip(rows, OxfordPetDataset(dataset, "test"), pets):
        logits = Predictor(Brightness(), CPU).predict(small["image"][None]).final[0]
        mask = resize_logits(logits, *own["mask"].shape)[0].numpy() > 0
        assert (row["height"], row["width"]) == own["mask"].shape == (64, 80)
        assert row["dice"] == pytest.approx(sk.f1_score(own["mask"].ravel(), mask.ravel()), abs=1e-6)


# ------------------------------------------------------------------------------------------------------ as users do it


def test_evaluation_tells_everything(trained, shared_dataset, tmp_path):
    last, best = (trained / f"saved_models/tiny_{kind}.pth" for kind in ("last", "best"))
    base = ("evaluate.py", "--data_path", shared_dataset, "--model_path", best)
    files = ("--json", "all.json", "--csv", "rows.csv", "--worst", 2)
    options = ("--original_size", "--tta", "--find_threshold", "--compare", last)
    said = run_ok(*base, *files, *options, cwd=tmp_path)
    for words in (
        "Scores at the images' own sizes",
        "95 % interval",
        "cats",
        "dog2",
        "Test-time augmentation",
        "Minus",
    ):
        assert words in said
    found = json.loads((tmp_path / "all.json").read_text())
    low, high = found["intervals"]["dice"]
    assert low <= found["dice"] <= high
    assert 0.05 <= found["threshold"] <= 0.95
    assert f"Threshold {found['threshold']:.2f}" in said
    assert found["groups"]["cats"]["images"] + found["groups"]["dogs"]["images"] == found["images"] == 4
    with (tmp_path / "rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert np.mean([float(row["dice"]) for row in table]) == pytest.approx(found["dice"], abs=1e-6)
    panels = sorted(p.name for p in (tmp_path / "worst_panels").iterdir())
    worst = sorted(table, key=lambda row: float(row["dice"]))[:2]
    assert panels == [f"{rank:03d}_{row['name']}.png" for rank, row in enumerate(worst, start=1)]


def test_rows_do_not_depend_on_the_batch(trained, shared_dataset, tmp_path):
    path = trained / "saved_models/tiny_last.pth"
    for size in (1, 3):
        flags = ("--model_path", path, "--batch_size", size, "--csv", f"{size}.csv", "--amp", "off")
        run_ok("evaluate.py", "--data_path", shared_dataset, *flags, cwd=tmp_path)
    assert (tmp_path / "1.csv").read_text() == (tmp_path / "3.csv").read_text()


def test_wrong_wishes_end_in_one_line(trained, shared_dataset, tmp_path):
    base = ("evaluate.py", "--data_path", shared_dataset, "--save_dir", trained / "saved_models")
    for flags, words in (
        (("--threshold", 1), "between 0 and 1"),
        (("--threshold", 0.4, "--find_threshold"), "leave one of them out"),
        (("--find_threshold", "--subset", "valid"), "--subset test"),
        (("--compare", "nothing.pth"), "no checkpoint nothing.pth"),
        (("--csv", "."), "is a folder"),
        (("--csv", "x", "--json", "./x"), "name two"),
    ):
        assert_one_error(run_script(*base, *flags, cwd=tmp_path), words)
