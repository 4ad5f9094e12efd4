"""inference.py as a process: images of every kind, datasets, bad input."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.dataset import Dataset
from data.image_io import read_image
from helpers import assert_one_error, copy_run, log_rows, rows, run_ok, run_script, scene, turned, write_scenes
from models.checkpoint import load_checkpoint
from visual.panels import draw_outline


def test_inference_on_a_dataset_its_images_folder_and_one_image(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    test_set = Dataset(shared_dataset).part("test")
    model = ("--model", "saved_models/tiny_best.pth")
    said = run_ok("inference.py", *model, "--data_path", shared_dataset / "images", "--output_path", "out", cwd=folder)
    mean = float(re.search(r"mean Dice: (\d\.\d+) over 4 images", said)[1])
    results = [f"{pet.name}_{kind}.png" for pet in test_set for kind in ("mask", "panel")]
    assert sorted(p.name for p in (folder / "out").iterdir()) == sorted([*results, "index.html"])
    for pet in test_set:
        mask = Image.open(folder / f"out/{pet.name}_mask.png")
        assert mask.size == Image.open(pet.image_path).size
        assert mask.mode == "L"
        assert set(np.unique(mask)) <= {0, 255}
    run_ok("evaluate.py", "--data_path", shared_dataset, "--json", "s.json", cwd=folder)
    assert json.loads((folder / "s.json").read_text())["dice"] == pytest.approx(mean, abs=1e-4)

    run_ok("inference.py", "--data_path", shared_dataset, "--save_results", "-b", 3, cwd=folder)
    for file in (folder / "out").iterdir():
        assert (folder / "inference_results" / file.name).is_file()
    table = rows(folder / "logs/tiny_inference_log.csv")
    assert len(table) == 8
    assert np.mean([float(row["dice"]) for row in table[:4]]) == pytest.approx(mean, abs=1e-4)

    said = run_ok("inference.py", "--data_path", test_set[0].image_path, cwd=folder)
    assert "over 1 image with ground truth" in said


def test_training_images_are_warned_of_and_nothing_is_written_unless_asked(tmp_path, model_flags, shared_dataset):
    flags = ("inference.py", *model_flags, "--data_path", shared_dataset)
    assert "WARNING: it was trained on 32 of them" in run_script(*flags, "--subset", "train", cwd=tmp_path).stderr
    done = run_script(*flags, cwd=tmp_path)
    assert done.stderr == "" and "mean Dice" in done.stdout and "No results are written" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["logs"]


def test_bad_flags_and_a_malformed_log_are_one_error_line_before_the_work(tmp_path, model_flags):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("no picture")
    scene().save(tmp_path / "pet.png")
    for flags, words in (
        (("nowhere",), "does not exist"),
        (("empty",), "no images in empty"),
        (("*.gif",), "no images"),
        (("text.jpg", "--save", "panels,coco,yolo"), "text.jpg can't be read"),
        (("text.jpg", "--output_path", "text.jpg"), "can't write to the folder text.jpg"),
        (("pet.png", "--save", "masks,maps"), "no result is called 'maps'; there are masks, probabilities"),
        (("pet.png", "--threshold", 0), "0 is not between 0 and 1"),
    ):
        done = run_script("inference.py", *model_flags, "--data_path", *flags, cwd=tmp_path)
        assert_one_error(done, words)
        assert "Results" not in done.stdout
    assert not list((tmp_path / "inference_results").iterdir())
    (tmp_path / "logs/tiny_inference_log.csv").write_text("a,b\n1,2,3\n")
    done = run_script("inference.py", *model_flags, "--data_path", "pet.png", cwd=tmp_path)
    assert_one_error(done, "inference_log.csv has a row with more columns than its header")
    assert not list(tmp_path.rglob("*_mask.png"))


def test_results_are_never_written_among_inputs(tmp_path, model_flags, dataset):
    write_scenes(tmp_path, "self/a/x.png", "self/a/x_mask.png")
    before = (tmp_path / "self/a/x_mask.png").read_bytes()
    for flags in (
        ("--data_path", "self/**/*.png", "--output_path", "self/a"),
        ("--data_path", "self/a", "--output_path", "self/a/../a"),
        ("--data_path", dataset, "--output_path", dataset / "annotations/trimaps"),
    ):
        done = run_script("inference.py", *model_flags, *flags, "--save", "masks", cwd=tmp_path)
        assert_one_error(done, "is where the images or masks are")
    assert (tmp_path / "self/a/x_mask.png").read_bytes() == before


def test_a_bad_mask_does_not_cost_the_image(dataset, tmp_path, model_flags):
    trimaps = dataset / "annotations/trimaps"
    names = sorted(sample.name for sample in Dataset(dataset).part("test"))
    (trimaps / f"{names[0]}.png").write_bytes(b"no mask")
    Image.new("L", (9, 70), 1).save(trimaps / f"{names[1]}.png")  # of another shape
    flags = ("--data_path", dataset, "--output_path", "out", "--save", "masks,panels")
    done = run_script("inference.py", *model_flags, *flags, cwd=tmp_path)
    assert_one_error(done, "2 of 4 images, or their masks, can't be used", *names[:2], status=1)
    assert "over 2 images with ground truth" in done.stdout
    for row in log_rows(tmp_path, "inference"):
        bad = Path(row["picture"]).stem in names[:2]
        assert (row["error"] != "", row["dice"] == "", row["pet_share"] == "") == (bad, bad, False)
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == len(list((tmp_path / "out").glob("*_panel.png"))) == 4


def odd_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Pictures of many formats and modes; returns the size, (width, height), at which each is shown."""
    folder.mkdir()
    picture, sizes = scene(), {}
    saves = {
        "plain.jpg": (picture, {}),
        "turned.jpg": (picture, {"exif": turned()}),
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "rgba.png": (picture.convert("RGBA"), {}),
        "deep.png": (Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257), {}),
        "floats.tif": (picture.convert("F"), {}),
        "moving.gif": (picture.quantize(16), {"save_all": True, "append_images": [picture.quantize(4)]}),
        "naïve 猫\nfile.PNG": (picture, {}),
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
    scene().save(tmp_path / "odd" / ("x" * 250 + ".png"))  # with _mask its name is too long
    kinds = "masks,probabilities,overlays,cutouts,panels"
    flags = (*model_flags, "--data_path", "odd", "--output_path", "out", "--save", kinds)
    done = run_script("inference.py", *flags, "--batch_size", 3, cwd=tmp_path)
    assert_one_error(done, f"3 of {len(sizes) + 3} images", "text.jpg", "can't be written", status=1)
    for name, (width, height) in sizes.items():
        stem = name.replace(".", "_") if name.startswith("same") else name.rpartition(".")[0]
        mask, overlay, probability, cutout = (
            Image.open(tmp_path / f"out/{stem}_{kind}.png") for kind in ("mask", "overlay", "probability", "cutout")
        )
        assert mask.size == overlay.size == probability.size == cutout.size == (width, height), name
        mask, cutout, shown = np.asarray(mask), np.asarray(cutout), read_image(tmp_path / "odd" / name, upright=True)
        assert set(np.unique(mask)) <= {0, 255}
        assert probability.mode == "I;16"
        assert np.array_equal(mask == 255, np.asarray(probability) > 32767), name  # half of 65535
        solid = cutout[..., 3] == 255
        assert not solid.any() or (mask[solid] == 255).mean() > 0.9, name
        assert not solid.any() or np.abs(cutout[..., :3].astype(int) - shown)[solid].mean() < 3, name
        assert np.array_equal(np.asarray(overlay), draw_outline(shown, mask)), name
        panel = Image.open(tmp_path / f"out/{stem}_panel.png")
        assert panel.width <= 3 * 12 + 2 * min(768, max(85, round(256 * width / height)))  # no part for a mask
    log = {Path(row["picture"]).name: row for row in log_rows(tmp_path, "inference")}
    assert len(log) == len(sizes) + 3
    assert "can't be read" in log["text.jpg"]["error"]
    assert {log[name]["error"] for name in sizes} == {""}
    assert (int(log["turned.jpg"]["width"]), int(log["turned.jpg"]["height"])) == (60, 90)


