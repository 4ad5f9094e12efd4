"""Layouts, lists, fingerprints."""

import functools
import re
import shutil
import unicodedata

import numpy as np
import pytest

from data.cache import files_digest
from data.dataset import Dataset
from data.image_io import read_mask
from data.layout import describe_layout, find_root, fingerprint, read_list
from data.view import View
from helpers import TINY, assert_one_error, make_dataset, run_ok, run_script, save, write_own
from runtime.errors import DatasetError


def fits(sample) -> bool:
    """Whether the mask shows where the image is light."""
    image, labels = View().read_at(sample)
    return ((image.mean(2) > 110) == labels).mean() > 0.93


def test_fingerprint_depends_on_images_and_order(shared_dataset):
    pets = read_list(shared_dataset, "list")
    assert fingerprint(pets) == fingerprint(list(pets))
    assert len({fingerprint(pets), fingerprint(pets[1:]), fingerprint(pets[::-1])}) == 3


def test_unlisted_files_are_ignored(dataset):
    for stray in ("images/stray.jpg", "images/Cat0_0.mat", "images/._Cat0_0.jpg", "annotations/trimaps/._Cat0_0.png"):
        (dataset / stray).touch()
    assert len(Dataset(dataset).samples) == sum(map(len, Dataset(dataset).split()[:3])) == 40


def test_root_is_found(shared_dataset, tmp_path):
    assert find_root(shared_dataset) == find_root(shared_dataset / "images") == shared_dataset
    (tmp_path / "oxford-iiit-pet").symlink_to(shared_dataset)  # as torchvision leaves it
    assert find_root(tmp_path) == find_root(tmp_path / "images") == tmp_path / "oxford-iiit-pet"


def test_own_folder_is_recognised_paired_and_split(shared_own):
    assert find_root(shared_own / "images") == shared_own
    assert describe_layout(shared_own) == "own images: images/ and masks/"
    parts = Dataset(shared_own).split()
    assert [len(part) for part in parts[:3]] == [32, 4, 4]
    assert all(fits(sample) for part in parts[:3] for sample in part)


def test_pets_layout_without_lists(tmp_path):
    root = make_dataset(tmp_path / "data")
    for file in (root / "annotations").glob("*.txt"):
        file.unlink()
    assert describe_layout(root) == "Oxford-IIIT Pet layout without lists"
    parts = Dataset(root).split()
    assert [len(part) for part in parts[:3]] == [32, 4, 4]
    assert len({pet.breed for pet in parts.train}) == 4
    with pytest.raises(DatasetError, match="use --split 80-10-10"):
        Dataset(root).split("official")


