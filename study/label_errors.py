"""Spoils a share of a dataset's masks, looks for them with evaluate.py --label_errors, and counts those that it finds.

    python study/label_errors.py --data_path dataset --work_dir DIR --share 0.05 --epochs 20

Two folds are trained: each network ranks the masks of the other half, and both together those of the test part. DIR
gets the dataset with its spoiled masks, and the ranking as looked_at/label_errors/label_errors.csv. With --share 0 the
masks stay as they are. Started again it goes on where it was stopped.
"""

import argparse
import collections
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import experiments
from data.image_io import read_trimap
from data.index import find_root, list_samples
from models.task import BACKGROUND, PET
from runtime.files import read_rows

TRAINING = "--recipe strong --model_name unet_small --image_size 128"


def swap(trimap: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The trimap of another image."""
    return np.asarray(Image.fromarray(other).resize(trimap.shape[::-1], Image.Resampling.NEAREST))


def shift(trimap: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moved by a fifth of the side to one of four directions; what comes in is background."""
    moved, axis = np.full_like(trimap, BACKGROUND), rng.integers(2)
    way = trimap.shape[axis] // 5
    here, there = [slice(None)] * 2, [slice(None)] * 2
    here[axis], there[axis] = slice(way, None), slice(None, -way)
    if rng.random() < 0.5:
        here, there = there, here
    moved[tuple(there)] = trimap[tuple(here)]
    return moved


def cut(trimap: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Without what lies beyond a line: 10 to 25 % of pet and border."""
    y, x = np.nonzero(trimap != BACKGROUND)
    angle, part = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.25)
    place = x * np.cos(angle) + y * np.sin(angle)
    beyond = place > np.quantile(place, 1 - part)
    left = trimap.copy()
    left[y[beyond], x[beyond]] = BACKGROUND
    return left


def fill(trimap: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pet everywhere."""
    return np.full_like(trimap, PET)


WAYS = (swap, shift, cut, fill)  # they take turns


def spoil(root: Path, to: Path, share: float, seed: int) -> dict[str, str]:
    """Copies a dataset, its images as links, with this share of its masks spoiled.

    Returns:
        How each is spoiled, by the names of their images.
    """
    if to.resolve() in (root.resolve(), *root.resolve().parents):
        raise SystemExit(f"{to} is to be replaced, and holds the dataset; name another --work_dir")
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(root / "annotations", to / "annotations")
    (to / "images").symlink_to((root / "images").resolve())
    samples = [s for s in list_samples(root) if (read_trimap(s.mask_path) != BACKGROUND).any()]
    rng, spoiled = np.random.default_rng(seed), {}
    for number, index in enumerate(rng.permutation(len(samples))[: round(share * len(samples))]):
        sample, way = samples[index], WAYS[number % len(WAYS)]
        other = samples[(index + rng.integers(1, len(samples))) % len(samples)]
        made = way(read_trimap(sample.mask_path), read_trimap(other.mask_path), rng)
        Image.fromarray(made).save(to / "annotations/trimaps" / sample.mask_path.name)
        spoiled[sample.name] = way.__name__
    return spoiled


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    data, saved = args.work_dir / "dataset", args.work_dir / "saved_models"
    spoiled = spoil(find_root(args.data_path), data, args.share, args.seed)
    flags = ["--data_path", str(data), "--save_dir", str(saved), "--log_dir", str(args.work_dir / "logs")]

    def run(script: str, *more: str) -> None:
        subprocess.run([sys.executable, str(experiments.ROOT / "src" / script), *flags, *more], check=True)

    best = [str(saved / f"fold_{fold}/unet_small_best.pth") for fold in (1, 2)]
    for fold, file in enumerate(best, start=1):
        last = file.replace("best", "last")
        start = f"--resume {last}" if Path(last).exists() else f"--epochs {args.epochs}"
        run("train.py", *f"{TRAINING} --folds 2 --fold {fold} --seed {args.seed} {start}".split())
    found = args.work_dir / "looked_at"
    run("evaluate.py", "--model_path", *best, "--label_errors", "40", "--output_path", str(found))
    ranked = [row["name"] for row in read_rows(found / "label_errors/label_errors.csv")]
    first = ranked[: round(args.share * len(ranked))]
    print(f"{len(ranked)} masks ranked, {len(spoiled.keys() & set(ranked))} of them spoiled")
    if first:
        print(f"{len(spoiled.keys() & set(first))} of the first {len(first)} are spoiled ones; found:")
    total = collections.Counter(spoiled[name] for name in ranked if name in spoiled)
    hits = collections.Counter(spoiled[name] for name in first if name in spoiled)
    for way in sorted(total):
        print(f"  {way}: {hits[way]} of {total[way]}")


if __name__ == "__main__":
    main()
