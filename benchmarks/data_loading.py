"""Images per second from disk to augmented batch: torchvision's dataset and transforms against this project's.

    python benchmarks/data_loading.py --data_path dataset

All variants read the same images with the same DataLoader settings, in turn, several rounds in one run. Compare the
ratios of medians, because machines drift. The first round of each is dropped.
"""

import tempfile
from pathlib import Path

import torch
import torchvision
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.datasets import OxfordIIITPet
from torchvision.transforms import v2

import measure
from data.augment import AugmentedDataset, apply_augmentations
from data.cache import open_cache
from data.dataset import Dataset as Pets
from data.dataset import ImageDataset
from data.layout import find_root
from data.loader import make_loader, shard_batches
from data.view import View


class TorchvisionPets(Dataset):
    """torchvision's dataset with its v2 transforms; with `augment` flips, rotations and scales as ours are."""

    def __init__(self, root: Path, size: int, augment: bool = False):
        self.samples = OxfordIIITPet(str(root.parent), split="trainval", target_types="segmentation", download=False)
        nearest = v2.InterpolationMode.NEAREST
        self.image = v2.Compose([v2.ToImage(), v2.Resize((size, size), antialias=True)])
        self.mask = v2.Compose([v2.PILToTensor(), v2.Resize((size, size), interpolation=nearest)])
        affine = v2.RandomAffine(degrees=10, scale=(1.0, 1.25), interpolation=v2.InterpolationMode.BILINEAR)
        self.both = v2.Compose([v2.RandomHorizontalFlip(), affine]) if augment else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        image, trimap = self.samples[index]
        image, mask = self.image(image.convert("RGB")), tv_tensors.Mask((self.mask(trimap) != 2).to(torch.uint8))
        return self.both(image, mask) if self.both else (image, mask)


def read_all(loader, augment: bool) -> None:
    """One pass over a loader, with the augmentation of a training step."""
    for batch in loader:
        if augment:
            apply_augmentations(batch["image"], batch["labels"], batch["affine"])


def main() -> None:
    """Prints a table and writes it into benchmarks/results/data_loading.csv."""
    parser = measure.parser(__doc__, rounds=7, image_size=256, batch_size=32)
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    args = parser.parse_args()
    root, cpu, size = find_root(args.data_path), torch.device("cpu"), args.image_size
    with tempfile.TemporaryDirectory() as scratch:
        # torchvision needs the folder name oxford-iiit-pet, so links to the images are made there.
        there = Path(scratch) / "oxford-iiit-pet"
        there.mkdir()
        for part in ("images", "annotations"):
            (there / part).symlink_to((root / part).resolve())
        pets, view = Pets(root), View(size)
        # The same images for all: torchvision's trainval is our train and valid.
        samples = [*pets.part("train", "official"), *pets.part("valid", "official")]
        samples.sort(key=lambda sample: sample.name)
        decoded = ImageDataset(samples, view)
        cached = ImageDataset(samples, view, open_cache(root, pets.samples, view))
        rows = []
        for workers in args.workers:
            theirs = [TorchvisionPets(there, size, augment) for augment in (False, True)]
            options = {"batch_size": args.batch_size, "num_workers": workers, "persistent_workers": workers > 0}
            theirs = [DataLoader(dataset, **options) for dataset in theirs]
            batches = shard_batches(cached, args.batch_size)
            varied = AugmentedDataset(cached)
            variants = {
                "torchvision dataset + v2 transforms": (theirs[0], False),
                "the same + v2 flip and affine": (theirs[1], False),
                "ours, decoding": (make_loader(decoded, cpu, batches, workers), False),
                "ours, cached": (make_loader(cached, cpu, batches, workers), False),
                "ours, cached, --augment online": (make_loader(varied, cpu, batches, workers), True),
            }
            calls = {name: lambda variant=variant: read_all(*variant) for name, variant in variants.items()}
            rows += measure.rates(measure.take_turns(calls, args.rounds, cpu), len(cached), "images", workers=workers)
    setting = {"images": len(cached), "image_size": size, "batch_size": args.batch_size}
    measure.report("data_loading", rows, cpu, **setting, torchvision=torchvision.__version__)


if __name__ == "__main__":
    main()
