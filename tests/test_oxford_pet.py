import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.datasets import OxfordPetDataset, SimpleOxfordPetDataset, load_dataset
from data.image_io import read_image, read_trimap
from data.index import find_root, fingerprint, list_samples, read_list, split_samples
from helpers import assert_one_error, make_dataset, run_ok, run_script, write_list
from runtime.errors import DatasetError


def names(pets):
    return [pet.name for pet in pets]


# --------------------------------------------------------------------------------------------------------------- splits


def test_80_10_10_is_disjoint_whole_and_shared_out_by_breed(tmp_path):
    root = make_dataset(tmp_path / "data", count=120, breeds=4)
    parts = split_samples(root, "80-10-10", seed=3)
    assert [len(part) for part in parts[:3]] == [96, 12, 12]
    everything = names(parts.train + parts.valid + parts.test)
    assert sorted(everything) == sorted(names(read_list(root, "list")))
    assert len(set(everything)) == 120
    for mode, share in (("train", 24), ("valid", 3), ("test", 3)):
        assert [sum(p.breed == b for p in getattr(parts, mode)) for b in (1, 2, 3, 4)] == [share] * 4


def test_80_10_10_depends_on_the_seed_alone_and_not_on_the_order_of_the_list(shared_dataset, tmp_path):
    first, again, other = (split_samples(shared_dataset, "80-10-10", seed) for seed in (3, 3, 4))
    assert first == again
    assert names(first.test) != names(other.test)
    root = make_dataset(tmp_path / "data")
    rows = (root / "annotations/list.txt").read_text().splitlines()
    write_list(root, "list", rows[::-1])
    assert names(split_samples(root, "80-10-10", 3).test) == names(first.test)


def test_official_takes_the_lists(shared_dataset):
    parts = split_samples(shared_dataset, "official")
    trainval = names(read_list(shared_dataset, "trainval"))
    assert names(parts.valid) == trainval[9::10]
    assert names(parts.train) == [n for i, n in enumerate(trainval, 1) if i % 10]
    assert names(parts.test) == names(read_list(shared_dataset, "test"))


def test_fingerprint_knows_the_pictures_and_their_order(shared_dataset):
    pets = read_list(shared_dataset, "list")
    assert fingerprint(pets) == fingerprint(list(pets))
    assert len({fingerprint(pets), fingerprint(pets[1:]), fingerprint(pets[::-1])}) == 3
    names = "\n".join(pet.name for pet in pets).encode()
    assert fingerprint(pets, sizes=False) == hashlib.sha256(names).hexdigest()  # as the first versions have it


def test_what_is_not_listed_does_not_exist(dataset):
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


def test_wrong_names_are_named(shared_dataset):
    with pytest.raises(ValueError, match="80-10-10, official"):
        split_samples(shared_dataset, "70-30")
    with pytest.raises(ValueError, match="train, valid, test"):
        OxfordPetDataset(shared_dataset, "validation")


# -------------------------------------------------------------------------------------------------------------- samples


def test_samples_at_their_own_size(shared_dataset):
    dataset = OxfordPetDataset(shared_dataset, "train")
    sample = dataset[0]
    assert sample["image"].shape == (64, 80, 3)
    assert sample["mask"].shape == sample["trimap"].shape == (64, 80)
    assert sample["path"] == str(dataset.samples[0].image_path)
    np.testing.assert_array_equal(sample["mask"], sample["trimap"] != 2)


def test_transform_sees_the_sample(shared_dataset):
    dataset = OxfordPetDataset(shared_dataset, "train", transform=lambda s: {**s, "mask": 1 - s["mask"]})
    np.testing.assert_array_equal(dataset[0]["mask"], dataset[0]["trimap"] == 2)


def test_torchs_own_loader_takes_the_samples(shared_dataset):
    dataset = load_dataset(shared_dataset, "train", image_size=64, transform=lambda s: {**s, "mask": 1 - s["mask"]})
    batch = next(iter(DataLoader(dataset, batch_size=4)))
    assert batch["image"].shape == (4, 3, 64, 64)
    assert len(batch["path"]) == 4
    assert torch.equal(batch["mask"], (batch["trimap"] == 2).to(torch.uint8))


