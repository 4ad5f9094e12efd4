"""The study trains, resumes and scores; the report computes what it says."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.stats

import claims
import evidence
import experiments
import report
import runner
from helpers import PYTHON, Script, expect_success, run_ok
from runtime.files import read_rows, write_rows


@pytest.fixture
def small_study(monkeypatch, tmp_path, shared_dataset):
    """A study of one short experiment; returns what runs it with further flags."""
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"a": {"one": "--epochs 1 --loss dice --image_size 64"}})
    monkeypatch.setattr(runner, "TABLE", tmp_path / "study.csv")
    monkeypatch.setattr(runner, "PYTHON", PYTHON)

    def sooner(run: runner.Run, *command) -> None:
        script, *flags = map(str, command)
        expect_success(Script(script, flags, runner.ROOT).finish())

    monkeypatch.setattr(runner, "call", sooner)

    def run(*flags, status=0) -> list[dict]:
        words = ["runner.py", "--data_path", str(shared_dataset), "--seeds", "5", *flags]
        monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "runs")])
        with pytest.raises(SystemExit) as end:
            runner.main()
        assert end.value.code == status
        return read_rows(tmp_path / "study.csv")

    return run


def test_a_run_is_trained_and_scored_once(small_study, tmp_path, monkeypatch):
    (row,) = small_study()
    assert row["settings"] == "epochs=1 image_size=64 loss=dice"
    assert (row["experiment"], row["seed"], row["epochs"]) == ("a/one", "5", "1")
    counts = [list(map(int, p.split())) for p in row["test_pixels"].split(";")]
    tp, fp, fn = np.sum(counts, axis=0)
    assert float(row["test_dataset_dice"]) == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-6)
    assert not list((tmp_path / "runs").rglob("*.pth"))
    call = runner.call
    monkeypatch.setattr(runner, "call", None)  # nothing is left to do
    assert small_study() == [row]
    monkeypatch.setattr(runner, "call", call)
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"a": {"one": "--epochs 1 --image_size 64"}})  # it has changed
    (row,) = small_study()
    assert row["settings"] == "epochs=1 image_size=64"


def test_choices_are_not_scored_on_test_images(small_study, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"choice": {"one": "--epochs 1 --image_size 64"}})
    (row,) = small_study()
    assert row["test_dataset_dice"] == row["test_pixels"] == ""
    assert not list((tmp_path / "runs").rglob("*evaluation*"))


def test_a_failed_run_is_reported_and_the_others_continue(small_study, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"a": {"one": "--epochs 1", "two": "--epochs 2"}})
    monkeypatch.setattr(runner, "train", lambda run, common: {}[run.experiment])
    assert small_study(status=1) == []
    said = capsys.readouterr().err
    assert "failed: a/one, seed 5: KeyError('a/one')" in said
    assert "failed: a/two, seed 5: KeyError('a/two')" in said
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runner.code_version() == "unknown"


def test_runs_on_different_images_are_not_mixed(monkeypatch, tmp_path):
    row = {"data": "whole set", "experiment": "a/one", "seed": "1"}
    write_rows(tmp_path / "study.csv", [{**row, "images": some} for some in ("8 1 1", "80 10 10")])
    monkeypatch.setattr(evidence, "TABLE", tmp_path / "study.csv")
    with pytest.raises(SystemExit, match="different images that are all called whole set"):
        evidence.load("whole set")


@pytest.mark.long
def test_the_others_recipe_resumes_after_its_last_epoch(tmp_path, shared_dataset):
    def start(name: str) -> Script:
        flags = ["--data_path", shared_dataset, "--image_size", 64, "--epochs", 2, "--seed", 1, "--out", name]
        return Script(str(runner.ROOT / "study" / experiments.SMP), flags, tmp_path)

    expect_success(start("whole").finish())
    script, state = start("parts"), tmp_path / "parts/state.pth"
    script.wait_until(lambda: state.is_file() or script.poll() is not None)
    script.send_signal(signal.SIGKILL)
    script.finish()
    expect_success(start("parts").finish())
    whole, parts = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "parts"))
    assert parts["counts"] == whole["counts"]
    assert [row["val_dice"] for row in parts["history"]] == [row["val_dice"] for row in whole["history"]]
    assert not state.exists()


STUDY = """
import sys
from pathlib import Path
import experiments
import runner
experiments.EXPERIMENTS = {"a": {"long": "--epochs 300 --image_size 64"}}
runner.PYTHON = sys.argv.pop().split()
runner.TABLE = Path(sys.argv.pop())
runner.main()
"""


@pytest.mark.slow
def test_a_stopped_study_stops_its_run_and_resumes_it(tmp_path, shared_dataset):
    out = tmp_path / "runs"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for started in (1, 2):
        flags = ["--data_path", shared_dataset, "--seeds", 5, "--out", out, tmp_path / "study.csv", " ".join(PYTHON)]
        command = list(map(str, [sys.executable, "-c", STUDY, *flags]))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        began = time.monotonic()
        try:
            while [log.read_text().count("Run  ") for log in out.glob("*/output.txt")] != [started]:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() - began < 120
                time.sleep(0.05)
        finally:
            process.terminate()
            said, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert "the same command continues" in said
        assert "failed" not in errors
        (output,) = [log.read_text() for log in out.glob("*/output.txt")]
        assert output.count("To go on: ") == started
        assert output.count("--resume ") == started - 1
    assert not (tmp_path / "study.csv").exists()


def test_the_runner_starts(tmp_path):
    assert "recipes/strong" in run_ok(runner.__file__, "--list", cwd=tmp_path)


def made_up(name: str, shift: float, seeds: int = 3) -> evidence.Trained:
    """Runs on 200 images with 50 pixels of pet each; on average `shift` more of them are found."""
    rows = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed + 10)
        found = np.clip(rng.normal(40 + shift, 5, 200).round(), 0, 50).astype(int)
        pixels = ";".join(f"{tp} {5} {50 - tp}" for tp in found)
        total = found.sum()
        dice = 2 * total / (2 * total + 5 * 200 + (50 * 200 - total))
        rows.append({"seed": str(seed), "test_pixels": pixels, "test_dataset_dice": str(dice)})
    return evidence.Trained(name, rows)


def test_differences_have_intervals():
    better, same, base = made_up("better", 2.0), made_up("same", 0.0), made_up("base", 0.0)
    found = evidence.compare(better, base)
    assert found.low < found.value < found.high
    assert found.low > 0
    assert found.verdict == "better"
    assert evidence.compare(base, better).verdict == "worse"
    assert evidence.compare(same, base).value == 0
    assert evidence.compare(same, base).verdict == "inconclusive"
    assert "inconclusive: 2 seeds" in evidence.compare(made_up("few", 2.0, seeds=2), base).verdict
    assert evidence.compare(better, None) is None


def test_runs_of_a_seed_are_compared_with_each_other():
    base = made_up("base", 0.0)
    shifted = [{**row, "test_dataset_dice": str(float(row["test_dataset_dice"]) + 0.01)} for row in base.rows]
    apart, paired = (evidence.compare(evidence.Trained("", shifted), base, paired=paired) for paired in (False, True))
    assert apart.value == pytest.approx(paired.value)
    assert apart.high - apart.low > 1e-3
    assert paired.low == pytest.approx(paired.high)  # all seeds and images agree


def test_a_contrast_of_three_is_the_difference_of_differences():
    a, b, c = made_up("a", 4.0), made_up("b", 3.0), made_up("c", 0.0)
    found = evidence.contrast([(2, b), (-1, c), (-1, a)])
    assert found.value == pytest.approx(evidence.compare(b, c).value - evidence.compare(a, b).value)
    assert evidence.contrast([(2, b), (-1, None), (-1, a)]) is None


def test_claims_are_confirmed_reversed_or_inconclusive():
    better, base, same = made_up("better", 2.0), made_up("base", 0.0), made_up("same", 0.05)
    verdicts = [claims.judged(evidence.compare(*both))[1] for both in ((better, base), (base, better), (same, base))]
    assert verdicts == ["confirmed", "not confirmed: here it is the reverse", "inconclusive"]
    assert claims.judged(evidence.compare(made_up("few", 2.0, seeds=1), base))[1] == "inconclusive: 1 seed"
    assert claims.judged(None)[1] == "not run"

    def curves(*valid):
        rows = [{"valid_curve": one, "train_curve": "0.5 0.9 0.99"} for one in valid]
        return evidence.Trained("", rows)

    quick = curves("0.70 0.71 0.72", "0.60 0.75 0.75", "0.71 0.72 0.73")
    slow = curves("0.30 0.50 0.72", "0.20 0.60 0.75", "0.61 0.62 0.73")
    said, verdict = claims.judged_apart(claims.SPEED, quick, slow)
    assert said.endswith(": 2, 2, 2 against 3, 3, 3")
    assert verdict == "confirmed"
    assert claims.judged_apart(claims.SPEED, slow, quick)[1] == "not confirmed: here it is the reverse"
    assert claims.judged_apart(claims.START, quick, slow)[1] == "inconclusive: the seeds overlap"
    assert claims.judged_apart(claims.START, quick, curves("0.1 0.2"))[1] == "inconclusive: 1 seed"


def test_intervals_include_the_spread_of_seeds():
    """All images equal, seeds different: the interval is that of Welch's test."""

    def alike(hits):
        rows = [{"test_pixels": ";".join([f"{tp} 0 {100 - tp}"] * 50)} for tp in hits]
        return evidence.Trained(
            "", [{**row, "test_dataset_dice": str(2 * tp / (tp + 100))} for row, tp in zip(rows, hits)]
        )

    first, second = alike((70, 80, 90)), alike((60, 65, 72))
    welch = scipy.stats.ttest_ind(
        first.figures("test_dataset_dice"), second.figures("test_dataset_dice"), equal_var=False
    ).confidence_interval()
    found = evidence.compare(first, second)
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high), abs=1e-6)


