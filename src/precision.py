"""How a network computes: the device, the precision and the layout in memory that suit each other."""

from dataclasses import dataclass

import torch

DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device, waiting for it only where it must.

    CUDA knows by itself when memory can't be copied in the background. MPS does not: it would read what may have been
    freed or written over by then.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


@dataclass(frozen=True)
class Precision:
    """Where and how to compute.

    Args:
        device: where.
        dtype: of convolutions, under autocast: weights, sums and losses stay in float32.
        channels_last: keep the channels of a pixel together, as fast kernels of convolutions want it.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __str__(self) -> str:
        return SHORT[self.dtype] + (", channels last" if self.channels_last else "")

    @property
    def layout(self) -> torch.memory_format:
        """Of a model's weights and images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        """Moves a model to the device, in the layout. Its weights stay float32."""
        if self.device.type == "cuda" and self.dtype == torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # else convolutions round to 10 bits and are still called fp32
        return model.to(self.device, memory_format=self.layout)

    def move(self, images: torch.Tensor) -> torch.Tensor:
        """Moves images (N, C, H, W) to the device, in the layout: as bytes, and rearranged only there."""
        return to_device(images, self.device).contiguous(memory_format=self.layout)

    def autocast(self):
        """Context in which a model computes in this precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def choose_precision(amp: str, device: torch.device, image_size: int) -> Precision:
    """What is fastest on a device without a risk to the result.

    bf16 has the range of float32, so nothing overflows; fp16 has not, so it is never chosen, only obeyed. `auto` means
    bf16 where the device computes in it: NVIDIA from Ampere on, processors with AVX-512 BF16 (twice as fast,
    see benchmarks/training_step.py) or AMX. Elsewhere it would be emulated, or has not been tried: float32.

    Args:
        amp: auto, off, bf16 or fp16.
        device: where to compute.
        image_size: side of the images, in pixels.
    """
    dtype = DTYPES.get(amp) or (torch.bfloat16 if _computes_in_bf16(device) else torch.float32)
    # In float32 on a CPU, rearranging costs more than it brings for small images: 0.8 times the rate at 64 pixels, 1.1
    # at 128, 1.3 at 256. In bf16 it always pays.
    pays = dtype != torch.float32 or device.type == "cuda" or image_size >= 96
    return Precision(device, dtype, channels_last=device.type in ("cpu", "cuda") and pays)


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Older processors do bf16 by way of float32, which is slower than float32 itself.
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
