"""Near copies: found whatever was done to a photograph, and not confused with images that are alike."""

import pytest
from PIL import Image, ImageDraw, ImageOps

from data.copies import find_near_copies
from data.layout import Sample
from helpers import run_ok
from stubs import photograph

CHANGES = {
    "saved at quality 60": lambda image: image,
    "80 % of the size": lambda image: image.resize((160, 120)),
    "cropped by 3 %": lambda image: image.crop((6, 0, 200, 146)),
    "mirrored": ImageOps.mirror,
    "darker": lambda image: image.point(lambda level: 0.8 * level),
    "with a date": lambda image: ImageDraw.Draw(image).text((150, 135), "1/2/03", "white") or image,
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


def test_images_of_one_scene_are_no_copies(tmp_path):
    samples = [Sample(str(i), tmp_path / f"{i}.png") for i in range(8)]
    for number, sample in enumerate(samples):
        image = photograph(0)
        ImageDraw.Draw(image).ellipse([20 * number, 40, 20 * number + 40, 80], fill=(250, 30, 30))
        image.save(sample.image_path)
    assert find_near_copies(samples) == []
    assert find_near_copies([]) == []


def test_check_names_near_copies_in_different_parts_and_empty_masks(dataset, tmp_path):
    for number, path in enumerate(sorted((dataset / "images").iterdir())):
        photograph(number).resize((80, 64)).save(path)
    image = Image.open(dataset / "images/Cat0_0.jpg")  # of the official test part
    ImageOps.mirror(image).save(dataset / "images/Cat1_1.jpg", quality=60)  # of training
    Image.new("L", (80, 64), 2).save(dataset / "annotations/trimaps/Cat0_4.png")
    said = run_ok("oxford_pet.py", "--check", "--split", "official", "--data_path", dataset, cwd=tmp_path)
    assert "Cat0_0 (test)" in said
    assert "Cat1_1 (train)" in said
    assert "near copies 1 pair by content, 1 of them in different parts" in said
    assert "empty       Cat0_4" in said
