"""Images that are not 8-bit RGB, from the file to the network and to what people look at."""

import struct
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18, resnet34

from data.cache import open_cache
from data.dataset import Dataset, ImageDataset
from data.image_io import image_size_of, read_image
from data.pets import load_dataset
from data.pixels import array_pixels, shown, to_tensor
from data.view import View
from helpers import TINY, assert_one_error, disc, run_ok, run_script, save
from models.base import fold_channels
from models.build import build_model
from models.checkpoint import load_checkpoint
from models.weights import load_encoder_weights
from runtime.errors import DatasetError
from stubs import photograph

read_gray = partial(read_image, channels=1)


def seen(values, channels=1):
    return array_pixels(values, channels, None, "x")


def write_pairs(root, images: list, masks: list):
    """Own images, as arrays or as PNGs, and their masks."""
    for folder, files in (("images", images), ("masks", masks)):
        (root / folder).mkdir(parents=True)
        for i, values in enumerate(files):
            if values.ndim == 3:
                np.save(root / f"{folder}/{i}.npy", values)
            else:
                save(root / f"{folder}/{i}.png", values)
    return Dataset(root)


def test_twelve_bits_keep_their_levels_through_file_cache_and_tensor(tmp_path):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    dataset = write_pairs(tmp_path, [values + i % 2 for i in range(12)], [(values > 2000).astype(np.uint8)] * 12)
    view = View(64, channels=1)
    caches = [open_cache(tmp_path, dataset.samples, v) for v in (View(64), view)]
    assert [cache.read(["0"]).dtype.itemsize for cache in caches] == [1, 2]
    sample = ImageDataset(dataset.samples, view, caches[1])[0]
    assert sample["image"].shape == (1, 64, 64)
    assert sample["image"].dtype == torch.float32
    assert len(sample["image"].unique()) == 4096
    uncached = ImageDataset(dataset.samples, view)[0]
    assert all(torch.equal(sample[key], uncached[key]) for key in ("image", "labels"))
    assert len(load_dataset(tmp_path, "train", image_size=64)[0]["image"].unique()) == 17  # as RGB of 8 bits


@pytest.mark.parametrize("kind", ["npy", "float tiff", "int tiff", "gray", "rgb"])
def test_files_of_all_kinds_give_the_same_values(tmp_path, kind):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (9, 7)).astype(np.uint8)
    values[0, :2] = 0, 255
    path = tmp_path / f"image.{ {'npy': 'npy', 'gray': 'png', 'rgb': 'png'}.get(kind, 'tiff') }"
    if kind == "npy":
        np.save(path, values)
    else:
        types = {"float tiff": np.float32, "int tiff": np.int32}
        save(path, np.dstack([values] * 3) if kind == "rgb" else values.astype(types.get(kind, np.uint8)))
    assert image_size_of(path) == (7, 9)
    pixels = read_gray(path)
    assert pixels.shape == (9, 7, 1)
    assert np.abs(pixels[..., 0] - values.astype(int) * 257).max() <= 1
    assert read_gray(path, (14, 18)).shape == (18, 14, 1)
    assert np.array_equal(read_image(path)[..., 0], values)


def test_floats_have_the_range_of_their_image_and_odd_values_do_no_harm():
    values = np.linspace(-1000, 3000, 10_001).reshape(1, -1)
    assert seen(values)[0, [0, 5000, -1], 0].tolist() == [0, 32768, 65535]
    odd = values.copy()
    odd[0, :3] = np.nan, np.inf, -np.inf
    assert seen(odd)[0, 5000, 0] == pytest.approx(32768, abs=20)
    assert not seen(np.full((4, 4), np.nan)).any()
    assert not seen(np.full((4, 4), 7.0)).any()


@pytest.mark.parametrize("values", [[-9999], [3.4e38], [-32768, 3.4e38], [np.nan, -9999]])
def test_nodata_leaves_the_range_to_the_rest(values, notes):
    rest = np.random.default_rng(0).uniform(100, 900, (100, 100)).astype(np.float32)
    rest[50, 50:52] = 100, 900
    image = rest.copy()
    for row, value in enumerate(values):
        image[row] = value
    assert np.abs(seen(image)[2:].astype(int) - seen(rest)[2:]).max() <= 1
    assert "taken for nodata, are left out of the range in 1 file: x." in notes()


