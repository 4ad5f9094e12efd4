"""Attention blocks against other implementations."""

import pytest
import torch
from torchvision.ops import SqueezeExcitation as TorchvisionSqueezeExcitation

from models import ATTENTION, build_model
from models.attention import ConvBlockAttention, SqueezeExcitation


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


@pytest.mark.parametrize("name", ["unet", "resnet34_unet", "mobilenet_v3_large_unet"])
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


def test_unknown_attention_is_named():
    with pytest.raises(ValueError, match="no attention is called 'more'; there are none, se, cbam"):
        build_model("unet", attention="more")
