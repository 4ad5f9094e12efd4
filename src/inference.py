"""Segments pictures and draws them.

python src/inference.py --model saved_models/unet_best.pth --data_path dataset/images --output_path output_predictions
"""

import collections
import contextlib
import glob
import itertools
import math
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import cli
import utils
from distributed import Team, join
from evaluate import open_checkpoint, open_part
from gallery import write_gallery
from models import SegmentationModel
from oxford_pet import MODES, describe_layout, find_root, has_lists
from panels import draw_outline, draw_panel, write_png
from pictures import BACKGROUND, PICTURES, DatasetError, picture_size, raise_faults, read_image, read_pair
from precision import Precision, choose_precision
from scoring import decide_at_size, logits_at_size, predict

KINDS = {
    "masks": "mask",
    "probabilities": "probability",
    "overlays": "overlay",
    "cutouts": "cutout",
    "panels": "panel",
    "trimaps": "trimap",  # of networks of three classes
}
LARGE = 12_000_000  # pixels; of pictures above that, one is worked on at a time


class Picture(NamedTuple):
    """A picture to segment, its name in the results, and its trimap or mask where there is one."""

    path: Path
    name: str
    mask_path: Path | None = None
    own: bool = True  # what there is, is a mask of two values


def find_pictures(args, content: dict, output: Path | None = None) -> tuple[list[Picture], str]:
    """What --data_path means: a picture, a dataset or its images/ folder, any folder of pictures, or a pattern.

    Args:
        args: data_path, recursive, and subset and cache for a dataset.
        content: of the checkpoint; it knows the dataset's split.
        output: folder of results; what lies in it is left out, unless it holds all there is.

    Returns:
        The pictures, and in words what they are.

    Raises:
        UsageError: there is nothing of the kind.
        DatasetError: it is a dataset, but not a whole one.
    """
    path = Path(args.data_path)
    if path.is_file():
        return [_with_mask(path, path.stem)], str(path)
    if not path.is_dir():
        found = [Path(p) for p in sorted(glob.glob(args.data_path, recursive=True))]  # noqa: PTH207  with ** anywhere
        if not any(letter in args.data_path for letter in "*?["):
            raise cli.UsageError(f"--data_path {path} does not exist; name a dataset, a folder, a picture or a pattern")
        return _name_all(found, f"pictures that match {args.data_path}", None, output)
    try:
        find_root(path)
    except DatasetError:
        is_dataset = False
    else:
        is_dataset = not args.recursive
    if not is_dataset:
        found = sorted(path.rglob("*") if args.recursive else path.iterdir())
        return _name_all(found, f"pictures in {path}", path, output)
    try:
        dataset = open_part(args, content, args.subset)
    except DatasetError:
        root = find_root(path)
        if has_lists(root):
            raise
        # Own pictures that can't be divided, being few or without masks, are pictures all the same.
        return _name_all(sorted((root / "images").iterdir()), f"pictures in {root / 'images'}", root / "images", output)
    what = f"{args.subset} pictures of {dataset.root} ({describe_layout(dataset.root)})"
    return [Picture(p.image_path, p.name, p.mask_path, p.own) for p in dataset.pets], what


def _name_all(found: list[Path], what: str, base: Path | None, output: Path | None) -> tuple[list[Picture], str]:
    """Pictures among these files, each with a name of its own that mirrors where it lies below `base`."""
    if output is not None:
        found = [p for p in found if output.resolve() not in p.resolve().parents] or found
    found = [p for p in found if p.suffix.lower() in PICTURES and not p.name.startswith(".") and p.is_file()]
    if not found:
        raise cli.UsageError(f"there are no {what} ({', '.join(sorted(PICTURES))}); name others")
    base = base or Path(os.path.commonpath([p.parent for p in found]))
    stems = collections.Counter(p.relative_to(base).with_suffix("") for p in found)
    pictures: dict[str, Picture] = {}
    for path in found:
        place = path.relative_to(base)
        # The ending goes into the name too where pictures share a stem.
        stem = place.with_suffix("") if stems[place.with_suffix("")] == 1 else place.with_name(_dotless(path))
        name, number = stem.as_posix(), 1
        while name in pictures:
            number += 1
            name = f"{stem}_{number}"
        pictures[name] = _with_mask(path, name)
    return list(pictures.values()), what