DATA = {
    "object on black": lambda image: image * (image > 0.95),
    "two values": lambda image: (image > 0.95) + np.float32(1),
    "a bright pixel": lambda image: image + 100 * (image == image.max()),
    "bytes": lambda _: np.uint8([[0, 255, 40, 41, 42]]),
}


@pytest.mark.parametrize("kind", DATA)
def test_what_may_be_data_stays_in_the_range(kind):
    image = DATA[kind](np.random.default_rng(0).uniform(0.9, 1, (100, 100)).astype(np.float32))
    low, high = image == image.min(), image == image.max()
    assert (seen(image)[low] == 0).all()
    assert (seen(image)[high] == 65535).all()
    assert seen(image)[~low & ~high].max(initial=1) < 65535


def test_channels():
    five = np.random.default_rng(1).integers(0, 65536, (6, 4, 5)).astype(np.uint16)
    eight_bits = np.round(five / 257).astype(np.uint8)
    assert np.array_equal(seen(five, 5), five)
    assert np.array_equal(seen(five[..., :1], 3)[..., 2], eight_bits[..., 0])
    assert np.array_equal(seen(five[..., 0], 4)[..., 3], five[..., 0])  # gray is repeated
    with pytest.raises(DatasetError, match="x has 5 channels, not 3; train with --channels 5"):
        seen(five, 3)
    assert np.array_equal(shown(five), eight_bits[..., :3])
    assert np.array_equal(shown(five[..., :1])[..., 2], eight_bits[..., 0])
    assert to_tensor(five).shape == (5, 6, 4)


def test_each_channel_has_a_range_of_its_own_but_colors_share_one():
    values = np.random.default_rng(2).random((20, 20, 2)) * [4000, 1]
    assert seen(values, 2).max(axis=(0, 1)).tolist() == [65535, 65535]
    assert seen(np.dstack([values, values[..., 1]]), 3)[..., 1].max() == 0
    for channels in (1, 2, 3):
        assert np.array_equal(seen(values[..., 0] > 2000, channels)[..., 0] > 0, values[..., 0] > 2000)
    tiny = seen(values[..., 1] * 1e-15)
    assert (tiny.min(), tiny.max()) == (0, 65535)


@pytest.mark.parametrize("read", [read_image, read_gray])
def test_byte_order_and_booleans(tmp_path, read):
    values = np.array([[10000, 20000, 30000]], np.uint16)
    np.save(tmp_path / "big.npy", values.astype(">u2"))
    np.save(tmp_path / "little.NPY", values.astype("<u2"))  # adds .npy
    assert np.array_equal(read(tmp_path / "big.npy"), read(tmp_path / "little.NPY.npy"))
    np.save(tmp_path / "b.npy", np.eye(6, dtype=bool))
    pixels = read(tmp_path / "b.npy")[..., 0]
    assert np.array_equal(pixels, np.eye(6) * np.iinfo(pixels.dtype).max)


@pytest.mark.parametrize("values", [{}, "text", 7, np.zeros(9, "i4,i4"), np.zeros((0, 4, 3)), np.zeros((2, 2, 2, 3))])
def test_arrays_that_are_no_images_are_one_error(tmp_path, values):
    np.save(tmp_path / "image.npy", values)  # {}: as a pickle, which could run code
    for read in (read_image, read_gray):
        with pytest.raises(DatasetError, match=r"image\.npy (can't be read as|holds) an array"):
            read(tmp_path / "image.npy")


def test_what_would_lose_its_depth_is_refused(tmp_path):
    path = tmp_path / "color.png"
    rows = b"".join(b"\0" + np.full((4, 3), 4095, ">u2").tobytes() for _ in range(4))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert read_image(path).shape == (4, 4, 3)
    with pytest.raises(DatasetError, match=r"16 bits a channel in color can't be read; save it as \.npy"):
        read_gray(path)


