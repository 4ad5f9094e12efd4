"""Losses by hand, for two classes and three."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models.task import TASKS
from stubs import three
from training.losses import LOSSES, bce_dice_loss, bce_loss, dice_loss

BINARY = TASKS["binary"]


def test_bce_by_hand():
    logits, masks = torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[1, 0]]]], dtype=torch.uint8)
    by_hand = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert bce_loss(logits, masks, BINARY).item() == pytest.approx(by_hand, rel=1e-6)


def test_dice_loss_by_hand():
    # Probabilities 0.5 and 0.5 against 1 and 0: overlap 0.5, sum 2, so 1 - (1 + 1) / (2 + 1).
    logits, masks = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1, 0]]]], dtype=torch.uint8)
    assert dice_loss(logits, masks, BINARY).item() == pytest.approx(1 / 3, rel=1e-6)


def test_dice_loss_is_averaged_over_images():
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    masks[0, :, :1, :1], masks[1] = 1, 1
    logits = torch.full((2, 1, 8, 8), -20.0)
    each = [dice_loss(logits[i : i + 1], masks[i : i + 1], BINARY).item() for i in range(2)]
    assert dice_loss(logits, masks, BINARY).item() == pytest.approx(sum(each) / 2)


def test_bce_dice_is_the_sum():
    logits, masks = torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 1, 8, 8), dtype=torch.uint8)
    assert bce_dice_loss(logits, masks, BINARY).item() == pytest.approx(
        (bce_loss(logits, masks, BINARY) + dice_loss(logits, masks, BINARY)).item()
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fill", [0, 1])
def test_perfect_predictions_have_no_loss(name, fill):
    masks = torch.full((1, 1, 16, 16), fill, dtype=torch.uint8)
    logits = torch.full((1, 1, 16, 16), 30.0 if fill else -30.0, requires_grad=True)
    loss = LOSSES[name](logits, masks, BINARY)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_computed_in_float32(name):
    logits = torch.randn(1, 1, 64, 64) * 8
    masks = (logits > 0).to(torch.uint8)
    half = LOSSES[name](logits.bfloat16(), masks, BINARY)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(LOSSES[name](logits.bfloat16().float(), masks, BINARY).item())


BINARY, TRIMAP = TASKS["binary"], TASKS["trimap"]


class Operations(TorchDispatchMode):
    """Notes the names of torch's operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_losses_of_three_classes_by_hand():
    logits, trimap = three(2, 4, 4), torch.randint(1, 4, (2, 1, 4, 4), dtype=torch.uint8)
    shares = logits.softmax(dim=1).numpy()
    truth = np.stack([(trimap[:, 0] == value).numpy() for value in (1, 2, 3)], axis=1)
    with Operations() as called:
        assert bce_loss(logits, trimap, TRIMAP).item() == pytest.approx(
            -np.log(shares[truth.astype(bool)]).mean(), rel=1e-5
        )
    assert not [name for name in called.names if "nll_loss" in name]  # which --deterministic forbids on CUDA
    dice = [
        (2 * (shares[n, c] * truth[n, c]).sum() + 1) / (shares[n, c].sum() + truth[n, c].sum() + 1)
        for n in range(2)
        for c in range(3)
    ]
    assert dice_loss(logits, trimap, TRIMAP).item() == pytest.approx(1 - np.mean(dice), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_perfect_trimaps_have_no_loss(name):
    trimap = torch.randint(1, 4, (1, 1, 16, 16), dtype=torch.uint8)
    logits = F.one_hot(trimap[:, 0].long() - 1, 3).permute(0, 3, 1, 2) * 40.0
    assert LOSSES[name](logits.requires_grad_(), trimap, TRIMAP).item() == pytest.approx(0, abs=1e-4)
