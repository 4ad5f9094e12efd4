"""The dataset check."""

import re

import numpy as np
from PIL import Image

from data.dataset import Dataset
from data.image_io import read_mask
from helpers import TINY, assert_one_error, disc, run_ok, run_script, save
from models.task import BACKGROUND


def test_inverted_masks_are_reported(own, tmp_path):
    for pet in Dataset(own).samples:
        save(pet.mask_path, (read_mask(pet.mask_path) == BACKGROUND).astype(np.uint8) * 255)
    done = run_script("train.py", "--data_path", own, "--epochs", 1, *TINY, cwd=tmp_path)
    assert done.returncode == 0
    assert "INVERTED" in done.stderr
    said = run_ok("oxford_pet.py", "--check", "--data_path", own, cwd=tmp_path)
    assert "inverted    40 masks by the look of it" in said


def test_check_counts_sound_data(shared_own, shared_dataset, tmp_path):
    said = run_ok("oxford_pet.py", "--check", "--data_path", shared_own, cwd=tmp_path)
    for words in ("own images: images/ and masks/, 40 images", "JPEG RGB", "TIFF CMYK"):
        assert words in said
    assert said.splitlines()[-1] == "No faults."
    said = run_ok("oxford_pet.py", "--check", "--split", "official", "--data_path", shared_dataset, cwd=tmp_path)
    assert "sizes       80x64 to 80x64, 1 size" in said
    assert "official: 24 train, 2 valid, 14 test" in said


def test_check_divides_the_images_that_train_takes(own, tmp_path):
    flags = ("--data_path", own, "--groups", r"regex:\d", "--limit", 20)
    said = run_ok("train.py", *flags, "--epochs", 1, *TINY, cwd=tmp_path)
    sizes = re.search(r"(\d+ train, \d+ valid, \d+ test)", said)[1]
    assert sizes != "16 train, 2 valid, 2 test"  # as without groups
    assert f"80-10-10: {sizes}" in run_ok("oxford_pet.py", "--check", *flags, cwd=tmp_path)
    assert sizes in run_ok("oxford_pet.py", *flags, cwd=tmp_path)


def test_check_lists_all_faults(own, tmp_path):
    for i in range(0, 36, 3):
        save(own / f"masks/photo {i}.png", disc(0)[0])
    next((own / "images").glob("photo 1.*")).unlink()
    Image.new("1", (14000, 14000)).save(own / "images/photo 1.png")  # a decompression bomb
    done = run_script("oxford_pet.py", "--check", "--data_path", own, cwd=tmp_path)
    assert_one_error(done, "13 faults", "photo 0.png is no mask", "(12 files)", "photo 1.png")
    assert len(re.findall("is no mask", done.stderr)) == 1
