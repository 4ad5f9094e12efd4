"""Trainer steps a second: ours, and what each part of it brings, beside the loops of others, in one run.

    python benchmarks/training_step.py --model_name resnet34_unet

All get the same bytes in memory, (N, 3, S, S) and (N, 1, S, S). The share of the peak is the network's operations a
second, relative to a large matrix product in the same precision and run. (A 3x3 convolution can be faster.)
"""

import statistics
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

import measure
import peers
from models.build import build_model
from runtime.device import choose_precision, copy_to_device, get_device
from training.config import TrainConfig
from training.step import training_step
from training.terms import Part


def our_step(config: TrainConfig, device: torch.device) -> Callable:
    """A step of train.py. Like there, its metrics stay on the device."""
    precision = choose_precision(config.amp, device, config.image_size)
    model = precision.to_device(build_model(config.model_name))
    net, term = measure.make_net(config, model, precision, config.batch_size)

    def step(images: torch.Tensor, masks: torch.Tensor) -> None:
        part = Part(images, copy_to_device(masks, device), scale=1 / len(images))
        training_step(net, [term], [part], config.accumulate)

    return step


def variants_of(config: TrainConfig, device: torch.device) -> dict[str, tuple[Callable, torch.dtype]]:
    """Steps and their precision by description, the baseline first."""
    last, fp32, bf16 = torch.channels_last, torch.float32, torch.bfloat16
    name, auto = config.model_name, choose_precision("auto", device, config.image_size).dtype

    def plain(**options) -> Callable:
        return peers.plain_step(peers.build(name), device, **options)

    if name == "resnet34_unet":
        others = {
            "smp Unet(resnet34), its example": (peers.smp_step(peers.build("smp"), device), fp32),
            "the same, channels last, bf16": (peers.smp_step(peers.build("smp"), device, last, True), bf16),
            "our network, plain loop": (plain(), fp32),
        }
    else:
        others = {
            "our network, milesial's loop": (peers.milesial_step(peers.build(name), device), fp32),
            "our network, plain loop": (plain(), fp32),
        }
    return {
        **others,
        "+ channels last": (plain(layout=last), fp32),
        "+ bf16": (plain(layout=last, bf16=True), bf16),
        "+ fused Adam": (plain(layout=last, bf16=True, fused=True), bf16),
        "train.py": (our_step(config, device), auto),
    }


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a large matrix product: by torch.mm or as a 1x1 convolution, whichever is faster.

    On a CPU these are different libraries, and on some processors one of them runs at half speed.
    """
    side = 2048 if device.type == "cpu" else 8192
    a, b = torch.rand(2, side, side, device=device).to(dtype)
    images, kernels = (x.view(1, side, side, 1).contiguous(memory_format=torch.channels_last) for x in (a, b))
    kernels = kernels.view(side, side, 1, 1)
    products = {"mm": lambda: torch.mm(a, b), "1x1": lambda: torch.conv2d(images, kernels)}
    taken = measure.take_turns(products, 9, device)
    return 2 * side**3 / min(map(statistics.median, taken.values()))


def main() -> None:
    """Prints a table and writes it into benchmarks/results/training_step_<model>.csv."""
    parser = measure.parser(__doc__, rounds=5, image_size=256, batch_size=8)
    parser.add_argument("--model_name", choices=["resnet34_unet", "unet"], default="resnet34_unet")
    args = parser.parse_args()
    device, size = get_device(args.device), args.image_size
    images = measure.random_images(args.batch_size, size)
    masks = torch.randint(0, 2, (args.batch_size, 1, size, size), dtype=torch.uint8)
    config = TrainConfig(model_name=args.model_name, image_size=size)
    steps = variants_of(config, device)
    calls = {name: lambda step=step: step(images, masks) for name, (step, _) in steps.items()}
    seconds = measure.take_turns(calls, args.rounds, device)
    peaks = {dtype: peak(dtype, device) for dtype in {dtype for _, dtype in steps.values()}}
    rows = measure.rates(seconds, args.batch_size, "images", model=args.model_name)
    for row in rows:
        step, dtype = steps[row["variant"]]
        with FlopCounterMode(display=False) as counter:
            step(images, masks)
        flops = counter.get_total_flops()
        row["share_of_peak"] = round(flops / args.batch_size * row["images_per_second"] / peaks[dtype], 3) or ""
    peaks = ", ".join(f"{str(dtype)[6:]} {rate / 1e12:.3f}" for dtype, rate in peaks.items())
    setting = {"image_size": size, "batch_size": args.batch_size, "peak_teraflops": peaks}
    measure.report(f"training_step_{args.model_name}", rows, device, **setting)


if __name__ == "__main__":
    main()
