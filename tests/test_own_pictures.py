"""People's own folders: images/ and masks/ in every form they come in, and every way in which they can be wrong."""

import csv
import re

import numpy as np
import pytest
import torch
from PIL import Image

from data.cache import open_cache
from data.datasets import SimpleOxfordPetDataset
from data.image_io import read_mask, read_pair
from data.index import describe_layout, find_copies, find_root, list_samples, split_samples
from helpers import TINY, assert_one_error, make_dataset, run_ok, run_script
from models.checkpoint import load_checkpoint
from runtime.errors import DatasetError


def disc(i: int, width: int = 60, height: int = 44):
    """A picture of a light disc on dark noise, and its mask (H, W) of bool."""
    rng = np.random.default_rng([3, i])
    y, x = np.mgrid[:height, :width]
    mask = np.hypot(x - rng.uniform(0.35, 0.65) * width, y - rng.uniform(0.4, 0.6) * height) < 0.3 * height
    pixels = rng.integers(0, 90, (height, width, 3)) + 150 * mask[..., None]
    return pixels.astype(np.uint8), mask


def as_palette(mask, colours):
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    image.putpalette(colours)
    return image


# How people save masks.
WRITERS = {
    "0/1": lambda m: Image.fromarray(m.astype(np.uint8)),
    "0/255": lambda m: Image.fromarray(m.astype(np.uint8) * 255),
    "1 bit": lambda m: Image.fromarray(m.astype(np.uint8) * 255).convert("1"),
    "16 bits": lambda m: Image.fromarray(m.astype(np.uint16) * 65535),
    "RGB": lambda m: Image.fromarray(m[..., None] * np.uint8([255, 0, 0])),
    "RGBA": lambda m: Image.fromarray(np.dstack([m[..., None] * np.uint8([9, 9, 9]), np.full(m.shape, 255, np.uint8)])),
    "alpha alone": lambda m: Image.fromarray(np.dstack([np.zeros((*m.shape, 3), np.uint8), m.astype(np.uint8) * 255])),
    "gray and alpha": lambda m: Image.fromarray(np.dstack([m * np.uint8(200), np.full(m.shape, 255, np.uint8)])),
    "palette": lambda m: as_palette(m, [0, 0, 0, 128, 0, 0]),
    "palette with black at index 1": lambda m: as_palette(~m, [255, 255, 0, 0, 0, 0]),
    "palette without black": lambda m: as_palette(m, [10, 200, 10, 128, 0, 0]),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_mask_is_read(tmp_path, kind):
    _, mask = disc(0)
    WRITERS[kind](mask).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), np.where(mask, 1, 2))
    assert set(np.unique(read_mask(tmp_path / "m.png", 20))) == {1, 2}


@pytest.mark.parametrize(("value", "code"), [(0, 2), (1, 1), (255, 1)])
def test_empty_and_full_masks_are_masks(tmp_path, value, code):
    Image.fromarray(np.full((9, 9), value, np.uint8)).save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png") == code).all()


