"""Whatever a crash leaves of a save, a log, an archive, a cache, a download or an export: the old state or the new."""

import dataclasses
import sys

import numpy as np
import pytest

import export
from crashes import recorded, try_all
from data.cache import open_cache
from data.dataset import Dataset
from data.view import View
from helpers import copy_run
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from runtime.files import append_rows, read_rows, write_rows
from training.config import TrainConfig
from training.state import archive_previous_run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a trained network's files, in folders of their own."""
    return copy_run(trained, tmp_path / "run")


def changed(checkpoint: Checkpoint) -> Checkpoint:
    """The next state of a run."""
    return dataclasses.replace(checkpoint, weights={name: value + 1 for name, value in checkpoint.weights.items()})


def prints(folder) -> dict[str, str]:
    """Fingerprints of all checkpoints in a folder, each of which must load."""
    return {p.name: load_checkpoint(p).fingerprint() for p in folder.glob("*.pth")}


def test_a_save(run):
    saved = run / "saved_models"
    content, before = load_checkpoint(saved / "tiny_last.pth"), prints(saved)
    with recorded(saved) as moments:
        save_checkpoint(changed(content), [saved / "tiny_best.pth", saved / "tiny_last.pth"])
    after = prints(saved)

    def check():
        now = prints(saved)
        assert now.keys() == before.keys()
        assert all(now[name] in (before[name], after[name]) for name in before)

    try_all(saved, moments, check, 30)


def test_a_row_of_the_evaluation_log(tmp_path):
    log, row = tmp_path / "logs/log.csv", {"model": "unet", "dice": "0.91234", "images": "3419"}
    log.parent.mkdir()
    append_rows(log, [row])
    with recorded(log.parent) as moments:
        append_rows(log, [row] * 2)

    def check():
        assert read_rows(log) in ([row] * count for count in (1, 2, 3))
        append_rows(log, [row])
        assert len(read_rows(log)) in (2, 3, 4)
        assert all(one == row for one in read_rows(log))

    try_all(log.parent, moments, check, 10)


def test_the_archive_of_an_older_run(run):
    saved, logs = run / "saved_models", run / "logs"
    config = TrainConfig(model_name="tiny", save_dir=str(saved), log_dir=str(logs))
    before, rows = prints(saved), read_rows(logs / "tiny_training_log.csv")
    new = changed(load_checkpoint(saved / "tiny_last.pth"))
    with recorded(run) as moments:
        archive_previous_run(config)
        save_checkpoint(new, [saved / "tiny_best.pth", saved / "tiny_last.pth"])
        write_rows(logs / "tiny_training_log.csv", rows[:1])

    def check():
        assert set(before.values()) <= set(prints(saved).values())  # under whatever name
        assert rows in [read_rows(log) for log in logs.glob("tiny_training_log*.csv")]

    try_all(run, moments, check, 60)


def test_a_cache(dataset):
    samples = Dataset(dataset).samples
    expected = open_cache(dataset, samples, View(32)).read([sample.name for sample in samples])
    folder = dataset / ".pixel_cache"
    open_cache(dataset, samples, View(48))
    next(folder.glob("32_*.npy")).unlink()
    with recorded(folder) as moments:
        open_cache(dataset, samples, View(32))

    def check():
        cache = open_cache(dataset, samples, View(32))
        np.testing.assert_array_equal(cache.read(list(cache.rows)), expected)
        assert not list(folder.glob("*.tmp")) or cache.file.exists()

    try_all(folder, moments, check, 20)


def test_an_export(run):
    saved, out = run / "saved_models", run / "out"
    file = saved / "tiny_best.pth"
    flags = ["--model_path", str(file), "--formats", "weights", "--output_path", str(out)]
    export.main(flags)
    name = next(out.iterdir()).name
    before = prints(out)[name]
    save_checkpoint(changed(load_checkpoint(file)), [file])
    with recorded(out) as moments:
        export.main(flags)
    after = prints(out)[name]
    assert before != after
    try_all(out, moments, lambda: prints(out)[name] in (before, after) or pytest.fail(), 20)
