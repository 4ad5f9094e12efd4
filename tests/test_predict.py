"""Test-time augmentation."""

import pytest
import torch

from evaluation.predict import Predictor
from models.task import TASKS
from stubs import FP32, Brightness


class Leaning(Brightness):
    """Brightness, but surer of pet on the left."""

    def body(self, x):
        return super().body(x) + torch.linspace(1, -1, x.shape[-1])


def test_tta_undoes_its_flips():
    gray = Leaning().mean.expand(2, 3, 64, 64)
    plain, tta = (Predictor(Leaning(), FP32, tta).predict(gray) for tta in (False, True))
    assert torch.allclose(plain, torch.linspace(1, -1, 64).expand(2, 1, 64, 64), atol=1e-5)
    assert torch.allclose(tta, torch.zeros(2, 1, 64, 64), atol=1e-5)  # straight and flipped, the leaning is gone


def test_tta_undoes_its_scales():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    images = (128 + 60 * torch.sin(x / 9) * torch.cos(y / 11)).expand(1, 3, 64, 64)
    plain, tta = (Predictor(Brightness(), FP32, tta).predict(images) for tta in (False, True))
    assert tta.shape == plain.shape
    assert (tta - plain).abs().max() < 0.05
    assert not torch.equal(tta, plain)


class Watched(Brightness):
    """Remembers the sizes that it sees."""

    stride = 32

    def body(self, x):
        self.seen = [*getattr(self, "seen", []), x.shape[-1]]
        return super().body(x)


@pytest.mark.parametrize(("size", "scales"), [(64, (64, 32, 96)), (100, (128, 96, 160)), (256, (256, 192, 320))])
def test_tta_has_three_scales_and_six_passes(size, scales):
    model = Watched()
    Predictor(model, FP32, tta=True).predict(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert model.seen == [scale for scale in scales for _ in range(2)]


def test_tta_averages_class_probabilities():
    class Classes(torch.nn.Module):
        stride, task = 32, TASKS["trimap"]

        def forward(self, images):
            side = torch.linspace(-2, 2, images.shape[-1])
            return images.float() / 99 - 1 + torch.stack([side, -side, 0 * side])[None, :, None, :]

    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    plain, mean = (Predictor(Classes(), FP32, tta).predict(images) for tta in (False, True))
    assert plain.shape == mean.shape == (1, 2, 64, 64)
    assert torch.equal(plain, TASKS["trimap"].decision_logits(Classes()(images)))
    straight, mirrored = Classes()(images), Classes()(images.flip(-1)).flip(-1)
    two = TASKS["trimap"].decision_logits(torch.stack([straight, mirrored]).softmax(dim=2).mean(0).log())
    assert (mean - two).abs().mean() < (plain - two).abs().mean()
