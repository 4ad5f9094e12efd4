import pytest
import torch
from torchvision.models import resnet34

from models import ALIASES, MODELS, ResNet34_UNet, UNet, build_model, double_conv
from models.base import IMAGENET_MEAN, IMAGENET_STD
from models.resnet34_unet import ResNet34Encoder

every_model = pytest.mark.parametrize("name", [name for name in MODELS if name != "tiny"])


def count(module):
    return sum(p.numel() for p in module.parameters())


@every_model
@pytest.mark.parametrize(("batch", "height", "width"), [(2, 64, 64), (1, 97, 61), (3, 33, 130), (1, 1, 1), (1, 5, 200)])
def test_any_size_gives_logits_of_that_size(name, batch, height, width):
    model = build_model(name).eval()
    with torch.inference_mode():
        logits = model(torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8))
    assert logits.shape == (batch, 1, height, width)
    assert logits.isfinite().all()


@every_model
def test_bytes_and_floats_give_the_same_logits(name):
    model = build_model(name).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(model(images), model(images.float()))


@every_model
def test_an_image_does_not_depend_on_its_batch(name):
    model = build_model(name).eval()
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        together, alone = model(images), torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@every_model
def test_every_parameter_learns(name):
    model = build_model(name).train()
    for module in model.modules():  # let gradients pass the residual branches, which begin at zero
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    model(torch.rand(2, 3, 64, 64) * 255).square().mean().backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@every_model
def test_learns_one_batch_by_heart(name):
    model = build_model(name).train()
    masks = torch.zeros(2, 1, 32, 32)
    masks[:, :, 8:24, 4:20] = 1
    images = torch.rand(2, 3, 32, 32) * 100 + 155 * masks
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images), masks)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@every_model
def test_normalisation_travels_with_the_model(name):
    state = build_model(name).state_dict()
    assert state["mean"].flatten().tolist() == pytest.approx(IMAGENET_MEAN)
    assert state["std"].flatten().tolist() == pytest.approx(IMAGENET_STD)
    model = build_model(name).eval()
    images = torch.rand(1, 3, 32, 32) * 255
    with torch.inference_mode():
        torch.testing.assert_close(model(images), model.body((images - state["mean"]) / state["std"]))


@every_model
def test_config_rebuilds_the_model(name):
    model = MODELS[name](out_channels=3)
    again = build_model(name, **model.config)
    again.load_state_dict(model.state_dict())
    assert again.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 64, 64, 3)])
def test_wrong_shapes_are_named(shape):
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        UNet()(torch.zeros(shape))


def test_unet_is_the_classic_one():
    model = UNet()
    assert 31.0e6 < count(model) < 31.1e6
    widths = [m.out_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert max(widths) == 1024
    assert widths[0] == 64
    assert sum(isinstance(m, torch.nn.ConvTranspose2d) for m in model.modules()) == 4
    assert isinstance(model.pool, torch.nn.MaxPool2d)
    assert [type(m).__name__ for m in double_conv(3, 8)] == ["Conv2d", "BatchNorm2d", "ReLU"] * 2


def test_skips_reach_full_resolution():
    model = ResNet34_UNet().eval()
    assert model.ups[-1].conv[0].in_channels == 16 + 3
    assert sum(isinstance(m, torch.nn.ConvTranspose2d) for m in model.modules()) == 5


def test_encoder_is_torchvisions_resnet34_key_by_key_and_output_by_output():
    torch.manual_seed(1)
    theirs, ours = resnet34(weights=None).eval(), ResNet34Encoder().eval()
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert list(state) == list(ours.state_dict())
    assert [v.shape for v in state.values()] == [v.shape for v in ours.state_dict().values()]
    for key in state:  # statistics that differ from the fresh ones, so that loading them is seen
        if key.endswith("running_mean"):
            state[key].uniform_(-0.1, 0.1)
    theirs.load_state_dict(state, strict=False)
    ours.load_state_dict(state)

    expected = []
    theirs.relu.register_forward_hook(lambda *_args: expected.append(_args[2].clone()))
    for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        layer.register_forward_hook(lambda *_args: expected.append(_args[2].clone()))
    images = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        classes, features = theirs(images), ours(images)
    assert [tuple(f.shape[1:]) for f in features] == [
        (64, 48, 32),
        (64, 24, 16),
        (128, 12, 8),
        (256, 6, 4),
        (512, 3, 2),
    ]
    for ours_out, theirs_out in zip(features, expected):
        assert torch.equal(ours_out, theirs_out)
    with torch.inference_mode():
        assert torch.equal(theirs.fc(theirs.avgpool(features[-1]).flatten(1)), classes)


def test_residual_branches_start_as_identity():
    blocks = [block for layer in (1, 2, 3, 4) for block in getattr(ResNet34Encoder(), f"layer{layer}")]
    assert len(blocks) == 16
    assert all(not block.bn2.weight.any() for block in blocks)


def test_names():
    assert build_model("resnet").__class__ is ResNet34_UNet
    assert set(ALIASES.values()) <= set(MODELS)
    with pytest.raises(ValueError, match="unet, resnet34_unet"):
        build_model("segnet")
