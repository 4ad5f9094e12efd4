"""Tri-panels a second: ours beside matplotlib's subplots and savefig, in one run, on drawn pictures.

python benchmarks/panels.py
"""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image

import measure
from visual.panels import draw_panel, write_png
from models.task import BACKGROUND
from sample_pets import draw_pet


def with_matplotlib(result: Path, sample: dict, mask: np.ndarray, dice: float) -> None:
    """A panel as in any notebook."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4))
    parts = (("image", sample["original"]), ("ground truth", sample["original_mask"]), ("prediction", mask))
    for axis, (name, array) in zip(axes, parts):
        axis.imshow(array)
        axis.set_title(name)
        axis.axis("off")
    figure.suptitle(f"{sample['path'].name}   Dice {dice:.4f}")
    plt.tight_layout()
    plt.savefig(result.with_suffix(".png"))
    plt.close()


def as_inference_does(result: Path, sample: dict, mask: np.ndarray, dice: float) -> None:
    """A panel and a mask."""
    title = f"{sample['path'].name}   Dice {dice:.4f}"
    panel = draw_panel(sample["original"], mask, sample["original_mask"], title)
    for kind, picture in (("panel", panel), ("mask", Image.fromarray(mask * 255))):
        write_png(picture, result.with_name(f"{result.name}_{kind}.png"))


def main() -> None:
    """Prints a table and writes it into benchmarks/results/panels.csv."""
    parser = measure.parser(__doc__, rounds=5)
    parser.add_argument("--count", type=int, default=32)
    args = parser.parse_args()
    samples = []
    for i in range(args.count):
        image, trimap = map(np.asarray, draw_pet(np.random.default_rng(i), size=(500, 375)))
        mask = (trimap != BACKGROUND).astype(np.uint8)
        samples.append({"original": image, "original_mask": mask, "path": Path(f"pet_{i}.jpg")})
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(cores) as pool:

        def draw(write, each) -> None:
            def one(i: int) -> None:
                write(Path(scratch) / f"{write.__name__}_{i}", samples[i], samples[i]["original_mask"], 0.9)

            list(each(one, range(args.count)))

        variants = {
            "matplotlib savefig": lambda: draw(with_matplotlib, map),
            "panel and mask, one thread": lambda: draw(as_inference_does, map),
            f"panel and mask, {cores} threads, as inference.py": lambda: draw(as_inference_does, pool.map),
        }
        seconds = measure.take_turns(variants, args.rounds, torch.device("cpu"))
    measure.report("panels", measure.rates(seconds, args.count, "panels"), torch.device("cpu"), pictures="500x375")


if __name__ == "__main__":
    main()
