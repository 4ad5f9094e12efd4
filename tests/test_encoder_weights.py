"""What an encoder starts from: cache, download, file."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from helpers import same
from models import build_model, encoder_weights
from models.encoder_weights import load_encoder_weights
from runtime.errors import CheckpointError


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


def test_offline_auto_warns_and_imagenet_fails(offline, capsys):
    model = build_model("resnet34_unet")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert load_encoder_weights(model, "auto").startswith("from scratch")
    assert "FROM SCRATCH" in capsys.readouterr().err
    assert same(before, model.state_dict())
    with pytest.raises(CheckpointError, match="ImageNet weights are not available"):
        load_encoder_weights(model, "imagenet")
    assert load_encoder_weights(model, "none") == "from scratch"
    assert capsys.readouterr().err == ""


def test_stalled_download_times_out(offline, monkeypatch, capsys):
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
    monkeypatch.setattr(encoder_weights, "ANSWER_SECONDS", 0.5)
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


@pytest.mark.parametrize("damage", ["half a download", "a weight that is not finite"])
def test_damaged_cache_makes_auto_start_from_scratch(tmp_path, monkeypatch, capsys, damage):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    file, model = tmp_path / "hub/checkpoints/resnet34-b627a593.pth", build_model("resnet34_unet")
    before = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    if damage == "half a download":
        file.write_bytes(b"half a download")
    else:
        weights = {key: value + 1 for key, value in before.items()}
        weights["layer4.2.bn2.weight"][7] = float("nan")
        torch.save(weights, file)
    assert load_encoder_weights(model, "auto").startswith("from scratch")
    assert all(torch.equal(value, before[key]) for key, value in model.encoder.state_dict().items())
    said = capsys.readouterr().err
    assert "FROM SCRATCH" in said
    assert len(said.strip().splitlines()) == 1
    with pytest.raises(CheckpointError, match="are not available"):
        load_encoder_weights(build_model("resnet34_unet"), "imagenet")


def test_unet_has_no_encoder_to_load(capsys):
    assert load_encoder_weights(build_model("unet"), "auto") == "from scratch"
    with pytest.raises(CheckpointError, match="UNet has no encoder"):
        load_encoder_weights(build_model("unet"), "imagenet")
