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

GROUP, MORE, STEPS, BATCH, VALIDATED = "which masks next", 33, 400, 8, 60
FLAGS = f"--image_size 64 --model_name unet_small --encoder_weights none --recipe strong --batch_size {BATCH}"


def lay_out(parts: dict[str, list[Sample]], root: Path, masks: Path) -> None:
    """Makes a dataset in train/, valid/ and test/, of links; images of the part `rest` are without masks."""
    for part, samples in parts.items():
        for kind in ("images", "masks")[: 1 if part == "rest" else 2]:
            folder = root / part / kind
            folder.mkdir(parents=True)
            for sample in samples:
                file = sample.image_path if kind == "images" else masks / sample.mask_path.name
                (folder / file.name).symlink_to(file.resolve())


def write_masks(samples: list[Sample], folder: Path) -> None:
    """Writes trimaps as masks of two values."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / sample.mask_path.name for sample in samples):
        if not path.is_file():
            trimap = np.asarray(Image.open(samples[0].mask_path.with_name(path.name)))
            Image.fromarray((trimap != 2) * np.uint8(255)).save(path)


def rank(run: runner.Run, root: Path) -> None:
    """Ranks the images without masks by the network of a run."""
    (model,) = run.folder.glob("*_best.pth")
    flags = ["--model_path", model, "--log_dir", run.folder, "--output_path", run.folder, "--save", "uncertain"]
    runner.call(run, ROOT / "src/inference.py", root / "rest/images", *flags)


def follow(way: str, seed: int, parts: dict[str, list[Sample]], args, images: str) -> None:
    """One way of choosing: three trainings, the first of which both ways share."""
    by_name = {sample.name: sample for sample in parts["train"]}
    drawn, chosen, ranking = np.random.default_rng(seed).permutation(sorted(by_name)).tolist(), [], None
    for masks in (MORE, 2 * MORE, 3 * MORE):
        ranked = [row["name"] for row in read_rows(ranking)] if ranking and way == "by rank" else drawn
        chosen += [name for name in ranked if name not in chosen][:MORE]
        arm = f"{masks} masks" + f", {way}" * (masks > MORE)
        folder = args.out / f"{seed}-{arm.replace(', ', '-').replace(' ', '-')}"
        flags = f"{FLAGS} --epochs {round(STEPS * BATCH / masks)}"
        run, root, ranking = (
            runner.Run(f"{GROUP}/{arm}", flags, 3, seed, folder),
            folder / "data",
            folder / "uncertain.csv",
        )
        if any((row["experiment"], row["seed"]) == (run.experiment, str(seed)) for row in read_rows(args.table)):
            continue
        if not root.exists():
            rest = [sample for sample in parts["train"] if sample.name not in chosen]
            lay_out({**parts, "train": [by_name[name] for name in chosen], "rest": rest}, root, args.out / "masks")
        runner.train(run, ["--data_path", root, "--device", "cpu"])
        if masks == MORE or (way == "by rank" and masks < 3 * MORE):
            rank(run, root)
        runner.do(run, argparse.Namespace(data_path=root, table=args.table), images)


def main() -> None:
    """Follows both ways with three seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, default=Path("dataset"))
    parser.add_argument("--out", type=Path, default=ROOT / "study/runs/label_next", help="folder of the runs")
    parser.add_argument("--table", type=Path, default=runner.TABLE, help="where the rows go")
    args = parser.parse_args()
    split = Dataset(args.data_path).split("official")
    parts = {"train": split.train, "valid": split.valid[:: len(split.valid) // VALIDATED], "test": split.test}
    images = f"{len(split.train)} {len(split.valid)} {len(split.test)}"
    os.nice(10)
    write_masks(sum(parts.values(), []), args.out / "masks")
    for seed in (1, 2, 3):
        for way in ("at random", "by rank"):
            follow(way, seed, parts, args, images)


if __name__ == "__main__":
    main()
