"""Broken images, thousands of them in the long form: each is read, or it is named as a fault."""

import collections
import os
import sys
import time

import numpy as np
import pytest
from PIL import Image

from data.cache import open_cache, read_all
from data.check import check
from data.dataset import Dataset
from data.image_io import image_size_of, read_class_mask, read_header, read_image, read_trimap
from data.layout import Sample
from data.names import SPLITS
from data.view import View
from fuzz_images import fuzz_image
from helpers import TINY, assert_one_error, log_rows, make_dataset, run_ok, run_script, save, write_list
from runtime.errors import DatasetError

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # as in scripts
SEED, SIZE = 1, (64, 64)
SECONDS, GIGABYTES = 10, 8  # for an image; one of 179 million pixels, where Pillow draws the line, takes the most
WHOLE_IMAGE, WHOLE_MASK = np.zeros((29, 37, 3), np.uint8), np.pad(np.ones((15, 23), np.uint8), 7)


def short_and_long(short: int, long: int):
    """Runs a test with so many images, and with more of them in `make test-all` alone."""
    return pytest.mark.parametrize("count", [short, pytest.param(long, marks=pytest.mark.long)])


def readers(folder) -> dict:
    """Every way in which a file is read, as an image or as a mask."""
    image, mask = folder / "image.png", folder / "mask.png"
    save(image, WHOLE_IMAGE)
    save(mask, WHOLE_MASK)
    view, gray = View(64), View(64, "keep", 1)
    return {
        "describe": read_header,
        "size": lambda file: image_size_of(file, upright=True),
        "full": lambda file: read_image(file, None, upright=True),
        "thumbnail": lambda file: read_image(file, SIZE, upright=True, own_range=True),
        "gray": lambda file: gray.read_at(Sample("x", file), gray.fit(image_size_of(file))),
        "pair": lambda file: view.read_at(Sample("x", file, mask), SIZE),
        "mask": lambda file: view.read_at(Sample("x", image, file), SIZE),
        "trimap": read_trimap,
        "classes": lambda file: read_class_mask(file, ("ground", "one", "two")),
    }


def peak_gigabytes() -> float:
    """The most memory that this process has had."""
    if sys.platform != "linux":
        return 0.0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@short_and_long(300, 7000)
def test_files_are_read_or_refused(tmp_path, count):
    ways, ends, before = readers(tmp_path), collections.Counter(), peak_gigabytes()
    for number in range(count):
        name, data = fuzz_image(SEED, number)
        file = tmp_path / name  # of a failure it stays
        file.write_bytes(data)
        for way, read in ways.items():
            start = time.process_time()
            try:
                read(file)
                ends[way, "read"] += 1
            except DatasetError as error:
                assert name in str(error)
                assert "\n" not in str(error)
                ends[way, "refused"] += 1
            assert time.process_time() - start < SECONDS, (way, name)
        file.unlink()
    assert all(ends[way, end] for way in ways for end in ("read", "refused")), ends
    assert peak_gigabytes() - before < GIGABYTES


@short_and_long(60, 3000)
def test_inference_lists_what_it_can_not_read(tmp_path, model_flags, count):
    (tmp_path / "in").mkdir()
    for number in range(count):
        name, data = fuzz_image(SEED + 1, number)
        (tmp_path / "in" / name).write_bytes(data)
    flags = ("--data_path", "in", "--output_path", "out", "--save", "masks,panels")
    done = run_script("inference.py", *model_flags, *flags, cwd=tmp_path)
    table = log_rows(tmp_path, "inference")
    assert len(table) == count
    whole = [row for row in table if not row["error"]]
    assert 0.2 * count < len(whole) < 0.8 * count
    if os.name == "nt":
        done.stderr = done.stderr.splitlines()[-1]  # libtiff writes lines of its own
    assert_one_error(done, f"{count - len(whole)} of {count:,} images, or their masks, can't be used", status=1)
    for row in whole:
        with Image.open(tmp_path / "out" / f"{row['picture'][3:].rpartition('.')[0]}_mask.png") as mask:
            assert mask.size == (int(row["width"]), int(row["height"]))
    for file in tmp_path.glob("out/*.png"):
        np.asarray(Image.open(file))  # whole, whatever became of its image
    assert not [file for file in (tmp_path / "out").iterdir() if file.suffix not in (".png", ".html")]


def broken_dataset(root, count: int) -> None:
    """Adds so many samples to 40 whole ones: every fourth has a broken trimap, the others have broken images."""
    make_dataset(root)
    rows = (root / "annotations/trainval.txt").read_text().splitlines()
    for number in range(count):
        image, trimap = root / f"images/Cat0_{number}x.jpg", root / f"annotations/trimaps/Cat0_{number}x.png"
        save(image, WHOLE_IMAGE)
        save(trimap, WHOLE_MASK + 1)
        (image if number % 4 else trimap).write_bytes(fuzz_image(SEED + 2, number)[1])
        rows.append(f"{image.stem} 1 1 1")
    write_list(root, "trainval", rows)
    write_list(root, "list", [*rows, *(root / "annotations/test.txt").read_text().splitlines()])


@short_and_long(60, 3000)
def test_check_cache_and_training_name_every_broken_file(tmp_path, count):
    root = tmp_path / "dataset"
    broken_dataset(root, count)
    dataset, view = Dataset(root), View(64)
    results = zip(dataset.samples, read_all(view.read_at, dataset.samples, "reading"))
    refused = {sample.name for sample, result in results if isinstance(result, DatasetError)}
    words = f"{len(refused):,} faults"
    with pytest.raises(DatasetError, match=words):
        check(dataset, SPLITS[1], 42, view)
    with pytest.raises(DatasetError, match=words):
        open_cache(root, dataset.samples, view)
    assert not [*root.glob(".pixel_cache/*.npy"), *root.glob(".pixel_cache/*.tmp")]
    if count < 100:
        return
    flags = ("--data_path", root, "--split", "official")
    train = ("train.py", *flags, *TINY, "--epochs", 1)
    runs = [("oxford_pet.py", "--check", *flags), train, (*train, "--no-cache")]
    for script, *others in runs:
        done = run_script(script, *others, cwd=tmp_path)
        assert_one_error(done, words if "--no-cache" not in others else "replace the file")
        assert not [*tmp_path.glob("saved_models/*.pth"), *root.glob(".pixel_cache/*.[nt][pm]?")]
    for name in ("trainval", "test"):
        rows = (root / f"annotations/{name}.txt").read_text().splitlines()
        write_list(root, name, [row for row in rows if row.split()[0] not in refused])
    (root / "annotations/list.txt").unlink()
    run_ok(*train, cwd=tmp_path)
    run_ok(*train, "--no-cache", "--save_dir", "uncached", "--log_dir", "uncached", cwd=tmp_path)
