"""Optimizer, learning rate and moving average."""

import copy
import math

import pytest
import torch
from torch import nn

from models.build import build_model
from models.checkpoint import Progress
from stubs import Plain
from training.config import WEIGHT_DECAY, TrainConfig
from training.optim import (
    ModelEMA,
    build_optimizer,
    build_scheduler,
    change_learning_rate,
    restore_optimizer,
    restore_scheduler,
    score_of,
)


def test_ema_by_hand():
    model = torch.nn.BatchNorm1d(1)
    average = ModelEMA(model, 0.5)
    expected, statistics = 1.0, 0.0  # as batch norm begins
    for step, (weight, mean) in enumerate([(3.0, 8.0), (5.0, 2.0), (0.0, 4.0), (7.0, 1.0)] * 4, start=1):
        with torch.no_grad():
            model.weight.fill_(weight)
            model.running_mean.fill_(mean)
            model.num_batches_tracked.fill_(step)
        average.update()
        decay = min(0.5, step / (step + 9))
        expected, statistics = decay * expected + (1 - decay) * weight, decay * statistics + (1 - decay) * mean
        assert average.model.weight.item() == pytest.approx(expected, rel=1e-5)
        assert average.model.running_mean.item() == pytest.approx(statistics, rel=1e-5)
        assert average.model.num_batches_tracked.item() == step
    assert not average.model.training
    assert not average.model.weight.requires_grad
    assert model.weight.item() == 7.0


def test_adamw_decays_weights_alone():
    config = TrainConfig(optimizer="adamw", learning_rate=0.1)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    torch.nn.init.ones_(model[0].bias)
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(config, model).step()
    ratios = [(now / then).item() for now, then in zip(model.parameters(), before) if then.item()]
    assert ratios == pytest.approx([1 - 0.1 * WEIGHT_DECAY, 1.0, 1.0])  # weight and bias, norm


def test_plateau_halves_the_rate_after_three_epochs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=8e-6)
    scheduler = build_scheduler("plateau", optimizer, 40)
    rates = []
    # Three that are no better are borne, four are not. A pre-training's score is below 0: its loss times -1.
    for score in [-0.5, -0.4, -0.6, -0.5, -0.4, -0.3, *[-0.30005, -0.3] * 10]:
        scheduler.step(score)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([8e-6] * 9 + [4e-6] * 4 + [2e-6] * 4 + [1e-6] * 9)


def test_cosine_warms_up_and_ends_at_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = build_scheduler("cosine", optimizer, 40)
    rates = []
    for _ in range(41):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[5:] == pytest.approx([1 + math.cos(math.pi * k / 36) for k in range(1, 37)])
    assert rates[40] == pytest.approx(0.0, abs=1e-9)


def test_optimizer_state_takes_the_layout_of_its_weights():
    # Adam's fused kernel walks through memory: with another layout it would update the wrong weights, silently.
    def step(model, optimizer):
        optimizer.zero_grad()
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
        model(images).square().sum().backward()
        optimizer.step()

    first = nn.Conv2d(3, 4, 3)
    optimizer = build_optimizer(TrainConfig(learning_rate=0.1), first)
    step(first, optimizer)
    second = copy.deepcopy(first).to(memory_format=torch.channels_last)
    resumed, saved = build_optimizer(TrainConfig(learning_rate=0.1), second), copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["fused"] = False  # of another device
    restore_optimizer(resumed, saved)
    assert resumed.param_groups[0]["fused"]
    step(first, optimizer)
    step(second, resumed)
    assert resumed.state[second.weight]["exp_avg"].stride() == second.weight.stride() != first.weight.stride()
    assert torch.allclose(second.weight, first.weight, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_encoder_learns_at_its_own_rate_before_and_after_a_change(name):
    config = TrainConfig(learning_rate=0.1, encoder_lr_scale=0.25, optimizer=name)
    model = build_model("resnet18_unet")
    optimizer = build_optimizer(config, model)
    scheduler = build_scheduler("cosine", optimizer, 20)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates.keys() == dict(model.named_parameters()).keys()
    warm_up = 0.5  # of the first of two steps
    for name, rate in rates.items():
        assert rate == pytest.approx(0.1 * warm_up * (0.25 if name.startswith("encoder.") else 1)), name
    change_learning_rate(optimizer, scheduler, 0.4)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.05, 0.2])


@pytest.mark.parametrize("name", ["plateau", "cosine"])
def test_a_schedule_goes_on_where_the_run_stands(name):
    def make():
        optimizer = build_optimizer(TrainConfig(learning_rate=1e-3), Plain())
        return optimizer, build_scheduler(name, optimizer, 30)

    def epochs(optimizer, scheduler, rows) -> list[float]:
        rates = []
        for row in rows:
            optimizer.step()
            scheduler.step(*([score_of(row)] if name == "plateau" else []))
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    rows = [{"val_loss": loss, "val_dice": None} for loss in (0.9, 0.8, *[0.85] * 10, 0.7, *[0.75] * 10)]
    whole = epochs(*make(), rows)
    assert len(set(whole)) > 2
    for stop in range(1, len(rows)):
        optimizer, scheduler = make()
        progress = Progress(run_id="run", planned_epochs=30, epoch=stop, history=rows[:stop])
        restore_scheduler(scheduler, progress, 1)
        optimizer.param_groups[0]["lr"] = whole[stop - 1]  # as `restore_optimizer` does afterwards
        assert epochs(optimizer, scheduler, rows[stop:]) == whole[stop:]
