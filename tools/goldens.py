"""Compares the results of this working tree with those of an older commit, bit for bit.

    python tools/goldens.py --short        # two minutes
    python tools/goldens.py                # everything

Both versions run the same commands on the same drawn images, on one thread, each in a folder of its own. Compared are
checkpoints, training logs, scores, masks, trimaps, probabilities, the pixel cache and the outputs of exported networks.
Run ids, times, paths of this program and words are not.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from torture import differences
from torture import plain as without

ROOT = Path(__file__).resolve().parent.parent
BASE = "8cc16f8"
# Columns and keys that must differ, or that hold words. `precision` was written twice at BASE.
IGNORED = {"run_id", "seconds", "images_per_second", "resumed", "time", "precision", "compute"}
IGNORED |= {"progressive", "validate_every", "decoder", "init", "teacher", "seen_names", "format_version"}
IGNORED |= {
    "patience",
    "patient_from",
    "folds",
    "fold",
    "groups",
    "group_regex",
    "resize",
    "tile",
    "calibration_error",
    "channels",
    "class_weights",
    "confidence",
    "distort",
    "unlabeled",
    "unlabeled_batch",
    "unlabeled_weight",
    "window",
    "interval",
}  # not in BASE
TINY = "--data_path data --image_size 64 --encoder_weights none --batch_size 8 --learning_rate 1e-3"


def commands(amp: str, short: bool) -> dict[str, list[str]]:
    """Commands by the folder in which they run; `STOP` in front of one ends it with SIGTERM in its second epoch."""
    where = f"--amp {amp}"
    train = f"train.py {TINY} {where}"
    strong = f"{train} --epochs 2 --loss bce_dice --optimizer adamw --scheduler cosine --ema 0.9"  # BASE's recipe
    strong += " --augment online --color_jitter --mix cutmix"
    scores = f"evaluate.py --data_path data {where} --json"
    images = f"inference.py --data_path data {where} --batch_size 3 --output_path"
    found = {
        "resnet34_unet_strong": [
            f"STOP {strong} --multi_scale 0.5 --augment_uncertain --checkpoint_minutes 0.01",
            f"train.py --data_path data --resume {where}",
            f"{scores} plain.json --csv plain.csv",
            f"{scores} own.json --csv own.csv --tta --original_size --find_threshold",
            f"{images} out --save masks,probabilities,overlays,cutouts",
            f"export.py --output_path . --formats {'onnx' if short else 'onnx,pt2'} --data_path data/images",
        ],
        "trimap": [
            f"{train} --classes trimap --loss bce_dice --augment online --mix paste --epochs 1 --split official",
            f"{scores} own.json --csv own.csv --tta --original_size",
            f"{images} out --save masks,trimaps,probabilities --tta",
        ],
        "unet_report": [f"{train} --model_name unet --epochs 1 --train_fraction 0.5 --accumulate 2"],
    }
    if short:
        return found
    return {
        **found,
        "unet_report": [
            f"{train} --model_name unet --epochs 2",
            f"{scores} plain.json --compare saved_models/unet_last.pth --ignore_border",
        ],
        "unet_strong": [f"STOP {strong} --model_name unet", f"train.py --data_path data --resume {where}"],
        "resnet34_unet_report": [
            f"{train} --epochs 2 --augment --num_augmentations 1 --color_jitter --attention cbam",
            f"{scores} plain.json --compare saved_models/resnet34_unet_last.pth --ignore_border",
            "export.py --output_path . --formats onnx --data_path data/images",
        ],
        "trimap_resumed": [
            f"{train} --classes trimap --loss dice --scheduler none --epochs 1 --checkpoint_activations",
            f"train.py --data_path data --resume --epochs 1 --learning_rate 5e-4 {where}",
            "export.py --output_path . --formats onnx --data_path data/images",
        ],
    }


def run(command: str, source: Path, folder: Path) -> None:
    """Runs a command of one version in a folder.

    Raises:
        RuntimeError: it failed.
    """
    words = command.split()
    stop = words[0] == "STOP"
    script, *flags = words[stop:]
    process = subprocess.Popen(
        [sys.executable, str(source / "src" / script), *flags],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if stop and line.startswith("epoch "):
            process.send_signal(signal.SIGTERM)
    if process.wait() != (143 if stop else 0):
        raise RuntimeError(f"{source.name}: {command} ended with {process.returncode}:\n{''.join(said)}")


def run_all(source: Path, data: Path, place: Path, lines: list[str]) -> None:
    """Runs commands of one version in a folder; what an earlier call has run to its end is left alone."""
    done = place / "done"
    if done.is_file() and done.read_text() == "\n".join(lines):
        return
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(data, place / "data")
    for line in lines:
        run(line, source, place)
    done.write_text("\n".join(lines))


def read(path: Path):
    """What a file of a run says, in a form that can be compared."""
    if path.suffix == ".pth":
        return without(torch.load(path, map_location="cpu", weights_only=True), IGNORED)
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [without(row, IGNORED) for row in csv.DictReader(file)]
    if path.suffix == ".json":
        return without(json.loads(path.read_text()), IGNORED)
    if path.suffix == ".png":
        with Image.open(path) as image:
            return torch.from_numpy(np.asarray(image).copy())
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64)).astype(np.uint8)
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"images": pixels})[0])
    if path.suffix == ".pt2":
        with torch.no_grad():
            return torch.export.load(path).module()(torch.from_numpy(pixels))
    return path.read_bytes().hex()


def compare(base: Path, head: Path) -> tuple[int, list[str]]:
    """How many files of two runs were compared, and where they differ."""

    def files(folder: Path) -> set[str]:
        kinds = ("*.pth", "*.csv", "*.json", "*.npy", "*.onnx", "*.pt2", "out/*.png")
        found = {str(p.relative_to(folder)) for kind in kinds for p in folder.rglob(kind)}
        # At BASE cutouts had hard edges, and near copies were not looked for.
        others = ("_panel.png", "index.png", "_cutout.png")
        return {name for name in found if not (name.endswith(others) or "near_copies_" in name)}

    names = files(base) | files(head)
    found = [f"{name} is missing on one side" for name in files(base) ^ files(head)]
    for name in sorted(files(base) & files(head)):
        found += [f"{head.name}/{name}{d}" for d in differences(read(base / name), read(head / name))]
    return len(names), found


def main() -> int:
    """Runs both versions and compares. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=BASE, help="the older commit")
    parser.add_argument("--short", action="store_true", help="fewer runs")
    parser.add_argument("--amp", nargs="+", default=["off", "auto"], help="precisions to try")
    parser.add_argument("--work_dir", type=Path, default=Path("/tmp/goldens"), help="runs of --base are kept here")
    args = parser.parse_args()
    work = args.work_dir.resolve()
    worktree = work / "worktree"
    if not worktree.exists():
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "worktree", "add", "--detach", worktree, args.base], cwd=ROOT, check=True)
    if not (work / "data").exists():
        draw = [sys.executable, worktree / "src/sample_pets.py", "--data_path", work / "data", "--count", "40"]
        subprocess.run([*draw, "--side", "64"], check=True)
    count, found = 0, []
    for amp in args.amp[: 1 if args.short else None]:
        plan, base, head = commands(amp, args.short), work / f"base_{amp}", work / f"head_{amp}"
        shutil.rmtree(head, ignore_errors=True)
        with ThreadPoolExecutor(2) as pool:  # one thread each, so two cores are enough
            jobs = [
                pool.submit(run_all, source, work / "data", folder / name, lines)
                for source, folder in ((worktree, base), (ROOT, head))
                for name, lines in plan.items()
            ]
            for job in jobs:
                job.result()
        for name in plan:
            compared, differing = compare(base / name, head / name)
            count, found = count + compared, found + differing
    print("\n".join(found[:40]))
    print(f"{count} files compared, {len(found)} differences")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
