"""The study trains, resumes and scores; the report computes what it says."""

import csv
import os
import re
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
from runtime.files import write_rows


@pytest.fixture
def small_study(monkeypatch, tmp_path, shared_dataset):
    """A study of one short experiment; returns what runs it with further flags."""
    monkeypatch.setattr(
        experiments,
        "EXPERIMENTS",
        {"a": {"one": "--epochs 1 --loss dice"}, "b": {"the same": "--loss dice --epochs 1"}},
    )
    monkeypatch.setattr(runner, "TABLE", tmp_path / "study.csv")
    monkeypatch.setattr(runner, "PYTHON", PYTHON)

    def run(*flags) -> list[dict]:
        words = ["runner.py", "--data_path", str(shared_dataset), "--image_size", "64", "--seeds", "5", *flags]
        monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "runs")])
        with pytest.raises(SystemExit) as end:
            runner.main()
        assert end.value.code == 0
        with (tmp_path / "study.csv").open() as file:
            return list(csv.DictReader(file))

    return run


def test_validation_only_scores_no_test_image_and_a_later_call_does(small_study, tmp_path, monkeypatch):
    (row,) = small_study("--validation_only")  # two experiments of the same settings are one run
    assert row["test_dataset_dice"] == row["test_pixels"] == ""
    assert row["settings"] == "epochs=1 loss=dice"
    assert float(row["valid_dice"]) == pytest.approx(float(row["valid_curve"]), abs=1e-4)
    (folder,) = (p for p in (tmp_path / "runs").iterdir() if p.is_dir())
    assert not list(folder.glob("*evaluation*"))
    trained = (folder / "tiny_training_log.csv").read_bytes()

    def sooner(command: list, run: runner.Run, threads: int) -> None:
        script, *flags = map(str, command)
        expect_success(Script(script, flags, runner.ROOT).finish())

    monkeypatch.setattr(runner, "call", sooner)
    (row,) = small_study()
    assert (folder / "tiny_training_log.csv").read_bytes() == trained
    assert not list(folder.glob("*.pth"))
    counts = [list(map(int, p.split())) for p in row["test_pixels"].split(";")]
    tp, fp, fn = np.sum(counts, axis=0)
    assert float(row["test_dataset_dice"]) == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-6)
    monkeypatch.setattr(runner, "call", None)  # nothing is left to do
    assert small_study() == [row]


def test_a_failed_run_is_reported_and_the_others_continue(small_study, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"a": {"one": "--epochs 1", "two": "--epochs 2"}})
    monkeypatch.setattr(runner, "train", lambda run, args: {}[run.experiment])
    with pytest.raises(AssertionError):  # status 1
        small_study()
    said = capsys.readouterr().err
    assert "failed: a/one, seed 5: KeyError('a/one')" in said
    assert "failed: a/two, seed 5: KeyError('a/two')" in said
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runner.code_version() == "unknown"


def test_runs_on_different_images_are_not_mixed(monkeypatch, tmp_path):
    row = {"image_size": "96", "data": "partial set", "split": "official", "encoder_weights": "none"}
    write_rows(tmp_path / "study.csv", [{**row, "pictures": some} for some in ("8 1 1", "80 10 10")])
    monkeypatch.setattr(evidence, "TABLE", tmp_path / "study.csv")
    with pytest.raises(SystemExit, match="different images that are all called partial set"):
        evidence.load()


STUDY = """
import sys
from pathlib import Path
import experiments
import runner
experiments.EXPERIMENTS = {"a": {"long": "--epochs 300", "longer": "--epochs 301"}}
runner.PYTHON = sys.argv.pop().split()
runner.TABLE = Path(sys.argv.pop())
runner.main()
"""


@pytest.mark.slow
def test_a_stopped_study_stops_its_runs_and_resumes_them(tmp_path, shared_dataset):
    out = tmp_path / "runs"
    flags = ["--data_path", shared_dataset, "--image_size", 64, "--seeds", 5, "--jobs", 2, "--out", out]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for which, times in (("a/*", [1, 1]), ("a/long", [1, 2])):  # the second time, one of the two goes on
        command = [
            sys.executable,
            "-c",
            STUDY,
            *flags,
            "--experiments",
            which,
            tmp_path / "study.csv",
            " ".join(PYTHON),
        ]
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        began = time.monotonic()
        try:
            while sorted(log.read_text().count("Run  ") for log in out.glob("*/output.txt")) != times:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() - began < 120
                time.sleep(0.05)
        finally:
            process.terminate()
            said, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert "the same command continues" in said
        assert "failed" not in errors
        outputs = [log.read_text() for log in out.glob("*/output.txt")]
        assert sorted(output.count("To go on: ") for output in outputs) == times
        assert sum(output.count("--resume ") for output in outputs) == sum(times) - 2
    assert not (tmp_path / "study.csv").exists()


def test_both_scripts_start(tmp_path):
    for script in (runner, report):
        said = run_ok(script.__file__, "--help", cwd=tmp_path)
        assert script.__doc__.split(":")[0].split("\n")[0][:20] in said


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
    assert claims.judged(None)[1] == "inconclusive: not run yet"

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


def test_the_report_is_written_from_the_table(monkeypatch, tmp_path):
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(report, "ROOT", tmp_path)
    groups = evidence.load()
    assert groups["recipes"]
    report.write(groups)
    text = (tmp_path / "REPORT.md").read_text()
    kept = (runner.ROOT / "REPORT.md").read_text()
    number = re.compile(r"\d+(?:\.\d+)?")
    assert number.sub("#", text) == number.sub("#", kept), "run `python study/report.py`"
    figures = [list(map(float, number.findall(one))) for one in (text, kept)]
    assert figures[0] == pytest.approx(figures[1], abs=2e-4), "run `python study/report.py`"
    for line in text.split("(docs/")[1:]:
        name = line.split(")")[0]
        assert (tmp_path / "docs" / name).is_file() or name == "panel.png"
