"""inference.py as a process."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from data.splits import split_samples
from helpers import assert_one_error, copy_run, rows, run_ok, run_script, scene


def test_inference_on_a_dataset_its_images_folder_and_one_image(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    test_set = split_samples(shared_dataset).test
    model = ("--model", "saved_models/tiny_best.pth")
    said = run_ok("inference.py", *model, "--data_path", shared_dataset / "images", "--output_path", "out", cwd=folder)
    mean = float(re.search(r"mean Dice: (\d\.\d+) over 4 images", said)[1])
    results = [f"{pet.name}_{kind}.png" for pet in test_set for kind in ("mask", "panel")]
    assert sorted(p.name for p in (folder / "out").iterdir()) == sorted([*results, "index.html", "index.png"])
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
    assert "over 1 images with ground truth" in said


def test_inference_never_overwrites_inputs(trained, tmp_path):
    folder = copy_run(trained, tmp_path)
    pictures = folder / "own"
    pictures.mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8))
    for name in ("cat.jpg", "cat_mask.png", "a.jpg", "a.png", "a_jpg.png"):
        image.save(pictures / name)
    before = {p.name: p.read_bytes() for p in pictures.iterdir()}
    done = run_script("inference.py", "--data_path", pictures, "--output_path", folder / "own/../own", cwd=folder)
    assert_one_error(done, "is where the images or masks are")
    assert {p.name: p.read_bytes() for p in pictures.iterdir()} == before
    run_ok("inference.py", "--data_path", pictures, "--output_path", "out", cwd=folder)
    assert len(list((folder / "out").glob("*_panel.png"))) == 5


def test_inference_warns_of_training_images(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    done = run_script("inference.py", "--data_path", shared_dataset, "--subset", "train", cwd=folder)
    assert "WARNING: 32 of them were trained on" in done.stderr
    assert run_script("inference.py", "--data_path", shared_dataset, cwd=folder).stderr == ""


def test_inference_on_a_folder_of_any_images(trained, tmp_path):
    folder = copy_run(trained, tmp_path)
    pictures = folder / "my pictures"
    pictures.mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 131, 3)).astype(np.uint8))
    noise.save(pictures / "é ü.png")
    noise.convert("L").save(pictures / "same.jpg")
    noise.convert("RGBA").save(pictures / "same.png")
    (pictures / "notes.txt").write_text("no picture")
    said = run_ok("inference.py", "--data_path", pictures, "--output_path", "out", cwd=folder)
    assert "3 images in" in said
    assert "Dice" not in said
    names = {p.name for p in (folder / "out").iterdir() if p.name.endswith("_mask.png")}
    assert names == {"é ü_mask.png", "same_jpg_mask.png", "same_png_mask.png"}
    assert Image.open(folder / "out/é ü_mask.png").size == (131, 50)
    # Two parts, no empty third one for the missing ground truth.
    panel = Image.open(folder / "out/é ü_panel.png")
    assert panel.width < 3 * 256 * 131 / 50


def test_no_images_are_written_unless_asked(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    run_ok("inference.py", "--data_path", shared_dataset, cwd=folder)
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["logs", "saved_models"]


def test_bad_paths_are_one_error_line(trained, tmp_path):
    folder = copy_run(trained, tmp_path)
    (folder / "empty").mkdir()
    (folder / "text.jpg").write_text("no picture")
    bad = (("nowhere", "does not exist"), ("empty", "no images in empty"), ("text.jpg", "text.jpg can't be read"))
    for path, words in bad:
        assert_one_error(run_script("inference.py", "--data_path", path, "--save_results", cwd=folder), words)
    done = run_script("inference.py", "--data_path", "text.jpg", "--output_path", "text.jpg", cwd=folder)
    assert_one_error(done, "can't write to the folder text.jpg")


def test_malformed_log_is_refused_before_the_work(tmp_path, model_flags):
    scene().save(tmp_path / "one.png")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/tiny_inference_log.csv").write_text("a,b\n1,2,3\n")
    flags = ("--data_path", "one.png", "--output_path", "out")
    done = run_script("inference.py", *model_flags, *flags, cwd=tmp_path)
    assert_one_error(done, "inference_log.csv has a row with more columns than its header")
    assert not list(tmp_path.rglob("*_mask.png"))


def test_results_are_never_written_among_inputs(tmp_path, model_flags, dataset):
    for name in ("self/a/x.png", "self/a/x_mask.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        scene().save(tmp_path / name)
    before = (tmp_path / "self/a/x_mask.png").read_bytes()
    for flags in (
        ("--data_path", "self", "--recursive", "--output_path", "self"),
        ("--data_path", "self/a/x.png", "--output_path", "self/a"),
        ("--data_path", dataset, "--output_path", dataset / "annotations/trimaps"),
    ):
        done = run_script("inference.py", *model_flags, *flags, "--save", "masks", cwd=tmp_path)
        assert_one_error(done, "is where the images or masks are")
    assert (tmp_path / "self/a/x_mask.png").read_bytes() == before
    flags = ("--data_path", dataset, "--allow_seen", "--worst", 1, "--output_path", dataset / "images")
    assert_one_error(run_script("evaluate.py", *model_flags, *flags, cwd=tmp_path), "is where the images or masks are")
    # Where results lie below the pictures, a second run does not take them for pictures.
    (tmp_path / "few").mkdir()
    scene().save(tmp_path / "few/one.png")
    for _ in range(2):
        flags = ("--data_path", ".", "--recursive", "--save_results", "--save", "masks")
        assert "Segmenting 1 images" in run_ok("inference.py", *model_flags, *flags, cwd=tmp_path / "few")


def test_bad_flags_of_inference_are_one_error_line(tmp_path, model_flags):
    scene().save(tmp_path / "pet.png")
    for flags, words in (
        (("--save", "masks,maps"), "no result is called 'maps'; there are masks, probabilities"),
        (("--threshold", 0), "0 is not between 0 and 1"),
    ):
        assert_one_error(
            run_script("inference.py", *model_flags, "--data_path", "pet.png", *flags, cwd=tmp_path), words
        )
