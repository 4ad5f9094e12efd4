"""The small network on a processor: latency, rate and memory in torch, ONNX and int8, beside ResNet34-UNet.

    python benchmarks/small.py

Weights are freshly drawn: they don't change the time. All variants take turns in one run.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import measure
from data.view import View
from evaluation.export import export, quantize
from evaluation.predict import Predictor
from models.build import build_model
from runtime.device import choose_precision

CPU = torch.device("cpu")
VARIANTS = {
    "resnet34_unet, torch": ("resnet34_unet", "torch"),
    "unet_small, torch": ("unet_small", "torch"),
    "unet_small, ONNX": ("unet_small", "onnx"),
    "unet_small, ONNX int8": ("unet_small", "int8"),
}


def write_files(folder: Path, size: int) -> None:
    """The small network as ONNX, and quantised on noise."""
    torch.manual_seed(0)
    export(build_model("unet_small"), View(size), folder / "onnx.onnx")
    images = list(measure.random_images(8, size))
    quantize(folder / "onnx.onnx", images, folder / "int8.onnx")


def build(variant: str, folder: Path, size: int, threads: int) -> Callable[[torch.Tensor], object]:
    """A function from bytes (N, 3, S, S) to what the network gives."""
    name, kind = VARIANTS[variant]
    if kind == "torch":
        precision = choose_precision("auto", CPU, size)
        predictor = Predictor(precision.to_device(build_model(name)).eval(), precision)
        return torch.inference_mode()(lambda images: predictor.predict(images))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / f"{kind}.onnx"), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def memory_of(variant: str, folder: Path, size: int) -> float:
    """Megabytes that a process takes at most, imports included, to segment one image."""
    command = [sys.executable, __file__, "--image_size", str(size), "--memory_of", variant, "--folder", str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Prints a table and writes it into benchmarks/results/small.csv."""
    parser = measure.parser(__doc__, rounds=15, image_size=256)
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    size, rows = args.image_size, []
    if args.memory_of:
        build(args.memory_of, args.folder, size, 1)(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        # Not ru_maxrss: a child inherits its parent's.
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, size)
        memory = {variant: memory_of(variant, folder, size) for variant in VARIANTS}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            networks = {variant: build(variant, folder, size, threads) for variant in VARIANTS}
            for count in (1, 8):
                images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8))
                calls = {variant: lambda run=run, images=images: run(images) for variant, run in networks.items()}
                seconds = measure.take_turns(calls, args.rounds, CPU)
                for row in measure.rates(seconds, count, "images", threads=threads, images_at_a_time=count):
                    row["milliseconds"] = round(1000 * statistics.median(seconds[row["variant"]]), 1)
                    row["megabytes"] = round(memory[row["variant"]])
                    rows.append(row)
    measure.report("small", rows, CPU, image_size=size, precision=str(choose_precision("auto", CPU, size)))


if __name__ == "__main__":
    main()
