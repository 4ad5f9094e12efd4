"""Segments pictures and draws them.

python src/inference.py --model saved_models/unet_best.pth --data_path dataset/images --output_path output_predictions
"""

import collections
import glob
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

import cli
import utils
from batches import make_loader
from distributed import Team, join
from evaluate import open_checkpoint, open_part
from models import SegmentationModel
from oxford_pet import MODES, describe_layout, find_root
from panels import draw_panel, write_png
from pictures import BACKGROUND, PICTURES, DatasetError, read_image, read_pair
from precision import Precision, choose_precision
from scoring import mask_at_size


class Picture(NamedTuple):
    """A picture to segment, and its trimap or mask where there is one."""

    path: Path
    mask_path: Optional[Path]
    own: bool = True  # what there is, is a mask of two values


def find_pictures(args, content: dict) -> tuple[list[Picture], str]:
    """What --data_path means: one picture, a dataset or its images/ folder, or any folder of pictures.

    Returns:
        The pictures, and in words what they are.

    Raises:
        UsageError: there is nothing of the kind.
        DatasetError: it is a dataset, but not a whole one.
    """
    path = Path(args.data_path)
    if path.is_file():
        return [_with_mask(path)], str(path)
    try:
        find_root(path)
    except DatasetError:
        if not path.is_dir():
            raise cli.UsageError(f"--data_path {path} does not exist; name a dataset, a folder or a picture") from None
    else:
        dataset = open_part(args, content, args.subset)
        what = f"{args.subset} pictures of {dataset.root} ({describe_layout(dataset.root)})"
        return [Picture(p.image_path, p.mask_path, p.own) for p in dataset.pets], what
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith("."))
    if not found:
        raise cli.UsageError(f"there are no pictures in {path} ({', '.join(sorted(PICTURES))}); name another folder")
    return [_with_mask(p) for p in found], f"pictures in {path}"


def _with_mask(path: Path) -> Picture:
    if path.parent.name == "images":
        for folder, own in (("annotations/trimaps", False), ("masks", True)):
            for mask in sorted((path.parent.parent / folder).glob(f"{glob.escape(path.stem)}.*")):
                return Picture(path, mask, own)
    return Picture(path, None)


class PictureDataset(Dataset):
    """Pictures as the network takes them, and as they are.

    A sample is a dict: `image` uint8 (3, S, S); `mask` uint8 (1, S, S) or None; `original` uint8 (H, W, 3);
    `original_mask` uint8 (H, W) or None; `path`.
    """

    def __init__(self, pictures: list[Picture], image_size: int):
        self.pictures, self.image_size = pictures, image_size

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict:
        path, mask_path, own = self.pictures[index]
        if mask_path is None:
            small, original = read_image(path, self.image_size, upright=True), read_image(path, upright=True)
            mask = original_mask = None
        else:
            small, trimap = read_pair(path, mask_path, own, self.image_size)
            original, original_trimap = read_pair(path, mask_path, own)
            mask = torch.from_numpy((trimap != BACKGROUND).astype(np.uint8)[None])
            original_mask = (original_trimap != BACKGROUND).astype(np.uint8)
        return {
            "image": torch.from_numpy(small.transpose(2, 0, 1).copy()),
            "mask": mask,
            "original": original,
            "original_mask": original_mask,
            "path": path,
        }


def output_names(pictures: list[Picture]) -> list[str]:
    """A name of its own for each picture's results: its stem, with the ending too where pictures share a stem."""
    stems = collections.Counter(picture.path.stem for picture in pictures)
    names: dict[str, None] = {}
    for picture in pictures:
        stem = picture.path.stem
        base = name = stem if stems[stem] == 1 else picture.path.name.replace(".", "_")
        number = 1
        while name in names:
            number += 1
            name = f"{base}_{number}"
        names[name] = None
    return list(names)


def segment(
    model: SegmentationModel, pictures: list[Picture], args, size: int, precision: Precision, results: list
) -> list[dict]:
    """Segments pictures and writes panels and masks, by threads, while the next batch is being computed.

    Args:
        model: placed by `precision`.
        pictures: what to segment.
        args: batch_size and num_workers.
        size: side of the network's input.
        precision: where and how to compute.
        results: for each picture the path under which its files go, as `write_results` has it; or None, for no files.

    Returns:
        A row of the log for each picture.
    """
    loader = make_loader(PictureDataset(pictures, size), precision.device, args.num_workers, batch_size=args.batch_size)
    waiting, rows, threads = collections.deque(), [], min(8, os.cpu_count() or 1)
    results = iter(results)
    model.eval()
    bar = tqdm(total=len(pictures), desc="segmenting", unit="picture", disable=None, delay=1)
    with torch.inference_mode(), bar, ThreadPoolExecutor(threads) as pool:
        for samples in loader:
            with precision.autocast():
                logits = model(precision.move(torch.stack([sample["image"] for sample in samples])))
            for sample, one in zip(samples, logits.float().cpu()):
                waiting.append(pool.submit(finish, sample, one, next(results)))
            while len(waiting) > 2 * threads:  # pictures at their own sizes are large: few of them at a time
                rows.append(waiting.popleft().result())
                bar.update()
        rows += [future.result() for future in waiting]
        bar.update(len(pictures) - bar.n)
    return rows


