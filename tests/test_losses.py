import math

import pytest
import torch

from models.task import TASKS
from training.losses import LOSSES, bce_dice_loss, bce_loss, dice_loss

BINARY = TASKS["binary"]


def test_bce_by_hand():
    logits, masks = torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[1, 0]]]], dtype=torch.uint8)
    by_hand = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert bce_loss(logits, masks, BINARY).item() == pytest.approx(by_hand, rel=1e-6)


def test_dice_by_hand():
    # Probabilities 0.5 and 0.5 against 1 and 0: overlap 0.5, sum 2, so 1 - (1 + 1) / (2 + 1).
    logits, masks = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1, 0]]]], dtype=torch.uint8)
    assert dice_loss(logits, masks, BINARY).item() == pytest.approx(1 / 3, rel=1e-6)


def test_dice_is_averaged_over_images_not_pixels():
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    masks[0, :, :1, :1], masks[1] = 1, 1
    logits = torch.full((2, 1, 8, 8), -20.0)
    each = [dice_loss(logits[i : i + 1], masks[i : i + 1], BINARY).item() for i in range(2)]
    assert dice_loss(logits, masks, BINARY).item() == pytest.approx(sum(each) / 2)


def test_the_sum_is_the_sum():
    logits, masks = torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 1, 8, 8), dtype=torch.uint8)
    assert bce_dice_loss(logits, masks, BINARY).item() == pytest.approx(
        (bce_loss(logits, masks, BINARY) + dice_loss(logits, masks, BINARY)).item()
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fill", [0, 1])
def test_perfect_predictions_cost_nothing_and_gradients_are_finite(name, fill):
    masks = torch.full((1, 1, 16, 16), fill, dtype=torch.uint8)
    logits = torch.full((1, 1, 16, 16), 30.0 if fill else -30.0, requires_grad=True)
    loss = LOSSES[name](logits, masks, BINARY)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_are_computed_in_full(name):
    logits = torch.randn(1, 1, 64, 64) * 8
    masks = (logits > 0).to(torch.uint8)
    half = LOSSES[name](logits.bfloat16(), masks, BINARY)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(LOSSES[name](logits.bfloat16().float(), masks, BINARY).item())
