"""Peak memory of training: each network and mode in a process of its own.

    python benchmarks/memory.py --batch_size 32

On a GPU the most that torch allocates; on a CPU the process's peak resident memory, including Python and its libraries.
"""

import json
import resource
import subprocess
import sys

import torch

import measure
from runtime.device import get_device
from training.config import TrainConfig
from training_step import our_step

MODES = {
    "fp32": {"amp": "off"},
    "auto": {},
    "auto --accumulate 4": {"accumulate": 4},
}


def peak_of_two_steps(name: str, mode: str, args) -> float:
    """Gigabytes. Two steps, because the first one creates the optimizer's state."""
    device = get_device(args.device)
    step = our_step(TrainConfig(model_name=name, image_size=args.image_size, **MODES[mode]), device)
    images = measure.random_images(args.batch_size, args.image_size)
    masks = torch.randint(0, 2, (args.batch_size, 1, args.image_size, args.image_size), dtype=torch.uint8)
    for _ in range(2):
        step(images, masks)
    measure.synchronize(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    """Prints a table and writes it into benchmarks/results/memory.csv."""
    parser = measure.parser(__doc__, rounds=1, image_size=256, batch_size=32)
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "MODE"), help="measure in this process")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(peak_of_two_steps(*args.one, args)))
        return
    rows = []
    for name in ("resnet34_unet", "unet"):
        for mode in MODES:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name, mode]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"model": name, "mode": mode, "peak_gigabytes": round(json.loads(done.stdout), 2)})
    device = get_device(args.device)
    measure.report("memory", rows, device, image_size=args.image_size, batch_size=args.batch_size)


if __name__ == "__main__":
    main()
