"""Checkpoints: saving, loading, damage, other versions."""

import pickle
import zipfile

import numpy as np
import pytest
import torch

from helpers import assert_one_error, copy_run, run_script, same
from models import checkpoint
from models.build import build_model
from models.checkpoint import build_from_checkpoint, load_checkpoint, save_checkpoint
from runtime.errors import CheckpointError, RunError


def content(**changes):
    torch.manual_seed(0)
    weights = {"a.weight": torch.randn(50, 40), "a.bias": torch.randn(50), "steps": torch.tensor(3)}
    base = {
        "model": {"name": "unet", "config": {}},
        "weights": weights,
        "preprocessing": {"image_size": 64, "channels": 3, "window": None},
        "data": {"split": "official", "seed": 1, "fingerprints": {}, "train_names": ["a"], "seen_names": []},
        "encoder_start": "from scratch",
        "progress": {"run_id": "run-1", "planned_epochs": 1, "best_score": 0.5, "best_epoch": 1, "history": []},
        "terms": {},
    }
    return {**base, **changes}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "unet_last.pth"
    save_checkpoint(content(), [path])
    return path


def test_checkpoint_round_trip(saved):
    loaded = load_checkpoint(saved)
    assert same(loaded["weights"], content()["weights"])
    assert loaded["progress"] == content()["progress"]
    assert loaded["format_version"] == checkpoint.FORMAT_VERSION
    assert torch.load(saved, weights_only=True)["model"] == {"name": "unet", "config": {}}


def test_several_names_are_independent_files(tmp_path):
    best, last = tmp_path / "best.pth", tmp_path / "last.pth"
    save_checkpoint(content(), [best, last])
    assert same(load_checkpoint(best)["weights"], load_checkpoint(last)["weights"])
    save_checkpoint(content(encoder_start="changed"), [last])
    assert load_checkpoint(best)["encoder_start"] == "from scratch"
    assert load_checkpoint(last)["encoder_start"] == "changed"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pth", "last.pth"]


