"""model.segment: one image in, its mask out."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import SRC, run_ok, turned
from stubs import photograph

PUBLISHED = SRC.parent / "saved_models/pets.pth"


@pytest.fixture(scope="module")
def model():
    return torch.hub.load(str(SRC.parent), "from_checkpoint", path=PUBLISHED, source="local")


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
        torch.hub.load(str(SRC.parent), "from_checkpoint", path=tmp_path, source="local")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "CMYK", "1"])
def test_images_of_any_mode(model, mode):
    image = photograph(2)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    mask = model.segment(image.convert(mode) if mode != "I;16" else image)
    assert mask.shape == (150, 200)
    assert set(np.unique(mask)) <= {0, 255}
