"""Networks: shapes, architecture, gradients, memory."""

import pytest
import torch
from torch.nn import functional as F

from models.base import IMAGENET_MEAN, IMAGENET_STD
from models.build import build_model
from models.encoders import build_encoder
from models.names import ALIASES, MODELS
from models.resnet34_unet import ResNet34_UNet
from models.unet import MaxPool, UNet, UpBlock, double_conv

TRIED = ["unet plain", "unet_small plain", "resnet34_unet plain", "resnet34_unet stem"]
TRIED += ["mobilenet_v3_large_unet plain", "swin_t_unet stem"]  # the others: test_encoders.py


def build(network: str, **config):
    """A network with one of its decoders."""
    name, decoder = network.split()
    return build_model(name, decoder=decoder, **config)


@pytest.fixture(scope="module", params=TRIED)
def model(request):
    torch.manual_seed(0)
    return build(request.param).eval()


@torch.inference_mode()
def test_any_size_gives_logits_of_that_size(model):
    for batch, height, width in [(2, 64, 64), (1, 97, 61), (3, 33, 130), (1, 1, 1), (1, 5, 200)]:
        logits = model(torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8))
        assert logits.shape == (batch, 1, height, width)
        assert logits.isfinite().all()


@torch.inference_mode()
def test_logits_depend_on_the_values_of_an_image_alone(model):
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    logits, state = model(images), model.state_dict()
    assert torch.equal(logits, model(images.float()))
    torch.testing.assert_close(logits, torch.cat([model(image[None]) for image in images]), rtol=1e-3, atol=1e-4)
    assert state["mean"].flatten().tolist() == pytest.approx(IMAGENET_MEAN)
    assert state["std"].flatten().tolist() == pytest.approx(IMAGENET_STD)
    torch.testing.assert_close(logits, model.body((images - state["mean"]) / state["std"]))


@pytest.mark.parametrize("network", TRIED)
def test_every_parameter_gets_a_gradient(network):
    model = build(network).train()
    for module in model.modules():  # let gradients pass the residual branches, which begin at zero
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    model(torch.rand(2, 3, 64, 64) * 255).square().mean().backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_unet_has_the_original_architecture():
    model = UNet()
    assert 31.0e6 < sum(p.numel() for p in model.parameters()) < 31.1e6
    widths = [m.out_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert (widths[0], max(widths)) == (64, 1024)
    assert sum(isinstance(m, torch.nn.ConvTranspose2d) for m in model.modules()) == 4
    assert isinstance(model.pool, torch.nn.MaxPool2d)
    assert [type(m).__name__ for m in double_conv(3, 8)] == ["Conv2d", "BatchNorm2d", "ReLU"] * 2


def test_skips_reach_full_resolution():
    model = ResNet34_UNet().eval()
    assert model.ups[-1].conv[0].in_channels == 16 + 3
    assert sum(isinstance(m, torch.nn.ConvTranspose2d) for m in model.modules()) == 5


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