def test_near_copies_of_arrays_are_found(tmp_path):
    photos = [np.asarray(photograph(i), np.uint16) * 4 for i in range(3)]
    photos.append(np.asarray(photograph(0).resize((180, 135)), np.uint16) * 4)
    images = [np.dstack([values, values[..., :2]]) for values in photos]
    dataset = write_pairs(tmp_path, images, [np.eye(*image.shape[:2], dtype=np.uint8) for image in images])
    assert [(a.name, b.name) for a, b in dataset.near_copies] == [("0", "3")]


def test_weights_of_rgb_fold_into_other_channels(tmp_path):
    weight = torch.randn(4, 3, 3, 3)
    gray = torch.rand(1, 1, 8, 8)
    expected = torch.nn.functional.conv2d(gray.expand(1, 3, 8, 8), weight)
    for channels in (1, 6):
        folded = torch.nn.functional.conv2d(gray.expand(1, channels, 8, 8), fold_channels(weight, channels))
        torch.testing.assert_close(folded, expected)
    for name, classifier in (("resnet34_unet", resnet34), ("resnet18_unet", resnet18)):
        torch.save(classifier(weights=None).state_dict(), tmp_path / "w.pth")
        model = build_model(name, in_channels=2)
        load_encoder_weights(model, tmp_path / "w.pth")
        stored = torch.load(tmp_path / "w.pth", weights_only=True)
        assert torch.equal(model.encoder.conv1.weight, fold_channels(stored["conv1.weight"], 2))
        assert torch.equal(model.encoder.layer1[0].conv1.weight, stored["layer1.0.conv1.weight"])


@pytest.mark.parametrize("name", ["unet_small", "resnet34_unet", "efficientnet_b0_unet", "swin_t_unet"])
def test_networks_take_any_number_of_channels(name):
    model = build_model(name, in_channels=5).eval()
    assert build_model(name, **model.config).in_channels == 5
    with torch.inference_mode():
        assert model(torch.rand(1, 5, 40, 33) * 255).shape == (1, 1, 40, 33)
    with pytest.raises(ValueError, match=r"\(N, 5, H, W\)"):
        model(torch.rand(1, 3, 40, 33))


def test_a_set_of_arrays_from_training_to_panels(tmp_path):
    """Two channels of floating point: the disc is in the second alone."""
    pixels, masks = zip(*[disc(i, 64, 64) for i in range(24)])
    images = [values[..., :2] - np.dstack([150.0 * mask, 0 * mask]) for values, mask in zip(pixels, masks)]
    root = write_pairs(tmp_path / "data", images, [mask.astype(np.uint8) for mask in masks]).root
    data = ("--data_path", root)
    run_ok("oxford_pet.py", *data, "--channels", 2, "--check", "--preview", cwd=tmp_path)
    flags = ("--channels", 2, "--augment", "online", "--distort", "all", "--epochs", 3, "--batch_size", 4)
    run_ok("train.py", *data, *flags, *TINY, cwd=tmp_path)
    run_ok("train.py", *data, "--resume", "--epochs", 1, cwd=tmp_path)
    checkpoint = load_checkpoint(tmp_path / "saved_models/tiny_best.pth")
    assert (checkpoint.image_size, checkpoint.channels) == (64, 2)
    said = run_ok("evaluate.py", *data, "--report", "report", cwd=tmp_path)
    assert float(said.split("test Dice score: ")[1].split()[0]) > 0.8
    kinds = ("--save", "masks,panels,overlays,cutouts,probabilities")
    run_ok("inference.py", *data, "--output_path", "out", *kinds, cwd=tmp_path)
    tiles = ("--output_path", "tiles", "--resize", "tile", "--image_size", 32)
    run_ok("inference.py", *data, *tiles, cwd=tmp_path)
    assert "100.00" in run_ok("export.py", *data, "--formats", "pt2", cwd=tmp_path)
    panel = np.asarray(Image.open(next((tmp_path / "out").glob("*_panel.png"))))
    image = panel[34 : 34 + 256, 12 : 12 + 256]
    assert (image[..., 0] == image[..., 2]).all()  # gray
    done = run_script("train.py", *data, *TINY, cwd=tmp_path)
    assert_one_error(done, "has 2 channels, not 3; train with --channels 2")