def test_own_parts_are_taken_as_they_are(tmp_path):
    for number, part in enumerate(("train", "val", "testing")):
        folder = write_own(tmp_path / f"own/{part}", count=(20, 5, 4)[number])
        for image in (folder / "images").iterdir():  # else they would be copies of those of other parts
            image.write_bytes(image.read_bytes() + part.encode())
    dataset = Dataset(tmp_path / "own")
    assert [len(part) for part in dataset.split()[:3]] == [20, 5, 4]
    assert {sample.name.partition("/")[0] for sample in dataset.split().valid} == {"val"}
    flags = ("--data_path", "own")
    said = run_ok("train.py", *flags, "--epochs", 1, *TINY, cwd=tmp_path)
    assert "own images, divided: train/, val/, testing/" in said
    assert "20 train, 5 valid, 4 test" in said
    assert "4 test images" in run_ok("evaluate.py", *flags, "--report", "report", cwd=tmp_path)
    assert len(list((tmp_path / "report/worst").glob("*_testing_*.png"))) == 4
    done = run_script("inference.py", *flags, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")  # the same names in train/ are other images
    assert_one_error(run_script("evaluate.py", *flags, "--subset", "train", cwd=tmp_path), "was trained on 20")
    assert_one_error(run_script("train.py", *flags, "--fold", "1/2", *TINY, cwd=tmp_path), "divided already")
    said = run_ok("pretrain.py", *flags, "--epochs", 1, *TINY, cwd=tmp_path)
    assert "20 train, 5 valid" in said
    shutil.rmtree(tmp_path / "own/testing")
    run_ok("train.py", *flags, "--epochs", 1, *TINY, cwd=tmp_path)
    assert_one_error(run_script("evaluate.py", *flags, cwd=tmp_path), "no test part", "--subset")


def nest(root):
    """Puts the images and masks of a folder into subfolders, where they are called alike."""
    for folder in ("images", "masks"):
        for i, path in enumerate(sorted((root / folder).iterdir(), key=lambda path: path.stem)):
            target = root / folder / ("cats" if i % 2 else "dogs/small") / f"{i // 2}{path.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    return root


def test_subfolders_are_paired_by_their_names(tmp_path):
    root = nest(write_own(tmp_path / "own"))
    (root / "images/.cache").mkdir()
    shutil.copyfile(next((root / "images/cats").iterdir()), root / "images/.cache/hidden.png")
    dataset = Dataset(root)
    assert {sample.name for sample in dataset.samples} == {
        f"{kind}/{i}" for kind in ("cats", "dogs/small") for i in range(20)
    }
    for sample in dataset.samples:
        assert fits(sample)
    assert "32 train, 4 valid, 4 test" in run_ok("train.py", "--data_path", root, "--epochs", 1, *TINY, cwd=tmp_path)
    assert "4 test images" in run_ok("evaluate.py", "--data_path", root, "--report", "report", cwd=tmp_path)
    run_ok("inference.py", "--data_path", root, "--output_path", "out", cwd=tmp_path)
    assert len([*(tmp_path / "out/cats").glob("*_mask.png"), *(tmp_path / "out/dogs/small").glob("*_mask.png")]) == 4
    next((root / "masks/cats").iterdir()).unlink()
    with pytest.raises(DatasetError, match="1 fault: .*cats/.* has no mask"):
        Dataset(root)


def test_copies_in_own_parts_are_named(tmp_path):
    for part in ("train", "valid"):
        write_own(tmp_path / part, count=4)
    done = run_script("oxford_pet.py", "--data_path", tmp_path, cwd=tmp_path)
    assert "WARNING: 4 of the images of" in done.stderr and "stand in several parts" in done.stderr
    assert "4 train, 4 valid, 0 test" in done.stdout


@pytest.mark.parametrize("empty", [True, False])
def test_a_download_is_offered_to_nobody_with_own_files(tmp_path, empty):
    if not empty:
        (tmp_path / "photo.jpg").touch()
    with pytest.raises(DatasetError, match="--download" if empty else "put images into images/"):
        find_root(tmp_path)


DECOMPOSED = functools.partial(unicodedata.normalize, "NFD")


@pytest.mark.parametrize("rename", ["{}_mask".format, "{}.jpg".format, "{}-seg".format, str.upper, DECOMPOSED])
def test_masks_may_be_called_nearly_like_their_images(tmp_path, rename, capsys):
    root = write_own(tmp_path, count=12)
    for folder in ("images", "masks"):
        for path in (root / folder).iterdir():
            path.rename(path.with_name(path.name.replace("photo ", "fotó ")))
    for path in sorted((root / "masks").iterdir()):
        path.rename(path.with_name(f"{rename(path.stem)}.png"))
    samples = Dataset(root).samples
    numbers = [[int(re.search(r"\d+", path.stem)[0]) for path in (s.image_path, s.mask_path)] for s in samples]
    assert len(samples) == 12
    assert all(image == mask for image, mask in numbers)
    assert ("at the end" in capsys.readouterr().out) == (rename("x") not in ("x", "X"))


@pytest.mark.parametrize("names", [("{}_0", "{}_1"), ("{}_1_mask", "{}_2_mask"), ("{}-mask-007", "{}-mask-12")])
def test_several_masks_of_an_image_are_united(tmp_path, names, capsys):
    root = write_own(tmp_path, count=12)
    for path in sorted((root / "masks").iterdir()):
        mask = read_mask(path)
        path.unlink()
        halves = mask.copy(), mask.copy()
        halves[0][: len(mask) // 2], halves[1][len(mask) // 2 :] = 0, 0
        for name, half in zip(names, halves):
            save(path.with_name(f"{name.format(path.stem)}.png"), half)
    dataset = Dataset(root)
    assert "24 masks of 12 images are united" in capsys.readouterr().out
    for sample in dataset.samples:
        assert fits(sample)
    before = fingerprint(dataset.samples), files_digest(dataset.samples)
    save(dataset.samples[0].more_masks[0], np.zeros((9, 9), np.uint8))
    assert before[0] != fingerprint(dataset.samples)
    assert before[1] != files_digest(dataset.samples)


def test_masks_of_images_that_are_missing_are_not_united_with_others(tmp_path):
    root = write_own(tmp_path, count=12)
    shutil.copy(root / "masks/photo 0.png", root / "masks/photo 0_1.png")
    with pytest.raises(DatasetError, match="1 fault: .*photo 0_1.png has no image"):
        Dataset(root)


def test_the_error_shows_how_both_sides_are_called(tmp_path):
    root = write_own(tmp_path, count=12)
    for path in sorted((root / "masks").iterdir()):
        path.rename(path.with_name(f"label of {path.name}"))
    words = r"1 fault: .*photo 0.jpg has no mask; masks are called like .*label of photo 0.png \(12 images have no mask"
    with pytest.raises(DatasetError, match=words):
        Dataset(root)
