"""Every way in which a dataset can be wrong: one clear line, and nothing is trained on it."""

import numpy as np
import pytest
from PIL import Image

from data.cache import open_cache
from data.datasets import SimpleOxfordPetDataset
from data.index import find_root, read_list, split_samples
from helpers import TINY, assert_one_error, disc, first, run_script, save, write_list
from runtime.errors import DatasetError


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
def test_bad_pets_are_one_error_line(dataset, break_it, words):
    break_it(dataset)
    with pytest.raises(DatasetError) as caught:
        for mode in ("train", "valid", "test"):
            list(SimpleOxfordPetDataset(dataset, mode, image_size=64))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def train_on(root, *args):
    return run_script("train.py", "--data_path", root, *args, cwd=root.parent)


def test_bad_data_ends_a_script_with_one_line(dataset, tmp_path):
    assert_one_error(train_on(tmp_path / "nowhere"), "nowhere does not exist", "--download")
    break_missing_images(dataset)
    assert_one_error(train_on(dataset), "35 of the 80 listed files are missing")
    assert not (tmp_path / "saved_models").exists()


def test_error_in_a_worker_is_one_line(dataset):
    for pet in read_list(dataset, "list"):
        pet.image_path.write_bytes(f"no picture of {pet.name}".encode())
    done = train_on(dataset, "--num_workers", 2, "--image_size", 64, "--encoder_weights", "none", "--cache", "off")
    assert_one_error(done, "can't be read as an image", "replace the file")


def no_masks_at_all(root):
    for file in (root / "masks").iterdir():
        file.unlink()


def one_mask_missing(root):
    first(root, "masks").unlink()


def one_picture_missing(root):
    first(root).unlink()


def twelve_masks_missing(root):
    for file in sorted((root / "masks").iterdir())[:12]:
        file.unlink()


def stems_differ_in_case(root):
    file = first(root, "masks")
    file.rename(file.with_name(file.name.replace("photo", "Photo")))


def two_pictures_of_one_stem(root):
    save(root / "images/photo 0.bmp", disc(0)[0])


def three_values(root):
    mask = disc(0)[1].astype(np.uint8)
    mask[0, 0] = 7
    save(first(root, "masks"), mask)


def jpeg_masks(root):
    file = first(root, "masks")
    save(file, disc(0)[1].astype(np.uint8) * 255, format="JPEG", quality=60)


def photograph_as_mask(root):
    save(first(root, "masks"), disc(0)[0])


def two_values_without_background(root):
    save(first(root, "masks"), np.where(disc(0)[1], 255, 100).astype(np.uint8))


def mask_of_another_size(root):
    save(first(root, "masks"), disc(0, 30, 30)[1].astype(np.uint8))


def mask_turned(root):
    file = first(root, "masks")
    Image.open(file).transpose(Image.Transpose.ROTATE_90).save(file)


def picture_truncated(root):
    file = root / "images/photo 0.jpg"
    file.write_bytes(file.read_bytes()[:700])


def picture_empty(root):
    first(root).write_bytes(b"")


def picture_is_text(root):
    first(root).write_text("not a picture")


def picture_is_html(root):
    first(root).write_text("<html>404</html>")


def mask_truncated(root):
    file = first(root, "masks")
    file.write_bytes(file.read_bytes()[:60])


def mask_is_text(root):
    first(root, "masks").write_text("no mask")


def picture_is_a_folder(root):
    file = first(root)
    file.unlink()
    file.mkdir()


def picture_is_a_dead_link(root):
    file = first(root)
    file.unlink()
    file.symlink_to(root / "gone.jpg")


def bomb(root):
    file = first(root)
    name = file.with_suffix(".png")
    file.unlink()
    Image.new("1", (20000, 20000)).save(name)


def too_few(root):
    for folder in ("images", "masks"):
        for file in sorted((root / folder).iterdir())[5:]:
            file.unlink()


def only_copies(root):
    data = (root / "images/photo 0.jpg").read_bytes()
    mask = (root / "masks/photo 0.png").read_bytes()
    for folder, content, ending in (("images", data, "jpg"), ("masks", mask, "png")):
        for file in (root / folder).iterdir():
            file.unlink()
        for i in range(40):
            (root / folder / f"{i}.{ending}").write_bytes(content)


def empty_folders(root):
    for folder in ("images", "masks"):
        for file in (root / folder).iterdir():
            file.unlink()


def no_masks_folder(root):
    (root / "masks").rename(root / "labels")


def png_with_a_flipped_byte(root):
    file = first(root, "masks")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)


BAD = [
    (no_masks_at_all, ["40 faults", "has no mask", "..."]),
    (one_mask_missing, ["1 fault:", "photo 0.jpg has no mask"]),
    (one_picture_missing, ["1 fault:", "photo 0.png has no image"]),
    (twelve_masks_missing, ["12 faults", "| ..."]),
    (stems_differ_in_case, ["photo 0.jpg has no mask", "Photo 0.png has no image"]),
    (two_pictures_of_one_stem, ["photo 0.bmp", "the same stem"]),
    (three_values, ["photo 0.png is no mask", "3 values"]),
    (jpeg_masks, ["photo 0.png is no mask", "save it as PNG"]),
    (photograph_as_mask, ["photo 0.png is no mask", "values"]),
    (two_values_without_background, ["photo 0.png is no mask", "which one is background"]),
    (mask_of_another_size, ["photo 0.jpg is 60x44", "photo 0.png is 30x30", "same shape"]),
    (mask_turned, ["photo 0.jpg is 60x44", "photo 0.png is 44x60"]),
    (picture_truncated, ["photo 0.jpg can't be read", "truncated"]),
    (picture_empty, ["photo 0.jpg can't be read", "replace"]),
    (picture_is_text, ["photo 0.jpg can't be read"]),
    (picture_is_html, ["photo 0.jpg can't be read"]),
    (mask_truncated, ["photo 0.png can't be read"]),
    (mask_is_text, ["photo 0.png can't be read"]),
    (picture_is_a_folder, ["photo 0.jpg can't be read"]),
    (picture_is_a_dead_link, ["photo 0.jpg"]),
    (bomb, ["photo 0.png can't be read", "decompression bomb"]),
    (too_few, ["5 images in all", "at least ten different ones are needed"]),
    (only_copies, ["is empty", "were moved into training as copies"]),
    (empty_folders, ["is empty", "0 images in all"]),
    (no_masks_folder, ["no images/ beside annotations/ or masks/"]),
    (png_with_a_flipped_byte, ["photo 0.png"]),
]


@pytest.mark.parametrize(("break_it", "words"), BAD, ids=[case[0].__name__ for case in BAD])
def test_bad_own_images_are_one_error_line(own, break_it, words):
    break_it(own)
    for cached in (True, False):
        with pytest.raises(DatasetError) as caught:
            root = find_root(own)
            parts = split_samples(root)
            cache = open_cache(root, 64) if cached else None
            for mode in ("train", "valid", "test"):
                list(SimpleOxfordPetDataset(root, mode, split=parts, image_size=64, cache=cache))
        for word in words:
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list((own / ".pixel_cache").glob("*.npy"))
    assert not list((own / ".pixel_cache").glob("*.tmp"))


@pytest.mark.parametrize("break_it", [three_values, picture_truncated, only_copies, one_mask_missing])
def test_bad_data_ends_train_with_that_line(own, tmp_path, break_it):
    break_it(own)
    done = run_script("train.py", "--data_path", own, *TINY, cwd=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len([line for line in lines if line.startswith("error: ")])) == (2, 1)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("saved_models/*.pth"))
