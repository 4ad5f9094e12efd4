"""Shows what training sees of a dataset."""

from pathlib import Path

import numpy as np
from PIL import Image

from data.augment import apply_augmentations, apply_colors, augment_dataset
from data.datasets import load_dataset
from data.pixels import RGB, Pixels
from models.task import TASKS, Task
from runtime.files import atomic_write
from visual.panels import draw_outline


def preview(
    root: Path,
    split: str,
    seed: int,
    file: Path,
    task: Task = TASKS["binary"],
    pixels: Pixels = RGB,
    size: int = 192,
    rows: int = 6,
    variants: int = 5,
) -> None:
    """Draws a contact sheet: in each row a training image and augmented variants of it, with the mask's outline."""
    dataset = load_dataset(root, "train", split=split, seed=seed, task=task, pixels=pixels, image_size=size)
    augmented = augment_dataset(dataset, variants, seed, color_jitter=True)
    rows = min(rows, len(dataset))
    sheet = Image.new("RGB", ((1 + variants) * (size + 4) + 4, rows * (size + 4) + 4), "white")
    for row, source in enumerate(np.linspace(0, len(dataset) - 1, rows).astype(int)):
        batch = augmented.read_batch([int(source) + variant * len(dataset) for variant in range(1 + variants)])
        images, masks = apply_augmentations(batch["image"], batch["mask"], batch["affine"])
        images = apply_colors(images, batch["colors"]).permute(0, 2, 3, 1).numpy()
        for column, (image, mask) in enumerate(zip(images, masks[:, 0].numpy())):
            sheet.paste(Image.fromarray(draw_outline(image, mask)), (4 + column * (size + 4), 4 + row * (size + 4)))
    with atomic_write(file, "wb") as stream:
        sheet.save(stream, "PNG")
    print(f"Drew {rows} images (left) and {variants} variants of each: {file}")
