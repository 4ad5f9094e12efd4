"""The Oxford-IIIT Pet dataset (Parkhi et al., 2012), others in its layout, and folders of images and masks.

python src/oxford_pet.py --download --data_path dataset
python src/oxford_pet.py --check --preview --data_path my_images
"""

import importlib
from dataclasses import dataclass
from pathlib import Path

from data.names import GROUPINGS, MODES, SPLITS
from models.names import TASKS, class_names
from runtime import cli
from runtime.files import writable_folder
from runtime.options import option, whole_number

# Names for scripts and notebooks, and where they are. They are imported on use: the command line needs none of them.
HOMES = {
    "Dataset": "data.dataset",
    "OxfordPetDataset": "data.pets",
    "SimpleOxfordPetDataset": "data.pets",
    "find_root": "data.layout",
    "load_dataset": "data.pets",
}
__all__ = list(HOMES)


def __getattr__(name: str):
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The settings of oxford_pet.py."""

    data_path: str = option("dataset", "dataset folder", metavar="DIR")
    download: bool = option(False, "fetch the Oxford-IIIT Pet dataset (about 800 MB), MD5 verified")
    check: bool = option(False, "read every file and report what is wrong or odd")
    preview: str | None = option(
        None, "write a contact sheet of augmented training images", bare="preview.png", metavar="FILE"
    )
    split: str = option(SPLITS[0], "how the images are split into train, valid and test", choices=SPLITS)
    groups: str = option(GROUPINGS[0], "what stays in one part, as in train.py", metavar="near|bytes|off|FILE|regex:R")
    limit: int | None = option(None, "use so many of all images, as in train.py", whole_number(10), metavar="N")
    classes: str = option(
        "binary", "what the masks hold, as in train.py", class_names, metavar="|".join([*TASKS, "FILE"])
    )
    channels: int = option(3, "channels of the images, as in train.py", whole_number(1, 100), metavar="N")
    seed: int = option(42, "seed of the split", whole_number(0, 2**32 - 1), metavar="N")


def build_parser() -> cli.Parser:
    """Flags of oxford_pet.py."""
    return cli.Parser("oxford_pet.py", __doc__, DatasetConfig)


def main(argv=None) -> None:
    """Reads the flags and does what they ask for; without any, counts the images."""
    config = DatasetConfig(**build_parser().parse_overrides(argv))
    cli.import_torch()
    from data.check import check
    from data.dataset import Dataset, ImageDataset
    from data.download import download
    from data.view import View
    from models.task import task_named
    from visual.preview import preview

    if config.download:
        download(writable_folder(config.data_path))
    dataset = Dataset(config.data_path, config.groups, config.limit, config.seed)
    classes = task_named(config.classes).classes
    view = View(192, channels=config.channels, classes=classes)
    if config.check:
        check(dataset, config.split, config.seed, view)
    if config.preview:
        file = Path(config.preview)
        writable_folder(file.parent)
        train_set = ImageDataset(dataset.split(config.split, config.seed).train, view)
        preview(train_set, config.seed, file)
    if not (config.check or config.preview):
        sizes = zip(dataset.split(config.split, config.seed), MODES)
        print(f"{dataset.root} ({dataset.layout}), split {config.split}: ", end="")
        print(", ".join(f"{len(part)} {mode}" for part, mode in sizes))


if __name__ == "__main__":
    cli.run(main, less_memory="")
