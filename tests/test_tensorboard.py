"""Curves and panels for TensorBoard."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import TINY, log_rows, run_ok
from training.state import LOG_COLUMNS


def test_curves_are_those_of_the_log_without_doubles_after_a_resume(tmp_path, shared_dataset):
    data, first = ("--data_path", shared_dataset), ("--resume", "saved_models/first.pth")
    run_ok("train.py", *data, *TINY, "--epochs", 1, "--tensorboard", cwd=tmp_path)
    (tmp_path / "saved_models/first.pth").write_bytes((tmp_path / "saved_models/tiny_last.pth").read_bytes())
    run_ok("train.py", *data, "--resume", "--epochs", 2, "--tensorboard", cwd=tmp_path)
    run_ok("train.py", *data, *first, "--epochs", 2, "--learning_rate", 1e-3, "--tensorboard", cwd=tmp_path)
    rows = log_rows(tmp_path)
    (folder,) = (tmp_path / "logs/tensorboard").iterdir()
    assert folder.name == rows[0]["run_id"]
    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["scalars"]) == set(LOG_COLUMNS[2:])
    for name in LOG_COLUMNS[2:]:
        points = events.Scalars(name)
        assert [point.step for point in points] == [1, 2, 3]
        assert [point.value for point in points] == pytest.approx([float(row[name]) for row in rows], rel=1e-5)
    assert len(events.Tags()["images"]) == 4
    for name in events.Tags()["images"]:
        assert [image.step for image in events.Images(name)] == [1, 2, 3]
        assert (events.Images(name)[0].width, events.Images(name)[0].height) == (3 * 268 + 12, 314)


@pytest.mark.long
def test_a_run_with_a_board_is_the_same_run(tmp_path, shared_dataset):
    losses = []
    for name, more in (("with", ["--tensorboard"]), ("without", [])):
        run_ok("train.py", "--data_path", shared_dataset, *TINY, "--epochs", 2, *more, cwd=tmp_path / name)
        losses.append([row["val_loss"] for row in log_rows(tmp_path / name)])
    assert losses[0] == losses[1]
    assert len(list((tmp_path / "with/logs/tensorboard").iterdir())) == 1
