import pickle
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from models import build_model, checkpoint, encoder_weights
from models.checkpoint import build_from_checkpoint, load_checkpoint, save_checkpoint
from models.encoder_weights import load_encoder_weights
from runtime.errors import CheckpointError, RunError


def content(**changes):
    torch.manual_seed(0)
    weights = {"a.weight": torch.randn(50, 40), "a.bias": torch.randn(50), "steps": torch.tensor(3)}
    base = {
        "model": {"name": "unet", "config": {}},
        "weights": weights,
        "preprocessing": {"image_size": 64},
        "data": {"split": "official", "seed": 1, "fingerprints": {}, "train_names": ["a"]},
        "encoder_start": "from scratch",
        "progress": {"run_id": "run-1", "planned_epochs": 1, "best_dice": 0.5, "best_epoch": 1, "history": []},
    }
    return {**base, **changes}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "unet_last.pth"
    save_checkpoint(content(), [path])
    return path


def test_round_trip(saved):
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
def test_weights_that_are_not_finite_are_never_written(saved, value):
    before = saved.read_bytes()
    broken = content()
    broken["weights"]["a.bias"][3] = value
    with pytest.raises(RunError, match=r"1 weights are not finite \(a.bias"):
        save_checkpoint(broken, [saved])
    assert saved.read_bytes() == before


def test_a_failing_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def disk_full(_content, file):
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(content(), [saved])
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_every_flipped_bit_is_found_or_without_effect(saved):
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


def test_every_byte_of_a_small_file_may_be_damaged(tmp_path):
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


def test_a_directory_flag_on_a_tensor_is_damage(tmp_path):
    # torch would read such a record as empty and give whatever is in memory.
    path = tmp_path / "x.pth"
    save_checkpoint(content(), [path])
    data = bytearray(path.read_bytes())
    for start in (i for i in range(len(data) - 4) if data[i : i + 4] == b"PK\x01\x02"):  # the archive's directory
        data[start + 38] |= 0x10
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_truncation_is_found_and_another_file_offered(saved, share):
    save_checkpoint(content(), [saved.with_name("unet_best.pth")])
    saved.write_bytes(saved.read_bytes()[: int(share * saved.stat().st_size)])
    with pytest.raises(CheckpointError, match="unet_last.pth is truncated.*there is unet_best.pth"):
        load_checkpoint(saved)


def test_a_missing_file_is_named_with_what_is_there(saved):
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
def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(tmp_path, zipped):
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
def test_files_of_other_programs_are_told_apart(tmp_path, other):
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="other.pth is a file of another program"):
        load_checkpoint(tmp_path / "other.pth")


def test_versions_and_missing_parts(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({**content(), "format": checkpoint.FORMAT, "format_version": 99}, path)
    with pytest.raises(CheckpointError, match="format version 99.*update"):
        load_checkpoint(path)
    torch.save({"format": checkpoint.FORMAT, "format_version": 1, "weights": {}}, path)
    with pytest.raises(CheckpointError, match="it lacks model, preprocessing, data, encoder_start"):
        load_checkpoint(path)


def test_models_are_rebuilt_and_misfits_named(tmp_path):
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


# ------------------------------------------------------------------------------------------------------ encoder weights


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A state dict as torchvision publishes it, under the name it has in torch's cache."""
    from torchvision.models import resnet34

    torch.manual_seed(9)
    home = tmp_path_factory.mktemp("torch_home")
    (home / "hub/checkpoints").mkdir(parents=True)
    model = resnet34(weights=None)
    torch.save(model.state_dict(), home / "hub/checkpoints/resnet34-b627a593.pth")
    return home, model.state_dict()


@pytest.mark.parametrize("source", ["auto", "imagenet", "file"])
def test_encoder_weights_from_the_cache_or_a_file(imagenet, monkeypatch, source):
    home, state = imagenet
    if source == "file":
        monkeypatch.setenv("TORCH_HOME", "/nonexistent")
        source = str(home / "hub/checkpoints/resnet34-b627a593.pth")
    else:
        monkeypatch.setenv("TORCH_HOME", str(home))
    model = build_model("resnet34_unet")
    said = load_encoder_weights(model, source)
    assert "resnet34-b627a593.pth" in said
    assert all(torch.equal(value, state[key]) for key, value in model.encoder.state_dict().items())


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty cache, and a server that refuses."""
    from torchvision.models import ResNet34_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = ResNet34_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights, "_value_", type(weights.value)("http://127.0.0.1:9/resnet34-b627a593.pth", None, {}))


def test_without_a_network_auto_warns_and_imagenet_is_an_error(offline, capsys):
    model = build_model("resnet34_unet")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert load_encoder_weights(model, "auto").startswith("from scratch")
    assert "FROM SCRATCH" in capsys.readouterr().err
    assert same(before, model.state_dict())
    with pytest.raises(CheckpointError, match="ImageNet weights are not available"):
        load_encoder_weights(model, "imagenet")
    assert load_encoder_weights(model, "none") == "from scratch"
    assert capsys.readouterr().err == ""


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(encoder_weights, "CONNECT_SECONDS", 0.2)

    def never(*_args, **_options):
        time.sleep(3)
        raise OSError("too late")

    monkeypatch.setattr(encoder_weights.urllib.request, "urlopen", never)
    with pytest.raises(TimeoutError, match="within 0.2 seconds"):
        encoder_weights._require_answer("https://example.org/weights.pth")


def test_a_server_that_falls_silent_is_given_up(offline, monkeypatch, capsys):
    from torchvision.models import ResNet34_Weights

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802  its name for http.server
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"a beginning")
            self.wfile.flush()
            gone.wait(30)

        def log_message(self, *_args):
            pass

    gone = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    weights = ResNet34_Weights.IMAGENET1K_V1
    address = f"http://127.0.0.1:{server.server_port}/resnet34-b627a593.pth"
    monkeypatch.setattr(weights, "_value_", type(weights.value)(address, None, {}))
    monkeypatch.setattr(encoder_weights, "CONNECT_SECONDS", 0.5)
    assert load_encoder_weights(build_model("resnet34_unet"), "auto").startswith("from scratch")
    assert "timed out" in capsys.readouterr().err
    gone.set()
    server.shutdown()
    server.server_close()


def test_weights_that_do_not_fit_are_an_error(tmp_path):
    for broken in ({"conv1.weight": torch.zeros(1)}, [1]):
        torch.save(broken, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match="w.pth can't be loaded into the encoder"):
            load_encoder_weights(build_model("resnet34_unet"), str(tmp_path / "w.pth"))
    with pytest.raises(CheckpointError, match="missing.pth can't be loaded"):
        load_encoder_weights(build_model("resnet34_unet"), str(tmp_path / "missing.pth"))


def test_a_damaged_cache_makes_auto_start_from_scratch(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints/resnet34-b627a593.pth").write_bytes(b"half a download")
    assert load_encoder_weights(build_model("resnet34_unet"), "auto").startswith("from scratch")
    said = capsys.readouterr().err
    assert "FROM SCRATCH" in said
    assert len(said.strip().splitlines()) == 1
    with pytest.raises(CheckpointError, match="are not available"):
        load_encoder_weights(build_model("resnet34_unet"), "imagenet")


def test_unet_has_no_encoder_to_load(capsys):
    assert load_encoder_weights(build_model("unet"), "auto") == "from scratch"
    with pytest.raises(CheckpointError, match="UNet has no encoder"):
        load_encoder_weights(build_model("unet"), "imagenet")
