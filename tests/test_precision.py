"""How a network computes: what is chosen, and that precision, layout and memory change nothing else."""

import copy
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data.augment import BatchAugmentation
from data.loader import ResumableBatchSampler
from helpers import SRC, TINY, assert_one_error, make_dataset, run_ok, run_script
from models import UNet, build_model
from models.checkpoint import load_checkpoint
from models.task import TASKS
from models.unet import MaxPool, UpBlock
from runtime import cli
from runtime.device import Precision, choose_precision, copy_to_device
from runtime.distributed import SINGLE_PROCESS
from runtime.errors import RunError
from training.config import TrainConfig
from training.losses import LOSSES, bce_loss
from training.run_state import Progress, RunState
from training.trainer import Trainer

CPU = torch.device("cpu")
PLAIN = BatchAugmentation()


# --------------------------------------------------------------------------------------------------- what is chosen


@pytest.mark.parametrize(
    ("amp", "able", "size", "said"),
    [
        ("off", True, 64, "fp32"),
        ("off", True, 256, "fp32, channels last"),
        ("auto", True, 64, "bf16, channels last"),
        ("auto", False, 256, "fp32, channels last"),
        ("bf16", False, 64, "bf16, channels last"),
        ("fp16", False, 64, "fp16, channels last"),
    ],
)
def test_the_choice_on_a_processor(monkeypatch, amp, able, size, said):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert str(choose_precision(amp, CPU, size)) == said


def test_the_choice_on_gpus(monkeypatch):
    for capability, said in (((7, 5), "fp32, channels last"), ((8, 0), "bf16, channels last")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert str(choose_precision("auto", torch.device("cuda"), 64)) == said
    assert str(choose_precision("auto", torch.device("mps"), 256)) == "fp32"


def test_precision_is_that_of_convolutions_alone():
    images, model = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), build_model("resnet34_unet").eval()
    with torch.inference_mode():
        exact = model(images)
        how = Precision(CPU, torch.bfloat16, channels_last=True)
        how.to_device(model)
        with how.autocast():
            logits = model(how.prepare_images(images))
    assert logits.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert how.prepare_images(images).is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(logits.float(), exact)
    assert (logits.float() - exact).abs().max() < 0.05 * exact.abs().max()


# ------------------------------------------------------------------------------------------------ memory in the models


def test_a_joined_convolution_is_the_sum_of_two():
    block, below, skip = UpBlock(8, 5, 4).eval(), torch.rand(2, 8, 6, 7), torch.rand(2, 5, 12, 14)
    expected = block.conv(torch.cat([skip, block.up(below)], dim=1))
    assert torch.allclose(block(below, skip), expected, atol=1e-6)


def test_pooling_is_torchs_and_keeps_no_indices():
    x = torch.rand(2, 3, 8, 10, requires_grad=True)
    expected = F.max_pool2d(x, 2)
    weights = torch.rand_like(expected)
    (grad,) = torch.autograd.grad((expected * weights).sum(), x)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        pooled = MaxPool()(x)
        assert torch.int64 not in kept
        F.max_pool2d(x, 2)
        assert torch.int64 in kept  # so the hook sees what it should
    assert torch.equal(pooled, expected)
    assert torch.equal(torch.autograd.grad((pooled * weights).sum(), x)[0], grad)


@pytest.mark.parametrize(("name", "amp"), [("unet", False), ("resnet34_unet", False), ("tiny", False), ("tiny", True)])
def test_checkpointed_activations_change_no_bit(name, amp):
    plain = build_model(name).train()
    saving = copy.deepcopy(plain)
    saving.checkpoint_activations()
    images = torch.randint(0, 256, (2, 3, 64, 70), dtype=torch.uint8)
    for model in (plain, saving):
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                logits = model(images)
            logits.float().square().mean().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), saving.parameters()))
    a, b = plain.state_dict(), saving.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)  # running statistics too, and how many batches they saw


def test_checkpointed_activations_are_fewer():
    def kept(model) -> int:
        pixels = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: pixels.append(t.numel()) or t, lambda t: t):
            model(torch.rand(1, 3, 64, 64))
        return sum(pixels)

    plain, saving = UNet(), UNet()
    saving.checkpoint_activations()
    assert kept(saving) < kept(plain) / 3


# ------------------------------------------------------------------------------------------------------------- the step


class Plain(nn.Module):
    """A network without batch norm, so that images don't touch each other."""

    task, stride = TASKS["binary"], 4

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))

    def forward(self, images):
        return self.layers(images / 255)


def make_run(model, context=SINGLE_PROCESS, images=7, augmentation=PLAIN, ema=None, **flags) -> Trainer:
    """The least that the loop's methods need."""
    config = TrainConfig(scheduler="none", model_name="unet", save_dir="nowhere", **flags)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Trainer(
        state=RunState(config, model, ema, optimizer, None, scaler, {}, "", Progress("run", 1), None),
        forward=context.wrap_model(model),
        sampler=ResumableBatchSampler(images, images, 0, context),
        train_loader=None,
        valid_loader=None,
        augmentation=augmentation,
        precision=Precision(CPU),
        context=context,
        stop=None,
        totals=torch.zeros(3, dtype=torch.float64),
    )


def make_batch(count: int = 7) -> dict:
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return {"image": pixels, "mask": (pixels[:, :1] > 99).to(torch.uint8), "path": [f"{i}.jpg" for i in range(count)]}


