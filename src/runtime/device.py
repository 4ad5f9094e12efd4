"""Where and how a network computes: device, precision and memory layout."""

from dataclasses import dataclass

import torch

from runtime.errors import UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def get_device(name: str = "auto") -> torch.device:
    """The named device, or with `auto` the first available of CUDA, MPS and CPU. Raises UsageError: it is not there."""
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [kind for kind in usable if usable[kind]]
    if name not in ("auto", *available):
        raise UsageError(f"--device {name} is not available here; there is {', '.join(available)}")
    return torch.device(available[0] if name == "auto" else name)


def copy_to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    # CUDA waits by itself for memory that is not pinned. MPS would read memory that may have been freed by then.
    return tensor.to(device, non_blocking=device.type == "cuda")


@dataclass(frozen=True)
class Precision:
    device: torch.device
    dtype: torch.dtype = torch.float32  # of convolutions, under autocast; weights, sums and losses stay float32
    channels_last: bool = False  # memory layout of weights and images, which fast convolution kernels want

    def __str__(self) -> str:
        (name,) = (name for name, dtype in DTYPES.items() if dtype == self.dtype)
        return name + (", channels last" if self.channels_last else "")

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def to_device(self, model: torch.nn.Module) -> torch.nn.Module:
        """Moves a model; its weights stay float32."""
        if self.device.type == "cuda" and self.dtype == torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # TF32 rounds to 10 bits and would still be called fp32
        return model.to(self.device, memory_format=self.memory_format)

    def prepare_images(self, images: torch.Tensor) -> torch.Tensor:
        """Moves images (N, C, H, W) to the device. They travel as bytes and change layout there."""
        return copy_to_device(images, self.device).contiguous(memory_format=self.memory_format)

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def choose_precision(amp: str, device: torch.device, image_size: int) -> Precision:
    """The fastest precision that is safe on a device.

    `auto` is bf16 where the hardware computes in it: NVIDIA from Ampere on, processors with AVX-512 BF16 or AMX (older
    ones emulate it, slower than float32). bf16 has the range of float32; fp16 can overflow, so only a flag chooses it.
    """
    if amp == "auto" and device.type == "cuda":
        amp = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "off"
    elif amp == "auto" and device.type == "cpu":
        amp = "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "off"
    dtype = DTYPES.get(amp, torch.float32)
    # On a CPU in float32, channels last slows small images: 0.8 times the rate at 64 pixels, 1.1 at 128, 1.3 at 256.
    pays = dtype != torch.float32 or device.type == "cuda" or image_size >= 96
    return Precision(device, dtype, channels_last=device.type in ("cpu", "cuda") and pays)
