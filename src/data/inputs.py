"""The images that a path means to inference.py and export.py, and where results may go."""

import collections
import contextlib
import dataclasses
import glob
import os
from pathlib import Path

from data.dataset import Dataset
from data.image_io import only_images
from data.layout import Sample, find_parts, find_root, names_of_lists
from data.names import HIDDEN, IMAGE_SUFFIXES
from data.view import View
from models.checkpoint import Checkpoint
from runtime.errors import DatasetError, UsageError


def find_samples(
    paths: list[str], checkpoint: Checkpoint, subset: str, output: Path | None = None
) -> tuple[list[Sample], str]:
    """The images that a path means: one image, a dataset or its images/ folder, any folder of images, or a pattern.

    Of several paths none is taken for a dataset; of a dataset it is one part under the checkpoint's split. What lies in
    the folder of results is left out, unless it holds all there is. Returns the samples, and in words what they are.
    """
    samples, words = _find(paths, checkpoint, subset, output)
    try:
        View.of(checkpoint).require_labels(samples)
    except DatasetError as error:  # images can be segmented without their masks
        print(f"The masks are not used: {error}", flush=True)
        samples = [dataclasses.replace(sample, mask_path=None) for sample in samples]
    return samples, words


def _find(paths: list[str], checkpoint: Checkpoint, subset: str, output: Path | None) -> tuple[list[Sample], str]:
    path, root = Path(paths[0]), None
    if len(paths) > 1:
        # Without `..`, which would lead out of the folder of results.
        files = [Path(file) for file in dict.fromkeys(map(os.path.abspath, _files(paths)))]
        return _name_all(files, "images", None, output), ", ".join(paths[:3]) + ", ..." * (len(paths) > 3)
    if path.exists() and not path.is_dir():
        return [_with_mask(path, path.stem)], str(path)
    with contextlib.suppress(DatasetError):
        root = find_root(path)  # of a folder that need not exist: images/ of a dataset that lies one deeper
    if root is not None:
        try:
            dataset = Dataset(path)
            return dataset.part_of(checkpoint, subset), f"{subset} images of {root} ({dataset.layout})"
        except DatasetError:
            if names_of_lists(root) or find_parts(root):
                raise
            path = root / "images"  # own images that can't be divided, being few or without masks
    words = f"images in {path}" if path.is_dir() else f"images that match {path}"
    return _name_all(_files([str(path)]), words, path if path.is_dir() else None, output), words


def _files(paths: list[str]) -> list[Path]:
    """The files that paths and patterns mean, in order; hidden ones need a dot in a pattern."""
    files: list[Path] = []
    for path in paths:
        if Path(path).is_dir():
            files += sorted(Path(path).iterdir())
        elif Path(path).exists():
            files.append(Path(path))
        elif any(letter in path for letter in "*?["):
            files += [Path(match) for match in sorted(glob.glob(path, recursive=True))]  # noqa: PTH207  may be absolute
        else:
            raise UsageError(f"{path} does not exist; name a dataset, a folder, an image or a pattern")
    return files


def list_images(folder: Path) -> list[Sample]:
    """The images in a folder and in those below, or of a dataset, without masks. Raises UsageError: there is none."""
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist; name another one")
    places = [folder]
    with contextlib.suppress(DatasetError):
        root = find_root(folder)
        folder = root if (parts := find_parts(root)) else root / "images"
        places = [part / "images" for part in parts.values()] or [folder]
    files = [path for place in places for path in sorted(place.rglob("*"))]
    files = [p for p in files if not any(map(HIDDEN.match, p.relative_to(folder).parts))]
    samples = _name_all(files, f"images in {folder}", folder, None)
    return [Sample(sample.name, sample.image_path) for sample in samples]


def _name_all(files: list[Path], words: str, base: Path | None, output: Path | None) -> list[Sample]:
    """The images among these files, each under a name of its own that mirrors its place below `base`."""
    if output is not None:
        files = [p for p in files if output.resolve() not in Path(os.path.realpath(p)).parents] or files
    # Links that lead nowhere stay: they are reported with the images.
    files = only_images([p for p in files if not p.is_dir()])
    if not files:
        raise UsageError(f"there are no {words} ({', '.join(sorted(IMAGE_SUFFIXES))}); name others")
    base = base or Path(os.path.commonpath([p.parent for p in files]))
    stems = collections.Counter(p.relative_to(base).with_suffix("") for p in files)
    samples: dict[str, Sample] = {}
    for path in files:
        place = path.relative_to(base)
        stem = place.with_suffix("")
        if stems[stem] > 1:  # the suffix goes into the name where images share a stem
            stem = place.with_name(path.name.replace(".", "_"))
        name, number = stem.as_posix(), 1
        while name in samples:
            number += 1
            name = f"{stem}_{number}"
        samples[name] = _with_mask(path, name)
    return list(samples.values())


def _with_mask(path: Path, name: str) -> Sample:
    if path.parent.name == "images":
        for folder, binary in (("annotations/trimaps", False), ("masks", True)):
            for mask in sorted((path.parent.parent / folder).glob(f"{glob.escape(path.stem)}.*")):
                if mask.suffix.lower() in IMAGE_SUFFIXES:
                    return Sample(name, path, mask, binary)
    return Sample(name, path)


def refuse_overwriting(folder: Path, samples: list[Sample]) -> None:
    """Raises UsageError where results would lie among the images or masks that they are made from."""
    sources = {file.parent.resolve() for s in samples for file in s.files}
    results = {(folder / s.name).parent.resolve() for s in samples} | {folder.resolve()}
    if sources & results:
        raise UsageError(f"--output_path {folder} is where the images or masks are; name another folder")
