"""Files of a run: what is kept, renamed, replaced and cleaned up."""

import errno
import os
from pathlib import Path

import pytest
import torch

from helpers import TINY, assert_one_error, copy_run, log_rows, run_ok, run_script
from models.checkpoint import load_checkpoint
from runtime import files
from runtime.errors import UsageError
from training.config import TrainConfig
from training.state import archive_previous_run, lock_run


def contents(folder: Path) -> dict[Path, bytes]:
    """What stands in the files of a run."""
    return {path: path.read_bytes() for path in folder.glob("*/[!.]*")}


def test_leftovers_of_a_kill_are_removed(tmp_path, shared_dataset):
    saved, logs = tmp_path / "saved_models", tmp_path / "logs"
    saved.mkdir()
    logs.mkdir()
    ours = [saved / ".tiny_last.pth.abc.tmp", saved / ".tiny_best.pth.link.tmp"]
    ours.append(logs / ".tiny_training_log.csv.abc.tmp")
    others = [saved / ".unet_last.pth.abc.tmp", logs / ".tiny_evaluation_log.csv.abc.tmp", saved / "mine.tmp"]
    for file in (*ours, *others):
        file.write_text("half")
    run_ok("train.py", "--data_path", shared_dataset, "--epochs", 1, *TINY, cwd=tmp_path)
    assert not any(file.exists() for file in ours)
    assert all(file.exists() for file in others)


@pytest.mark.parametrize("missing", [True, False])
def test_log_and_checkpoint_agree_after_a_kill_between_their_writes(tmp_path, trained, shared_dataset, missing):
    copy_run(trained, tmp_path, "[lt]*")
    log = tmp_path / "logs/tiny_training_log.csv"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:-1] if missing else [*lines, lines[-1].replace(",2,", ",3,", 1)]) + "\n")
    run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=tmp_path)
    assert [row["epoch"] for row in log_rows(tmp_path)] == ["1", "2", "3"]
    assert log.read_text().splitlines()[:3] == lines


def test_best_ahead_of_last_is_kept(tmp_path, trained, shared_dataset):
    # As after a kill between the two renames: best is from epoch 2, last from before it.
    best = torch.load(trained / "saved_models/tiny_best.pth", weights_only=True)
    copy_run(trained, tmp_path, "last*")
    best["progress"]["best_score"], best["progress"]["best_epoch"] = 0.99, 2
    torch.save(best, tmp_path / "saved_models/tiny_best.pth")
    said = run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=tmp_path)
    assert "best valid Dice 0.9900 in epoch 2" in said
    assert load_checkpoint(tmp_path / "saved_models/tiny_best.pth").progress.best_score == 0.99


def test_damaged_last_is_named_with_alternatives(tmp_path, trained, shared_dataset):
    last = copy_run(trained, tmp_path, "best*") / "saved_models/tiny_last.pth"
    data = bytearray((trained / "saved_models/tiny_last.pth").read_bytes())
    data[len(data) // 2] ^= 4
    last.write_bytes(data)
    done = run_script("train.py", "--data_path", shared_dataset, "--resume", cwd=tmp_path)
    assert_one_error(done, "tiny_last.pth is", "checksum", "there is tiny_best.pth")
    flags = ("--resume", "saved_models/tiny_best.pth", "--epochs", 1)
    assert "from saved_models/tiny_best.pth" in run_ok("train.py", "--data_path", shared_dataset, *flags, cwd=tmp_path)


def test_resuming_an_older_checkpoint_keeps_the_newer_one(tmp_path, trained, shared_dataset):
    saved = copy_run(trained, tmp_path) / "saved_models"
    flags = ("train.py", "--data_path", shared_dataset)
    run_ok(*flags, "--resume", "--epochs", 3, cwd=tmp_path)
    newer = (saved / "tiny_last.pth").read_bytes()
    log = (tmp_path / "logs/tiny_training_log.csv").read_bytes()
    run_id = log_rows(tmp_path)[0]["run_id"]
    run_ok(*flags, "--resume", "--epochs", 1, cwd=tmp_path)  # now at 6, with epoch_005 kept
    run_ok(*flags, "--resume", saved / "tiny_epoch_005.pth", "--epochs", 1, cwd=tmp_path)
    assert [row["epoch"] for row in log_rows(tmp_path)] == list("123456")
    assert (saved / f"tiny_epoch_005_{run_id}.pth").read_bytes() == newer
    assert load_checkpoint(saved / f"tiny_last_{run_id}.pth").progress.epoch == 6
    assert (saved / "tiny_best.pth").is_file()
    run_ok(*flags, "--epochs", 1, *TINY, cwd=tmp_path)  # the names are taken, so these get another one
    assert (saved / f"tiny_last_{run_id}-2.pth").is_file()
    assert (tmp_path / f"logs/tiny_training_log_{run_id}.csv").read_bytes().startswith(log)


def test_complete_run_changes_nothing(tmp_path, trained, shared_dataset):
    saved = copy_run(trained, tmp_path) / "saved_models"
    old = saved / "tiny_last_old.pth"
    os.link(saved / "tiny_last.pth", old)
    before = contents(tmp_path)
    said = run_ok("train.py", "--data_path", shared_dataset, "--resume", old, cwd=tmp_path)
    assert f"--resume {old} --epochs 5" in said
    assert contents(tmp_path) == before


@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_next_epoch_becomes_best_where_there_is_none(tmp_path, trained, shared_dataset, state):
    saved = copy_run(trained, tmp_path, "[lt]*") / "saved_models"
    if state == "damaged":
        (saved / "tiny_best.pth").write_bytes(b"damaged")
    run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=tmp_path)
    assert load_checkpoint(saved / "tiny_best.pth").progress.best_epoch == 3


def test_failed_start_leaves_the_earlier_run_alone(tmp_path, trained, shared_dataset):
    saved = copy_run(trained, tmp_path) / "saved_models"
    before = {p.name: p.stat().st_ino for p in saved.glob("*.pth")}
    flags = ("--image_size", 64, "--encoder_weights", "none", "--learning_rate", "1e30")
    done = run_script("train.py", "--data_path", shared_dataset, *flags, cwd=tmp_path)
    assert_one_error(done, "the loss is", ".jpg", "use a smaller --learning_rate", status=1)
    assert {p.name: p.stat().st_ino for p in saved.glob("*.pth")} == before


def test_files_of_no_known_run_are_archived_in_their_folder(tmp_path):
    log, last = tmp_path / "unet_training_log.csv", tmp_path / "unet_last.pth"
    log.write_text("run_id,epoch\nsome,1,more\n")
    torch.save({"progress": {"run_id": "../../elsewhere/x", "planned_epochs": 1}}, last)
    moved = archive_previous_run(TrainConfig(save_dir=tmp_path, log_dir=tmp_path, model_name="unet"))
    for old, new in zip((last, log), moved, strict=True):
        assert new.name.startswith(f"{old.stem}_unknown-")
        assert new.is_file()
        assert not old.exists()


def test_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "lockf", lockf)
    with pytest.raises(UsageError, match=r"\.unet\.lock can't be locked \(Function not implemented\)"):
        lock_run(TrainConfig(save_dir=tmp_path, log_dir=tmp_path, model_name="unet"))
