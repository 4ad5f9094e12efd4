"""Shows what training sees of a dataset."""

from pathlib import Path

import numpy as np
from PIL import Image

from data.augment import apply_augmentations, apply_colors, augment_dataset
from data.dataset import ImageDataset
from runtime.files import atomic_write
from visual.panels import draw_outline

ROWS, VARIANTS = 6, 5


def preview(train_set: ImageDataset, seed: int, file: Path) -> None:
    """Draws a contact sheet: in each row a training image and augmented variants of it, with the mask's outline."""
    augmented, size = augment_dataset(train_set, VARIANTS, seed, color_jitter=True), train_set.view.size
    rows = min(ROWS, len(train_set))
    sheet = Image.new("RGB", ((1 + VARIANTS) * (size + 4) + 4, rows * (size + 4) + 4), "white")
    for row, source in enumerate(np.linspace(0, len(train_set) - 1, rows).astype(int)):
        batch = augmented.read_batch([int(source) + variant * len(train_set) for variant in range(1 + VARIANTS)])
        images, labels = apply_augmentations(batch["image"], batch["labels"], batch["affine"])
        images = apply_colors(images, batch["colors"]).permute(0, 2, 3, 1).numpy()
        for column, (image, mask) in enumerate(zip(images, labels[:, 0].numpy())):
            sheet.paste(Image.fromarray(draw_outline(image, mask)), (4 + column * (size + 4), 4 + row * (size + 4)))
    with atomic_write(file, "wb") as stream:
        sheet.save(stream, "PNG")
    print(f"Drew {rows} images (left) and {VARIANTS} variants of each: {file}")