def _dotless(path: Path) -> str:
    return path.name.replace(".", "_")


def _with_mask(path: Path, name: str) -> Picture:
    if path.parent.name == "images":
        for folder, own in (("annotations/trimaps", False), ("masks", True)):
            for mask in sorted((path.parent.parent / folder).glob(f"{glob.escape(path.stem)}.*")):
                if mask.suffix.lower() in PICTURES:
                    return Picture(path, name, mask, own)
    return Picture(path, name)


def read_small(picture: Picture, size: int):
    """What the network sees of a picture: image uint8 (3, S, S), and mask uint8 (1, S, S) or None.

    Raises:
        DatasetError: see `read_image` and `read_pair`.
    """
    if picture.mask_path is None:
        image, mask = read_image(picture.path, size, upright=True), None
    else:
        image, trimap = read_pair(picture.path, picture.mask_path, picture.own, size)
        mask = torch.from_numpy((trimap != BACKGROUND).astype(np.uint8)[None])
    return torch.from_numpy(image.transpose(2, 0, 1).copy()), mask


class Segmenter:
    """Reads, segments and writes pictures: threads read and write while the network computes.

    Args:
        model: placed by `precision`, in evaluation mode.
        precision: where and how to compute.
        size: side of the network's input.
        args: batch_size, num_workers (threads here), tta, threshold and save.
        folder: where results go, those that args.save names; None writes none.
    """

    def __init__(self, model: SegmentationModel, precision: Precision, size: int, args, folder: Path | None):
        self.model, self.precision, self.size, self.args, self.folder = model, precision, size, args, folder
        self.kinds = args.save if folder is not None else []
        self.cut = math.log(args.threshold / (1 - args.threshold))
        self.threads = args.num_workers or min(8, os.cpu_count() or 1)
        self.one_large = threading.Lock()

    def run(self, pictures: list[Picture]) -> list[dict]:
        """Segments these pictures. Returns a row of the log for each; `error` says what is wrong with one."""
        ahead, rows = 2 * max(self.threads, self.args.batch_size), []
        source, reading, writing = iter(pictures), collections.deque(), collections.deque()
        bar = tqdm(total=len(pictures), desc="segmenting", unit="picture", disable=None, delay=1)
        with torch.inference_mode(), bar, ThreadPoolExecutor(self.threads) as pool:
            while True:
                for picture in itertools.islice(source, ahead - len(reading)):
                    reading.append((picture, pool.submit(self.read, picture)))
                batch = [reading.popleft() for _ in range(min(self.args.batch_size, len(reading)))]
                if not batch:
                    break
                for picture, logits, mask in self.predict([(picture, read.result()) for picture, read in batch]):
                    writing.append(pool.submit(self.finish, picture, logits, mask))
                while len(writing) > ahead:
                    rows.append(writing.popleft().result())
                    bar.update()
            rows += [future.result() for future in writing]
            bar.update(len(pictures) - bar.n)
        return rows

    def room_for(self, pixels: int):
        """Context in which a picture may be held in memory."""
        return self.one_large if pixels > LARGE else contextlib.nullcontext()

    def read(self, picture: Picture):
        """See `read_small`; an error is the result, because it must not stop the rest."""
        try:
            with self.room_for(math.prod(own_size(picture))):
                return read_small(picture, self.size)
        except DatasetError as error:
            return error

    def predict(self, batch: list) -> list[tuple]:
        """Pairs of picture and what was read of it become picture, logits (C, S, S) and mask; errors are passed on."""
        good = [read[0] for _, read in batch if not isinstance(read, DatasetError)]
        if not good:
            return [(picture, read, None) for picture, read in batch]
        logits = iter(predict(self.model, torch.stack(good), self.precision, self.args.tta)[-1].cpu())
        return [
            (picture, read, None) if isinstance(read, DatasetError) else (picture, next(logits), read[1])
            for picture, read in batch
        ]

    def finish(self, picture: Picture, logits, mask: torch.Tensor | None) -> dict:
        """What is left to do for a picture when its logits are there: writes its files, returns its row."""
        row = {"picture": str(picture.path), "width": "", "height": "", "pet_share": "", "dice": "", "error": ""}
        if isinstance(logits, DatasetError):
            return {**row, "error": str(logits)}
        pet = logits[:1] > self.cut
        row["pet_share"] = round(pet.float().mean().item(), 6)
        if mask is not None:
            row["dice"] = round(utils.dice_score(pet[None], mask[None]).item(), 6)
        try:
            row["width"], row["height"] = width, height = own_size(picture)
            with self.room_for(width * height):
                for kind, result in self.draw(picture, logits, width, height, row["dice"]):
                    path = self.folder / f"{picture.name}_{KINDS[kind]}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_png(result, path)
                    del result  # before the next one is made
        except DatasetError as error:  # the network sees only part of a file's detail, and all of it can be broken
            row["error"] = str(error)
        except OSError as error:
            if error.errno in cli.DISK_FULL:
                raise
            row["error"] = f"the results of {picture.path} can't be written ({error.strerror or error})"
        return row

    def draw(self, picture: Picture, logits: torch.Tensor, width: int, height: int, dice):
        """Makes the results that are asked for, one after the other, at the picture's own size."""
        if not self.kinds:
            return
        if "probabilities" in self.kinds:
            full = logits_at_size(logits[:1], height, width)
            full = full.sigmoid_().mul_(65535).round_().numpy().astype(np.uint16)
            yield "probabilities", Image.fromarray(full)
            del full  # of a large picture that is half a gigabyte
        found = decide_at_size(logits, self.cut, height, width)
        mask = (found != BACKGROUND).view(np.uint8)
        if "trimaps" in self.kinds:
            yield "trimaps", Image.fromarray(found)
        if "masks" in self.kinds:
            yield "masks", Image.fromarray(mask * 255)
        if not {"overlays", "cutouts", "panels"} & set(self.kinds):
            return
        image, truth = read_whole(picture)
        if "overlays" in self.kinds:
            yield "overlays", Image.fromarray(draw_outline(image, mask))
        if "cutouts" in self.kinds:
            yield "cutouts", Image.fromarray(np.dstack([image, mask * 255]))
        if "panels" in self.kinds:
            title = picture.path.name + ("" if dice == "" else f"   Dice {dice:.4f}")
            if len(logits) == 1:
                found, truth = mask, None if truth is None else truth != BACKGROUND
            yield "panels", draw_panel(image, found, truth, title)


