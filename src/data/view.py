"""What a network sees of an image, and what the labels beside it mean."""

from typing import NamedTuple

import numpy as np

from data.image_io import nearest, read_class_mask, read_image, read_mask, read_trimap, shown_size
from data.layout import Sample
from models.checkpoint import Checkpoint
from models.task import BACKGROUND, SPECIES
from runtime.errors import DatasetError


class View(NamedTuple):
    """How a network sees an image, and which classes its mask holds."""

    size: int = 256  # side of a square, in pixels
    resize: str = "square"  # squashes images into it; `keep` keeps their shape, and the longer side gets that length
    channels: int = 3  # gray images are repeated, color ones become gray where that is 1
    classes: tuple[str, ...] = ()  # whose numbers masks hold; without any, masks are trimaps or have two values

    @classmethod
    def of(cls, checkpoint: Checkpoint, size: int | None = None, resize: str | None = None) -> "View":
        """What the network of a checkpoint sees: as in its training, unless another size is given."""
        size = size or checkpoint.image_size
        return cls(size, resize or "square", checkpoint.channels, checkpoint.task.classes)

    @property
    def rgb(self) -> bool:
        """Whether images are 8-bit RGB; others have 16 bits a channel."""
        return self.channels == 3

    def fit(self, sides: tuple[int, int]) -> tuple[int, int]:
        """Width and height at which the network sees an image of this width and height."""
        if self.resize == "square":
            return self.size, self.size
        return tuple(max(1, round(side * self.size / max(sides))) for side in sides)

    def size_of(self, sample: Sample) -> tuple[int, int]:
        """Width and height at which the network sees an image."""
        return self.fit((1, 1) if self.resize == "square" else sample.displayed_size())

    def read_at(self, sample: Sample, size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """The image (H, W, C) and its label map, uint8 (H, W), or None; at a width and height, or its own."""
        if sample.mask_path is None:
            return read_image(sample.image_path, size, True, self.channels), None
        labels = self.read_labels(sample)
        *own_size, upright = shown_size(sample.image_path, sample.mask_path, labels.shape[::-1], sample.binary_mask)
        image = read_image(sample.image_path, size, upright, self.channels)
        return image, nearest(labels, size or tuple(own_size))

    def read_labels(self, sample: Sample) -> np.ndarray:
        """The label map at the mask's own size, uint8 (H, W)."""
        if not sample.binary_mask:
            return self.relabel(sample, read_trimap(sample.mask_path))
        labels, *others = (
            read_class_mask(path, self.classes) if self.classes else read_mask(path) for path in sample.files[1:]
        )
        for other in others:
            other = nearest(other, labels.shape[::-1])
            labels = np.where(other == BACKGROUND, labels, other)
        return labels

    def relabel(self, sample: Sample, stored: np.ndarray) -> np.ndarray:
        """A label map (H, W) where, with species as classes, pet and border of a trimap have got their number."""
        if sample.binary_mask or not self.classes:
            return stored
        return np.where(stored == BACKGROUND, np.uint8(BACKGROUND), np.uint8(sample.species))

    def require_labels(self, samples: list[Sample]) -> None:
        """Raises DatasetError where masks know no such classes."""
        trimaps = [sample for sample in samples if sample.mask_path is not None and not sample.binary_mask]
        for sample in trimaps if self.classes else ():
            if self.classes != SPECIES.classes:
                text = f"{sample.mask_path} is a trimap and has no classes {','.join(self.classes)}"
                raise DatasetError(f"{text}; they need masks of images of your own")
            if sample.species not in (1, 2):
                raise DatasetError(f"no list says the species of {sample.name}; use --classes binary")
