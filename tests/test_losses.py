"""Losses: what they must be, by hand and by other implementations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch import losses as smp

from models.task import TASKS, ClassesTask
from stubs import three
from training.losses import LOSSES, balanced_weights, bce_loss

BINARY, TRIMAP, NAMED = TASKS["binary"], TASKS["trimap"], ClassesTask(("background", "a", "b", "c"))


@pytest.mark.parametrize("name", LOSSES)
def test_perfect_predictions_have_no_loss(name):
    trimap = torch.randint(0, 3, (1, 1, 16, 16), dtype=torch.uint8)
    perfect = F.one_hot(trimap[:, 0].long(), 3).permute(0, 3, 1, 2) * 40.0
    empty = torch.zeros_like(trimap)
    cases = (empty, empty - 30.0, BINARY), (empty + 1, empty + 30.0, BINARY), (trimap, perfect, TRIMAP)
    for labels, logits, task in cases:
        loss = LOSSES[name](logits.requires_grad_(), labels, task)
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


def test_no_operation_is_without_a_fixed_order_on_a_gpu():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        bce_loss(three(2, 4, 4), torch.randint(0, 3, (2, 1, 4, 4), dtype=torch.uint8), TRIMAP)
    names = {event.key for event in profile.key_averages()}
    assert "aten::log_softmax" in names
    assert not [name for name in names if "nll_loss" in name]


def example(task, ignored: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, label map (255 where it is left out) and its numbers as int64, of one image."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(1, task.out_channels, 12, 16, generator=generator) * 2
    numbers = torch.randint(0, max(2, task.out_channels), (1, 1, 12, 16), generator=generator)
    if ignored:
        numbers[..., :5, :] = 255
    return logits, numbers.to(torch.uint8), numbers


@pytest.mark.parametrize(
    ("task", "ignored"),
    [(BINARY, False), (TRIMAP, False), (NAMED, False), (NAMED, True)],
    ids=["binary", "trimap", "named", "some pixels left out"],
)
def test_losses_equal_other_peoples(task, ignored):
    logits, target, numbers = example(task, ignored)
    mode, ignore = ("binary" if task is BINARY else "multiclass"), (255 if ignored else None)
    smooth = {"smooth": 1.0, "eps": 0.0, "ignore_index": ignore}
    theirs = {
        "bce": smp.SoftBCEWithLogitsLoss() if task is BINARY else torch.nn.CrossEntropyLoss(ignore_index=255),
        "tversky": smp.TverskyLoss(mode, alpha=0.3, beta=0.7, **smooth),
    }
    truth = numbers.float() if task is BINARY else numbers[:, 0]
    for name, loss in theirs.items():
        assert LOSSES[name](logits, target, task).item() == pytest.approx(loss(logits, truth).item(), rel=1e-5), name
    dice = smp.DiceLoss(mode, **{**smooth, "smooth": 0.5})  # theirs is added to half the sum
    assert LOSSES["dice"](logits, target, task).item() == pytest.approx(dice(logits, truth).item(), rel=1e-5)
    both = LOSSES["bce"](logits, target, task) + LOSSES["dice"](logits, target, task)
    assert LOSSES["bce_dice"](logits, target, task).item() == pytest.approx(both.item())


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_averaged_over_images(name):
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    masks[0, :, :1, :1], masks[1] = 1, 1
    logits = torch.randn(2, 1, 8, 8)
    each = [LOSSES[name](logits[i : i + 1], masks[i : i + 1], BINARY).item() for i in range(2)]
    assert LOSSES[name](logits, masks, BINARY).item() == pytest.approx(sum(each) / 2)


def test_focal_losses_equal_other_peoples():
    logits, target, numbers = example(BINARY)
    theirs = smp.FocalLoss("binary", gamma=2.0)(logits, numbers.float()).item()
    assert LOSSES["focal"](logits, target, BINARY).item() == pytest.approx(theirs, rel=1e-5)
    theirs = smp.TverskyLoss("binary", alpha=0.3, beta=0.7, gamma=0.75, smooth=1.0, eps=0.0)(logits, numbers.float())
    assert LOSSES["focal_tversky"](logits, target, BINARY).item() == pytest.approx(theirs.item(), rel=1e-5)
    for task in (TRIMAP, NAMED):
        logits, target, numbers = example(task)
        shares = logits.double().softmax(1).gather(1, numbers)
        by_hand = ((1 - shares) ** 2 * -shares.log()).mean().item()
        assert LOSSES["focal"](logits, target, task).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_have_no_part_in_any_loss(name):
    logits, target, _ = example(NAMED, ignored=True)
    other = torch.where(target == 255, logits + 3, logits).requires_grad_()
    loss = LOSSES[name](other, target, NAMED)
    assert loss.item() == pytest.approx(LOSSES[name](logits, target, NAMED).item(), rel=1e-6)
    loss.backward()
    assert (other.grad[(target == 255).expand_as(other)] == 0).all()
    nothing = torch.full_like(target, 255)
    assert LOSSES[name](logits, nothing, NAMED).isfinite()


def test_class_weights():
    logits, target, numbers = example(BINARY)
    weight = torch.tensor([3.0])
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=weight)(logits, numbers.float()).item()
    assert LOSSES["bce"](logits, target, BINARY, weight).item() == pytest.approx(theirs, rel=1e-5)
    logits, target, numbers = example(NAMED, ignored=True)
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    each = torch.nn.CrossEntropyLoss(weights, ignore_index=255, reduction="none")(logits, numbers[:, 0])
    by_hand = (each.sum() / (numbers != 255).sum()).item()
    assert LOSSES["bce"](logits, target, NAMED, weights).item() == pytest.approx(by_hand, rel=1e-5)
    alone = [LOSSES["dice"](logits, target, NAMED, torch.eye(4)[i]).item() for i in range(4)]
    by_hand = np.average(alone, weights=weights.numpy())
    assert LOSSES["dice"](logits, target, NAMED, weights).item() == pytest.approx(by_hand, rel=1e-5)


def test_balanced_weights_make_all_classes_count_alike():
    _, target, numbers = example(NAMED, ignored=True)
    weights = balanced_weights(target, NAMED)
    pixels = [(numbers == i).sum().item() for i in range(4)]
    counts = [weight * count for weight, count in zip(weights, pixels)]
    assert counts == pytest.approx([sum(pixels) / 4] * 4, rel=0.01)
    mask = torch.zeros(1, 1, 10, 10, dtype=torch.uint8)
    mask[..., :2, :] = 1
    assert balanced_weights(mask, BINARY) == [4.0]
