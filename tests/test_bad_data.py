"""Every way in which a dataset can be wrong: one clear line, and nothing is trained on it; and the dataset check."""

import re

import numpy as np
import pytest
from PIL import Image

from data.cache import CACHE_FOLDER, open_cache
from data.dataset import Dataset, ImageDataset
from data.image_io import read_mask
from data.inputs import list_images
from data.layout import read_list
from data.view import View
from helpers import TINY, assert_one_error, disc, run_ok, run_script, save, write_list, write_scenes
from models.task import BACKGROUND
from runtime.errors import DatasetError

IMAGE, TRIMAP = "images/Cat0_0.jpg", "annotations/trimaps/Cat0_0.png"  # of the pets
LISTS = ("list", "trainval", "test")
PHOTO, MASK = "images/photo 0.jpg", "masks/photo 0.png"  # of own images, 60x44


def delete(folder, keep: int = 0) -> None:
    for file in sorted(folder.iterdir())[keep:]:
        file.unlink()


def truncate(file, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])


def only_copies(root) -> None:
    image, mask = (root / PHOTO).read_bytes(), (root / MASK).read_bytes()
    for folder, content, ending in (("images", image, "jpg"), ("masks", mask, "png")):
        delete(root / folder)
        for i in range(40):
            (root / folder / f"{i}.{ending}").write_bytes(content)


NO_FOLDER = "no images/ beside annotations/ or masks/"
NO_TRIMAP, NO_MASK = "Cat0_0.png is no trimap", "photo 0.png is no mask"
PETS = {
    "no images folder": (lambda r: (r / "images").rename(r / "other"), [NO_FOLDER, "put images into images/"]),
    "missing lists": (
        lambda r: [(r / f"annotations/{name}.txt").unlink() for name in LISTS[:2]],
        ["trainval.txt is missing", "--download"],
    ),
    "bad row": (lambda r: write_list(r, "list", ["Cat0_0 one 1 1"]), ["list.txt line 1", "'Cat0_0 one 1 1'"]),
    "listed twice": (
        lambda r: write_list(r, "list", ["dog3_39 4 2 1"] * 2),
        ["dog3_39 stands in list.txt more than once"],
    ),
    "bad encoding": (
        lambda r: (r / "annotations/list.txt").write_bytes(b"Caf\xe9 1 1 1"),
        ["list.txt is no text in UTF-8"],
    ),
    "missing images": (lambda r: delete(r / "images", keep=5), ["35 of the 80 listed files are missing", "--download"]),
    "empty lists": (lambda r: [write_list(r, name, ["#"]) for name in LISTS], ["is empty", "of 0 images"]),
    "truncated image": (lambda r: truncate(r / IMAGE, 900), ["Cat0_0.jpg can't be read", "truncated"]),
    "trimap of 255": (lambda r: save(r / TRIMAP, np.full((64, 80), 255, np.uint8)), [NO_TRIMAP, "255", "1 (pet)"]),
    "RGB trimap": (lambda r: save(r / TRIMAP, np.ones((64, 80, 3), np.uint8)), [NO_TRIMAP, "(64, 80, 3)"]),
    "trimap of another size": (
        lambda r: save(r / TRIMAP, np.ones((128, 160), np.uint8)),
        ["Cat0_0.jpg is 80x64", "Cat0_0.png is 160x128", "same size"],
    ),
    "empty trimap file": (lambda r: (r / TRIMAP).write_bytes(b""), ["Cat0_0.png can't be read", "replace"]),
    "name that leads out": (lambda r: write_list(r, "list", ["../images/Cat0_0 1 1 1"]), ["list.txt line 1", "'../i"]),
}
OWN = {
    "no masks": (lambda r: delete(r / "masks"), ["40 faults", "has no mask", "| ..."]),
    "mask missing": (lambda r: (r / MASK).unlink(), ["1 fault:", "photo 0.jpg has no mask"]),
    "image missing": (lambda r: (r / PHOTO).unlink(), ["1 fault:", "photo 0.png has no image"]),
    "two images of one stem": (lambda r: save(r / "images/photo 0.bmp", disc(0)[0]), ["photo 0.bmp", "the same stem"]),
    "photograph as mask": (lambda r: save(r / MASK, disc(0)[0]), [NO_MASK, "values"]),
    "mask of another shape": (
        lambda r: save(r / MASK, disc(0, 30, 30)[1].astype(np.uint8)),
        ["photo 0.jpg is 60x44", "photo 0.png is 30x30", "same shape"],
    ),
    "truncated image": (lambda r: truncate(r / PHOTO, 700), ["photo 0.jpg can't be read", "truncated"]),
    "text as image": (lambda r: (r / PHOTO).write_text("no image"), ["photo 0.jpg can't be read", "replace"]),
    "too few": (
        lambda r: [delete(r / name, keep=5) for name in ("images", "masks")],
        ["of 5 images", "at least ten different ones are needed"],
    ),
    "only copies": (only_copies, ["is empty", "were moved into training, in 1 group (--groups near)"]),
    "empty folders": (lambda r: [delete(r / name) for name in ("images", "masks")], ["is empty", "of 0 images"]),
    "no masks folder": (lambda r: (r / "masks").rename(r / "labels"), [NO_FOLDER]),
}


@pytest.mark.parametrize("layout, kind", [*(("dataset", kind) for kind in PETS), *(("own", kind) for kind in OWN)])
def test_bad_data_is_one_line_and_never_read(request, layout, kind):
    root = request.getfixturevalue(layout)
    break_it, words = (PETS if layout == "dataset" else OWN)[kind]
    break_it(root)
    for cached in (True, False):
        with pytest.raises(DatasetError) as caught:
            dataset, view = Dataset(root), View(64)
            parts = dataset.split()
            cache = open_cache(root, dataset.samples, view) if cached else None
            for part in parts[:3]:
                list(ImageDataset(part, view, cache))
        for word in words:
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list((root / CACHE_FOLDER).glob("*.[nt][pm][yp]"))


def test_missing_data_names_the_download(tmp_path):
    done = run_script("train.py", "--data_path", tmp_path / "nowhere", cwd=tmp_path)
    assert_one_error(done, "nowhere does not exist", "--download")
    assert not (tmp_path / "saved_models").exists()


def test_error_in_a_worker_is_one_line(dataset, tmp_path):
    for sample in read_list(dataset, "list"):
        sample.image_path.write_bytes(f"no image of {sample.name}".encode())
    flags = ("--num_workers", 2, "--no-cache", *TINY)
    done = run_script("train.py", "--data_path", dataset, *flags, cwd=tmp_path)
    assert_one_error(done, "can't be read as an image", "replace the file")


def test_hidden_files_and_folders_are_no_images(tmp_path):
    write_scenes(tmp_path / "in", "deep/pet.png", ".hidden.png", ".thumbnails/pet.png")
    assert [sample.name for sample in list_images(tmp_path / "in")] == ["deep/pet"]


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
