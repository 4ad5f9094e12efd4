"""Checkpoints: saving, loading, damage, other versions, and entries that can't be."""

import pickle
import zipfile

import pytest
import torch

from helpers import same
from models import checkpoint
from models.build import build_model
from models.checkpoint import Progress, load_checkpoint, save_checkpoint
from runtime.errors import CheckpointError, RunError, UsageError
from stubs import CPU, make_checkpoint
from training.config import TrainConfig
from training.setup import prepare
from training.state import start_progress


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "unet_last.pth"
    save_checkpoint(make_checkpoint(), [path])
    return path


def test_checkpoint_round_trip_under_two_names(tmp_path):
    written, paths = make_checkpoint(), [tmp_path / "best.pth", tmp_path / "last.pth"]
    save_checkpoint(written, paths)
    paths[0].rename(tmp_path / "moved.pth")
    loaded = load_checkpoint(paths[1])
    assert same(loaded.weights, written.weights)
    assert {**vars(loaded), "weights": None} == {**vars(written), "weights": None}
    assert torch.load(tmp_path / "moved.pth", weights_only=True)["data"]["split"] == "official"


def test_non_finite_weights_are_never_written(saved):
    before, broken = saved.read_bytes(), make_checkpoint()
    broken.weights["a.weight"][3] = torch.inf
    with pytest.raises(RunError, match=r"1 weight not finite \(a.weight"):
        save_checkpoint(broken, [saved])
    assert saved.read_bytes() == before


def test_missing_and_cut_files_are_named_with_alternatives(saved):
    with pytest.raises(CheckpointError, match="no checkpoint .*unet_best.pth .in .* there is unet_last.pth"):
        load_checkpoint(saved.with_name("unet_best.pth"))
    with pytest.raises(CheckpointError, match="name another file"):
        load_checkpoint(saved.parent / "elsewhere" / "unet_best.pth")
    save_checkpoint(make_checkpoint(), [saved.with_name("unet_best.pth")])
    for share in (0.999, 0.5, 0.01, 0):
        saved.write_bytes(saved.read_bytes()[: int(share * saved.stat().st_size)])
        with pytest.raises(CheckpointError, match="unet_last.pth is damaged.*there is unet_best.pth"):
            load_checkpoint(saved)


class RunsCode:
    """Unpickling this would create the file `flag`."""

    flag = None

    def __reduce__(self):
        return (open, (str(self.flag), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_runs_code_is_refused(tmp_path, zipped):
    RunsCode.flag = tmp_path / "code_ran"
    path = tmp_path / "evil.pth"
    torch.save({"weights": RunsCode()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="more than tensors and plain values" if zipped else "no checkpoint"):
        load_checkpoint(path)
    assert not RunsCode.flag.exists()
    if zipped:  # the trap is a real one
        with zipfile.ZipFile(path) as archive:
            pickle.loads(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))
        assert RunsCode.flag.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": {}}, "a file of another program"),
        (torch.zeros(3), "a file of another program"),
        ({"format": checkpoint.FORMAT, "format_version": 2}, "of another version of this program.*train again$"),
        ({"format": checkpoint.FORMAT}, "of another version of this program.*train again$"),
    ],
)
def test_files_of_other_programs_and_versions_are_recognised(tmp_path, content, words):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=f"x.pth is {words}"):
        load_checkpoint(tmp_path / "x.pth")


def test_model_is_rebuilt_and_misfits_named():
    model = build_model("unet_small")
    fitting = {"model_name": "unet_small", "weights": model.state_dict()}
    again = make_checkpoint(**fitting, config=model.config).build("file.pth")
    assert same(again.state_dict(), model.state_dict())
    assert not again.training
    for broken in ({"weights": {"a": torch.zeros(3)}}, {"config": {"attention": "se"}}, {"config": {"device": "cpu"}}):
        with pytest.raises(CheckpointError, match="file.pth: its weights do not fit"):
            make_checkpoint(**{**fitting, **broken}).build("file.pth")
    with pytest.raises(UsageError, match="can't segment yet"):
        make_checkpoint(**fitting, config={"out_channels": 0}).build("file.pth")


def test_fingerprint_is_of_names_and_weights():
    one, zero = torch.ones(2), torch.zeros(2)
    contents = ({"a": one, "b": zero}, {"b": zero, "a": one}, {"a": one, "c": zero}, {"a": one, "b": one})
    first, reordered, *others = (make_checkpoint(weights=weights).fingerprint() for weights in contents)
    assert first == reordered
    assert len({first, *others}) == 3


# ------------------------------------------------------------------------------------------- entries that can't be


