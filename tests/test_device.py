"""Device, precision and memory layout."""

import pytest
import torch

from models.build import build_model
from runtime.device import Precision, choose_precision, get_device
from runtime.errors import UsageError
from stubs import CPU


def test_device_is_chosen_and_missing_one_named(monkeypatch):
    for cuda, mps, chosen in ((False, False, "cpu"), (False, True, "mps"), (True, True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert (get_device().type, get_device("cpu").type) == (chosen, "cpu")
        if not cuda:
            with pytest.raises(UsageError, match="cuda is not available here; there is .*cpu"):
                get_device("cuda")


@pytest.mark.parametrize(
    ("amp", "able", "size", "precision"),
    [
        ("off", True, 64, "fp32"),
        ("off", True, 256, "fp32, channels last"),
        ("auto", True, 64, "bf16, channels last"),
        ("auto", False, 256, "fp32, channels last"),
        ("bf16", False, 64, "bf16, channels last"),
        ("fp16", False, 64, "fp16, channels last"),
    ],
)
def test_precision_on_cpu(monkeypatch, amp, able, size, precision):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert str(choose_precision(amp, CPU, size)) == precision


def test_precision_on_gpus(monkeypatch):
    for capability, precision in (((7, 5), "fp32, channels last"), ((8, 0), "bf16, channels last")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, able=capability: able)
        assert str(choose_precision("auto", torch.device("cuda"), 64)) == precision
    assert str(choose_precision("auto", torch.device("mps"), 256)) == "fp32"


def test_autocast_keeps_weights_in_float32():
    images, model = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), build_model("resnet34_unet").eval()
    precision = Precision(CPU, torch.bfloat16, channels_last=True)
    with torch.inference_mode():
        exact = model(images)
        precision.to_device(model)
        with precision.autocast():
            logits = model(precision.prepare_images(images))
    assert logits.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert precision.prepare_images(images).is_contiguous(memory_format=torch.channels_last)
    assert 0 < (logits.float() - exact).abs().max() < 0.05 * exact.abs().max()
