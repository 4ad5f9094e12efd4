"""The images that a path means to inference.py and export.py, what the network sees of each, and where results go."""

import collections
import contextlib
import dataclasses
import glob
import os
from pathlib import Path

import torch

from data.datasets import Preprocessing, open_checkpoint_part
from data.index import Sample, describe_layout, find_root, has_lists, read_as
from data.names import IMAGE_SUFFIXES
from data.pixels import Pixels, pixels_of, to_tensor
from models.checkpoint import task_of_checkpoint
from runtime.errors import DatasetError, UsageError


def find_samples(
    paths: list[str], content: dict, subset: str = "test", recursive: bool = False, output: Path | None = None
) -> tuple[list[Sample], str]:
    """The images that a path means: one image, a dataset or its images/ folder, any folder of images, or a pattern.

    Args:
        paths: the path or pattern; of several none is taken for a dataset.
        content: of the checkpoint; it knows the dataset's split.
        subset: part of the dataset, if it is one.
        recursive: take the images of all folders below.
        output: folder of results; what lies in it is left out, unless it holds all there is.

    Returns:
        The samples, and in words what they are.

    Raises:
        UsageError: there is no image.
        DatasetError: it is a dataset, but an incomplete one.
    """
    task = task_of_checkpoint(content)
    plain = {**content, "model": {**content["model"], "config": {}}}  # masks are looked at below
    if len(paths) > 1:
        samples, what = _name_all(_files(paths, recursive), "images", None, output)
    else:
        samples, what = _find(Path(paths[0]), paths[0], plain, subset, recursive, output)
    pixels = pixels_of(content["preprocessing"])
    try:
        return read_as(samples, task, pixels), what
    except DatasetError as error:  # images can be segmented without their masks
        print(f"The masks are not used: {error}", flush=True)
        return read_as([dataclasses.replace(sample, mask_path=None) for sample in samples], task, pixels), what


def _files(paths: list[str], recursive: bool) -> list[Path]:
    """The files that several paths mean. Raises UsageError: one means none."""
    found = []
    for path in map(Path, paths):
        files = [path] if path.exists() else matching(str(path))
        if not files:
            raise UsageError(f"{path} does not exist; name an image, a folder or a pattern")
        for file in files:
            found += sorted(file.rglob("*") if recursive else file.iterdir()) if file.is_dir() else [file]
    # Without `..`, which would lead out of the folder of results.
    return [Path(path) for path in dict.fromkeys(map(os.path.abspath, found))]


def _find(
    path: Path, pattern: str, content: dict, subset: str, recursive: bool, output: Path | None
) -> tuple[list[Sample], str]:
    root = None
    if path.exists() and not path.is_dir():
        return [_with_mask(path, path.stem)], str(path)
    if not recursive:
        with contextlib.suppress(DatasetError):
            root = find_root(path)  # of a folder that need not exist: images/ of a dataset that lies one deeper
    if root is None and not path.is_dir():
        if not any(letter in pattern for letter in "*?["):
            raise UsageError(f"--data_path {path} does not exist; name a dataset, a folder, an image or a pattern")
        return _name_all(matching(pattern), f"images that match {pattern}", None, output)
    if root is None:
        found = sorted(path.rglob("*") if recursive else path.iterdir())
        return _name_all(found, f"images in {path}", path, output)
    try:
        dataset = open_checkpoint_part(path, content, subset, use_cache=False)  # they are read at their own sizes
    except DatasetError:
        if has_lists(root):
            raise
        # Own images that can't be divided, being few or without masks, are images all the same.
        return _name_all(sorted((root / "images").iterdir()), f"images in {root / 'images'}", root / "images", output)
    return dataset.samples, f"{subset} images of {dataset.root} ({describe_layout(dataset.root)})"


def matching(pattern: str) -> list[Path]:
    """As glob.glob, but below `**` no links to folders are followed: they may lead in circles."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return [Path(p) for p in sorted(glob.glob(pattern))]  # noqa: PTH207  it may be absolute
    stars, found = parts.index("**"), set()
    for base in glob.glob(str(Path(*parts[:stars]))):  # noqa: PTH207
        for folder, below, _ in os.walk(base):
            below[:] = [name for name in below if not name.startswith(".")]
            found.update(matching(str(Path(glob.escape(folder), *(parts[stars + 1 :] or "*")))))
    return sorted(found)


def list_images(folder: Path, pixels: Pixels) -> list[Sample]:
    """The images in a folder and in those below, or of a dataset, without masks. Raises UsageError: there is none."""
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist; name another one")
    with contextlib.suppress(DatasetError):
        folder = find_root(folder) / "images"
    found = [p for p in sorted(folder.rglob("*")) if not any(q.startswith(".") for q in p.relative_to(folder).parts)]
    found, _ = _name_all(found, f"images in {folder}", folder, None)
    return [Sample(sample.name, sample.image_path, pixels=pixels) for sample in found]


def _name_all(found: list[Path], what: str, base: Path | None, output: Path | None) -> tuple[list[Sample], str]:
    """The images among these files, each under a name of its own that mirrors its place below `base`."""
    if output is not None:
        found = [p for p in found if output.resolve() not in Path(os.path.realpath(p)).parents] or found
    # Links that lead nowhere stay: they are reported with the images.
    found = [p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and not p.is_dir()]
    if not found:
        raise UsageError(f"there are no {what} ({', '.join(sorted(IMAGE_SUFFIXES))}); name others")
    base = base or Path(os.path.commonpath([p.parent for p in found]))
    stems = collections.Counter(p.relative_to(base).with_suffix("") for p in found)
    samples: dict[str, Sample] = {}
    for path in found:
        place = path.relative_to(base)
        stem = place.with_suffix("")
        if stems[stem] > 1:  # the suffix goes into the name where images share a stem
            stem = place.with_name(path.name.replace(".", "_"))
        name, number = stem.as_posix(), 1
        while name in samples:
            number += 1
            name = f"{stem}_{number}"
        samples[name] = _with_mask(path, name)
    return list(samples.values()), what


def _with_mask(path: Path, name: str) -> Sample:
    if path.parent.name == "images":
        for folder, binary in (("annotations/trimaps", False), ("masks", True)):
            for mask in sorted((path.parent.parent / folder).glob(f"{glob.escape(path.stem)}.*")):
                if mask.suffix.lower() in IMAGE_SUFFIXES:
                    return Sample(name, path, mask, binary)
    return Sample(name, path)


def refuse_overwriting(folder: Path, samples: list[Sample]) -> None:
    """Raises UsageError where results would lie among the images or masks that they are made from."""
    sources = {file.parent.resolve() for s in samples for file in (s.image_path, s.mask_path) if file is not None}
    results = {(folder / s.name).parent.resolve() for s in samples} | {folder.resolve()}
    if sources & results:
        raise UsageError(f"--output_path {folder} is where the images or masks are; name another folder")


def read_input(sample: Sample, preprocessing: Preprocessing) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the network sees of an image, (C, H, W), and its label map, uint8 (1, H, W), or None.

    Raises:
        DatasetError: see `Sample.read`.
    """
    image, labels = sample.read(preprocessing.size_of(sample))
    labels = None if labels is None else torch.from_numpy(labels.copy())[None]
    return to_tensor(image), labels
