"""Shared by all benchmarks: timing in turns, medians, tables, and a description of the machine."""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools")]

import torch  # noqa: E402  the path must be set first, here and wherever this is imported

from data.loader import Batches  # noqa: E402
from evaluation.predict import Predictor  # noqa: E402
from runtime.device import Precision  # noqa: E402
from runtime.files import write_rows  # noqa: E402
from training.config import TrainConfig  # noqa: E402
from training.optim import build_optimizer  # noqa: E402
from training.step import Net  # noqa: E402
from training.terms.masks import MasksTerm  # noqa: E402


def parser(text: str, rounds: int, **sizes: int) -> argparse.ArgumentParser:
    """The flags of all benchmarks, and `sizes` with their defaults, such as image_size and batch_size."""
    made = argparse.ArgumentParser(description=text.splitlines()[0])
    made.add_argument("--rounds", type=int, default=rounds, help="how often each variant is timed")
    made.add_argument("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto")
    for name, value in sizes.items():
        made.add_argument(f"--{name}", type=int, default=value)
    return made


def random_images(count: int, size: int) -> torch.Tensor:
    """Noise, uint8 (N, 3, S, S)."""
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def make_net(
    config: TrainConfig, model: torch.nn.Module, precision: Precision, batch_size: int
) -> tuple[Net, MasksTerm]:
    """A network as train.py trains it, and learning from the masks of batches of this size."""
    scaler = torch.amp.GradScaler(precision.device.type, enabled=False)
    net = Net(model.train(), build_optimizer(config, model), scaler, precision)
    net.wrap()
    return net, MasksTerm(Batches(range(batch_size), batch_size, 0), config, Predictor(model, precision), None)


def synchronize(device: torch.device) -> None:
    """Waits until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def take_turns(variants: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every call, sorted. The variants take turns, because machines drift; the first round is dropped."""
    seconds = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, call in variants.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: sorted(taken[1:]) for name, taken in seconds.items()}


def rates(seconds: dict[str, list[float]], count: int, unit: str, **more) -> list[dict]:
    """Rows of a table: median rate and its range; the ratio is to the first variant."""
    first = statistics.median(next(iter(seconds.values())))
    return [
        {
            **more,
            "variant": name,
            f"{unit}_per_second": round(count / statistics.median(taken), 2),
            "lowest": round(count / taken[-1], 2),
            "highest": round(count / taken[0], 2),
            "n": len(taken),
            "ratio": round(first / statistics.median(taken), 3),
        }
        for name, taken in seconds.items()
    ]


def machine(device: torch.device) -> str:
    """The hardware, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def report(name: str, rows: list[dict], device: torch.device, **setting) -> None:
    """Prints a table and writes it, with hardware, versions and setting, into benchmarks/results/<name>.csv."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    stamp = {**setting, "device": device.type, "machine": machine(device), "versions": versions}
    print(" | ".join(f"{key} {value}" for key, value in stamp.items()))
    widths = {key: max(len(str(row[key])) for row in [dict(zip(rows[0], rows[0])), *rows]) for key in rows[0]}
    for row in [dict(zip(rows[0], rows[0])), *rows]:
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()))
    RESULTS.mkdir(exist_ok=True)
    write_rows(RESULTS / f"{name}.csv", [{**row, **stamp} for row in rows])
