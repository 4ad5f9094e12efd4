"""The training step and its metrics."""

import copy

import pytest
import torch

from helpers import TINY, make_dataset, run_ok, same
from models.build import build_model
from models.checkpoint import load_checkpoint
from runtime.device import choose_precision
from runtime.errors import RunError
from stubs import Plain, make_batch, make_run
from training.losses import bce_loss


@pytest.mark.parametrize("pieces", [2, 3, 7, 20])
def test_accumulated_step_equals_the_whole_step(pieces):
    whole = Plain()
    parts = copy.deepcopy(whole)
    before = whole.layers[0].weight.clone()
    figures = make_run(whole).train_batch(make_batch())
    in_parts = make_run(parts, accumulate=pieces).train_batch(make_batch())
    assert torch.allclose(figures, in_parts, rtol=1e-5)
    assert figures[2] == in_parts[2] == 7
    assert not torch.allclose(whole.layers[0].weight, before, atol=1e-3)
    for a, b in zip(whole.parameters(), parts.parameters()):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])  # as fp16 needs it
@pytest.mark.parametrize("steepness", [1e-3, 1e3])
def test_gradient_norm_is_clipped_to_one(steepness, scaled):
    model = Plain()
    images, masks = make_batch()["image"], make_batch()["mask"]
    loss = steepness * bce_loss(model(images), masks, model.task)
    gradients = torch.autograd.grad(loss, tuple(model.parameters()))
    length = torch.cat([g.flatten() for g in gradients]).norm().item()
    assert (length < 0.1) if steepness < 1 else (length > 10)
    before = [p.detach().clone() for p in model.parameters()]
    run = make_run(model)
    run.loss_fn = lambda *inputs: steepness * bce_loss(*inputs)
    run.state.scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    run.train_batch(make_batch())
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), before)]).norm().item()
    assert moved == pytest.approx(0.5 * min(1.0, length), rel=1e-3)  # 0.5 is the learning rate


def test_totals_do_not_depend_on_when_metrics_are_fetched():
    rows = torch.rand(50, 3) * 1000
    totals = []
    for every in (1, 7, 50):
        run = make_run(Plain())
        for i, row in enumerate(rows, start=1):
            run.pending.append((row, ["a.jpg"]))
            if i % every == 0:
                run.fetch_metrics()
        run.fetch_metrics()
        assert not run.pending
        totals.append(run.totals)
    assert torch.equal(totals[0], totals[1])
    assert torch.equal(totals[0], totals[2])
    assert torch.allclose(totals[0], rows.double().sum(0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_loss_names_its_step(bad):
    run = make_run(Plain())
    for step in range(5):  # the third step goes wrong, and from there all do
        run.pending.append((torch.tensor([bad if step >= 2 else 1.0, 0.5, 8.0]), [f"/data/step{step}.jpg"]))
    run.state.progress.step = 15
    with pytest.raises(RunError, match=r"the loss is (nan|inf) in epoch 1, step 13, on step2\.jpg; start again"):
        run.fetch_metrics()


def test_a_flipped_bit_is_found_where_steps_are_verified():
    model = Plain()
    flips = []

    def flip(grad):
        flips.append(True)
        if len(flips) % 2 == 0:
            bits = grad.view(torch.int32).clone()
            bits.flatten()[5] ^= 1  # the lowest bit of one number
            return bits.view(torch.float32)
        return grad

    run = make_run(model, verify_steps=3)
    for run.state.progress.step in (0, 1, 2):
        run.train_batch(make_batch())
    model.layers[0].weight.register_hook(flip)
    for run.state.progress.step in (4, 5):
        run.train_batch(make_batch())  # nobody looks
    before = copy.deepcopy(model.state_dict())
    run.state.progress.step = 6
    with pytest.raises(RunError, match=r"\(the gradient of layers.0.weight, 1 of 5 differ\): memory or processor"):
        run.train_batch(make_batch())
    assert same(model.state_dict(), before)


def test_verified_steps_are_the_same_steps():
    weights = []
    for verify in (0, 1):
        torch.manual_seed(0)
        model = build_model("unet_small")
        run = make_run(model, verify_steps=verify)
        image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        run.train_batch({"image": image, "mask": (image[:, :1] > 99).to(torch.uint8), "path": ["a", "b"]})
        weights.append(model.state_dict())
    assert same(*weights)


def test_fp16_keeps_its_scale_over_a_resume(tmp_path):
    few = make_dataset(tmp_path / "few", count=10)  # a step of 8 pictures: fp16 is slow on processors
    said = run_ok("train.py", "--data_path", few, "--amp", "fp16", "--epochs", 1, *TINY, cwd=tmp_path)
    assert ", fp16, channels last" in said
    last = tmp_path / "saved_models/tiny_last.pth"
    content = load_checkpoint(last)
    assert content["settings"]["amp"] == "fp16"
    assert content["scaler"]["_growth_tracker"] == 1
    said = run_ok("train.py", "--data_path", few, "--resume", "--epochs", 1, cwd=tmp_path)
    assert ", fp16, channels last" in said
    assert load_checkpoint(last)["scaler"]["_growth_tracker"] == 2  # steps without an overflow


def test_memory_flags_are_kept_on_resume_and_can_be_changed(tmp_path):
    few = make_dataset(tmp_path / "few", count=12)
    flags = ("--accumulate", 3, "--checkpoint_activations", "--epochs", 1, *TINY)
    run_ok("train.py", "--data_path", few, *flags, cwd=tmp_path)
    last = tmp_path / "saved_models/tiny_last.pth"
    for more, expected in (((), (3, True)), (("--accumulate", 1, "--no-checkpoint_activations"), (1, False))):
        run_ok("train.py", "--data_path", few, "--resume", "--epochs", 1, *more, cwd=tmp_path)
        settings = load_checkpoint(last)["settings"]
        assert (settings["accumulate"], settings["checkpoint_activations"]) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_step_never_synchronizes(shared_dataset, tmp_path):
    model = build_model("resnet34_unet")
    how = choose_precision("auto", torch.device("cuda"), 64)
    run = make_run(how.to_device(model), images=8)
    run.precision = how
    batch = {
        key: value.repeat_interleave(8, 2).repeat_interleave(8, 3)
        for key, value in make_batch(8).items()
        if key != "path"
    }
    run.train_batch(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        figures = run.train_batch({key: value.pin_memory() for key, value in batch.items()})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(figures).all()