def test_simple_samples_are_what_a_network_takes(shared_dataset):
    sample = load_dataset(shared_dataset, "valid")[0]
    assert {k: (tuple(v.shape), v.dtype) for k, v in sample.items() if k != "path"} == {
        "image": ((3, 256, 256), torch.uint8),
        "mask": ((1, 256, 256), torch.uint8),
        "trimap": ((1, 256, 256), torch.uint8),
    }
    assert set(sample["mask"].unique().tolist()) == {0, 1}
    assert set(sample["trimap"].unique().tolist()) == {1, 2, 3}
    assert torch.equal(sample["mask"], (sample["trimap"] != 2).to(torch.uint8))


def test_masks_lie_on_their_pictures(shared_dataset):
    # The discs are 150 levels lighter than the noise around them.
    for sample in SimpleOxfordPetDataset(shared_dataset, "test", image_size=96):
        light = sample["image"].float().mean(0) > 110
        sure = sample["trimap"][0] != 3
        assert (light[sure] == sample["mask"][0].bool()[sure]).float().mean() > 0.98


def test_uncertain_border_is_half_and_half_and_a_function_of_seed_epoch_and_picture(shared_dataset):
    dataset = SimpleOxfordPetDataset(shared_dataset, "train", augment_uncertain=True, seed=5)
    sample, again, later = dataset[0, 2], dataset[0, 2], dataset[1, 2]
    border = sample["trimap"] == 3
    assert 0.4 < sample["mask"][border].float().mean() < 0.6
    assert torch.equal(sample["mask"][~border], (sample["trimap"][~border] == 1).to(torch.uint8))
    assert torch.equal(sample["mask"], again["mask"])
    assert not torch.equal(sample["mask"], later["mask"])


# ---------------------------------------------------------------------------------------------------------------- files


def test_any_kind_of_picture_is_read(tmp_path):
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8))
    gray, rgba, palette = rgb.convert("L"), rgb.convert("RGBA"), rgb.quantize(256)
    sixteen = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    for i, image in enumerate([rgb, gray, rgba, palette, rgb.convert("1"), sixteen, gray.convert("LA")]):
        file = tmp_path / f"{i}.jpg"  # four files of the real dataset are PNGs under that ending
        image.save(file, "PNG")
        assert read_image(file).shape == (20, 30, 3), image.mode
        assert read_image(file, 16).shape == (16, 16, 3), image.mode
    np.testing.assert_array_equal(read_image(tmp_path / "0.jpg"), np.asarray(rgb))
    np.testing.assert_array_equal(read_image(tmp_path / "2.jpg"), np.asarray(rgb))
    np.testing.assert_array_equal(read_image(tmp_path / "5.jpg")[..., 0], np.asarray(gray))


def test_deep_and_floating_point_pictures_keep_their_range(tmp_path):
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for name, values in (
        ("f.tif", ramp),
        ("i.tif", (ramp * 255).astype(np.int32)),
        ("h.png", (ramp * 65535).astype(np.uint16)),
    ):
        Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_allclose(read_image(tmp_path / name)[..., 0], ramp * 255, atol=1.01, err_msg=name)


def test_transparent_palettes_are_read_without_a_warning(tmp_path, recwarn):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    image.save(tmp_path / "p.png", transparency=bytes([0, 128, 255]))
    assert read_image(tmp_path / "p.png").shape == (8, 8, 3)
    assert not list(recwarn)


