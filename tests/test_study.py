"""The study trains, resumes and scores; the report computes what it says."""

import itertools
import json
import os
import sys

import numpy as np
import pytest
import scipy.stats

import claims
import evidence
import experiments
import report
import runner
from helpers import PYTHON, Script, expect_success, run_ok
from runtime.files import read_rows
from train import build_parser


@pytest.fixture
def small_study(monkeypatch, tmp_path, shared_dataset):
    """Returns what runs a queue of one short arm, and gives the rows of its table."""
    monkeypatch.setattr(experiments, "QUEUE", {"a": {"one": (1, "--epochs 2 --loss dice --image_size 64")}})
    monkeypatch.setattr(experiments, "ONE_SEED", ("a",))
    monkeypatch.setattr(experiments, "WITH_TTA", ("a/one",))
    monkeypatch.setattr(runner, "PYTHON", PYTHON)
    monkeypatch.setattr(os, "nice", lambda by: by)

    def call(run: runner.Run, *command) -> None:
        script, *flags = map(str, command)
        expect_success(Script(script, flags, runner.ROOT).finish())

    monkeypatch.setattr(runner, "call", call)

    def run(status=0) -> list[dict]:
        folders = {"--data_path": shared_dataset, "--out": tmp_path / "runs", "--table": tmp_path / "study.csv"}
        words = ["runner.py", *itertools.chain(*folders.items())]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as end:
            runner.main()
        assert end.value.code == status
        return read_rows(tmp_path / "study.csv")

    return run


def test_a_run_is_trained_and_scored_once(small_study, tmp_path, monkeypatch):
    (row,) = small_study()
    assert (row["experiment"], row["seed"], row["epochs"]) == ("a/one", "1", "2")
    counts = [list(map(int, p.split())) for p in row["test_pixels"].split(";")]
    tp, fp, fn = np.sum(counts, axis=0)
    assert float(row["test_dataset_dice"]) == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-6)
    assert row["test_dataset_dice_tta"] and len(row["minutes"].split()) == len(row["valid_curve"].split()) == 2
    assert not list((tmp_path / "runs").rglob("*.pth"))
    monkeypatch.setattr(runner, "call", None)  # nothing is left to do
    assert small_study() == [row]


def test_a_failed_run_is_reported_and_the_queue_continues(small_study, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "QUEUE", {"a": {"one": (1, "--epochs 1"), "two": (1, "--epochs 2")}})
    monkeypatch.setattr(runner, "train", lambda run, common: {}[run.experiment])
    assert small_study(status=1) == []
    errors = capsys.readouterr().err
    assert "failed: a/one, seed 1: KeyError('a/one')" in errors
    assert "failed: a/two, seed 1: KeyError('a/two')" in errors


def test_every_run_fits_and_has_flags_of_train_py(tmp_path):
    assert "hours of one core" in run_ok(runner.__file__, "--list", cwd=tmp_path)
    for run in runner.list_runs(["*"], tmp_path, tmp_path / "study.csv"):
        assert run.minutes <= 150
        if not run.flags.startswith(experiments.SMP):
            build_parser().parse_overrides(f"{experiments.COMMON} {run.flags}".split())


@pytest.mark.long
def test_the_smp_recipe_trains_and_scores(tmp_path, shared_dataset):
    flags = ["--data_path", shared_dataset, "--image_size", 64, "--epochs", 2, "--seed", 1, "--out", "run"]
    expect_success(Script(str(runner.ROOT / "study" / experiments.SMP), flags, tmp_path).finish())
    assert len(read_rows(tmp_path / "run/smp_training_log.csv")) == 2
    assert 0 < json.loads((tmp_path / "run/best/scores.json").read_text())["dice"] < 1


def made_up(shift: float, seeds: int = 3) -> evidence.Trained:
    """Runs on 200 images with 50 pixels of pet each; on average 40 + `shift` of them are predicted."""
    rows = []
    for seed in range(seeds):
        tp = np.clip(np.random.default_rng(seed + 10).normal(40 + shift, 5, 200).round(), 0, 50).astype(int)
        dice = 2 * tp.sum() / (2 * tp.sum() + 5 * 200 + (50 * 200 - tp.sum()))
        pixels = ";".join(f"{n} 5 {50 - n}" for n in tp)
        rows.append({"seed": str(seed), "test_pixels": pixels, "test_dataset_dice": str(dice), "images": "1 1 200"})
    return evidence.Trained("", rows)


def test_intervals_over_seeds_are_those_of_welchs_test():
    first, second = [0.70, 0.80, 0.90], [0.60, 0.65, 0.72]
    welch = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    difference = evidence.estimate([(1, first), (-1, second)])
    assert (difference.low, difference.high) == pytest.approx((welch.low, welch.high), abs=1e-6)


def test_intervals_include_the_spread_of_images():
    """Of one run: its Dice in bootstrap samples, drawn here one by one."""
    run, rng, drawn = made_up(0.0, seeds=1), np.random.default_rng(99), []
    for _ in range(3000):
        tp, fp, fn = run.pixels[0][rng.integers(200, size=200)].sum(axis=0)
        drawn.append(2 * tp / (2 * tp + fp + fn))
    score = evidence.contrast([(1, run)])
    assert score.high - score.low == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.06)


def test_claims_on_curves():
    def curves(*valid):
        return evidence.Trained("", [{"valid_curve": one, "train_curve": "0.5 0.9 0.99"} for one in valid])

    quick = curves("0.70 0.72 0.725", "0.60 0.75 0.76", "0.71 0.73 0.735")
    slow = curves("0.30 0.50 0.72", "0.20 0.60 0.75", "0.61 0.62 0.73")
    judged = claims.SPEED(quick, slow)
    assert "98 % of its own best validation Dice: 2.0 () against 3.0 (); better by +1.0" in judged.measured
    assert claims.START(slow, quick).difference.value < 0


def test_a_claim_without_three_seeds_is_not_listed():
    for seeds, judged in ((2, 0), (3, 1)):
        choice = {"light augmentation and color jitter": made_up(2.0, seeds), "light augmentation": made_up(0.0)}
        assert len(claims.judge_claims({claims.WHOLE: {"choice, Lite0": choice}, claims.PART: {}})) == judged


def test_the_moment_is_interpolated_between_epochs():
    ours = ("ours", np.array([1.0, 2.0, 4.0]), np.array([0.5, 0.7, 0.9]))
    theirs = ("theirs", np.array([10.0, 20.0, 30.0]), np.array([0.6, 0.8, 0.75]))
    assert report.minutes_to_theirs([ours, theirs]) == ("0.8000", "3", "20")


def test_the_report_is_written_from_the_table(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "OUT", tmp_path)
    (tmp_path / "docs").mkdir()
    report.write()
    assert (tmp_path / "REPORT.md").read_bytes() == (runner.ROOT / "REPORT.md").read_bytes(), "run `make report`"
