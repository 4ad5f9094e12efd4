"""Layouts, splits, copies, fingerprints."""

import hashlib
from types import SimpleNamespace

import pytest

from data.datasets import OxfordPetDataset, SimpleOxfordPetDataset
from data.index import (
    describe_layout,
    find_copies,
    find_root,
    fingerprint,
    list_samples,
    read_list,
    split_samples,
    stratified_subset,
)
from helpers import assert_one_error, make_dataset, run_ok, run_script, write_list
from runtime.errors import DatasetError


def names(pets):
    return [pet.name for pet in pets]


def test_80_10_10_is_disjoint_complete_and_stratified(tmp_path):
    root = make_dataset(tmp_path / "data", count=120, breeds=4)
    parts = split_samples(root, "80-10-10", seed=3)
    assert [len(part) for part in parts[:3]] == [96, 12, 12]
    everything = names(parts.train + parts.valid + parts.test)
    assert sorted(everything) == sorted(names(read_list(root, "list")))
    assert len(set(everything)) == 120
    for mode, share in (("train", 24), ("valid", 3), ("test", 3)):
        assert [sum(p.breed == b for p in getattr(parts, mode)) for b in (1, 2, 3, 4)] == [share] * 4


def test_80_10_10_depends_on_the_seed_alone(shared_dataset, tmp_path):
    first, again, other = (split_samples(shared_dataset, "80-10-10", seed) for seed in (3, 3, 4))
    assert first == again
    assert names(first.test) != names(other.test)
    root = make_dataset(tmp_path / "data")
    rows = (root / "annotations/list.txt").read_text().splitlines()
    write_list(root, "list", rows[::-1])
    assert names(split_samples(root, "80-10-10", 3).test) == names(first.test)


def test_official_split_takes_the_lists(shared_dataset):
    parts = split_samples(shared_dataset, "official")
    trainval = names(read_list(shared_dataset, "trainval"))
    assert names(parts.valid) == trainval[9::10]
    assert names(parts.train) == [n for i, n in enumerate(trainval, 1) if i % 10]
    assert names(parts.test) == names(read_list(shared_dataset, "test"))


def test_fingerprint_depends_on_images_and_order(shared_dataset):
    pets = read_list(shared_dataset, "list")
    assert fingerprint(pets) == fingerprint(list(pets))
    assert len({fingerprint(pets), fingerprint(pets[1:]), fingerprint(pets[::-1])}) == 3
    names = "\n".join(pet.name for pet in pets).encode()
    assert fingerprint(pets, sizes=False) == hashlib.sha256(names).hexdigest()  # as the first versions have it


def test_unlisted_files_are_ignored(dataset):
    for stray in ("images/stray.jpg", "images/Cat0_0.mat", "images/._Cat0_0.jpg", "annotations/trimaps/._Cat0_0.png"):
        (dataset / stray).write_bytes(b"not a picture")
    assert len(list_samples(dataset)) == sum(map(len, split_samples(dataset)[:3])) == 40


@pytest.mark.parametrize("path", [".", "images", "up"])
def test_root_is_found(shared_dataset, tmp_path, path):
    if path == "up":  # as torchvision leaves it
        (tmp_path / "oxford-iiit-pet").symlink_to(shared_dataset)
        assert find_root(tmp_path) == find_root(tmp_path / "images") == tmp_path / "oxford-iiit-pet"
    else:
        assert find_root(shared_dataset / path) == shared_dataset


def test_unknown_split_and_mode_are_named(shared_dataset):
    with pytest.raises(ValueError, match="80-10-10, official"):
        split_samples(shared_dataset, "70-30")
    with pytest.raises(ValueError, match="train, valid, test"):
        OxfordPetDataset(shared_dataset, "validation")


def test_own_folder_is_recognised_paired_and_split(shared_own):
    assert find_root(shared_own / "images") == shared_own
    assert describe_layout(shared_own) == "own images: images/ and masks/"
    parts = split_samples(shared_own)
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
    parts = split_samples(root)
    assert [len(part) for part in parts[:3]] == [32, 4, 4]
    assert len({pet.breed for pet in parts.train}) == 4
    with pytest.raises(DatasetError, match="use --split 80-10-10"):
        split_samples(root, "official")


def test_copies_are_never_in_two_parts(own):
    parts = split_samples(own)
    source, copies = parts.test[0], [parts.valid[0], parts.train[0]]
    for pet in copies:
        pet.image_path.unlink()
        image = own / "images" / f"{pet.name}{source.image_path.suffix}"
        image.write_bytes(source.image_path.read_bytes())
        pet.mask_path.write_bytes(source.mask_path.read_bytes())
    again = split_samples(own)
    assert again.moved == 2
    assert {source.name, *(pet.name for pet in copies)} <= {pet.name for pet in again.train}
    assert sum(map(len, again[:3])) == 40
    ((first, *others),) = find_copies(list_samples(own))
    assert len(others) == 2
    assert first.image_path.read_bytes() == others[0].image_path.read_bytes()


def test_training_fractions_are_stratified_and_nested():
    pets = [SimpleNamespace(breed=i % 4, name=str(i)) for i in range(83)]
    parts = [{p.name for p in stratified_subset(pets, percent / 100, 3)} for percent in range(1, 100)]
    assert [len(part) for part in parts] == [round(83 * percent / 100) for percent in range(1, 100)]
    assert all(small <= large for small, large in zip(parts, parts[1:]))
    for part in parts:
        breeds = [sum(int(name) % 4 == breed for name in part) for breed in range(4)]
        assert max(breeds) - min(breeds) <= 2
    assert parts[49] != {p.name for p in stratified_subset(pets, 0.5, 4)}
    assert stratified_subset(pets, 0.001, 3) == []


def test_subset_all_scores_every_labelled_image_of_any_layout(trained, dataset, own, tmp_path):
    flags = ("--model_path", trained / "saved_models/tiny_best.pth", "--subset", "all", "--data_path")
    for path in sorted((own / "images").iterdir())[8:]:
        path.unlink()
        (own / f"masks/{path.stem}.png").unlink()
    assert "8 labelled images" in run_ok("evaluate.py", *flags, own, cwd=tmp_path)
    assert "40 labelled images" in run_ok("evaluate.py", *flags, dataset, "--allow_seen", cwd=tmp_path)
    for name in ("list", "trainval"):
        (dataset / f"annotations/{name}.txt").unlink()
    done = run_script("evaluate.py", *flags, dataset, cwd=tmp_path)
    assert_one_error(done, "was trained on 13 of these 14 images", "--allow_seen")
    for folder in (dataset / "images", dataset / "annotations/trimaps"):
        for path in list(folder.iterdir()):
            path.rename(path.with_name(f"new_{path.name}"))
    listed = (dataset / "annotations/test.txt").read_text().splitlines()
    (dataset / "annotations/test.txt").write_text("\n".join(f"new_{row}" for row in listed))
    assert "14 labelled images" in run_ok("evaluate.py", *flags, dataset, cwd=tmp_path)
