"""Attention blocks against other implementations."""

import math

import pytest
import torch
from torchvision.ops import SqueezeExcitation as TorchvisionSqueezeExcitation

from models.attention import ATTENTION, ConvBlockAttention, SqueezeExcitation, TransformerBottleneck, sine_positions
from models.build import build_model


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
        maps = torch.nn.functional.pad(torch.stack([weighed.mean(0), weighed.amax(0)]), (3, 3, 3, 3))
        where = torch.empty(3, 4)
        for row in range(3):
            for column in range(4):
                seen = maps[:, row : row + 7, column : column + 7]
                where[row, column] = torch.sigmoid((places.weight[0] * seen).sum() + places.bias[0])
        torch.testing.assert_close(block(x)[0], weighed * where, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["unet_small", "resnet34_unet", "mobilenet_v3_large_unet"])
@pytest.mark.parametrize("attention", ["se", "cbam"])
def test_attention_is_in_decoder_and_config(name, attention):
    model = build_model(name, attention=attention)
    again = build_model(name, **model.config)
    again.load_state_dict(model.state_dict())
    plain = build_model(name)
    kinds = {type(up.attention) for up in model.ups}
    assert kinds == {ATTENTION[attention]}
    assert set(plain.state_dict()) < set(model.state_dict())
    with torch.inference_mode():
        images = torch.randint(0, 256, (1, 3, 40, 33), dtype=torch.uint8)
        assert model.eval()(images).shape == (1, 1, 40, 33)


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


@pytest.mark.parametrize("name", ["unet_small", "resnet34_unet", "mobilenet_v3_large_unet"])
def test_transformer_is_behind_the_bottleneck(name):
    torch.manual_seed(0)
    plain, model = build_model(name), build_model(name, attention="transformer")
    added = set(model.state_dict()) - set(plain.state_dict())
    assert {key.split(".")[0] for key in added} == {"self_attention"}
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    loss = model(images).square().mean()
    loss.backward()
    gradients = [p.grad for p in model.self_attention.parameters()]
    assert all(g is not None and g.abs().max() > 0 for g in gradients[:-1])
    with torch.inference_mode():
        assert model.eval()(images[:, :, :40, :33]).shape == (2, 1, 40, 33)


def test_unknown_attention_is_named():
    with pytest.raises(ValueError, match="no attention is called 'more'; there are none, se, cbam, transformer"):
        build_model("unet", attention="more")
