"""Near copies: found whatever was done to a photograph, and not confused with images that are alike."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.copies import find_near_copies
from data.dataset import Dataset
from data.layout import Sample
from helpers import run_ok, save
from stubs import photograph

CHANGES = {
    "saved at quality 60": lambda image: image,
    "80 % of the size": lambda image: image.resize((160, 120)),
    "cropped by 3 %": lambda image: image.crop((6, 0, 200, 146)),
    "mirrored": ImageOps.mirror,
    "darker": lambda image: image.point(lambda level: 0.8 * level),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_and_nothing_else(tmp_path, change):
    samples = [Sample(str(i), tmp_path / f"{i}.jpg") for i in range(24)]
    for number, sample in enumerate(samples[:20]):
        photograph(number).save(sample.image_path, quality=95)
    for number, sample in enumerate(samples[20:]):
        CHANGES[change](photograph(number)).save(sample.image_path, quality=60)
    pairs = [(int(a.name), int(b.name)) for a, b in find_near_copies(samples)]
    assert pairs == [(number, 20 + number) for number in range(4)]
    assert [(int(a.name), int(b.name)) for a, b in find_near_copies(samples[2:], samples[:2])] == [(20, 0), (21, 1)]


def fixed_camera(root, count=30):
    """Frames of a static background with texture, noise, and a small object that moves; and their masks."""
    background = np.asarray(photograph(0).resize((80, 64)), np.int16)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros((64, 80), bool)
        y, x = 8 * (i // 8) + 18, 10 * (i % 8) + 2  # each time in one of the 8x8 blocks that are compared
        mask[y : y + 5, x : x + 6] = True
        noise = np.random.default_rng(i).normal(0, 4, background.shape)
        pixels = np.where(mask[..., None], 240, background + noise).clip(0, 255)
        save(root / f"images/{i:02d}.png", pixels.astype(np.uint8))
        save(root / f"masks/{i:02d}.png", mask.astype(np.uint8) * 255)
    return root


@pytest.mark.parametrize("known_by", ["images", "masks"])
def test_frames_of_a_fixed_camera_are_no_copies(tmp_path, known_by):
    root = fixed_camera(tmp_path)
    samples = Dataset(root).samples
    if known_by == "images":
        samples = [Sample(sample.name, sample.image_path) for sample in samples]
    else:  # an object that can hardly be seen
        for sample in samples:
            photograph(0).resize((80, 64)).save(sample.image_path)
    assert find_near_copies(samples) == []
    assert find_near_copies([]) == []


def test_check_names_near_copies_in_different_parts_and_empty_masks(dataset, tmp_path):
    for number, path in enumerate(sorted((dataset / "images").iterdir())):
        photograph(number).resize((80, 64)).save(path)
    image = Image.open(dataset / "images/Cat0_0.jpg")  # of the official test part
    ImageOps.mirror(image).save(dataset / "images/Cat1_1.jpg", quality=60)  # of training
    trimap = Image.open(dataset / "annotations/trimaps/Cat0_0.png")
    ImageOps.mirror(trimap).save(dataset / "annotations/trimaps/Cat1_1.png")
    Image.new("L", (80, 64), 2).save(dataset / "annotations/trimaps/Cat0_4.png")
    said = run_ok("oxford_pet.py", "--check", "--split", "official", "--data_path", dataset, cwd=tmp_path)
    assert "Cat0_0 (test)" in said
    assert "Cat1_1 (train)" in said
    assert "near copies 1 pair by content, 1 of them in different parts" in said
    assert "empty       Cat0_4" in said