def test_intervals_include_the_spread_of_images():
    """All seeds equal, images different: the interval is that of the standard error over images."""
    first, second = made_up("first", 3.0, seeds=1), made_up("second", 0.0, seeds=1)
    first.rows, second.rows = first.rows * 3, second.rows * 3
    found = evidence.compare(first, second)
    a, b = (one.pixels()[0] for one in (first, second))
    rng = np.random.default_rng(99)
    drawn = []
    for _ in range(3000):
        some = rng.integers(len(a), size=len(a))
        sums = [one[some].sum(axis=0) for one in (a, b)]
        dice = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in sums]
        drawn.append(dice[0] - dice[1])
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.06)


def test_the_moment_is_interpolated_between_epochs():
    curve, minutes = np.array([0.5, 0.7, 0.9]), np.array([1.0, 2.0, 4.0])
    assert report.minutes_until(0.8, curve, minutes) == pytest.approx(3.0)
    assert report.minutes_until(0.4, curve, minutes) == 1.0
    assert report.minutes_until(0.95, curve, minutes) is None


def test_the_report_is_written_from_the_table(monkeypatch, tmp_path):
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(report, "ROOT", tmp_path)
    report.write()
    for file in ("REPORT.md", "docs/study.md"):
        text, kept = (tmp_path / file).read_text(), (runner.ROOT / file).read_text()
        number = re.compile(r"\d+(?:\.\d+)?")
        assert number.sub("#", text) == number.sub("#", kept), "run `make report`"
        figures = [list(map(float, number.findall(one))) for one in (text, kept)]
        assert figures[0] == pytest.approx(figures[1], abs=2e-4), "run `make report`"
        for line in text.split("(docs/")[1:]:
            assert (runner.ROOT / "docs" / line.split(")")[0]).is_file()
    assert len((runner.ROOT / "REPORT.md").read_text().splitlines()) <= 200
