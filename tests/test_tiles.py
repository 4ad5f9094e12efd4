"""Images at their own shape: tiles, kept shapes."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.layout import Sample
from data.view import View
from evaluation.predict import Predictor, predict_tiles, tile_starts, tile_weights
from helpers import assert_one_error, log_rows, rows, run_ok, run_script, scene
from stubs import FP32, Brightness, photograph

PREDICTOR = Predictor(Brightness().eval(), FP32)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 96, 97, 128, 1000])
def test_tiles_cover_a_length_and_overlap_by_half(length):
    starts = tile_starts(length, 64)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - 64)
    assert all(0 < b - a <= 32 for a, b in zip(starts, starts[1:]))


def test_the_middle_of_a_tile_counts_most():
    weights = tile_weights(64)
    assert weights.shape == (64, 64)
    assert weights.max() == weights[31:33, 31:33].min() <= 1
    assert weights.min() > 0
    assert torch.equal(weights, weights.T.flip(0))


@pytest.mark.parametrize("size", [(200, 150), (64, 300), (300, 40), (65, 65)])
def test_tiles_of_a_pixelwise_network_give_the_whole(size):
    image = np.asarray(photograph(1).resize(size))
    whole = PREDICTOR.predict(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])[0]
    torch.testing.assert_close(predict_tiles(PREDICTOR, image, 64, 3), whole, atol=1e-4, rtol=1e-5)


def test_kept_shapes(tmp_path):
    scene(300, 150).save(tmp_path / "wide.png")
    scene(9, 700).save(tmp_path / "tall.png")
    wide, tall = (Sample(name, tmp_path / f"{name}.png") for name in ("wide", "tall"))
    assert [View(64).size_of(one) for one in (wide, tall)] == [(64, 64), (64, 64)]
    assert [View(64, "keep").size_of(one) for one in (wide, tall)] == [(64, 32), (1, 64)]


def test_inference_in_tiles_at_kept_shapes_and_at_another_size_than_that_of_training(tmp_path, model_flags):
    folder = tmp_path / "images"
    folder.mkdir()
    scene(50, 40).save(folder / "small.png")
    scene(260, 170).save(folder / "large.png")
    (folder / "broken.png").write_bytes(b"no image")
    flags = (*model_flags, "--data_path", folder, "--amp", "off", "--batch_size", 4, "--save")
    kinds = "masks,probabilities,cutouts,overlays,panels"
    ways = {"whole": (), "tiled": ("--resize", "tile"), "kept": ("--resize", "keep"), "finer": ("--image_size", 96)}
    for name, more in ways.items():
        done = run_script("inference.py", *flags, kinds, "--output_path", name, *more, cwd=tmp_path)
        assert_one_error(done, "1 of 3 images", "broken.png", status=1)
        for kind in ("mask", "probability", "cutout", "overlay"):
            assert Image.open(tmp_path / f"{name}/large_{kind}.png").size == (260, 170)

    def file(folder: str, name: str) -> bytes:
        return (tmp_path / folder / name).read_bytes()

    assert file("tiled", "small_mask.png") == file("whole", "small_mask.png")  # one tile suffices
    assert len({file(name, "large_mask.png") for name in ways}) == 4
    log = log_rows(tmp_path, "inference")
    assert {row["pet_share"] != "" for row in log if "broken" not in row["picture"]} == {True}


def test_evaluation_sees_what_inference_sees(tmp_path, model_flags, shared_dataset):
    flags = (*model_flags, "--data_path", shared_dataset, "--amp", "off")
    for more in (("--resize", "keep"), ("--resize", "tile", "--image_size", 32, "--tta")):
        run_ok("evaluate.py", *flags, *more, "--report", "report", cwd=tmp_path)
        run_ok("inference.py", *flags, *more, cwd=tmp_path)
        scored = {row["name"]: float(row["dice"]) for row in rows(tmp_path / "report/images.csv")}
        found = {row["picture"].split("/")[-1][:-4]: float(row["dice"]) for row in log_rows(tmp_path, "inference")[-4:]}
        assert found == pytest.approx(scored, abs=1e-4)
        assert len(scored) == 4
    row = log_rows(tmp_path, "evaluation")[-1]
    assert (row["image_size"], row["resize"], row["scored_at"]) == ("32", "tile", "original")
