"""model.segment: one image in, its mask out."""

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import SRC, run_ok
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


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "CMYK", "1"])
def test_images_of_any_mode(model, mode):
    image = photograph(2)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    mask = model.segment(image.convert(mode) if mode != "I;16" else image)
    assert mask.shape == (150, 200)
    assert set(np.unique(mask)) <= {0, 255}
