"""Segmenting folders of images of every kind."""

import math
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.image_io import read_image
from helpers import assert_one_error, log_rows, run_ok, run_script, scene
from models.checkpoint import build_from_checkpoint, load_checkpoint
from visual.panels import draw_outline


def odd_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Pictures of many formats and modes; returns the size, (width, height), at which each is shown."""
    folder.mkdir()
    picture, sizes = scene(), {}
    turned = Image.Exif()
    turned[0x0112] = 6
    saves = {
        "plain.jpg": (picture, {}),
        "turned.jpg": (picture, {"exif": turned}),
        "gray.jpg": (picture.convert("L"), {}),
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "rgba.png": (picture.convert("RGBA"), {}),
        "palette.png": (picture.quantize(16), {}),
        "bits.png": (picture.convert("1"), {}),
        "deep.png": (Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257), {}),
        "small.webp": (picture, {}),
        "old.bmp": (picture, {}),
        "print.tiff": (picture.convert("CMYK"), {}),
        "floats.tif": (picture.convert("F"), {}),
        "moving.gif": (picture.quantize(16), {"save_all": True, "append_images": [picture.quantize(4)]}),
        "naïve 猫 file.PNG": (picture, {}),
        "same.png": (picture, {}),
        "same.jpg": (picture, {}),
        "one pixel.png": (Image.new("RGB", (1, 1)), {}),
        "tall.png": (scene(9, 700), {}),
    }
    for name, (image, options) in saves.items():
        image.save(folder / name, **options)
        sizes[name] = image.size[::-1] if name == "turned.jpg" else image.size
    return sizes


def test_all_images_are_segmented_and_the_rest_listed(tmp_path, model_flags):
    sizes = odd_files(tmp_path / "odd")
    (tmp_path / "odd/text.jpg").write_text("no picture")
    whole = (tmp_path / "odd/plain.jpg").read_bytes()
    (tmp_path / "odd/cut off.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "odd/notes.txt").write_text("not even by its name")
    kinds = "masks,probabilities,overlays,cutouts,panels"
    flags = (*model_flags, "--data_path", "odd", "--output_path", "out", "--save", kinds)
    done = run_script("inference.py", *flags, "--batch_size", 3, cwd=tmp_path)
    assert_one_error(done, f"2 of {len(sizes) + 2} images", "text.jpg", "cut off.jpg", status=1)
    for name, (width, height) in sizes.items():
        stem = name.replace(".", "_") if name.startswith("same") else name.rpartition(".")[0]
        found = {kind: Image.open(tmp_path / f"out/{stem}_{kind}.png") for kind in ("mask", "probability", "overlay")}
        for kind, image in found.items():
            assert image.size == (width, height), (name, kind)
        mask, levels = np.asarray(found["mask"]), np.asarray(found["probability"])
        assert set(np.unique(mask)) <= {0, 255}
        assert found["probability"].mode == "I;16"
        assert np.array_equal(mask == 255, levels > 32767), name  # half of 65535
        cutout = np.asarray(Image.open(tmp_path / f"out/{stem}_cutout.png"))
        shown = read_image(tmp_path / "odd" / name, upright=True)
        solid = cutout[..., 3] == 255
        assert cutout.shape == (height, width, 4)
        assert not solid.any() or (mask[solid] == 255).mean() > 0.9, name
        assert not solid.any() or np.abs(cutout[..., :3].astype(int) - shown)[solid].mean() < 3, name
        assert np.array_equal(np.asarray(found["overlay"]), draw_outline(shown, mask)), name
    log = {Path(row["picture"]).name: row for row in log_rows(tmp_path, "inference")}
    assert len(log) == len(sizes) + 2
    assert "can't be read" in log["text.jpg"]["error"]
    assert {log[name]["error"] for name in sizes} == {""}
    assert (int(log["turned.jpg"]["width"]), int(log["turned.jpg"]["height"])) == (60, 90)


def test_results_equal_the_networks_output(tmp_path, trained, model_flags):
    scene().save(tmp_path / "pet.png")
    flags = (*model_flags, "--data_path", "pet.png", "--output_path", "out", "--amp", "off")
    run_ok("inference.py", *flags, "--save", "masks,probabilities", cwd=tmp_path)
    content = load_checkpoint(trained / "saved_models/tiny_best.pth")
    model = build_from_checkpoint(content, "best")
    pixels = torch.from_numpy(read_image(tmp_path / "pet.png", (64, 64)).transpose(2, 0, 1).copy())[None]
    with torch.inference_mode():
        logits = torch.nn.functional.interpolate(model(pixels), (60, 90), mode="bilinear")[0, 0]
    mask = np.asarray(Image.open(tmp_path / "out/pet_mask.png")) == 255
    assert (mask == (logits > 0).numpy()).mean() > 0.999
    assert 0.1 < mask.mean() < 0.9
    levels = np.asarray(Image.open(tmp_path / "out/pet_probability.png")) / 65535
    assert np.abs(levels - logits.sigmoid().numpy()).max() < 1e-3
    assert not (tmp_path / "out/index.html").exists()  # of one picture
    # A threshold moves the mask, and not the probabilities.
    run_ok("inference.py", *flags, "--save", "masks,probabilities", "--threshold", 0.9, cwd=tmp_path)
    stricter = np.asarray(Image.open(tmp_path / "out/pet_mask.png")) == 255
    assert (stricter == (logits > math.log(9)).numpy()).mean() > 0.999
    again = np.asarray(Image.open(tmp_path / "out/pet_probability.png")) / 65535
    assert np.abs(again - levels).max() < 1e-4


def test_recursive_folders_and_patterns(tmp_path, model_flags):
    for name in ("a/one.png", "a/b/one.png", "a/b/two.jpg", "c/three.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        scene().save(tmp_path / "in" / name)
    flags = (*model_flags, "--save", "masks", "--output_path")

    def masks(folder: str) -> list[str]:
        return sorted(str(p.relative_to(tmp_path / folder)) for p in (tmp_path / folder).rglob("*_mask.png"))

    everything = ["a/b/one_mask.png", "a/b/two_mask.png", "a/one_mask.png", "c/three_mask.png"]
    run_ok("inference.py", *flags, "out", "--data_path", "in", "--recursive", cwd=tmp_path)
    assert masks("out") == everything
    run_ok("inference.py", *flags, "in/out", "--data_path", "in", "--recursive", cwd=tmp_path)
    run_ok("inference.py", *flags, "in/out", "--data_path", "in", "--recursive", cwd=tmp_path)  # not of its own results
    assert masks("in/out") == everything
    shutil.rmtree(tmp_path / "in/out")
    run_ok("inference.py", *flags, "some", "--data_path", "in/a/**/*.png", cwd=tmp_path)
    assert masks("some") == ["b/one_mask.png", "one_mask.png"]
    for _ in range(2):
        run_ok("inference.py", *flags, "in/a/out", "--data_path", "in/a/**/*.png", cwd=tmp_path)
    assert masks("in/a/out") == ["b/one_mask.png", "one_mask.png"]
    assert_one_error(run_script("inference.py", *flags, "no", "--data_path", "in/*.gif", cwd=tmp_path), "no images")


def test_odd_names_and_damaged_exif(tmp_path, model_flags):
    folder = tmp_path / "in/images"
    folder.mkdir(parents=True)
    (tmp_path / "in/masks").mkdir()
    good = ["two\nlines.png", "ok.png"]
    for name in (*good, "x" * 250 + ".png"):
        scene().save(folder / name)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "abc"
    scene(48, 40).save(folder / "exif.jpg", exif=exif)
    whole = (folder / "exif.jpg").read_bytes()
    for position in range(24, 60):  # whatever is wrong in there, it is a picture or it is listed
        (folder / f"exif{position}.jpg").write_bytes(whole[:position] + b"\0" + whole[position + 1 :])
    (tmp_path / "in/masks/ok.json").write_text("{}")  # no mask of ok.png
    flags = (*model_flags, "--data_path", tmp_path / "in/*/*", "--output_path", "out")
    done = run_script("inference.py", *flags, cwd=tmp_path)
    assert_one_error(done, "xxx", "can't be written", status=1)
    for name in good:
        assert (tmp_path / f"out/{name[:-4]}_panel.png").is_file()
    log = {Path(row["picture"]).name: row for row in log_rows(tmp_path, "inference")}
    assert len(log) == 4 + 36
    assert log["ok.png"]["error"] == log["ok.png"]["dice"] == ""


def test_decompression_bomb_is_refused_and_a_large_image_is_not(tmp_path, model_flags):
    (tmp_path / "in").mkdir()
    scene(6000, 5000).save(tmp_path / "in/large.png", compress_level=1)
    Image.new("1", (20000, 10000)).save(tmp_path / "in/bomb.png")
    flags = (*model_flags, "--data_path", "in", "--output_path", "out", "--save", "masks")
    done = run_script("inference.py", *flags, cwd=tmp_path)
    assert_one_error(done, "1 of 2 images", "bomb.png", "decompression bomb", status=1)
    assert Image.open(tmp_path / "out/large_mask.png").size == (6000, 5000)
