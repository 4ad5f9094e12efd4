"""Images, trimaps and masks as people save them."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data import image_io
from data.image_io import nearest, read_image, read_mask, read_trimap
from data.layout import Sample, read_list
from data.view import View
from helpers import WRITERS, disc, save
from runtime.errors import DatasetError, first_line


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


@pytest.mark.parametrize("error", [RecursionError("too deep"), OverflowError("too far"), AssertionError()])
def test_whatever_pillow_raises_names_the_file(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(Image, "open", fail)
    words = rf"a.png can't be read as an image \({first_line(error)}\); replace the file"
    with pytest.raises(DatasetError, match=words):
        read_image(tmp_path / "a.png")


def test_deep_and_float_images_keep_their_range(tmp_path):
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    files = {"f.tif": ramp, "i.tif": (ramp * 255).astype(np.int32), "h.png": (ramp * 65535).astype(np.uint16)}
    for name, values in files.items():
        save(tmp_path / name, values)
        np.testing.assert_allclose(read_image(tmp_path / name)[..., 0], ramp * 255, atol=1.01, err_msg=name)


def test_transparent_palettes_are_read_without_a_warning(tmp_path, recwarn):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    image.save(tmp_path / "p.png", transparency=bytes([0, 128, 255]))
    assert read_image(tmp_path / "p.png").shape == (8, 8, 3)
    assert not list(recwarn)


def test_reduced_decode_looks_like_a_full_one(tmp_path):
    y, x = np.mgrid[:600, :800]
    pixels = np.stack([x % 256, y % 256, (x + y) // 8 % 256], axis=-1).astype(np.uint8)
    pixels[200:400, 300:500] = (250, 10, 10)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    full = Image.open(tmp_path / "a.jpg").resize((64, 64), Image.Resampling.BILINEAR)
    assert np.abs(read_image(tmp_path / "a.jpg", (64, 64)).astype(int) - np.asarray(full)).mean() < 3


def test_trimaps_keep_their_values_when_resized(shared_dataset):
    path = read_list(shared_dataset, "list")[0].mask_path
    assert set(np.unique(nearest(read_trimap(path), (40, 40)))) == {0, 1, 2}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_mask_is_read(tmp_path, kind):
    _, mask = disc(0)
    WRITERS[kind](mask).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)


@pytest.mark.parametrize(("value", "label"), [(0, 0), (1, 1), (255, 1)])
def test_empty_and_full_masks_are_read(tmp_path, value, label):
    save(tmp_path / "m.png", np.full((9, 9), value, np.uint8))
    assert (read_mask(tmp_path / "m.png") == label).all()


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


@pytest.mark.parametrize("kind", ["JPEG", "resize", "blur"])
def test_gray_edges_of_masks_are_divided_in_the_middle(tmp_path, capsys, kind):
    image_io.SAID.clear()
    _, mask = disc(1, 120, 90)
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    if kind == "resize":
        image = image.resize((60, 45), Image.Resampling.BILINEAR)
    if kind == "blur":
        image = image.filter(ImageFilter.GaussianBlur(1))
    path = tmp_path / f"mask.{'jpg' if kind == 'JPEG' else 'png'}"
    image.save(path)
    labels = read_mask(path)
    wanted = np.asarray(Image.fromarray(mask).resize(labels.shape[::-1], Image.Resampling.NEAREST))
    assert (labels != wanted).mean() < 0.01
    read_mask(path)
    assert capsys.readouterr().err.count("have gray levels") == 1


def test_other_values_of_masks_are_refused_with_advice_that_helps(tmp_path):
    pixels, mask = disc(2)
    for values in (pixels, np.uint8(mask + 3 * mask[::-1])):  # a photograph, ids
        save(tmp_path / "m.png", values)
        with pytest.raises(DatasetError, match="--classes"):
            read_mask(tmp_path / "m.png")
