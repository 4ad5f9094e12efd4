"""Cutouts: alpha and colors in the border of a trimap, and what inference.py writes of a photograph."""

import sys

import numpy as np
import pytest
from PIL import Image, ImageCms

import inference
from evaluation.matting import CONTACT, INNER, OUTER, cut_out, matting_trimap
from helpers import assert_one_error, run_ok, run_script, scene, turned, write_scenes
from models.task import BACKGROUND, BORDER, PET, TASKS
from runtime.errors import UsageError

PET_COLOR, OTHER_COLOR = np.array([200.0, 120, 40]), np.array([20.0, 60, 160])


def soft_disc(height: int = 150, width: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A disc with a soft edge over another color: image, trimap and the true alpha."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(x - width / 2, y - height / 2)
    radius, soft = height * 0.3, height / 25
    alpha = np.clip((radius - distance) / soft + 0.5, 0, 1)
    noise = np.random.default_rng(0).normal(0, 3, (height, width, 3))
    image = alpha[..., None] * PET_COLOR + (1 - alpha[..., None]) * OTHER_COLOR + noise
    trimap = np.select([distance < radius - 1.5 * soft, distance > radius + 1.5 * soft], [PET, BACKGROUND], BORDER)
    return image.clip(0, 255).round().astype(np.uint8), trimap.astype(np.uint8), alpha


@pytest.mark.parametrize("engine", ["guided", "pymatting"])
def test_alpha_and_colors_are_recovered(engine):
    if engine == "pymatting":
        pytest.importorskip("pymatting")
    image, trimap, alpha = soft_disc()
    before = image.copy()
    cutout = cut_out(image, trimap, engine)
    border = trimap == BORDER
    assert (cutout.shape, cutout.dtype) == ((150, 200, 4), np.uint8)
    assert np.array_equal(image, before)
    assert np.abs(cutout[..., 3] / 255 - alpha)[border].mean() < 0.04
    assert (cutout[trimap == PET] == np.dstack([image, np.full(trimap.shape, 255)])[trimap == PET]).all()
    assert (cutout[trimap == BACKGROUND] == 0).all()
    half = border & (alpha > 0.2) & (alpha < 0.8)
    assert np.abs(cutout[half][:, :3] - PET_COLOR).mean() < 12  # that of the image is off by half the difference, 45
    assert np.abs(image[half] - PET_COLOR).mean() > 35


def test_large_images_keep_their_detail():
    image, trimap, alpha = soft_disc(1200, 1600)
    image[:, 900:903], alpha[:, 900:903] = PET_COLOR, 1.0  # a hair, which leaves the animal
    cutout = cut_out(image, trimap)
    assert np.abs(cutout[..., 3] / 255 - alpha)[trimap == BORDER].mean() < 0.04


@pytest.mark.parametrize("missing", [PET, BACKGROUND, BORDER])
def test_without_one_of_the_three_the_mask_is_alpha(missing):
    image, trimap, _ = soft_disc(40, 50)
    other = {PET: BORDER, BACKGROUND: BORDER, BORDER: PET}[missing]
    trimap[trimap == missing] = other
    assert np.array_equal(cut_out(image, trimap)[..., 3], np.where(trimap == BACKGROUND, 0, 255))


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1), (2, 90), (47, 48), (48, 48), (97, 131)])
@pytest.mark.parametrize("flat", [True, False])
def test_any_size_and_flat_images(shape, flat):
    rng = np.random.default_rng(1)
    image = np.full((*shape, 3), 255, np.uint8) if flat else rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    trimap = np.resize(np.repeat([PET, BORDER, BACKGROUND], max(1, shape[1] // 3)), shape).astype(np.uint8)
    cutout = cut_out(image, trimap)
    assert cutout.shape == (*shape, 4)
    assert (cutout[trimap == PET, 3] == 255).all()
    assert (cutout[trimap == BACKGROUND, 3] == 0).all()


def test_trimap_of_a_mask_has_a_band_at_the_outline_alone():
    labels = np.full((200, 200), BACKGROUND, np.uint8)
    labels[60:140, :120] = PET  # it touches the image's edge
    trimap = matting_trimap(labels, TASKS["binary"])
    inner, outer = (round(share * 200) for share in (INNER, OUTER))
    assert (trimap[60 + inner : 140 - inner, : 120 - inner] == PET).all()
    assert (trimap[100, 120 - inner : 120 + outer] == BORDER).all()
    assert (trimap[: 60 - outer] == BACKGROUND).all()
    assert (trimap[100, 120 + outer :] == BACKGROUND).all()
    labels[10:18, 180:188] = PET  # a second animal, thinner than the band
    assert (matting_trimap(labels, TASKS["binary"])[10:18, 180:188] == PET).any()


def test_a_learned_border_stays_and_lies_also_where_pet_touches_background():
    _, labels, _ = soft_disc()
    assert (matting_trimap(labels, TASKS["trimap"]) == labels).all()
    labels = np.repeat(np.array([PET, BORDER, BACKGROUND], np.uint8), (90, 20, 90))[None].repeat(200, axis=0)
    labels[100:] = np.where(np.arange(200) < 100, PET, BACKGROUND)  # without a border
    trimap, reach = matting_trimap(labels, TASKS["trimap"]), round(CONTACT * 200)
    assert (trimap[:90] == labels[:90]).all()
    assert (trimap[110:, 100 - reach : 100 + reach] == BORDER).all()
    assert (trimap[110:, : 98 - reach] == PET).all()
    assert (trimap[110:, 102 + reach :] == BACKGROUND).all()


def test_a_photograph_needs_no_flag(tmp_path, model_flags):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    scene(90, 60).save(tmp_path / "photo.jpg", icc_profile=profile, exif=turned())
    scene(90, 60).convert("CMYK").save(tmp_path / "print.jpg", icc_profile=profile[:16] + b"CMYK" + profile[20:])
    said = run_ok("inference.py", *model_flags, "photo.jpg", cwd=tmp_path)  # after a flag that takes several words
    assert "Results (masks, panels, cutouts) are in inference_results" in said
    names = {path.name for path in (tmp_path / "inference_results").iterdir()}
    assert names == {"photo_cutout.png", "photo_mask.png", "photo_panel.png"}
    cutout = Image.open(tmp_path / "inference_results/photo_cutout.png")
    assert (cutout.mode, cutout.size, cutout.info["icc_profile"]) == ("RGBA", (60, 90), profile)
    (tmp_path / "more").mkdir()
    scene().convert("L").save(tmp_path / "more/gray.png")
    scene().convert("RGBA").save(tmp_path / "more/alpha.png")
    words = ("photo.jpg", "more", "../" + tmp_path.name + "/print.jpg", "photo.jpg")
    run_ok("inference.py", *words, *model_flags, "--output_path", "out", "--save", "cutouts", cwd=tmp_path)
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")}
    assert written == {"photo_cutout.png", "print_cutout.png", "more/gray_cutout.png", "more/alpha_cutout.png"}
    assert "icc_profile" not in Image.open(tmp_path / "out/print_cutout.png").info  # it is not of these colors


def test_photographs_are_there_and_may_follow_the_flag_of_datasets(tmp_path, model_flags):
    write_scenes(tmp_path, "a.png")
    done = run_script("inference.py", "a.png", "b.png", *model_flags, cwd=tmp_path)
    assert_one_error(done, "b.png does not exist")
    assert not (tmp_path / "inference_results").exists()
    write_scenes(tmp_path, "b.png")  # as a shell gives a pattern that nobody quoted
    said = run_ok("inference.py", "--data_path", "a.png", "b.png", *model_flags, "--save", "masks", cwd=tmp_path)
    assert "Segmenting 2 images (a.png, b.png) with TINY" in said


def test_without_pymatting_the_command_is_named(tmp_path, model_flags, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymatting", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="pip install -r requirements-matting.txt"):
        inference.main(["a.png", "--matting", "pymatting", *map(str, model_flags)])