def own_size(picture: Picture) -> tuple[int, int]:
    """Width and height of a picture as it is shown; its mask, where there is one, lies on it as it is."""
    if picture.mask_path is not None:
        return picture_size(picture.mask_path)
    return picture_size(picture.path, upright=True)


def read_whole(picture: Picture) -> tuple[np.ndarray, np.ndarray | None]:
    """A picture at its own size, uint8 (H, W, 3), and its trimap (H, W), or None."""
    if picture.mask_path is None:
        return read_image(picture.path, upright=True), None
    image, trimap = read_pair(picture.path, picture.mask_path, picture.own)
    return image, trimap


def kinds(text: str) -> list[str]:
    """An argparse type: kinds of results, with commas between them."""
    return cli.words_of(text, KINDS, "result")


def build_parser() -> cli.Parser:
    """Flags of inference.py."""
    parser = cli.Parser(prog="inference.py", description="Segment a dataset, a folder of pictures or one picture.")
    data = cli.add_data_flags(parser, batch_size=1)
    parser.set_defaults(cache="off")  # the pictures are decoded at their own sizes here
    data.add_argument("--subset", choices=MODES, default="test", help="which part, where --data_path is a dataset")
    data.add_argument("--recursive", action="store_true", help="pictures in all folders below --data_path, too")
    cli.add_checkpoint_flags(parser)
    cli.add_device_flags(parser)
    cli.add_folder_flags(parser)
    flag = parser.add_argument_group("results").add_argument
    flag("--tta", action="store_true", help="average predictions over flips and scales")
    flag("--threshold", type=cli.share, default=0.5, metavar="P", help="probability above which a pixel is pet")
    flag("--save_results", action="store_true", help="write pictures, to inference_results")
    flag("--output_path", metavar="DIR", help="write pictures, to this folder")
    flag("--save", type=kinds, default="masks,panels", metavar="KINDS", help=f"which ones: {','.join(KINDS)}")
    return parser


