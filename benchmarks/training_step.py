"""Trainer steps a second: ours, and what each part of it brings, beside the loops of others, in one run.

    python benchmarks/training_step.py --model_name resnet34_unet --compile

All see the same bytes in memory, (N, 3, S, S) and (N, 1, S, S). The share of the peak is what the network's arithmetic
takes of what a large matrix product reaches in the same precision, in the same run. (A 3x3 convolution can reach more.)
"""

import statistics
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode

import measure
import peers
import utils
from data.loader import ResumableBatchSampler
from runtime.distributed import SINGLE_PROCESS
from training.trainer import Trainer, fetch_metrics, training_step
from training.losses import bce_loss
from models import build_model
from runtime.device import choose_precision
from training.run_state import Progress, RunState

DEFAULTS = SimpleNamespace(amp="auto", accumulate=1, checkpoint_activations=False)


def our_step(name: str, device: torch.device, args, mode=DEFAULTS, compile_it: bool = False) -> Callable:
    """What train.py does in a step."""
    precision = choose_precision(mode.amp, device, args.image_size)
    model = precision.place(build_model(name))
    if mode.checkpoint_activations:
        model.checkpoint_activations()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=device.type in ("cpu", "cuda"))
    flags = SimpleNamespace(accumulate=mode.accumulate, scheduler="none", model_name=name, save_dir=".")
    flags.classes, flags.multi_scale, flags.mix = "binary", 0.0, "none"
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    state = RunState(flags, model, None, optimizer, None, scaler, {}, "", Progress("", 1), None)
    forward = torch.compile(model) if compile_it else model
    order = ResumableBatchSampler(args.batch_size, args.batch_size, 0)
    run = Trainer(state, forward.train(), order, None, None, bce_loss, precision, SINGLE_PROCESS, None)
    sums = torch.zeros(3, dtype=torch.float64)

    def step(images: torch.Tensor, masks: torch.Tensor) -> None:
        run.recent.append((training_step(run, {"image": images, "mask": masks}), []))
        if device.type == "cpu":
            fetch_metrics(run, sums)

    return step


def variants_of(name: str, device: torch.device, args) -> dict[str, tuple[Callable, torch.dtype]]:
    """Steps by what they are, the one to compare with first, and the precision of each."""
    last, fp32, bf16 = torch.channels_last, torch.float32, torch.bfloat16

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
    steps = {
        **others,
        "+ channels last": (plain(layout=last), fp32),
        "+ bf16": (plain(layout=last, bf16=True), bf16),
        "+ fused Adam": (plain(layout=last, bf16=True, fused=True), bf16),
        "train.py": (our_step(name, device, args), choose_precision("auto", device, args.image_size).dtype),
    }
    if args.compile:
        steps["train.py --compile"] = (our_step(name, device, args, compile_it=True), steps["train.py"][1])
    return steps


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a large matrix product: by torch.mm or as a 1x1 convolution, whichever is faster.

    They are different libraries on a CPU, and on some processors one of them is at half speed.
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
    parser = measure.parser(__doc__, rounds=5)
    parser.add_argument("--model_name", choices=["resnet34_unet", "unet"], default="resnet34_unet")
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    device, size = utils.get_device(args.device), args.image_size
    images = torch.randint(0, 256, (args.batch_size, 3, size, size), dtype=torch.uint8)
    masks = torch.randint(0, 2, (args.batch_size, 1, size, size), dtype=torch.uint8)
    steps = variants_of(args.model_name, device, args)
    calls = {name: lambda step=step: step(images, masks) for name, (step, _) in steps.items()}
    seconds = measure.take_turns(calls, args.rounds, device)
    peaks = {dtype: peak(dtype, device) for dtype in {dtype for _, dtype in steps.values()}}
    rows = measure.rates(seconds, args.batch_size, "images", model=args.model_name)
    for row in rows:
        step, dtype = steps[row["variant"]]
        flops = 0.0
        if "compile" not in row["variant"]:  # the counter can't look into fused kernels
            with FlopCounterMode(display=False) as counter:
                step(images, masks)
            flops = counter.get_total_flops()
        row["share_of_peak"] = round(flops / args.batch_size * row["images_per_second"] / peaks[dtype], 3) or ""
    peaks = ", ".join(f"{str(dtype)[6:]} {rate / 1e12:.3f}" for dtype, rate in peaks.items())
    setting = {"image_size": size, "batch_size": args.batch_size, "peak_teraflops": peaks}
    measure.report(f"training_step_{args.model_name}", rows, device, **setting)


if __name__ == "__main__":
    main()
