"""Layouts, lists, fingerprints."""

import pytest

from data.dataset import Dataset
from data.layout import describe_layout, find_root, fingerprint, read_list
from data.pets import SimpleOxfordPetDataset
from helpers import make_dataset
from runtime.errors import DatasetError


def test_fingerprint_depends_on_images_and_order(shared_dataset):
    pets = read_list(shared_dataset, "list")
    assert fingerprint(pets) == fingerprint(list(pets))
    assert len({fingerprint(pets), fingerprint(pets[1:]), fingerprint(pets[::-1])}) == 3


def test_unlisted_files_are_ignored(dataset):
    for stray in ("images/stray.jpg", "images/Cat0_0.mat", "images/._Cat0_0.jpg", "annotations/trimaps/._Cat0_0.png"):
        (dataset / stray).write_bytes(b"not a picture")
    assert len(Dataset(dataset).samples) == sum(map(len, Dataset(dataset).split()[:3])) == 40


@pytest.mark.parametrize("path", [".", "images", "up"])
def test_root_is_found(shared_dataset, tmp_path, path):
    if path == "up":  # as torchvision leaves it
        (tmp_path / "oxford-iiit-pet").symlink_to(shared_dataset)
        assert find_root(tmp_path) == find_root(tmp_path / "images") == tmp_path / "oxford-iiit-pet"
    else:
        assert find_root(shared_dataset / path) == shared_dataset


def test_own_folder_is_recognised_paired_and_split(shared_own):
    assert find_root(shared_own / "images") == shared_own
    assert describe_layout(shared_own) == "own images: images/ and masks/"
    parts = Dataset(shared_own).split()
    assert [len(part) for part in parts[:3]] == [32, 4, 4]
    for mode in ("train", "valid", "test"):
        for sample in SimpleOxfordPetDataset(shared_own, mode, image_size=64):
            light = sample["image"].float().mean(0) > 110
            assert (light == sample["mask"][0].bool()).float().mean() > 0.93


def test_pets_layout_without_lists(tmp_path):
    root = make_dataset(tmp_path / "data")
    for name in ("list", "trainval", "test"):
        (root / f"annotations/{name}.txt").unlink()
    assert describe_layout(root) == "Oxford-IIIT Pet layout without lists"
    parts = Dataset(root).split()
    assert [len(part) for part in parts[:3]] == [32, 4, 4]
    assert len({pet.breed for pet in parts.train}) == 4
    with pytest.raises(DatasetError, match="use --split 80-10-10"):
        Dataset(root).split("official")
