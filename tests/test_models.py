"""Networks: shapes, architecture, gradients, memory, and attention against other implementations."""

import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation as TorchvisionSqueezeExcitation

from models.attention import ATTENTION, ConvBlockAttention, SqueezeExcitation, TransformerBottleneck, sine_positions
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


def test_names_and_aliases():
    assert build_model("resnet").__class__ is ResNet34_UNet
    assert set(ALIASES.values()) <= set(MODELS)
    with pytest.raises(ValueError, match="unet, unet_small, resnet34_unet"):
        build_model("segnet")
    with pytest.raises(ValueError, match="no attention is called 'more'; there are none, se, cbam, transformer"):
        build_model("unet", attention="more")


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


def test_squeeze_excitation_equals_torchvisions():
    ours, theirs = SqueezeExcitation(64), TorchvisionSqueezeExcitation(64, 4)
    for mine, other in ((ours.gate[0], theirs.fc1), (ours.gate[2], theirs.fc2)):
        other.load_state_dict(mine.state_dict())
    x = torch.randn(2, 64, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x))


def test_cbam_equals_the_formula():
    block, x = ConvBlockAttention(8), torch.randn(1, 8, 3, 4)
    with torch.no_grad():
        (narrow, _, wide), places = block.channels, block.places

        def gate(vector):
            hidden = (narrow.weight[:, :, 0, 0] @ vector + narrow.bias).clamp(min=0)
            return wide.weight[:, :, 0, 0] @ hidden + wide.bias

        scale = torch.sigmoid(gate(x[0].mean(dim=(1, 2))) + gate(x[0].amax(dim=(1, 2))))
        weighed = x[0] * scale[:, None, None]
        maps = F.pad(torch.stack([weighed.mean(0), weighed.amax(0)]), (3, 3, 3, 3))
        seen = maps.unfold(1, 7, 1).unfold(2, 7, 1)  # 7x7 pixels around each place
        where = torch.sigmoid(torch.einsum("chwij,cij->hw", seen, places.weight[0]) + places.bias)
        torch.testing.assert_close(block(x)[0], weighed * where, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["unet_small", "resnet34_unet", "mobilenet_v3_large_unet"])
@pytest.mark.parametrize("attention", ["se", "cbam", "transformer"])
def test_attention_is_in_the_network_its_config_and_its_gradients(name, attention):
    torch.manual_seed(0)
    plain, model = build_model(name), build_model(name, attention=attention)
    build_model(name, **model.config).load_state_dict(model.state_dict())
    assert {type(up.attention) for up in model.ups} == {ATTENTION[attention]}
    added = set(model.state_dict()) - set(plain.state_dict())
    assert {key.split(".")[0] for key in added} == {"self_attention" if attention == "transformer" else "ups"}
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    model(images).square().mean().backward()
    gradients = [p.grad for p in model.self_attention.parameters()][:-1]  # of the transformer
    assert all(g is not None and g.abs().max() > 0 for g in gradients)
    with torch.inference_mode():
        assert model.eval()(images[:, :, :40, :33]).shape == (2, 1, 40, 33)


def test_transformer_equals_the_formula():
    block, x = TransformerBottleneck(16).eval(), torch.randn(2, 16, 3, 5)

    def attend(layer, places):
        """softmax(q k / sqrt(d)) v in 8 heads, then two linear layers, each added to its input (pre-norm)."""
        normed, mha = layer.norm1(places), layer.self_attn
        q, k, v = (normed @ mha.in_proj_weight.T + mha.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (t.view(2, 15, 8, 2).transpose(1, 2) for t in (q, k, v))
        mixed = (q @ k.transpose(-1, -2) / 2**0.5).softmax(-1) @ v
        places = places + mha.out_proj(mixed.transpose(1, 2).reshape(2, 15, 16))
        return places + layer.linear2(torch.nn.functional.gelu(layer.linear1(layer.norm2(places))))

    with torch.no_grad():
        places = (x + sine_positions(16, 3, 5)).flatten(2).transpose(1, 2)
        for layer in block.layers:
            places = attend(layer, places)
        torch.testing.assert_close(block(x), places.transpose(1, 2).view(x.shape), rtol=1e-4, atol=1e-5)


def test_sine_positions_tell_every_place_apart():
    positions = sine_positions(32, 9, 7)
    assert positions[0, 4, 2].item() == pytest.approx(math.sin(4))  # a row's first frequency is 1
    assert positions[16, 4, 2].item() == pytest.approx(math.sin(2))
    assert positions[5, 4, 2].item() == pytest.approx(math.sin(4 * 10_000 ** (-5 / 8)), abs=1e-6)
    assert torch.cdist(positions.flatten(1).T, positions.flatten(1).T).add(torch.eye(63)).min() > 0.1
