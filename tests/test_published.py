"""The network that comes with this program: on the one photograph that does, and one image in, its mask out."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import assert_one_error, run_ok, run_script, turned
from models.checkpoint import load_checkpoint
from stubs import photograph

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED, CHELSEA = ROOT / "saved_models/pets.pth", ROOT / "docs/chelsea.png"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder like a fresh clone's: it has the published network and no other."""
    (tmp_path / "saved_models").mkdir()
    shutil.copy(PUBLISHED, tmp_path / "saved_models")
    return tmp_path


def test_file_is_small_and_says_what_it_was_trained_on():
    assert PUBLISHED.stat().st_size <= 8_000_000
    checkpoint = load_checkpoint(PUBLISHED)
    assert (checkpoint.model_name, checkpoint.data.split) == ("efficientnet_lite0_unet", "official")
    assert len(checkpoint.data.train_names) == 3312
    assert checkpoint.training is None
    kernels = [value for name, value in checkpoint.weights.items() if value.ndim == 4 and name not in ("mean", "std")]
    assert {value.dtype for value in kernels} == {torch.float16}


def test_inference_needs_no_training(folder):
    flags = ("--data_path", CHELSEA, "--output_path", "out", "--save", "cutouts,masks")
    said = run_ok("inference.py", *flags, cwd=folder)
    assert f"using {Path('saved_models/pets.pth')}, which comes with this program" in said
    mask = np.asarray(Image.open(folder / "out/chelsea_mask.png")) > 0
    face, background = mask[60:270, 60:310], np.concatenate([mask[:100, :25].ravel(), mask[60:, 420:].ravel()])
    assert face.mean() > 0.97
    assert background.mean() < 0.1
    cutout = np.asarray(Image.open(folder / "out/chelsea_cutout.png"))
    assert cutout.shape == (*mask.shape, 4)
    assert (cutout[80:250, 100:280, 3] == 255).mean() > 0.95
    solid = cutout[..., 3] == 255
    assert np.abs(cutout[..., :3].astype(int) - np.asarray(Image.open(CHELSEA)))[solid].mean() < 1


def test_published_network_is_found_from_any_folder(tmp_path):
    shutil.copy(CHELSEA, tmp_path / "photo.png")
    said = run_ok("inference.py", "photo.png", "--save", "masks", cwd=tmp_path)
    assert f"using {PUBLISHED}, which comes with this program" in said
    assert (tmp_path / "inference_results/photo_mask.png").is_file()


def test_own_best_checkpoint_comes_first_and_a_name_means_that_model(folder, trained):
    flags = ("--data_path", CHELSEA)
    assert_one_error(run_script("inference.py", *flags, "--model_name", "unet", cwd=folder), "unet_best.pth")
    done = run_script("inference.py", *flags, "--save_dir", "empty", cwd=folder)
    assert_one_error(done, "there is no checkpoint empty")
    shutil.copy(trained / "saved_models/tiny_best.pth", folder / "saved_models")
    said = run_ok("inference.py", *flags, cwd=folder)
    assert "with TINY" in said
    assert "comes with this program" not in said


@pytest.fixture(scope="module")
def model():
    return torch.hub.load(str(ROOT), "from_checkpoint", path=PUBLISHED, source="local")


def test_the_mask_is_that_of_inference(model, tmp_path):
    photograph(1).save(tmp_path / "photo.png")
    run_ok("inference.py", "photo.png", "--model_path", PUBLISHED, "--save", "masks,cutouts", cwd=tmp_path)
    with Image.open(tmp_path / "photo.png") as image:
        mask, alpha = model.segment(image), model.segment(image, alpha=True)
        assert image.size == mask.shape[::-1] == alpha.shape[::-1]
    with Image.open(tmp_path / "inference_results/photo_mask.png") as written:
        assert np.array_equal(mask, np.asarray(written))
    with Image.open(tmp_path / "inference_results/photo_cutout.png") as written:
        assert np.array_equal(np.round(alpha * 255), np.asarray(written)[..., 3])
    assert alpha.dtype == np.float32
    assert not alpha[mask == 0].all()


def test_files_and_arrays_are_images_too(model, tmp_path):
    image = photograph(1)
    upright = image.transpose(Image.Transpose.ROTATE_270)  # as the EXIF orientation says
    image.save(tmp_path / "photo.png", exif=turned())
    for alpha in (False, True):
        mask = model.segment(upright, alpha)
        for other in (np.asarray(upright), tmp_path / "photo.png", str(tmp_path / "photo.png")):
            assert np.array_equal(model.segment(other, alpha), mask)


@pytest.mark.parametrize("image", [None, b"a.jpg", torch.zeros(3, 9, 9), np.zeros((9, 9, 3)), np.zeros((9, 9), "u1")])
def test_what_is_no_image_is_named(model, image):
    with pytest.raises(TypeError, match=r"segment takes a file, a PIL image or an array of uint8 \(H, W, 3\), no "):
        model.segment(image)
    with pytest.raises(ValueError, match=r"nowhere.jpg can't be read as an image"):
        model.segment("nowhere.jpg")


def test_a_folder_is_no_checkpoint(tmp_path):
    (tmp_path / "a_best.pth").touch()
    words = re.escape(f"{tmp_path} is a folder, no checkpoint (in {tmp_path} there is a_best.pth); name another file")
    with pytest.raises(Exception, match=words):
        torch.hub.load(str(ROOT), "from_checkpoint", path=tmp_path, source="local")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_images_of_any_mode(model, mode):
    image = photograph(2).convert(mode.replace("I;16", "L"))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    mask = model.segment(image)
    assert mask.shape == (150, 200) and set(np.unique(mask)) <= {0, 255}
