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
from stubs import Plain, make_batch, make_masks, make_net, make_run
from training.losses import bce_loss
from training.terms import At, Part, averages


@pytest.mark.parametrize("micro_batches", [2, 3, 7, 20])
def test_accumulated_step_equals_the_whole_step(micro_batches):
    whole = Plain()
    parts = copy.deepcopy(whole)
    before = whole.layers[0].weight.clone()
    figures, *others = make_run(whole).train_batch([make_batch()])
    in_parts, *_ = make_run(parts, accumulate=micro_batches).train_batch([make_batch()])
    assert torch.allclose(figures, in_parts, rtol=1e-5)
    assert figures[1] == in_parts[1] == 7
    assert others == [7, [f"{i}.jpg" for i in range(7)]]
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
    run.terms[0].loss_fn = lambda *inputs: steepness * bce_loss(*inputs)
    run.train_batch([make_batch()])
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), before)]).norm().item()
    assert moved == pytest.approx(0.5 * min(1.0, length), rel=1e-3)  # 0.5 is the learning rate


class OutlineTerm:
    """Cross-entropy of the pixels beside the outline of the masks alone: a term as one would add it."""

    name, batches, columns, seen = "outline", None, ("outline_loss",), frozenset()

    def prepare(self, batch, first, at):
        masks = first.target.float()
        outline = F.max_pool2d(masks, 3, 1, 1) != -F.max_pool2d(-masks, 3, 1, 1)
        return Part(None, masks, outline, scale=first.scale)

    def loss(self, logits, part):
        pixels = F.binary_cross_entropy_with_logits(logits, part.target, reduction="none") * part.counted
        loss = pixels.flatten(1).sum(1) / part.counted.flatten(1).sum(1).clamp(min=1)
        return loss.sum(), torch.stack([loss.new_tensor(len(loss)), loss.detach().sum()])


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_new_term_trains_with_the_loop_as_it_is(micro_batches):
    torch.manual_seed(0)
    model, batch = Plain(), make_batch()
    batch["labels"][:, :, :3] = 0
    run = make_run(model, terms=[make_masks(model), OutlineTerm()], accumulate=micro_batches)
    rows, alone = [], []
    for _ in range(60):
        before = copy.deepcopy(model)
        run.pending.append(run.train_batch([batch, None]))
        run.fetch_metrics()
        rows.append(averages(run.totals, run.terms))
        run.totals.zero_()
        with torch.no_grad():
            alone.append([term_loss(before, batch, term) for term in run.terms])
    assert list(rows[0]) == ["train_loss", "train_dice", "outline_loss"]
    assert [row["train_loss"] for row in rows] == pytest.approx([sum(both) for both in alone], rel=1e-4)
    assert [row["outline_loss"] for row in rows] == pytest.approx([outline for _, outline in alone], rel=1e-4)
    assert alone[-1][1] < 0.9 * alone[0][1]


def term_loss(model, batch, term) -> float:
    """The mean of a term's loss, in one piece."""
    first = make_masks(model).prepare(batch, None, At(0, 0))
    part = term.prepare(batch, first, At(0, 0))
    return term.loss(model(batch["image"]), part)[0].item() / len(batch["image"])


def test_totals_do_not_depend_on_when_metrics_are_fetched():
    rows = torch.rand(50, 3) * 1000
    totals = []
    for every in (1, 7, 50):
        run = make_run(Plain())
        for i, row in enumerate(rows, start=1):
            run.pending.append((row, 8, ["a.jpg"]))
            if i % every == 0:
                run.fetch_metrics()
        run.fetch_metrics()
        assert not run.pending
        totals.append(run.totals)
    assert torch.equal(totals[0], totals[1])
    assert torch.equal(totals[0], totals[2])
    loss, *others = rows.double().sum(0)
    assert torch.allclose(totals[0], torch.stack([8 * loss, torch.tensor(8 * 50).double(), *others]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_loss_names_its_step(bad):
    run = make_run(Plain())
    for step in range(5):  # the third step goes wrong, and from there all do
        run.pending.append((torch.tensor([bad if step >= 2 else 1.0, 8.0, 0.5]), 8, [f"/data/step{step}.jpg"]))
    run.state.progress.step = 15
    with pytest.raises(RunError, match=r"the loss is (nan|inf) in epoch 1, step 13, on step2\.jpg; start again"):
        run.fetch_metrics()


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


def test_memory_flags_are_kept_on_resume_and_can_be_changed(tmp_path):
    few = make_dataset(tmp_path / "few", count=12)
    flags = ("--accumulate", 3, "--checkpoint_activations", "--epochs", 1, *TINY)
    run_ok("train.py", "--data_path", few, *flags, cwd=tmp_path)
    last = tmp_path / "saved_models/tiny_last.pth"
    for more, expected in (((), (3, True)), (("--accumulate", 1, "--no-checkpoint_activations"), (1, False))):
        run_ok("train.py", "--data_path", few, "--resume", "--epochs", 1, *more, cwd=tmp_path)
        settings = load_checkpoint(last).training.settings
        assert (settings["accumulate"], settings["checkpoint_activations"]) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_step_never_synchronizes(shared_dataset, tmp_path):
    model = build_model("resnet34_unet")
    precision = choose_precision("auto", torch.device("cuda"), 64)
    net = make_net(precision.to_device(model), precision=precision)
    run = make_run(model, net, [make_masks(model, precision=precision, images=8)])
    batch = make_batch(8)
    large = {key: batch[key].repeat_interleave(8, 2).repeat_interleave(8, 3) for key in ("image", "labels")}
    run.train_batch([{**batch, **large}])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        figures, *_ = run.train_batch([{**batch, **{key: value.pin_memory() for key, value in large.items()}}])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(figures).all()
