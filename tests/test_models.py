"""Networks: shapes, architecture, gradients, memory."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import resnet34

from models.base import IMAGENET_MEAN, IMAGENET_STD
from models.build import NETWORKS as CLASSES
from models.build import build_model
from models.encoders import build_encoder, encode
from models.names import ALIASES, MODELS
from models.resnet34_unet import ResNet34_UNet
from models.unet import MaxPool, UNet, UpBlock, double_conv

TRIED = ["unet plain", "unet_small plain", "resnet34_unet plain", "resnet34_unet stem"]
TRIED += ["mobilenet_v3_large_unet plain", "swin_t_unet stem"]  # the others: test_encoders.py
LONG = ("unet plain", "resnet34_unet stem", "swin_t_unet stem")  # to fit a batch
every_model = pytest.mark.parametrize("network", TRIED)


def build(network: str):
    """A network with one of its decoders."""
    name, decoder = network.split()
    return build_model(name, decoder=decoder)


@every_model
@pytest.mark.parametrize(("batch", "height", "width"), [(2, 64, 64), (1, 97, 61), (3, 33, 130), (1, 1, 1), (1, 5, 200)])
def test_any_size_gives_logits_of_that_size(network, batch, height, width):
    model = build(network).eval()
    with torch.inference_mode():
        logits = model(torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8))
    assert logits.shape == (batch, 1, height, width)
    assert logits.isfinite().all()


@every_model
def test_bytes_and_floats_give_the_same_logits(network):
    model = build(network).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(model(images), model(images.float()))


@every_model
def test_logits_do_not_depend_on_the_batch(network):
    model = build(network).eval()
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        together, alone = model(images), torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@every_model
def test_every_parameter_gets_a_gradient(network):
    model = build(network).train()
    for module in model.modules():  # let gradients pass the residual branches, which begin at zero
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    model(torch.rand(2, 3, 64, 64) * 255).square().mean().backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("network", [pytest.param(n, marks=pytest.mark.long if n in LONG else ()) for n in TRIED])
def test_network_fits_one_batch(network):
    model = build(network).train()
    masks = torch.zeros(2, 1, 64, 64)
    masks[:, :, 16:48, 8:40] = 1
    images = torch.rand(2, 3, 64, 64) * 100 + 155 * masks
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images), masks)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


@every_model
def test_normalisation_is_in_the_state_dict(network):
    state = build(network).state_dict()
    assert state["mean"].flatten().tolist() == pytest.approx(IMAGENET_MEAN)
    assert state["std"].flatten().tolist() == pytest.approx(IMAGENET_STD)
    model = build(network).eval()
    images = torch.rand(1, 3, 32, 32) * 255
    with torch.inference_mode():
        torch.testing.assert_close(model(images), model.body((images - state["mean"]) / state["std"]))


@every_model
def test_config_rebuilds_the_model(network):
    name, decoder = network.split()
    model = CLASSES[name](out_channels=3, decoder=decoder)
    again = build_model(name, **model.config)
    again.load_state_dict(model.state_dict())
    assert again.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 64, 64, 3)])
def test_wrong_input_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        UNet()(torch.zeros(shape))


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_unet_has_the_original_architecture():
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


def test_encoder_equals_torchvisions_resnet34():
    torch.manual_seed(1)
    theirs, ours = resnet34(weights=None).eval(), build_encoder("resnet34").eval()
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
        classes, features = theirs(images), list(encode(ours, images).values())
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
    blocks = [block for layer in (1, 2, 3, 4) for block in getattr(build_encoder("resnet34"), f"layer{layer}")]
    assert len(blocks) == 16
    assert all(not block.bn2.weight.any() for block in blocks)


def test_model_names_and_aliases():
    assert build_model("resnet").__class__ is ResNet34_UNet
    assert set(ALIASES.values()) <= set(MODELS)
    with pytest.raises(ValueError, match="unet, unet_small, resnet34_unet"):
        build_model("segnet")


def test_up_block_equals_convolution_of_the_concatenation():
    block, below, skip = UpBlock(8, 5, 4).eval(), torch.rand(2, 8, 6, 7), torch.rand(2, 5, 12, 14)
    expected = block.conv(torch.cat([skip, block.up(below)], dim=1))
    assert torch.allclose(block(below, skip), expected, atol=1e-6)


def test_max_pool_equals_torchs_and_keeps_no_indices():
    x = torch.rand(2, 3, 8, 10, requires_grad=True)
    expected = F.max_pool2d(x, 2)
    weights = torch.rand_like(expected)
    (grad,) = torch.autograd.grad((expected * weights).sum(), x)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        pooled = MaxPool()(x)
        assert torch.int64 not in kept
        F.max_pool2d(x, 2)
        assert torch.int64 in kept  # so the hook sees what it should
    assert torch.equal(pooled, expected)
    assert torch.equal(torch.autograd.grad((pooled * weights).sum(), x)[0], grad)