def write_own(root, count=40):
    """A folder as people have them: pictures of many modes and endings, masks of many kinds."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    kinds = [kind for kind in WRITERS if kind != "palette with black at index 1"]
    for i in range(count):
        pixels, mask = disc(i, 60 + i, 44 + i % 7)
        image = Image.fromarray(pixels)
        mode, ending = [("RGB", "jpg"), ("L", "png"), ("RGBA", "png"), ("RGB", "webp"), ("CMYK", "tif"), ("P", "gif")][
            i % 6
        ]
        image.convert(mode).save(root / f"images/photo {i}.{ending}")
        WRITERS[kinds[i % len(kinds)]](mask).save(root / f"masks/photo {i}.png")
    return root


@pytest.fixture
def own(tmp_path):
    return write_own(tmp_path / "own")


@pytest.fixture(scope="session")
def shared_own(tmp_path_factory):
    return write_own(tmp_path_factory.mktemp("own") / "my pictures")


def test_own_folder_is_recognised_paired_and_split(shared_own):
    assert find_root(shared_own / "images") == shared_own
    assert describe_layout(shared_own) == "own images: images/ and masks/"
    parts = split_samples(shared_own)
    assert [len(part) for part in parts[:3]] == [32, 4, 4]
    for mode in ("train", "valid", "test"):
        for sample in SimpleOxfordPetDataset(shared_own, mode, image_size=64):
            light = sample["image"].float().mean(0) > 110
            assert (light == sample["mask"][0].bool()).float().mean() > 0.93


def test_own_folder_trains_evaluates_and_infers_with_nothing_but_its_path(shared_own, tmp_path):
    said = run_ok("train.py", "--data_path", shared_own, "--epochs", 1, *TINY, cwd=tmp_path)
    assert "(own images: images/ and masks/), split 80-10-10: 32 train, 4 valid, 4 test" in said
    assert "4 test images" in run_ok("evaluate.py", "--data_path", shared_own, cwd=tmp_path)
    said = run_ok("inference.py", "--data_path", shared_own, "--output_path", "out", cwd=tmp_path)
    assert "over 4 images with ground truth" in said
    assert len(list((tmp_path / "out").glob("*_panel.png"))) == 4


def test_a_checkpoint_of_another_dataset_takes_own_pictures(shared_own, shared_dataset, trained, tmp_path):
    content = load_checkpoint(trained / "saved_models/tiny_best.pth")
    content["data"]["split"] = "official"
    torch.save(content, tmp_path / "official.pth")
    flags = ("--model_path", "official.pth", "--data_path")
    assert "4 test images" in run_ok("evaluate.py", *flags, shared_own, cwd=tmp_path)
    few = write_own(tmp_path / "few", count=4)  # which no split can divide
    for path in (few, few / "images"):
        said = run_ok("inference.py", *flags, path, cwd=tmp_path)
        assert "over 4 images with ground truth" in said


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


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_pictures_are_turned_as_people_saw_them_when_they_drew_the_mask(tmp_path, orientation):
    pixels, mask = disc(1)
    turned = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]  # quarters that the camera was turned by
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.rot90(pixels, turned).copy()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "a.png")
    image, trimap = read_pair(tmp_path / "a.jpg", tmp_path / "a.png", True)
    assert ((image.mean(2) > 110) == (trimap == 1)).mean() > 0.95


def test_copies_never_stand_in_two_parts(own):
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


def test_inverted_masks_are_warned_about(own, tmp_path):
    for pet in list_samples(own):
        trimap = read_mask(pet.mask_path)
        Image.fromarray((trimap == 2).astype(np.uint8) * 255).save(pet.mask_path)
    done = run_script("train.py", "--data_path", own, "--epochs", 1, *TINY, cwd=tmp_path)
    assert done.returncode == 0
    assert "INVERTED" in done.stderr
    said = run_ok("oxford_pet.py", "--check", "--data_path", own, cwd=tmp_path)
    assert "inverted    40 masks look so" in said


# ------------------------------------------------------------------------------------------------------ bad data, by


def first(root, folder="images"):
    return sorted((root / folder).iterdir())[0]


def save(path, array, **options):
    Image.fromarray(np.asarray(array)).save(path, **options)


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
def test_bad_data_is_one_clear_line_and_never_trained_on(own, break_it, words):
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
def test_bad_data_ends_the_scripts_with_that_line(own, tmp_path, break_it):
    break_it(own)
    done = run_script("train.py", "--data_path", own, *TINY, cwd=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len([line for line in lines if line.startswith("error: ")])) == (2, 1)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("saved_models/*.pth"))


# ------------------------------------------------------------------------------------------------------ check and pre


def test_check_passes_whole_data_and_counts(shared_own, shared_dataset, tmp_path):
    said = run_ok("oxford_pet.py", "--check", "--data_path", shared_own, cwd=tmp_path)
    assert "own images: images/ and masks/, 40 images" in said
    assert "JPEG RGB" in said
    assert "TIFF CMYK" in said
    assert said.splitlines()[-1] == "No faults."
    said = run_ok("oxford_pet.py", "--check", "--split", "official", "--data_path", shared_dataset, cwd=tmp_path)
    assert "sizes       80x64 to 80x64, 1 different" in said
    assert "official: 24 train, 2 valid, 14 test" in said


def test_check_lists_all_faults_at_once(own, tmp_path):
    for i in range(0, 36, 3):
        save(own / f"masks/photo {i}.png", disc(0)[0])
    done = run_script("oxford_pet.py", "--check", "--data_path", own, cwd=tmp_path)
    assert_one_error(done, "12 faults", "photo 0.png is no mask", "| ...")
    assert len(re.findall("is no mask", done.stderr)) == 10


def test_check_names_a_bomb_and_goes_on(own, tmp_path):
    picture = next((own / "images").glob("photo 1.*"))
    picture.unlink()
    Image.new("1", (14000, 14000)).save(own / "images/photo 1.png")
    done = run_script("oxford_pet.py", "--check", "--data_path", own, cwd=tmp_path)
    assert_one_error(done, "1 fault", "photo 1.png")


def test_preview_shows_pictures_and_variants_with_outlines(shared_own, tmp_path):
    said = run_ok("oxford_pet.py", "--preview", "sheets/sheet.png", "--data_path", shared_own, cwd=tmp_path)
    assert "Drew 6 images (left) and 5 variants of each" in said
    pixels = np.asarray(Image.open(tmp_path / "sheets/sheet.png")).astype(int)
    assert pixels.shape == (6 * 196 + 4, 6 * 196 + 4, 3)
    outline = (np.abs(pixels - [255, 0, 255]).sum(2) == 0).reshape(6 * 196 + 4, -1)
    cells = [
        outline[4 + r * 196 : 196 + r * 196, 4 + c * 196 : 196 + c * 196].sum() for r in range(6) for c in range(6)
    ]
    assert min(cells) > 50
    first_row = [pixels[4:196, 4 + c * 196 : 196 + c * 196] for c in range(6)]
    assert all(np.abs(first_row[0] - other).mean() > 3 for other in first_row[1:])


def test_color_jitter_needs_augment_and_trains(shared_own, tmp_path):
    flags = ("train.py", "--data_path", shared_own, "--epochs", 1, *TINY, "--color_jitter")
    assert_one_error(run_script(*flags, cwd=tmp_path), "--color_jitter", "--augment")
    assert "augment online, medium, color jitter" in run_ok(*flags, "--augment", "online", cwd=tmp_path)
    settings = torch.load(tmp_path / "saved_models/tiny_last.pth", weights_only=True)["settings"]
    assert settings["color_jitter"] is True


def test_masks_of_another_size_and_the_same_shape_are_used(own, tmp_path):
    sizes = {}
    for number, sample in enumerate(list_samples(own)):
        if number % 2:
            mask = Image.fromarray((read_mask(sample.mask_path) == 1).astype(np.uint8))
            sizes[sample.name] = (2 * mask.width + 1, 2 * mask.height)  # 1 % wider than the image
            mask.resize(sizes[sample.name], Image.Resampling.NEAREST).save(sample.mask_path)
    said = run_ok("train.py", "--data_path", own, "--epochs", 2, *TINY, cwd=tmp_path)
    assert "20 of 40 masks have another size than their images, of the same shape" in said
    dataset = SimpleOxfordPetDataset(own, "train", image_size=64)
    for sample in dataset:
        light = sample["image"].float().mean(0) > 110
        assert (light == sample["mask"][0].bool()).float().mean() > 0.93
    flags = ("--original_size", "--subset", "all", "--allow_seen", "--csv", "rows.csv")
    assert "20 of 40 masks have another size" in run_ok("evaluate.py", "--data_path", own, *flags, cwd=tmp_path)
    with (tmp_path / "rows.csv").open() as file:
        rows = {row["name"]: (int(row["width"]), int(row["height"])) for row in csv.DictReader(file)}
    assert {name: rows[name] for name in sizes} == sizes  # scored at the sizes of the masks
    run_ok("inference.py", "--data_path", own, "--output_path", "out", cwd=tmp_path)
    for mask in (tmp_path / "out").glob("*_mask.png"):  # of the sizes of the images
        (image,) = (own / "images").glob(f"{mask.name.removesuffix('_mask.png')}.*")
        assert Image.open(mask).size == Image.open(image).size


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