def main(argv=None) -> None:
    """Reads the flags and segments."""
    args = build_parser().parse_args(argv)
    device = utils.get_device(args.device)
    with join(device) as team:
        infer(args, device, team)


def infer(args, device: torch.device, team: Team) -> None:
    """Segments what the flags name, on one process or several, and reports."""
    model, content, path = open_checkpoint(args)
    if "trimaps" in args.save and model.config["out_channels"] == 1:
        raise cli.UsageError(f"{path} knows no border, so it gives no trimaps; train one with --classes trimap")
    output = args.output_path or ("inference_results" if args.save_results else None)
    pictures, what = find_pictures(args, content, None if output is None else Path(output))
    folder = None if output is None else cli.writable_folder(output)
    if folder is not None:
        refuse_overwriting(folder, pictures)
    name, size = content["model"]["name"], content["preprocessing"]["image_size"]
    log = cli.writable_folder(args.log_dir) / f"{name}_inference_log.csv"
    utils.read_rows(log)  # raises before the work is done where rows can't be added
    precision = choose_precision(args.amp, device, size)
    print(f"Segmenting {len(pictures)} {what} with {name.upper()} ({path}) on {device}, {precision}", flush=True)
    segmenter = Segmenter(precision.place(model), precision, size, args, folder)
    start = time.perf_counter()
    rows = team.collect(segmenter.run(team.share(pictures)))
    if not team.first:
        return
    seconds = time.perf_counter() - start
    stamp = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "checkpoint": str(path),
        "run_id": content.get("progress", {}).get("run_id", ""),
    }
    utils.append_rows(log, [{**stamp, **row} for row in rows])
    print(f"{len(rows)} pictures in {seconds:.1f} s ({len(rows) / seconds:.1f} a second), listed in {log}")
    if folder is not None:
        print(f"Results ({', '.join(args.save)}) are in {folder}")
        if "panels" in args.save and len(rows) > 1:
            panels = [(f"{p.name}_panel.png", row["dice"]) for p, row in zip(pictures, rows) if not row["error"]]
            write_gallery(folder, panels, f"{name.upper()}, {path.name}")
            print(f"All panels, the worst first: {folder / 'index.html'}")
    report(rows, content, name)


def refuse_overwriting(folder: Path, pictures: list[Picture]) -> None:
    """Raises UsageError where results would come to lie among the pictures, or among the masks of a dataset."""
    taken = {file.parent.resolve() for p in pictures for file in (p.path, p.mask_path) if file is not None}
    results = {(folder / p.name).parent.resolve() for p in pictures} | {folder.resolve()}
    if taken & results:
        raise cli.UsageError(f"--output_path {folder} is where the pictures are; name another folder for the results")


def report(rows: list[dict], content: dict, name: str) -> None:
    """Prints the mean Dice, and says what must be known about it.

    Raises:
        RunError: some of the pictures could not be segmented.
        DatasetError: none of them could.
    """
    scored = [row["dice"] for row in rows if row["dice"] != ""]
    seen = {Path(row["picture"]).stem for row in rows if row["dice"] != ""} & set(content["data"]["train_names"])
    if scored:
        print(
            f"{name.upper()} mean Dice: {np.mean(scored):.4f} over {len(scored)} pictures with ground truth", flush=True
        )
    if seen:
        print(f"WARNING: {len(seen)} of them were trained on, so this Dice flatters.", file=sys.stderr)
    errors = [row["error"] for row in rows if row["error"]]
    if errors and len(errors) == len(rows):
        raise_faults(errors, "--data_path")
    if errors:
        raise cli.RunError(f"{len(errors)} of {len(rows)} pictures could not be segmented: {' | '.join(errors)}")


if __name__ == "__main__":
    cli.run(main, DatasetError)
