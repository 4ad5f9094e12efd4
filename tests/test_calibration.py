"""Calibration error, reliability, temperature."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.calibration import calibration_curve

from evaluation.calibration import BINS, calibration_error, confidence_bins, fit_temperature
from helpers import assert_one_error, rows, run_ok, run_script
from models.checkpoint import load_checkpoint


def drawn(temperature: float, count: int = 200_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are too large by a factor, and truths drawn from the true probabilities."""
    rng = torch.Generator().manual_seed(4)
    logits = torch.randn(count, generator=rng) * 2
    return logits * temperature, (torch.rand(count, generator=rng) < logits.sigmoid()).float()


def test_calibration_error_is_that_of_an_independent_computation():
    logits, truth = drawn(2.5, 5000)
    probability = logits.sigmoid()
    bins = sum(confidence_bins(p, t) for p, t in zip(probability.split(1000), truth.split(1000)))
    confidence = torch.maximum(probability, 1 - probability).numpy()
    right = ((probability > 0.5) == (truth > 0)).numpy()
    error = 0.0
    for low in np.arange(BINS) / BINS:  # pixel by pixel, as the definition says
        some = (confidence > low) & (confidence <= low + 1 / BINS)
        if some.any():
            error += abs(right[some].mean() - confidence[some].mean()) * some.mean()
    assert calibration_error(bins) == pytest.approx(error, abs=1e-6)
    shares, means = calibration_curve(right, confidence, n_bins=BINS)
    used = bins[bins[:, 0] > 0]
    np.testing.assert_allclose(used[:, 2] / used[:, 0], shares, atol=1e-3)
    np.testing.assert_allclose(used[:, 1] / used[:, 0], means, atol=1e-3)
    assert calibration_error(confidence_bins(probability, truth, torch.zeros(5000))) == 0


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_is_found_again(temperature):
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.03)


def test_calibrated_checkpoint_has_the_same_masks_and_no_larger_error(trained, shared_dataset, tmp_path):
    file = tmp_path / "tiny_best.pth"
    file.write_bytes((trained / "saved_models/tiny_best.pth").read_bytes())
    flags = ("evaluate.py", "--data_path", shared_dataset, "--amp", "off")
    said = run_ok(*flags, "--model_path", file, "--calibrate", "--report", "a", cwd=tmp_path)
    assert "tiny_best_calibrated.pth" in said
    assert Image.open(tmp_path / "a/reliability.png").size == (500, 500)
    errors = [line for line in said.splitlines() if line.startswith("Temperature")][0].split()
    before, after = float(errors[-4]), float(errors[-2])
    again = run_ok(*flags, "--model_path", tmp_path / "tiny_best_calibrated.pth", "--report", "b", cwd=tmp_path)
    assert f"Calibration error, 15 bins: {after:.4f}" in again
    assert f"Calibration error, 15 bins: {before:.4f}" in said
    assert rows(tmp_path / "a/images.csv") == rows(tmp_path / "b/images.csv")
    assert load_checkpoint(tmp_path / "tiny_best_calibrated.pth").training is None
    wrong = run_script(*flags, "--model_path", file, "--calibrate", "--subset", "valid", cwd=tmp_path)
    assert_one_error(wrong, "score others: --subset test")
    for more in (("--tta",), ("--resize", "tile"), ("--ignore_border",)):
        wrong = run_script(*flags, "--model_path", file, "--calibrate", *more, cwd=tmp_path)
        assert_one_error(wrong, f"leave {more[0]} out")
