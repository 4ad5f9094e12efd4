"""EfficientNet-Lite against timm's."""

import pytest
import timm
import torch

from models.efficientnet_lite import LITE, efficientnet_lite


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
