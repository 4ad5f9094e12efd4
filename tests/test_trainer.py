"""The training step and its metrics."""

import copy

import pytest
import torch
import torch.nn.functional as F

from helpers import TINY, make_dataset, run_ok
from models.build import build_model
from models.checkpoint import load_checkpoint
from runtime.device import choose_precision
from runtime.errors import RunError
from stubs import Plain, make_batch, make_masks, make_net, make_run, train_batch
from training.losses import bce_loss
from training.step import MetricLogger
from training.terms import Batch, Term


@pytest.mark.parametrize("micro_batches", [2, 3, 7, 20])
def test_accumulated_step_equals_the_whole_step(micro_batches):
    whole = Plain()
    parts = copy.deepcopy(whole)
    before = whole.layers[0].weight.clone()
    sums = train_batch(make_run(whole), make_batch())
    in_parts = train_batch(make_run(parts, accumulate=micro_batches), make_batch())
    assert torch.allclose(sums, in_parts, rtol=1e-5)
    assert sums[1] == sums[2] == in_parts[2] == 7  # images
    assert not torch.allclose(whole.layers[0].weight, before, atol=1e-3)
    for a, b in zip(whole.parameters(), parts.parameters()):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])  # as fp16 needs it
@pytest.mark.parametrize("steepness", [1e-3, 1e3])
def test_gradient_norm_is_clipped_to_one(steepness, scaled):
    model = Plain()
    images, masks = make_batch()["image"], make_batch()["labels"]
    loss = steepness * bce_loss(model(images), masks, model.task)
    gradients = torch.autograd.grad(loss, tuple(model.parameters()))
    length = torch.cat([g.flatten() for g in gradients]).norm().item()
    assert (length < 0.1) if steepness < 1 else (length > 10)
    before = [p.detach().clone() for p in model.parameters()]
    run = make_run(model, make_net(model, scaled=scaled))
    run.state.terms[0].loss_fn = lambda *inputs: steepness * bce_loss(*inputs)
    train_batch(run, make_batch())
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), before)]).norm().item()
    assert moved == pytest.approx(0.5 * min(1.0, length), rel=1e-3)  # 0.5 is the learning rate


class OutlineTerm(Term):
    """Cross-entropy of the pixels beside the outline of the masks alone: a term as one would add it."""

    name, columns = "outline", ("outline_loss",)

    def prepare(self, read, first, epoch, step):
        masks = first.target.float()
        outline = F.max_pool2d(masks, 3, 1, 1) != -F.max_pool2d(-masks, 3, 1, 1)
        return Batch(None, masks, outline, scale=first.scale)

    def loss(self, logits, batch):
        pixels = F.binary_cross_entropy_with_logits(logits, batch.target, reduction="none") * batch.counted
        loss = pixels.flatten(1).sum(1) / batch.counted.flatten(1).sum(1).clamp(min=1)
        return loss.sum(), [loss.detach().sum()]


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_new_term_trains_with_the_loop_as_it_is(micro_batches):
    model, batch, rows = Plain(), make_batch(), []
    batch["labels"][:, :, :3] = 0
    of_masks = bce_loss(model(batch["image"]), batch["labels"], model.task).item()
    run = make_run(model, terms=[make_masks(model), OutlineTerm()], accumulate=micro_batches)
    for _ in range(60):
        metrics = MetricLogger(run.state.terms)
        run.train_batch([batch, None], metrics)
        rows.append(metrics.averages())
    assert list(rows[0]) == ["train_loss", "train_dice", "outline_loss"]
    assert rows[0]["train_loss"] == pytest.approx(of_masks + rows[0]["outline_loss"], rel=1e-4)
    assert rows[-1]["outline_loss"] < 0.9 * rows[0]["outline_loss"]


def test_of_equal_dice_the_lower_loss_is_the_best_also_after_a_resume():
    # Loss and Dice of each epoch, and the best epoch after it.
    epochs = [(0.9, 0.0, 1), (0.7, 0.0, 2), (0.8, 0.0, 2), (0.7, 0.0, 2), (0.6, 0.0, 5), (0.9, 0.1, 6), (0.1, 0.0, 6)]
    found = []
    for stopped in (False, True):
        run = make_run(Plain())
        run.train_one_epoch = lambda: {"seconds": 1.0}
        for loss, dice, best in epochs:
            run.validate = lambda loss=loss, dice=dice: (loss, dice)
            run.run_epoch()
            found.append(run.state.progress.best_epoch == best)
            if stopped:  # the best checkpoint may be an epoch ahead of the last one: that is trained again
                ahead, before = run.state.progress, copy.deepcopy(run.state.progress)
                before.epoch, before.history = ahead.epoch - 1, ahead.history[:-1]
                run.state.progress = before
                run.run_epoch()
                now = run.state.progress
                found.append((now.best_epoch, now.best_score) == (ahead.best_epoch, ahead.best_score))
    assert all(found), found


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_loss_names_its_step(bad):
    metrics = MetricLogger([make_masks(Plain())])
    for step in range(5):  # the third step goes wrong, and from there all do
        metrics.waiting.append((torch.tensor([bad if step >= 2 else 1.0, 8.0, 0.5]), 8, f"step {step}"))
    with pytest.raises(RunError, match=r"the loss is (nan|inf) in step 2; use a smaller --learning_rate"):
        metrics.fetch()


def test_fp16_keeps_its_scale_over_a_resume(tmp_path):
    few = make_dataset(tmp_path / "few", count=10)  # a step of 8 pictures: fp16 is slow on processors
    said = run_ok("train.py", "--data_path", few, "--amp", "fp16", "--epochs", 1, *TINY, cwd=tmp_path)
    assert ", fp16, channels last" in said
    last = tmp_path / "saved_models/tiny_last.pth"
    content = load_checkpoint(last)
    assert content.training.settings["amp"] == "fp16"
    assert content.training.scaler["_growth_tracker"] == 1
    said = run_ok("train.py", "--data_path", few, "--resume", "--epochs", 1, cwd=tmp_path)
    assert ", fp16, channels last" in said
    assert load_checkpoint(last).training.scaler["_growth_tracker"] == 2  # steps without an overflow


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_step_never_synchronizes(shared_dataset, tmp_path):
    model = build_model("resnet34_unet")
    precision = choose_precision("auto", torch.device("cuda"), 64)
    net = make_net(precision.to_device(model), precision=precision)
    run = make_run(model, net, [make_masks(model, precision=precision, images=8)])
    batch = make_batch(8)
    large = {key: batch[key].repeat_interleave(8, 2).repeat_interleave(8, 3) for key in ("image", "labels")}
    metrics = MetricLogger(run.state.terms)
    run.train_batch([{**batch, **large}], metrics)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.train_batch([{**batch, **{key: value.pin_memory() for key, value in large.items()}}], metrics)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    metrics.fetch()  # raises where the loss is not finite
