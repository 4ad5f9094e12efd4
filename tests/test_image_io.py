"""Images, trimaps and masks as people save them."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, PngImagePlugin

import convert_masks
from data import image_io
from data.cache import open_cache
from data.dataset import Dataset
from data.image_io import nearest, only_images, read_class_mask, read_image, read_mask
from data.layout import Sample
from data.names import HEIF, IMAGE_SUFFIXES
from data.view import View
from helpers import WRITERS, as_palette, disc, save
from runtime.errors import DatasetError


def test_any_image_mode_is_read(tmp_path):
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8))
    gray, rgba, palette = rgb.convert("L"), rgb.convert("RGBA"), rgb.quantize(256)
    sixteen = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    for i, image in enumerate([rgb, gray, rgba, palette, rgb.convert("1"), sixteen, gray.convert("LA")]):
        file = tmp_path / f"{i}.jpg"  # four files of the real dataset are PNGs under that ending
        image.save(file, "PNG")
        assert read_image(file).shape == (20, 30, 3), image.mode
        assert read_image(file, (16, 16)).shape == (16, 16, 3), image.mode
    np.testing.assert_array_equal(read_image(tmp_path / "0.jpg"), np.asarray(rgb))
    np.testing.assert_array_equal(read_image(tmp_path / "2.jpg"), np.asarray(rgb))
    np.testing.assert_array_equal(read_image(tmp_path / "5.jpg")[..., 0], np.asarray(gray))


def test_reduced_decode_looks_like_a_full_one(tmp_path):
    y, x = np.mgrid[:600, :800]
    pixels = np.stack([x % 256, y % 256, (x + y) // 8 % 256], axis=-1).astype(np.uint8)
    pixels[200:400, 300:500] = (250, 10, 10)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    full = Image.open(tmp_path / "a.jpg").resize((64, 64), Image.Resampling.BILINEAR)
    assert np.abs(read_image(tmp_path / "a.jpg", (64, 64)).astype(int) - np.asarray(full)).mean() < 3


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_mask_is_read(tmp_path, kind):
    _, mask = disc(0)
    WRITERS[kind](mask).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)
    for value in (0, 1, 255):  # empty and full ones
        save(tmp_path / "m.png", np.full((9, 9), value, np.uint8))
        assert (read_mask(tmp_path / "m.png") == min(value, 1)).all()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_follows_the_mask(tmp_path, orientation):
    pixels, mask = disc(1)
    turned = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]  # quarters that the camera was turned by
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.rot90(pixels, turned).copy()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "a.png")
    image, labels = View().read_at(Sample("a", tmp_path / "a.jpg", tmp_path / "a.png"))
    assert ((image.mean(2) > 110) == labels).mean() > 0.95


def as_gray(mask) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def with_alpha(pixels, alpha: Image.Image) -> Image.Image:
    return Image.fromarray(np.dstack([pixels, np.asarray(alpha)]))


def line(size=(120, 90)) -> np.ndarray:
    image = Image.new("1", size)
    ImageDraw.Draw(image).line([5, 10, 110, 70], 1, 2)
    return np.asarray(image)


BLUR = ImageFilter.GaussianBlur(1)
SOFT = {  # what is written of a mask and a photograph, and the file's ending
    "JPEG": (lambda mask, _: as_gray(mask), "jpg"),
    "JPEG in color": (lambda mask, _: as_gray(mask).convert("RGB"), "jpg"),
    "JPEG of a thin line": (lambda *_: as_gray(line()), "jpg"),
    "resized": (lambda mask, _: as_gray(mask).resize((60, 45), Image.Resampling.BILINEAR), "png"),
    "brush": (lambda mask, _: as_gray(mask).filter(BLUR), "png"),
    "brush of 16 bits": (lambda mask, _: np.asarray(as_gray(mask).filter(BLUR)).astype(np.uint16) * 257, "png"),
    "probabilities": (lambda mask, _: np.asarray(as_gray(mask).filter(BLUR)).astype(np.float32) / 255, "npy"),
    "brush in alpha": (lambda mask, pixels: with_alpha(pixels * 0, as_gray(mask).filter(BLUR)), "png"),
    "cut out": (lambda mask, pixels: with_alpha(pixels, as_gray(mask)), "png"),
    "JPEG in CMYK": (lambda mask, _: as_gray(mask).convert("RGB").convert("CMYK"), "jpg"),
    "black and alpha": (lambda mask, pixels: with_alpha(pixels * 0, as_gray(mask)), "png"),
}


@pytest.mark.parametrize("kind", SOFT)
def test_soft_masks_and_those_in_alpha_are_read_and_counted(tmp_path, notes, kind):
    pixels, mask = disc(1, 120, 90)
    make, ending = SOFT[kind]
    for number in range(3):
        write(tmp_path / f"{number}.{ending}", make(mask, pixels))
        labels = read_mask(tmp_path / f"{number}.{ending}")
    wanted = nearest((line() if "line" in kind else mask).astype(np.uint8), labels.shape[::-1])
    assert (labels != wanted).mean() < 0.01
    said = notes().splitlines()
    assert sum(("alpha channel" if kind.endswith(("alpha", "out")) else "Gray levels") in row for row in said) == 1
    assert all("3 files, such as" in row for row in said)
    assert not notes()


def write(path, content) -> None:
    if path.suffix == ".npy":
        np.save(path, content)
    else:
        (content if isinstance(content, Image.Image) else Image.fromarray(content)).save(path)


def stripes(values, dtype=np.uint8) -> np.ndarray:
    """These values in vertical stripes, (44, 60)."""
    return np.tile(np.asarray(values, dtype)[np.arange(60) * len(values) // 60], (44, 1))


VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
REFUSED = {  # content, its ending, words of the error, the share that becomes pet by the command
    "ids": (stripes([0, 1, 2, 3]), "png", ["4 values, 0, 1, 2, 3", "--classes FILE", "all but 0"], 0.75),
    "ids with gaps": (stripes([0, 7, 21, 7]), "png", ["all but 0"], 0.75),
    "ids of 16 bits": (stripes(range(60), np.uint16), "png", ["all but 0"], 1 - 1 / 60),
    "palette": (as_palette(stripes(range(4)), VOC), "png", ["4 colors, #000000, #008000", "--classes FILE"], 0.75),
    "colors": (as_palette(stripes(range(4)), VOC).convert("RGB"), "png", ["4 colors", "all but black"], 0.75),
    "spread": (stripes([0, 60, 120, 180, 240]), "png", ["5 values, 0, 60", "above 127"], 0.4),
    "spread in JPEG": (stripes([0, 60, 120, 180, 240]), "jpg", ["above 127"], 0.4),
    "spread, 16 bits": (stripes([0, 200, 900, 1000], np.uint16), "png", ["4 values, 0, 200", "above 500"], 0.5),
    "spread, floats": (stripes([0, 0.25, 0.75], np.float32), "npy", ["0.25, 0.75", "above 0.375"], 1 / 3),
    "no 0": (stripes([7, 9]), "png", ["2 values, 7, 9", "which one is background"], 0.5),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_masks_are_refused_once_and_the_command_helps(tmp_path, monkeypatch, kind):
    content, ending, words, share = REFUSED[kind]
    for folder in ("images", "masks"):
        (tmp_path / "my data" / folder).mkdir(parents=True)
    for number in range(12):
        save(tmp_path / f"my data/images/{number}.png", disc(number, 60, 44)[0])
        write(tmp_path / f"my data/masks/{number}_mask.{ending}", content)
    dataset = Dataset(tmp_path / "my data")
    with pytest.raises(DatasetError) as caught:
        open_cache(dataset.root, dataset.samples, View(32))
    text = str(caught.value)
    assert all(word in text for word in (*words, "12 faults", "(12 files)")), text
    assert text.count("is no mask") == 1
    assert "PNG" not in text
    _, script, *flags = shlex.split(re.search("`(python .*?)`", text)[1])
    assert script == "tools/convert_masks.py"
    convert_masks.main(flags)
    labels = [View().read_labels(sample) for sample in Dataset(tmp_path / "my data/converted").samples]
    assert [values.mean() for values in labels] == pytest.approx([share] * 12, abs=0.01)


def test_the_command_for_one_mask_leaves_the_others_as_they_are(tmp_path):
    root, good, refused = tmp_path / "my data", {}, {}
    for folder in ("images/soft", "images/other", "masks/soft", "masks/other"):
        (root / folder).mkdir(parents=True)
    for number, (kind, (make, ending)) in enumerate(SOFT.items()):
        photo, mask = disc(number, 120, 90)
        good[f"soft/{number}"] = line() if "line" in kind else mask
        save(root / f"images/soft/{number}.png", photo)
        write(root / f"masks/soft/{number}.{ending}", make(mask, photo))
    for number, (content, ending, _, share) in enumerate(REFUSED.values()):
        refused[f"other/{number}"] = share
        save(root / f"images/other/{number}.png", disc(0, 60, 44)[0])
        write(root / f"masks/other/{number}.{ending}", content)
    with pytest.raises(DatasetError, match=f"{len(REFUSED)} faults") as caught:
        open_cache(root, Dataset(root).samples, View(32))
    commands = {*re.findall("`(python .*?)`", str(caught.value))}
    assert len(commands) == 1
    convert_masks.main(shlex.split(commands.pop())[2:])
    for sample in Dataset(root / "converted").samples:
        labels = View().read_labels(sample)
        if sample.name in good:
            assert (labels != nearest(good[sample.name].astype(np.uint8), labels.shape[::-1])).mean() < 0.01, sample
        else:
            assert labels.mean() == pytest.approx(refused[sample.name], abs=0.01), sample


def test_trimaps_among_masks_are_named(tmp_path):
    save(tmp_path / "m.png", stripes([1, 2, 3]))
    with pytest.raises(DatasetError, match="m.png is a trimap, .*annotations/trimaps"):
        read_mask(tmp_path / "m.png")


def test_masks_of_classes_may_be_gray_in_rgb_but_not_colored(tmp_path):
    save(tmp_path / "m.png", np.dstack([stripes([0, 1, 2])] * 3))
    assert (read_class_mask(tmp_path / "m.png", ("ground", "a", "b")) == stripes([0, 1, 2])).all()
    as_palette(stripes(range(4)), VOC).convert("RGB").save(tmp_path / "m.png")
    with pytest.raises(DatasetError, match="convert_masks.py .* --classes --label_map FILE"):
        read_class_mask(tmp_path / "m.png", ("ground", "a", "b"))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_masks_may_be_arrays(tmp_path, dtype):
    mask = disc(2)[1]
    np.save(tmp_path / "m.npy", mask[..., None].astype(dtype))
    assert (read_mask(tmp_path / "m.npy") == mask).all()
    np.save(tmp_path / "m.npy", np.where(mask, 1, np.nan))
    assert (read_mask(tmp_path / "m.npy") == mask).all()
    np.save(tmp_path / "m.npy", np.zeros((2, 3, 4)))
    with pytest.raises(DatasetError, match="m.npy holds an array of shape"):
        read_mask(tmp_path / "m.npy")


def test_of_several_pages_the_first_is_taken(tmp_path, notes):
    pages = [as_gray(disc(number)[1]) for number in range(3)]
    for name in ("a.tif", "b.tif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "single.tif")
    for name in ("a.tif", "b.tif", "single.tif"):
        assert (read_mask(tmp_path / name) == disc(0)[1]).all()
        assert (read_image(tmp_path / name)[..., 0] == np.asarray(pages[0])).all()
    assert "Of several pages the first is taken in 2 files, such as" in notes()


def test_large_notes_in_png_files_do_no_harm(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("notes", "x" * 3_000_000, zip=True)
    as_gray(disc(0)[1]).save(tmp_path / "a.png", pnginfo=info, icc_profile=bytes(3_000_000))
    assert read_image(tmp_path / "a.png").shape[2] == 3


def test_heic_and_avif_are_read_or_named(tmp_path, monkeypatch, notes):
    pixels = Image.fromarray(disc(0)[0])
    pixels.save(tmp_path / "a.avif")
    assert read_image(tmp_path / "a.avif").shape == disc(0)[0].shape
    pytest.importorskip("pillow_heif")
    pixels.save(tmp_path / "b.heic")
    assert read_image(tmp_path / "b.heic").shape == disc(0)[0].shape
    monkeypatch.setattr(image_io, "FORMATS", image_io.FORMATS[:-1])  # as without pillow_heif
    monkeypatch.setattr(image_io, "IMAGE_SUFFIXES", IMAGE_SUFFIXES - HEIF)
    monkeypatch.setitem(image_io.OTHER_PHOTOGRAPHS, ".heic", "run `pip install pillow-heif`")
    assert [file.name for file in only_images(sorted(tmp_path.iterdir()))] == ["a.avif"]
    assert ".heic can't be read and is left out; run `pip install pillow-heif`: 1 file: " in notes()
    with pytest.raises(DatasetError, match="pip install pillow-heif"):
        read_image(tmp_path / "b.heic")


def test_images_are_told_by_ending_or_content(tmp_path):
    for name in ("scan", "b.jpe", "c.jp2", "d.heic", "..dots...jpg", ".hidden.png", "._e.jpg", ".f"):
        Image.fromarray(disc(0)[0]).save(tmp_path / name, "JPEG")
    for name in ("README", "notes.txt", "table.csv"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "folder").mkdir()
    found = [file.name for file in only_images(sorted(tmp_path.iterdir()))]
    assert found == ["..dots...jpg", "b.jpe", "c.jp2", "d.heic", "scan"]