def test_results_equal_the_networks_output(tmp_path, trained, model_flags):
    scene().save(tmp_path / "pet.png")
    flags = (*model_flags, "--data_path", "pet.png", "--output_path", "out", "--amp", "off")
    run_ok("inference.py", *flags, "--save", "masks,probabilities", cwd=tmp_path)
    model = load_checkpoint(trained / "saved_models/tiny_best.pth").build("best")
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


def test_patterns_find_images_in_all_folders_below(tmp_path, model_flags):
    write_scenes(tmp_path / "in", "a/one.png", "a/b/one.png", "a/b/two.jpg", "c/three.png")
    flags = (*model_flags, "--save", "masks", "--output_path")

    def masks(folder: str) -> list[str]:
        return sorted(str(p.relative_to(tmp_path / folder)) for p in (tmp_path / folder).rglob("*_mask.png"))

    everything = ["a/b/one_mask.png", "a/b/two_mask.png", "a/one_mask.png", "c/three_mask.png"]
    for _ in range(2):  # not of its own results
        run_ok("inference.py", *flags, "in/out", "--data_path", "in/**/*", cwd=tmp_path)
        assert masks("in/out") == everything
    run_ok("inference.py", *flags, "some", "in/a/**/*.png", cwd=tmp_path)
    assert masks("some") == ["b/one_mask.png", "one_mask.png"]