@pytest.mark.parametrize("pieces", [2, 3, 7, 20])
def test_a_step_in_pieces_is_the_whole_step(pieces):
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
def test_gradients_are_no_longer_than_one(steepness, scaled, monkeypatch):
    model = Plain()
    images, masks = make_batch()["image"], make_batch()["mask"]
    loss = steepness * bce_loss(model(images), masks, model.task)
    gradients = torch.autograd.grad(loss, tuple(model.parameters()))
    length = torch.cat([g.flatten() for g in gradients]).norm().item()
    assert (length < 0.1) if steepness < 1 else (length > 10)
    before = [p.detach().clone() for p in model.parameters()]
    run = make_run(model, loss="steep")
    monkeypatch.setitem(LOSSES, "steep", lambda *inputs: steepness * bce_loss(*inputs))
    run.state.scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    run.train_batch(make_batch())
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), before)]).norm().item()
    assert moved == pytest.approx(0.5 * min(1.0, length), rel=1e-3)  # 0.5 is the learning rate


def test_figures_do_not_depend_on_when_they_are_fetched():
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
def test_a_loss_that_is_not_finite_is_found_late_and_named_rightly(bad):
    run = make_run(Plain())
    for step in range(5):  # the third step goes wrong, and from there all do
        run.pending.append((torch.tensor([bad if step >= 2 else 1.0, 0.5, 8.0]), [f"/data/step{step}.jpg"]))
    run.state.progress.step = 15
    with pytest.raises(RunError, match=r"the loss is (nan|inf) in epoch 1, step 13, on step2\.jpg; start again"):
        run.fetch_metrics()


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_only_cuda_copies_in_the_background(kind):
    told = []
    tensor = SimpleNamespace(to=lambda *args, **options: told.append((args, options)))
    copy_to_device(tensor, torch.device(kind))
    assert told == [((torch.device(kind),), {"non_blocking": kind == "cuda"})]


def test_optimizer_state_takes_on_the_layout_of_its_weights(tmp_path):
    # Adam's fused kernel walks through memory: with another layout it would update the wrong weights, silently.
    def make(layout, how):
        model = nn.Conv2d(3, 4, 3).to(memory_format=layout)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=how)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        config = TrainConfig(save_dir=tmp_path, model_name="unet", learning_rate=0.1)
        return RunState(config, model, None, optimizer, None, scaler, {}, "", Progress("run", 1), None)

    def step(state):
        state.optimizer.zero_grad()
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
        state.model(images).square().sum().backward()
        state.optimizer.step()

    first = make(torch.contiguous_format, True)
    step(first)
    content = {
        "weights": first.model.state_dict(),
        "optimizer": copy.deepcopy(first.optimizer.state_dict()),
        "random_state": torch.get_rng_state(),
        "settings": {"learning_rate": 0.1},
        "scheduler": None,
    }
    content["weights"] = copy.deepcopy(content["weights"])
    content["optimizer"]["param_groups"][0]["fused"] = False  # of another device
    second = make(torch.channels_last, True)
    load, taken = second.optimizer.load_state_dict, []
    second.optimizer.load_state_dict = lambda state: (taken.append(state["param_groups"][0]["fused"]), load(state))
    second.restore(content, tmp_path / "none.pth")
    assert taken == [True]  # on a GPU it decides, in loading, where the counts of steps are put
    assert second.optimizer.param_groups[0]["fused"]
    for state in (first, second):
        step(state)
    weight = second.model.weight
    assert second.optimizer.state[weight]["exp_avg"].stride() == weight.stride() != first.model.weight.stride()
    assert torch.allclose(weight, first.model.weight, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ as users do it


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


def test_memory_flags_are_kept_on_resume_and_can_be_taken_back(tmp_path):
    few = make_dataset(tmp_path / "few", count=12)
    flags = ("--accumulate", 3, "--checkpoint_activations", "--epochs", 1, *TINY)
    run_ok("train.py", "--data_path", few, *flags, cwd=tmp_path)
    last = tmp_path / "saved_models/tiny_last.pth"
    for more, expected in (((), (3, True)), (("--accumulate", 1, "--no-checkpoint_activations"), (1, False))):
        run_ok("train.py", "--data_path", few, "--resume", "--epochs", 1, *more, cwd=tmp_path)
        settings = load_checkpoint(last)["settings"]
        assert (settings["accumulate"], settings["checkpoint_activations"]) == expected


def test_compile_that_fails_is_one_line(tmp_path, shared_dataset, capsys):
    class InductorError(RuntimeError):
        __module__ = "torch._inductor.exc"

    def main():
        raise InductorError("InvalidCxxCompiler: No working C++ compiler found\nand much more")

    with pytest.raises(SystemExit) as left:
        cli.run(main)
    assert left.value.code == 1
    said = capsys.readouterr().err
    assert said == "error: --compile failed (InvalidCxxCompiler: No working C++ compiler found); leave the flag out\n"
    flags = ("--data_path", shared_dataset, "--compile", "--checkpoint_activations", *TINY)
    assert_one_error(run_script("train.py", *flags, cwd=tmp_path), "--compile", "--checkpoint_activations")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't keep to the limit")
def test_out_of_memory_is_one_line_that_says_what_takes_less(tmp_path, shared_dataset):
    limit = 3 * 2**30
    done = subprocess.run(
        [sys.executable, str(SRC / "train.py"), "--data_path", str(shared_dataset), "--cache", "off", *map(str, TINY)]
        + ["--image_size", "512", "--batch_size", "32"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert_one_error(done, "out of memory", "--batch_size", "--accumulate 2", "--checkpoint_activations", status=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_in_bf16_and_never_waits_in_a_step(shared_dataset, tmp_path):
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