def test_without_links_copies_are_made(tmp_path, monkeypatch):
    def no_links(*_args):
        raise OSError("this file system has no links")

    monkeypatch.setattr(checkpoint.os, "link", no_links)
    save_checkpoint(content(), [tmp_path / "best.pth", tmp_path / "last.pth"])
    assert same(load_checkpoint(tmp_path / "last.pth")["weights"], content()["weights"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_never_written(saved, value):
    before = saved.read_bytes()
    broken = content()
    broken["weights"]["a.bias"][3] = value
    with pytest.raises(RunError, match=r"1 weights are not finite \(a.bias"):
        save_checkpoint(broken, [saved])
    assert saved.read_bytes() == before


def test_failed_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def disk_full(_content, file):
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(content(), [saved])
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_flipped_bits_are_found_or_harmless(saved):
    whole = saved.read_bytes()
    found = 0
    rng = np.random.default_rng(0)
    positions = rng.integers(0, len(whole), 150)
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        saved.write_bytes(damaged)
        try:
            loaded = load_checkpoint(saved)
        except CheckpointError as error:
            found += 1
            assert str(saved) in str(error)
            assert "\n" not in str(error)
        else:  # padding between the records
            assert same(loaded["weights"], content()["weights"])
            assert loaded["progress"] == content()["progress"]
    assert found > 100


def test_any_damaged_byte_is_found_or_harmless(tmp_path):
    path, tiny = tmp_path / "x.pth", content(weights={"a": torch.arange(4.0)})
    save_checkpoint(tiny, [path])
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            continue
        assert same(loaded["weights"], tiny["weights"]), position
        assert loaded["progress"] == tiny["progress"], position


def test_directory_flag_on_a_record_is_damage(tmp_path):
    # torch would read such a record as empty and give whatever is in memory.
    path = tmp_path / "x.pth"
    save_checkpoint(content(), [path])
    data = bytearray(path.read_bytes())
    for start in (i for i in range(len(data) - 4) if data[i : i + 4] == b"PK\x01\x02"):  # the archive's directory
        data[start + 38] |= 0x10
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged.*an entry is no file"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_truncation_is_found_and_another_file_offered(saved, share):
    save_checkpoint(content(), [saved.with_name("unet_best.pth")])
    saved.write_bytes(saved.read_bytes()[: int(share * saved.stat().st_size)])
    with pytest.raises(CheckpointError, match="unet_last.pth is truncated.*there is unet_best.pth"):
        load_checkpoint(saved)


def test_missing_file_is_named_with_alternatives(saved):
    with pytest.raises(CheckpointError, match="no checkpoint .*unet_best.pth; in .* there is unet_last.pth"):
        load_checkpoint(saved.with_name("unet_best.pth"))
    with pytest.raises(CheckpointError, match="train one with"):
        load_checkpoint(saved.parent / "elsewhere" / "unet_best.pth")


class RunsCode:
    """Unpickling this would create the file in FLAG."""

    flag = None

    def __reduce__(self):
        return (open, (str(self.flag), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_runs_code_is_refused(tmp_path, zipped):
    RunsCode.flag = tmp_path / "code_ran"
    path = tmp_path / "evil.pth"
    torch.save({"weights": RunsCode()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="refused|no checkpoint"):
        load_checkpoint(path)
    assert not RunsCode.flag.exists()
    with path.open("rb") as file:  # the trap is a real one
        if zipped:
            with zipfile.ZipFile(file) as archive:
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                pickle.loads(archive.read(name))
            assert RunsCode.flag.exists()


@pytest.mark.parametrize("other", [{"state_dict": {}}, {"conv.weight": torch.zeros(2)}, [1, 2], torch.zeros(3)])
def test_files_of_other_programs_are_recognised(tmp_path, other):
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="other.pth is a file of another program"):
        load_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize("version", [0, 2, 99, "1", None, torch.ones(2)])
def test_other_versions_are_one_line(tmp_path, version):
    torch.save({**content(), "format": checkpoint.FORMAT, "format_version": version}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x.pth is of another version of this program .*train again$"):
        load_checkpoint(tmp_path / "x.pth")


def test_missing_entries_are_named(tmp_path):
    torch.save({"format": checkpoint.FORMAT, "format_version": checkpoint.FORMAT_VERSION}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="x.pth is malformed: model.name is missing"):
        load_checkpoint(tmp_path / "x.pth")


def test_model_is_rebuilt_and_misfits_named(tmp_path):
    model = build_model("unet").eval()
    fitting = content(model={"name": "unet", "config": model.config}, weights=model.state_dict())
    again = build_from_checkpoint(fitting, "file.pth")
    images = torch.rand(1, 3, 32, 32) * 255
    with torch.inference_mode():
        assert torch.equal(model(images), again(images))
    assert not again.training
    for broken in (content(), content(model={"name": "unet", "config": {"out_channels": 2}})):
        with pytest.raises(CheckpointError, match="file.pth: its weights do not fit"):
            build_from_checkpoint(broken, "file.pth")


@pytest.mark.parametrize("script", ["evaluate.py", "inference.py"])
def test_bad_checkpoints_are_one_error_line(trained, shared_dataset, tmp_path, script):
    folder = copy_run(trained, tmp_path)
    flags = (script, "--data_path", shared_dataset)
    assert_one_error(run_script(*flags, "--model", "nowhere.pth", cwd=folder), "no checkpoint nowhere.pth")
    assert_one_error(run_script(*flags, "--model_type", "unet", cwd=folder), "unet_best.pth", "tiny_best.pth")
    best = "saved_models/tiny_best.pth"
    contradiction = run_script(*flags, "--model_type", "unet", "--model", best, cwd=folder)
    assert_one_error(contradiction, "holds a tiny, but --model_name says unet")
    assert_one_error(run_script(*flags, "--model_type", "segnet", cwd=folder), "no model is called 'segnet'")
    data = (folder / best).read_bytes()
    (folder / best).unlink()
    (folder / best).write_bytes(data[: len(data) // 2])
    assert_one_error(run_script(*flags, cwd=folder), "tiny_best.pth is truncated", "tiny_last.pth")
