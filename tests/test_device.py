"""Device, precision and memory layout."""

from types import SimpleNamespace

import pytest
import torch

import utils
from models.build import build_model
from runtime.device import Precision, choose_precision, copy_to_device
from runtime.errors import UsageError


def test_device_is_chosen_and_missing_one_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert utils.get_device().type == "cpu"
    with pytest.raises(UsageError, match="cuda is not available here; there is cpu"):
        utils.get_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert utils.get_device().type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert utils.get_device().type == "cuda"
    assert utils.get_device("cpu").type == "cpu"


CPU = torch.device("cpu")


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
def test_precision_on_cpu(monkeypatch, amp, able, size, said):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert str(choose_precision(amp, CPU, size)) == said


def test_precision_on_gpus(monkeypatch):
    for capability, said in (((7, 5), "fp32, channels last"), ((8, 0), "bf16, channels last")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert str(choose_precision("auto", torch.device("cuda"), 64)) == said
    assert str(choose_precision("auto", torch.device("mps"), 256)) == "fp32"


def test_autocast_keeps_weights_in_float32():
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


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_only_cuda_copies_asynchronously(kind):
    told = []
    tensor = SimpleNamespace(to=lambda *args, **options: told.append((args, options)))
    copy_to_device(tensor, torch.device(kind))
    assert told == [((torch.device(kind),), {"non_blocking": kind == "cuda"})]