def test_a_reduced_decode_looks_like_a_full_one(tmp_path):
    y, x = np.mgrid[:600, :800]
    pixels = np.stack([x % 256, y % 256, (x + y) // 8 % 256], axis=-1).astype(np.uint8)
    pixels[200:400, 300:500] = (250, 10, 10)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    full = Image.open(tmp_path / "a.jpg").resize((64, 64), Image.Resampling.BILINEAR)
    assert np.abs(read_image(tmp_path / "a.jpg", 64).astype(int) - np.asarray(full)).mean() < 3


def test_trimaps_keep_their_values_when_resized(shared_dataset):
    path = read_list(shared_dataset, "list")[0].mask_path
    assert set(np.unique(read_trimap(path, 40))) == {1, 2, 3}


# ------------------------------------------------------------------------------------------------------------ bad input


def train_on(root, *args):
    return run_script("train.py", "--data_path", root, *args, cwd=root.parent)


def break_missing_folder(root):
    (root / "images").rename(root / "pictures")


def break_missing_list(root):
    (root / "annotations/list.txt").unlink()
    (root / "annotations/trainval.txt").unlink()


def break_row(root):
    write_list(root, "list", ["Cat0_0 one 1 1"])


def break_by_listing_twice(root):
    rows = (root / "annotations/list.txt").read_text().splitlines()
    write_list(root, "list", [*rows, rows[-1]])


def break_encoding(root):
    (root / "annotations/list.txt").write_bytes(b"Caf\xe9_1 1 1 1\n")


def break_missing_images(root):
    for file in sorted((root / "images").iterdir())[5:]:
        file.unlink()


def break_empty_list(root):
    for name in ("list", "trainval", "test"):
        write_list(root, name, ["# nothing"])


def break_small_list(root):
    break_empty_list(root)
    write_list(root, "list", ["Cat0_0 1 1 1"])


def break_image(root):
    (root / "images/Cat0_0.jpg").write_bytes(b"\xff\xd8 this is no picture")


def break_image_truncated(root):
    file = root / "images/Cat0_0.jpg"
    file.write_bytes(file.read_bytes()[:900])


def break_trimap_values(root):
    Image.fromarray(np.full((64, 80), 255, np.uint8)).save(root / "annotations/trimaps/Cat0_0.png")


def break_trimap_channels(root):
    Image.fromarray(np.ones((64, 80, 3), np.uint8)).save(root / "annotations/trimaps/Cat0_0.png")


def break_trimap_size(root):
    Image.fromarray(np.ones((10, 80), np.uint8)).save(root / "annotations/trimaps/Cat0_0.png")


def break_trimap(root):
    (root / "annotations/trimaps/Cat0_0.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (break_missing_folder, ["no images/ beside annotations/ or masks/", "--download"]),
        (break_missing_list, ["trainval.txt is missing", "--download"]),
        (break_row, ["list.txt line 1", "'Cat0_0 one 1 1'"]),
        (break_by_listing_twice, ["dog3_39 stands in list.txt more than once"]),
        (break_encoding, ["list.txt is no text in UTF-8"]),
        (break_missing_images, ["35 of the 80 listed files are missing", "--download"]),
        (break_empty_list, ["is empty", "0 images in all"]),
        (break_small_list, ["is empty", "1 images in all"]),
        (break_image, ["Cat0_0.jpg can't be read", "replace"]),
        (break_image_truncated, ["Cat0_0.jpg can't be read", "truncated"]),
        (break_trimap_values, ["Cat0_0.png is no trimap", "255", "only 1 (pet), 2 (background) and 3 (border)"]),
        (break_trimap_channels, ["Cat0_0.png is no trimap", "(64, 80, 3)"]),
        (break_trimap_size, ["Cat0_0.jpg is 80x64", "Cat0_0.png is 80x10", "same size"]),
        (break_trimap, ["Cat0_0.png can't be read", "replace"]),
    ],
)
def test_bad_data_is_named_and_never_trained_on(dataset, break_it, words):
    break_it(dataset)
    with pytest.raises(DatasetError) as caught:
        for mode in ("train", "valid", "test"):
            list(SimpleOxfordPetDataset(dataset, mode, image_size=64))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_data_ends_a_script_with_one_line(dataset, tmp_path):
    assert_one_error(train_on(tmp_path / "nowhere"), "nowhere does not exist", "--download")
    break_missing_images(dataset)
    assert_one_error(train_on(dataset), "35 of the 80 listed files are missing")
    assert not (tmp_path / "saved_models").exists()


def test_an_error_in_a_worker_process_is_one_line_too(dataset):
    for pet in read_list(dataset, "list"):
        pet.image_path.write_bytes(f"no picture of {pet.name}".encode())
    done = train_on(dataset, "--num_workers", 2, "--image_size", 64, "--encoder_weights", "none", "--cache", "off")
    assert_one_error(done, "can't be read as an image", "replace the file")


def test_command_line_counts(shared_dataset, tmp_path):
    said = run_ok("oxford_pet.py", "--data_path", shared_dataset, cwd=tmp_path)
    assert "(Oxford-IIIT Pet layout), split 80-10-10: 32 train, 4 valid, 4 test" in said
    said = run_ok("oxford_pet.py", "--data_path", shared_dataset, "--split", "official", cwd=tmp_path)
    assert "official: 24 train, 2 valid, 14 test" in said
