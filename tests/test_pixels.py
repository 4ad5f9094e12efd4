"""Images that are not 8-bit RGB, from the file to the network and to what people look at."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18, resnet34

from data.cache import open_cache
from data.datasets import load_dataset
from data.image_io import image_size_of, read_pixels
from data.pixels import RGB, Pixels, pixel_values, shown, to_tensor
from helpers import TINY, assert_one_error, run_ok, run_script
from models import build_model
from models.base import fold_channels
from models.checkpoint import load_checkpoint
from models.encoder_weights import load_encoder_weights
from runtime.errors import DatasetError

GRAY = Pixels(1)


def test_twelve_bits_keep_their_levels_through_file_cache_and_tensor(tmp_path):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(12):
        Image.fromarray(values + i % 2).save(tmp_path / f"images/{i}.png")
        Image.fromarray((values > 2000).astype(np.uint8)).save(tmp_path / f"masks/{i}.png")
    cache = open_cache(tmp_path, 64, pixels=GRAY)
    sample = load_dataset(tmp_path, "train", image_size=64, pixels=GRAY, cache=cache)[0]
    assert sample["image"].shape == (1, 64, 64)
    assert sample["image"].dtype == torch.float32
    assert len(sample["image"].unique()) == 4096
    uncached = load_dataset(tmp_path, "train", image_size=64, pixels=GRAY)[0]
    assert all(torch.equal(sample[key], uncached[key]) for key in ("image", "mask", "trimap"))
    windowed = load_dataset(tmp_path, "train", image_size=64, pixels=Pixels(1, (10.0, 90.0)))[0]["image"]
    assert (windowed.min(), windowed.max()) == (0, 255)
    assert 1024 < len(windowed.unique()) < 3400
    assert len(load_dataset(tmp_path, "train", image_size=64)[0]["image"].unique()) == 16  # as RGB of 8 bits


@pytest.mark.parametrize("kind", ["npy", "float tiff", "gray", "rgb"])
def test_files_of_all_kinds_give_the_same_values(tmp_path, kind):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (9, 7)).astype(np.uint8)
    values[0, :2] = 0, 255
    path = tmp_path / f"image.{'npy' if kind == 'npy' else 'tiff' if kind == 'float tiff' else 'png'}"
    if kind == "npy":
        np.save(path, values)
    else:
        stored = {"float tiff": values.astype(np.float32), "rgb": np.dstack([values] * 3)}.get(kind, values)
        Image.fromarray(stored).save(path)
    assert image_size_of(path) == (7, 9)
    found = read_pixels(path, GRAY)
    assert found.shape == (9, 7, 1)
    assert np.abs(found[..., 0] - values.astype(int) * 257).max() <= 1
    assert read_pixels(path, GRAY, (14, 18)).shape == (18, 14, 1)
    assert np.array_equal(read_pixels(path, RGB)[..., 0], values)


def test_window_clips_at_percentiles_and_odd_values_do_no_harm():
    values = np.linspace(-1000, 3000, 10_001).reshape(1, -1)
    found = pixel_values(values, Pixels(1, (10.0, 90.0)), None, "x")[0, :, 0]
    assert (found[:1000] == 0).all() and (found[-1000:] == 65535).all()
    assert found[5000] == pytest.approx(32768, abs=2)
    odd = values.copy()
    odd[0, :3] = np.nan, np.inf, -np.inf
    assert pixel_values(odd, GRAY, None, "x")[0, 5000, 0] == pytest.approx(32768, abs=20)
    assert not pixel_values(np.full((4, 4), np.nan), GRAY, None, "x").any()
    assert not pixel_values(np.full((4, 4), 7.0), GRAY, None, "x").any()


def test_channels():
    five = np.random.default_rng(1).integers(0, 65536, (6, 4, 5)).astype(np.uint16)
    assert np.array_equal(pixel_values(five, Pixels(5), None, "x"), five)
    assert np.array_equal(pixel_values(five[..., 0], Pixels(3, (0.0, 100.0)), None, "x")[..., 2], _scaled(five[..., 0]))
    with pytest.raises(DatasetError, match="x has 5 channels, not 3; use --channels 5"):
        pixel_values(five, Pixels(3, (0.0, 100.0)), None, "x")
    with pytest.raises(DatasetError, match="not an image"):
        pixel_values(np.zeros((2, 2, 2, 2)), GRAY, None, "x")
    assert np.array_equal(shown(five), (five[..., :3] // 257).astype(np.uint8))
    assert np.array_equal(shown(five[..., :1])[..., 2], (five[..., 0] // 257).astype(np.uint8))
    assert to_tensor(five).shape == (5, 6, 4)


def _scaled(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    return np.round((values.astype(float) - low) * 65535 / (high - low)).astype(np.uint16)


def test_weights_of_rgb_fold_into_other_channels(tmp_path):
    weight = torch.randn(4, 3, 3, 3)
    gray = torch.rand(1, 1, 8, 8)
    expected = torch.nn.functional.conv2d(gray.expand(1, 3, 8, 8), weight)
    for channels in (1, 6):
        found = torch.nn.functional.conv2d(gray.expand(1, channels, 8, 8), fold_channels(weight, channels))
        torch.testing.assert_close(found, expected)
    for name, classifier in (("resnet34_unet", resnet34), ("resnet18_unet", resnet18)):
        torch.save(classifier(weights=None).state_dict(), tmp_path / "w.pth")
        model = build_model(name, in_channels=2)
        load_encoder_weights(model, str(tmp_path / "w.pth"))
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
    """Two channels of 12 bits: the disc is in the second, and too faint for 8 bits."""
    root = tmp_path / "data"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    y, x = np.mgrid[:64, :64]
    for i in range(24):
        rng = np.random.default_rng([9, i])
        disc = np.hypot(x - rng.uniform(20, 44), y - rng.uniform(20, 44)) < rng.uniform(10, 18)
        values = rng.integers(0, 60, (64, 64, 2)).astype(np.uint16)
        values[..., 1] += (disc * 120).astype(np.uint16)
        np.save(root / f"images/{i}.npy", values)
        Image.fromarray((disc * 255).astype(np.uint8)).save(root / f"masks/{i}.png")
    flags = ("--data_path", root, "--channels", 2, "--window", "0.5,99.5", "--augment", "online", "--distort", "all")
    run_ok("oxford_pet.py", "--data_path", root, "--channels", 2, "--check", "--preview", cwd=tmp_path)
    run_ok("train.py", *flags, "--epochs", 3, "--batch_size", 4, *TINY, cwd=tmp_path)
    run_ok("train.py", "--data_path", root, "--resume", "--epochs", 1, cwd=tmp_path)
    content = load_checkpoint(tmp_path / "saved_models/tiny_best.pth")
    assert content["preprocessing"] == {"image_size": 64, "channels": 2, "window": [0.5, 99.5]}
    said = run_ok("evaluate.py", "--data_path", root, "--worst", 1, cwd=tmp_path)
    assert float(said.split("test Dice score: ")[1].split()[0]) > 0.8
    kinds = ("--save", "masks,panels,overlays,cutouts,probabilities")
    run_ok("inference.py", "--data_path", root, "--output_path", "out", *kinds, cwd=tmp_path)
    run_ok("inference.py", "--data_path", root, "--output_path", "tiles", "--tile", "--image_size", 32, cwd=tmp_path)
    assert "100.00" in run_ok("export.py", "--data_path", root, "--formats", "pt2", cwd=tmp_path)
    panel = np.asarray(Image.open(next((tmp_path / "out").glob("*_panel.png"))))
    image = panel[34 : 34 + 256, 12 : 12 + 256]
    assert (image[..., 0] == image[..., 2]).all()  # gray
    done = run_script("train.py", "--data_path", root, *TINY, cwd=tmp_path)
    assert_one_error(done, "has 2 channels, not 3; use --channels 2")
