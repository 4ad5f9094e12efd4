"""Which images to label next: those that inference.py ranks as most uncertain, against images drawn at random.

    python study/label_next.py --data_path dataset

33 masks (1 %) at first, then twice 33 more; every network is trained from the same start for as many steps. A row of
study.csv for each, as runner.py writes them; the same command continues where it was.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from PIL import Image

import runner
from data.dataset import Dataset
from data.layout import Sample
from experiments import ROOT
from runtime.files import read_rows

MORE, STEPS, BATCH, VALIDATED = 33, 400, 8, 60
OUT = ROOT / "study/runs/label_next"  # folder of the runs
FLAGS = f"--image_size 64 --model_name unet_small --encoder_weights none --recipe strong --batch_size {BATCH}"


def lay_out(parts: dict[str, list[Sample]], root: Path) -> None:
    """Makes a dataset in train/, valid/ and test/, with links to the images; the part `rest` has no masks."""
    for part, samples in parts.items():
        images, masks = (root / part / kind for kind in ("images", "masks"))
        images.mkdir(parents=True)
        masks.mkdir()
        for sample in samples:
            (images / sample.image_path.name).symlink_to(sample.image_path.resolve())
            if part != "rest":
                pet = np.asarray(Image.open(sample.mask_path)) != 2
                Image.fromarray(pet * np.uint8(255)).save(masks / sample.mask_path.name)


def follow(way: str, seed: int, parts: dict[str, list[Sample]], images: str) -> None:
    """One way of choosing: three trainings, the first of which both ways share."""
    by_name = {sample.name: sample for sample in parts["train"]}
    ranked = np.random.default_rng(seed).permutation(sorted(by_name)).tolist()
    chosen: list[str] = []
    for masks in (MORE, 2 * MORE, 3 * MORE):
        chosen += [name for name in ranked if name not in chosen][:MORE]
        name = f"{masks} masks/{way if masks > MORE else 'at random'}"
        folder = OUT / f"{seed} {name}".replace(" ", "-").replace("/", "-")
        run = runner.Run(name, f"{FLAGS} --epochs {round(STEPS * BATCH / masks)}", 3, seed, folder)
        root, ranking = folder / "data", folder / "uncertain.csv"
        if not root.exists():
            rest = [sample for name, sample in by_name.items() if name not in chosen]
            lay_out({**parts, "train": [by_name[name] for name in chosen], "rest": rest}, root)
        if (run.experiment, str(seed)) not in {(row["experiment"], row["seed"]) for row in read_rows(runner.TABLE)}:
            runner.train(run, ["--data_path", root, "--device", "cpu"])
            flags = ["--log_dir", folder, "--save", "uncertain", "--output_path", folder]
            command = [ROOT / "src/inference.py", root / "rest/images", *flags]
            runner.call(run, *command, "--model_path", *folder.glob("*_best.pth"))
            runner.do(run, argparse.Namespace(data_path=root, table=runner.TABLE), images)
        if way == "by rank":
            ranked = [row["name"] for row in read_rows(ranking)]


def main() -> None:
    """Follows both ways with three seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, default=Path("dataset"))
    split = Dataset(parser.parse_args().data_path).split("official")
    parts = {"train": split.train, "valid": split.valid[:: len(split.valid) // VALIDATED], "test": split.test}
    images = f"{len(split.train)} {len(split.valid)} {len(split.test)}"
    os.nice(10)
    for seed in (1, 2, 3):
        for way in ("at random", "by rank"):
            follow(way, seed, parts, images)


if __name__ == "__main__":
    main()