@pytest.fixture(scope="module")
def content(trained) -> dict:
    """The content of a real checkpoint's file."""
    return torch.load(trained / "saved_models/tiny_last.pth", weights_only=True)


def changed(content: dict, path: str, value) -> dict:
    """A copy of a content with one entry changed; tensors are shared."""
    key, _, rest = path.partition(".")
    return {**content, key: changed(content[key], rest, value) if rest else value}


WRONG = {
    "model_name": ["segnet", "../unet", 7, None],
    "config.attention": ["1,99", 7],
    "config.out_channels": [2, 10**9, "1"],
    "config.in_channels": [0, 10**9, True, 3.0],
    "config.classes": [["one"], "a,b", [1, 2], 5],
    "weights": [None, [1], {7: torch.zeros(1)}, {"head.bias": 1.0}],
    "image_size": [0, 10**7, True, "64", 64.0, -1],
    "data.seed": [-1, 10**80, 0.5],
    "data.fold": [[1], [2, 1], [0, 5], [1, 10**18]],
    "data.fingerprints": [[], {"train": 7}],
    "data.train_names": ["abc", [1, 2], [None]],
    "progress.run_id": ["a/b", "..", ".ssh", "a\0b", "a\nb", "", "a" * 101, 7],
    "progress.epoch": [-1, 0.5, None],
    "progress.sums": [[1.0], torch.zeros(2, 2).double(), torch.zeros(3).long(), torch.zeros(1).double()],
    "progress.history": [{}, ["epoch 1"], [{1: 2}], [{"epoch": -1}]],
    "progress.resumed": [[-3], 1],
    "terms": [["masks"], {"masks": "masks"}],
    "training.settings": [[], None],
    "training.random_state": [None, [1, 2]],
    "extra": [1],
}


@pytest.mark.parametrize("path", WRONG)
def test_entries_that_can_not_be_are_refused_in_one_line(content, tmp_path, path):
    for value in WRONG[path]:
        torch.save(changed(content, path, value), tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=r"x\.pth is malformed: .*; use another checkpoint") as caught:
            load_checkpoint(tmp_path / "x.pth")
        assert path in str(caught.value) or path.startswith("config")  # of which the task says what is wrong
        assert "\n" not in str(caught.value)


def test_missing_entries_are_named_and_new_ones_may_have_defaults(content, tmp_path):
    for path in ("model_name", "data.split", "progress.run_id", "training.optimizer"):
        section, _, name = path.rpartition(".")
        part = content[section] if section else content
        rest = {key: value for key, value in part.items() if key != name}
        torch.save(changed(content, section, rest) if section else rest, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=f"x.pth is malformed: .*missing.*'{name}'"):
            load_checkpoint(tmp_path / "x.pth")
    progress = {key: value for key, value in content["progress"].items() if key != "patient_from"}
    torch.save(changed(content, "progress", progress), tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth").progress.patient_from == 0


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optimizer.param_groups", ["adam"]),
        ("optimizer.state", {0: {"step": torch.tensor(8.0), "exp_avg": torch.zeros(3)}}),
        ("random_state", torch.zeros(3, dtype=torch.uint8)),
    ],
)
def test_states_that_do_not_fit_the_run_are_refused_in_one_line(
    content, shared_dataset, tmp_path, path, value, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    torch.save(changed(content, f"training.{path}", value), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth can't be resumed") as caught:
        prepare({"data_path": str(shared_dataset), "resume": "x.pth", "num_workers": 0}, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("step", "sums"), [(5, [1.0, 8.0, 8.0, 1.0]), (2, None), (2, [0.0, 0.0, 0.0, 0.0])])
def test_a_run_that_stands_where_it_can_not_is_refused(tmp_path, step, sums):
    sums = None if sums is None else torch.tensor(sums, dtype=torch.float64)
    stands = make_checkpoint(progress=Progress(run_id="r", planned_epochs=1, step=step, sums=sums))
    with pytest.raises(CheckpointError, match=f"step {step} of 4"):
        start_progress(TrainConfig(), False, 4, stands, tmp_path / "x.pth")


@pytest.mark.parametrize("weight", [torch.eye(3).to_sparse(), torch.tensor([torch.nan]), torch.zeros(1).expand(10**6)])
def test_tensors_that_are_not_sound_are_refused(saved, weight):
    content = torch.load(saved, weights_only=True)
    content["weights"]["a.weight"] = weight
    torch.save(content, saved)
    with pytest.raises(CheckpointError, match="weights.a.weight has an impossible value"):
        load_checkpoint(saved)
