"""Shows training images with their masks, and examples of augmentation."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.utils import make_grid

from data.augment import apply_augmentations, apply_colors, augment_dataset
from data.dataset import ImageDataset
from runtime.errors import plural
from visual.panels import draw_outline, write_png

ROWS, VARIANTS = 6, 5


def preview(train_set: ImageDataset, seed: int, file: Path) -> None:
    """Draws a contact sheet: in each row a training image and augmented variants of it, with the mask's outline."""
    augmented = augment_dataset(train_set, VARIANTS, seed, color_jitter=True)
    rows, cells = min(ROWS, len(train_set)), []
    for source in np.linspace(0, len(train_set) - 1, rows).astype(int):
        batch = augmented.read_batch([int(source) + variant * len(train_set) for variant in range(1 + VARIANTS)])
        images, labels = apply_augmentations(batch["image"], batch["labels"], batch["affine"])
        images = apply_colors(images, batch["colors"]).permute(0, 2, 3, 1).numpy()
        cells += [draw_outline(image, mask) for image, mask in zip(images, labels[:, 0].numpy())]
    grid = make_grid(torch.from_numpy(np.stack(cells)).permute(0, 3, 1, 2), 1 + VARIANTS, padding=4, pad_value=255)
    write_png(Image.fromarray(grid.permute(1, 2, 0).numpy()), file)
    print(f"Drew {plural(rows, 'image')} (left) and {VARIANTS} variants of each: {file}")
