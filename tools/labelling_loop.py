"""Runs docs/labelling.md on drawn photographs: `python tools/labelling_loop.py --folder loop`.

Commands are run as they stand there. What people do by hand is done here with the outlines that were drawn.
"""

import argparse
import csv
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from evaluation.polygons import regions, write_labelme  # noqa: E402  the path must be set first

SIDE = 160  # of the photographs


def draw_flower(rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """A photograph of a flower among leaves, and the flower's mask, uint8 (H, W) of 0 and 1."""
    noise = Image.fromarray(rng.integers(0, 120, (20, 20, 3)).astype(np.uint8)).resize((SIDE, SIDE))
    image, mask = noise.filter(ImageFilter.GaussianBlur(1)), Image.new("L", (SIDE, SIDE))
    for draw, leaves in ((ImageDraw.Draw(image), 12), (ImageDraw.Draw(mask), 0)):
        for _ in range(leaves):
            x, y, size = rng.integers(0, SIDE, 2).tolist() + [int(rng.integers(15, 40))]
            draw.ellipse((x, y, x + size, y + size // 3), fill=(20, int(rng.integers(80, 160)), 30))
    center, radius, petals = rng.uniform(50, SIDE - 50, 2), rng.uniform(16, 26), int(rng.integers(5, 9))
    color = tuple(int(c) for c in rng.integers(110, 255, 3))
    for angle in np.linspace(0, 2 * np.pi, petals, endpoint=False) + rng.uniform(0, 1):
        x, y = center + radius * np.array([np.cos(angle), np.sin(angle)])
        box = (x - radius * 0.7, y - radius * 0.7, x + radius * 0.7, y + radius * 0.7)
        ImageDraw.Draw(image).ellipse(box, fill=color)
        ImageDraw.Draw(mask).ellipse(box, fill=1)
    pixels = np.asarray(image) + rng.normal(0, 10, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), np.asarray(mask)


def label(photograph: Path, mask: np.ndarray, folder: Path) -> None:
    """Writes what LabelMe would: the outlines of a mask."""
    folder.mkdir(exist_ok=True)
    write_labelme(folder / f"{photograph.stem}.json", photograph, mask.shape[::-1], regions(mask, {1: "flower"}))


def by_hand(words: str, folder: Path, masks: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    """Does what a line of the page says that people do."""
    if match := re.fullmatch(r"move (\d+) photographs, drawn at random, from (\w+) to (\w+)", words):
        source, target = folder / match[2], folder / match[3]
        target.mkdir()
        for path in rng.permutation(sorted(source.iterdir()))[: int(match[1])]:
            path.rename(target / path.name)
    elif match := re.fullmatch(r"label (\w+)", words):
        for path in sorted((folder / match[1]).glob("*.jpg")):
            label(path, masks[path.stem], path.parent)
    elif match := re.fullmatch(
        r"correct the first (\d+) of (\S+) in (\w+), and move them with their photographs to (\w+)", words
    ):
        with (folder / match[2]).open() as file:
            names = [row["name"] for row in csv.DictReader(file)][: int(match[1])]
        for name in names:
            (folder / match[3] / f"{name}.json").unlink()
            photograph = folder / f"photos/{name}.jpg"
            label(photograph, masks[name], folder / match[4])
            photograph.rename(folder / match[4] / photograph.name)
    else:
        raise ValueError(f"nobody does this here: {words}")


def main(argv=None) -> None:
    """Draws photographs and follows the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("loop"), help="is made; it must not exist")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/labelling.md")
    args = parser.parse_args(argv)
    folder, rng, masks = args.folder.resolve(), np.random.default_rng(1), {}
    (folder / "photos").mkdir(parents=True)
    for part in ("src", "tools", "saved_models"):
        (folder / part).symlink_to(ROOT / part)
    for number in range(60):
        image, masks[f"flower_{number:02d}"] = draw_flower(rng)
        image.save(folder / f"photos/flower_{number:02d}.jpg", quality=95)
    began = time.perf_counter()
    for block in re.findall(r"^```\n(.*?)^```", args.page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            print(f"$ {line}", flush=True)
            if line.startswith("# by hand: "):
                by_hand(line.removeprefix("# by hand: "), folder, masks, rng)
            elif line.startswith("python "):
                subprocess.run([sys.executable, *shlex.split(line)[1:]], cwd=folder, check=True)
            else:
                subprocess.run(line, cwd=folder, shell=True, check=True)  # noqa: S602
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