def finish(sample: dict, logits: torch.Tensor, result: Optional[Path]) -> dict:
    """What is left to do for a picture when its logits (1, S, S) are there: writes its files, returns its row."""
    mask = mask_at_size(logits, *sample["original"].shape[:2])
    dice = None if sample["mask"] is None else utils.dice_score(logits[None] > 0, sample["mask"][None]).item()
    if result is not None:
        write_results(result, sample, mask, dice)
    return {
        "picture": str(sample["path"]),
        "width": mask.shape[1],
        "height": mask.shape[0],
        "pet_share": round(float(mask.mean()), 6),
        "dice": "" if dice is None else round(dice, 6),
    }


def write_results(result: Path, sample: dict, mask: np.ndarray, dice: Optional[float]) -> None:
    """Writes `<result>_panel.png` and `<result>_mask.png` (0 and 255, the picture's own size)."""
    title = sample["path"].name + ("" if dice is None else f"   Dice {dice:.4f}")
    panel = draw_panel(sample["original"], mask, sample["original_mask"], title)
    for kind, picture in (("panel", panel), ("mask", Image.fromarray(mask * 255))):
        write_png(picture, result.with_name(f"{result.name}_{kind}.png"))


def build_parser() -> cli.Parser:
    """Flags of inference.py."""
    parser = cli.Parser(prog="inference.py", description="Segment a dataset, a folder of pictures or one picture.")
    data = cli.add_data_flags(parser, batch_size=1)
    parser.set_defaults(cache="off")  # the pictures are decoded at their own sizes here
    data.add_argument("--subset", choices=MODES, default="test", help="which part, where --data_path is a dataset")
    cli.add_checkpoint_flags(parser)
    cli.add_device_flags(parser)
    cli.add_folder_flags(parser)
    group = parser.add_argument_group("results")
    group.add_argument("--save_results", action="store_true", help="write pictures, to inference_results")
    group.add_argument("--output_path", metavar="DIR", help="write pictures, to this folder")
    return parser


def main(argv=None) -> None:
    """Loads, segments, writes, reports."""
    args = build_parser().parse_args(argv)
    device = utils.get_device(args.device)
    with join(device) as team:
        infer(args, device, team)


def infer(args, device: torch.device, team: Team) -> None:
    """Segments what the flags name, on one process or several."""
    model, content, path = open_checkpoint(args)
    pictures, what = find_pictures(args, content)
    output = args.output_path or ("inference_results" if args.save_results else None)
    folder = None if output is None else cli.writable_folder(output)
    if folder is not None and folder.resolve() in {picture.path.parent.resolve() for picture in pictures}:
        raise cli.UsageError(f"--output_path {folder} is where the pictures are; name another folder for the results")
    log_dir = cli.writable_folder(args.log_dir)

    name = content["model"]["name"]
    size = content["preprocessing"]["image_size"]
    precision = choose_precision(args.amp, device, size)
    print(f"Segmenting {len(pictures)} {what} with {name.upper()} ({path}) on {device}, {precision}", flush=True)
    results = [None if folder is None else folder / name for name in output_names(pictures)]
    start = time.perf_counter()
    share = team.share(pictures), args, size, precision, team.share(results)
    rows = team.collect(segment(precision.place(model), *share))
    if not team.first:
        return
    seconds = time.perf_counter() - start
    log = log_dir / f"{name}_inference_log.csv"
    stamp = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "checkpoint": str(path),
        "run_id": content.get("progress", {}).get("run_id", ""),
    }
    utils.append_rows(log, [{**stamp, **row} for row in rows])
    print(f"{len(rows)} pictures in {seconds:.1f} s ({len(rows) / seconds:.1f} a second), listed in {log}")
    if folder is not None:
        print(f"Panels and masks are in {folder}")
    scored = [row["dice"] for row in rows if row["dice"] != ""]
    seen = {Path(row["picture"]).stem for row in rows if row["dice"] != ""} & set(content["data"]["train_names"])
    if scored:
        print(f"{name.upper()} mean Dice: {np.mean(scored):.4f} over {len(scored)} pictures with ground truth")
    if seen:
        print(f"WARNING: {len(seen)} of them were trained on, so this Dice flatters.", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, DatasetError)
