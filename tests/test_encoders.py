"""Networks on encoders of torchvision, and on EfficientNet-Lite, whose logits are timm's."""

import pytest
import timm
import torch

from helpers import run_ok
from models.build import build_model
from models.efficientnet_lite import LITE, efficientnet_lite
from models.encoders import build_classifier, encode
from models.names import ENCODERS
from models.weights import load_encoder_weights

LONG = set(ENCODERS) - {"resnet18"}  # seconds each


@pytest.fixture(scope="module", params=["resnet34", *ENCODERS])
def pair(request, tmp_path_factory):
    """A classifier of torchvision, and our network that has loaded its weights from a file."""
    torch.manual_seed(1)
    classifier = build_classifier(request.param).eval()
    file = tmp_path_factory.mktemp("weights") / "classifier.pth"
    torch.save(classifier.state_dict(), file)
    model = build_model(f"{request.param}_unet").eval()
    load_encoder_weights(model, file)
    return request.param, classifier, model


def test_features_are_torchvisions_bit_for_bit(pair):
    name, classifier, model = pair
    seen = {}

    def remember(module, inputs, output):
        output = output.permute(0, 3, 1, 2) if name == "swin_t" else output
        seen.setdefault(96 // output.shape[-1], []).append(output)

    layers = classifier.features if hasattr(classifier, "features") else list(classifier.children())[:-2]
    handles = [layer.register_forward_hook(remember) for layer in layers]
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        classifier(images)
        features = encode(model.encoder, images)
    for handle in handles:
        handle.remove()
    assert list(features) == ([] if name in ("convnext_tiny", "swin_t") else [2]) + [4, 8, 16, 32]
    for stride, output in features.items():
        assert any(torch.equal(output, theirs) for theirs in seen[stride]), stride
    last = seen[32][-2 if name.startswith(("efficientnet", "mobilenet")) else -1]
    assert torch.equal(features[32], last)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long if n in LONG else ()) for n in ENCODERS])
def test_every_encoder_trains_resumes_scores_and_infers(name, shared_dataset, tmp_path):
    data = ("--data_path", shared_dataset)
    flags = (*data, "--model_name", f"{name}_unet", "--image_size", 64, "--encoder_weights", "none", "--epochs", 1)
    said = run_ok("train.py", *flags, "--recipe", "strong", "--train_fraction", 0.5, cwd=tmp_path)
    assert f"Model   {name}_unet" in said
    run_ok("train.py", *data, "--model_name", f"{name}_unet", "--resume", "--epochs", 1, cwd=tmp_path)
    assert f"{name.upper()}_UNET test Dice score" in run_ok("evaluate.py", *data, cwd=tmp_path)
    run_ok("inference.py", *data, "--output_path", "out", "--save", "masks", cwd=tmp_path)
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 4
    if name in ("efficientnet_b0", "swin_t"):
        assert "masks equal ours" in run_ok("export.py", cwd=tmp_path)


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
