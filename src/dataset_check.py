"""Verifies a dataset whole, and shows what training sees of it."""

import collections
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import utils
from oxford_pet import MODES, Pet, describe_layout, find_copies, list_pets, load_dataset, split_pets
from panels import draw_outline
from pictures import BACKGROUND, UNREADABLE, DatasetError, raise_faults, read_pair


class Inspection(NamedTuple):
    """What was found in one picture and its mask; only `fault` where there is one."""

    fault: str = ""
    mode: str = ""
    size: tuple = (0, 0)  # width, height
    pet_share: float = 0.0
    inverted: bool = False


def looks_inverted(mask: np.ndarray) -> bool:
    """Whether a mask (H, W) is rather of the background: most of its rim is pet, and more of it than of its middle."""
    height, width = mask.shape
    rim = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
    middle = mask[height // 4 : height - height // 4, width // 4 : width - width // 4].mean()
    return rim > 0.5 and rim > middle


def warn_if_inverted(masks: list[np.ndarray], root: Path) -> None:
    """Warns on stderr where most masks look inverted. Masks are (H, W) of 0 and 1."""
    inverted = sum(map(looks_inverted, masks))
    if 2 * inverted > len(masks):
        print(
            f"WARNING: {inverted} of {len(masks)} masks looked at in {root} seem INVERTED: their rim is pet and their "
            "middle is background. In a mask black is background and the other value is pet.",
            file=sys.stderr,
        )


def inspect(pet: Pet) -> Inspection:
    """Reads both files whole."""
    try:
        with Image.open(pet.image_path) as image:
            mode = f"{image.format} {image.mode}"
        image, trimap = read_pair(pet.image_path, pet.mask_path, pet.own)
    except UNREADABLE as error:  # DatasetError is among them
        return Inspection(str(error) if isinstance(error, DatasetError) else f"{pet.image_path} can't be read: {error}")
    mask = trimap != BACKGROUND
    return Inspection("", mode, image.shape[1::-1], float(mask.mean()), looks_inverted(mask))


def check(root: Path, split: str, seed: int) -> None:
    """Verifies every file of a dataset and prints what is in it.

    Raises:
        DatasetError: there are faults; the first ten are named, all are counted.
    """
    pets = list_pets(root)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(inspect, pets), total=len(pets), desc="checking", unit="picture", disable=None)
        found = list(bar)
    print(f"{root}: {describe_layout(root)}, {len(pets):,} pictures")
    whole = [inspection for inspection in found if not inspection.fault]
    if whole:
        modes = collections.Counter(inspection.mode for inspection in whole).most_common()
        sides = sorted(inspection.size for inspection in whole)
        shares = np.array([inspection.pet_share for inspection in whole])
        print(f"  kinds       {', '.join(f'{count:,} {mode}' for mode, count in modes)}")
        print(f"  sizes       {'x'.join(map(str, sides[0]))} to {'x'.join(map(str, sides[-1]))}, ", end="")
        print(f"{len(set(sides)):,} different ones")
        print(f"  pet share   {shares.min():.1%} to {shares.max():.1%}, median {np.median(shares):.1%}; ", end="")
        print(f"{(shares == 0).sum()} masks are empty, {(shares == 1).sum()} full")
        print(f"  inverted    {sum(inspection.inverted for inspection in whole)} masks look so")
    raise_faults([inspection.fault for inspection in found if inspection.fault], root)
    copies = find_copies(pets)
    for group in copies[:10]:
        print(f"  the same    {' = '.join(pet.image_path.name for pet in group)}")
    parts = split_pets(root, split, seed)
    counts = ", ".join(f"{len(getattr(parts, mode)):,} {mode}" for mode in MODES)
    print(f"  split       {split}: {counts}")
    print(f"  copies      {sum(len(group) - 1 for group in copies)}; {parts.moved} moved into training by the split")
    print("No faults.")


def preview(root: Path, split: str, seed: int, file: Path, size: int = 192, rows: int = 6, variants: int = 5) -> None:
    """Draws a contact sheet: in each row a training picture and augmented variants of it, with the mask's outline."""
    dataset = load_dataset(root, "train", split=split, seed=seed, image_size=size)
    augmented = utils.augment_dataset(dataset, variants, seed, colour_jitter=True)
    rows = min(rows, len(dataset))
    sheet = Image.new("RGB", ((1 + variants) * (size + 4) + 4, rows * (size + 4) + 4), "white")
    for row, source in enumerate(np.linspace(0, len(dataset) - 1, rows).astype(int)):
        batch = augmented.read_batch([int(source) + variant * len(dataset) for variant in range(1 + variants)])
        images, masks = utils.apply_augmentations(batch["image"], batch["mask"], batch["affine"])
        images = utils.apply_colours(images, batch["colours"]).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for column, (image, mask) in enumerate(zip(images, masks[:, 0].numpy())):
            sheet.paste(Image.fromarray(draw_outline(image, mask)), (4 + column * (size + 4), 4 + row * (size + 4)))
    with utils.atomic_write(file, "wb") as stream:
        sheet.save(stream, "PNG")
    print(f"Drew {rows} pictures (left) and {variants} variants of each: {file}")
