"""Tri-panels a second: ours beside matplotlib's subplots and savefig, in one run, on drawn images.

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
from models.task import BACKGROUND, PET
from sample_pets import draw_pet
from visual.panels import draw_panel, write_png


def with_matplotlib(path: Path, image: np.ndarray, truth: np.ndarray, labels: np.ndarray, title: str) -> None:
    """A panel as in a notebook."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4))
    for axis, name, array in zip(axes, ("image", "ground truth", "prediction"), (image, truth, labels)):
        axis.imshow(array)
        axis.set_title(name)
        axis.axis("off")
    figure.suptitle(title)
    plt.tight_layout()
    plt.savefig(path.with_suffix(".png"))
    plt.close()


def as_inference_does(path: Path, image: np.ndarray, truth: np.ndarray, labels: np.ndarray, title: str) -> None:
    """A panel and a mask."""
    mask = (labels != BACKGROUND).view(np.uint8) * 255
    for kind, result in (("panel", draw_panel(image, labels, truth, title)), ("mask", Image.fromarray(mask))):
        write_png(result, path.with_name(f"{path.name}_{kind}.png"))


def main() -> None:
    """Prints a table and writes it into benchmarks/results/panels.csv."""
    parser = measure.parser(__doc__, rounds=5)
    parser.add_argument("--count", type=int, default=32)
    args = parser.parse_args()
    samples = []
    for i in range(args.count):
        image, trimap = map(np.asarray, draw_pet(np.random.default_rng(i), size=(500, 375)))
        samples.append((image, np.minimum(trimap, PET)))
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(cores) as pool:

        def draw(write, each) -> None:
            def one(i: int) -> None:
                image, labels = samples[i]
                write(Path(scratch) / f"{write.__name__}_{i}", image, labels, labels, f"pet_{i}.jpg   Dice 0.9000")

            list(each(one, range(args.count)))

        variants = {
            "matplotlib savefig": lambda: draw(with_matplotlib, map),
            "panel and mask, one thread": lambda: draw(as_inference_does, map),
            f"panel and mask, {cores} threads, as inference.py": lambda: draw(as_inference_does, pool.map),
        }
        seconds = measure.take_turns(variants, args.rounds, torch.device("cpu"))
    measure.report("panels", measure.rates(seconds, args.count, "panels"), torch.device("cpu"), images="500x375")


if __name__ == "__main__":
    main()
