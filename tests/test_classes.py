"""Named classes, from masks of numbers or by species: learned, scored, drawn, written."""

import json
import shutil
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.dataset import Dataset, ImageDataset
from data.image_io import read_class_mask
from data.view import View
from evaluation.metrics import COUNTS, boundary_f, intervals, label_counts, mean_dice, score_counts
from evaluation.report import group_scores
from helpers import TINY, assert_one_error, log_rows, rows, run_ok, run_script
from models.checkpoint import load_checkpoint
from models.names import class_names
from models.task import BACKGROUND, SPECIES, ClassesTask, task_named
from runtime.errors import DatasetError
from training.resolve import resumed_config
from visual.panels import draw_panel, mask_image

NAMED = ClassesTask(("background", "red", "green", "blue"))


def write_classes(root: Path, count: int = 40) -> Path:
    """Own images of a red, green or blue disc on noise; masks with a palette, a ring around each disc left out."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    y, x = np.mgrid[:64, :64]
    for i in range(count):
        rng = np.random.default_rng([3, i])
        pixels, mask = rng.integers(0, 90, (64, 64, 3)), np.zeros((64, 64), np.uint8)
        for number in {1 + i % 3, 1 + (i // 3) % 3}:
            distance = np.hypot(x - rng.uniform(15, 49), y - rng.uniform(15, 49))
            mask[(distance < 13) & (mask == 0)] = 255
            mask[distance < 11] = number
            pixels[distance < 12, number - 1] += 160
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"images/{i}.png")
        image = Image.fromarray(mask)
        image.putpalette(bytes(range(256)) * 3)
        image.save(root / f"masks/{i}.png")
    (root / "classes.txt").write_text("background\nred\ngreen\nblue\n")
    return root


@pytest.fixture(scope="module")
def colored(tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp("colored") / "data")


@pytest.fixture(scope="module")
def run_of_classes(tmp_path_factory, colored) -> Path:
    """A folder with a network of four classes."""
    folder = tmp_path_factory.mktemp("classes")
    flags = ("--data_path", colored, "--classes", colored / "classes.txt", "--loss", "focal_tversky")
    flags += ("--class_weights", "0.3,4,5,5", "--augment", "online", "--learning_rate", 0.03, "--batch_size", 4)
    said = run_ok("train.py", *flags, "--epochs", 8, *TINY, cwd=folder)
    assert "classes " in said
    return folder


def test_names_come_from_a_file_or_with_commas(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("\ufeffbackground\n\n  road sign \nStraße\n", encoding="utf-8")
    assert class_names(str(file)) == class_names("background,road sign,Straße") == "background,road sign,Straße"
    assert class_names("species") == class_names("background, cat, dog") == "species"
    assert task_named("background,cat,dog") is SPECIES
    for text in ("background", "a,b,a", "a,,b", "a,b/c", str(tmp_path), ",".join(map(str, range(300)))):
        with pytest.raises(ArgumentTypeError):
            class_names(text)


def test_masks_of_numbers_and_what_is_refused(tmp_path):
    numbers = np.array([[0, 1], [3, 255]], np.uint8)
    for image in (Image.fromarray(numbers), Image.fromarray(numbers).convert("P")):
        image.save(tmp_path / "mask.png")
        assert read_class_mask(tmp_path / "mask.png", NAMED.classes).tolist() == numbers.tolist()
    with pytest.raises(DatasetError, match=r"mask\.png holds the value 3, but --classes names 3 classes, from 0 on"):
        read_class_mask(tmp_path / "mask.png", NAMED.classes[:3])


def test_decision_is_the_likeliest_class():
    logits = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(1))
    decision = NAMED.decision_logits(logits)
    assert torch.equal(NAMED.label_map(decision)[:, 0], logits.argmax(1).to(torch.uint8) + BACKGROUND)
    assert torch.equal(decision[:, :1] > 0, logits.argmax(1, keepdim=True) != 0)
    assert np.array_equal(NAMED.decided(logits.softmax(1).numpy()), logits.argmax(1).numpy())


def test_species_come_from_the_lists(shared_dataset, tmp_path):
    samples = Dataset(shared_dataset).part("test")
    plain, species = ImageDataset(samples, View(64)), ImageDataset(samples, View(64, classes=SPECIES.classes))
    for sample, first, second in zip(species.samples, plain, species):
        expected = 1 if sample.name.startswith("Cat") else 2
        assert torch.equal(second["labels"] == BACKGROUND, first["labels"] == BACKGROUND)
        assert set(second["labels"].unique().tolist()) <= {BACKGROUND, expected}
    with pytest.raises(DatasetError, match="is a trimap and has no classes"):
        ImageDataset(samples, View(classes=NAMED.classes))
    root = shutil.copytree(shared_dataset, tmp_path / "without")
    for file in (root / "annotations").glob("*.txt"):
        file.unlink()
    with pytest.raises(DatasetError, match="no list says the species of"):
        ImageDataset(Dataset(root).part("test"), View(classes=SPECIES.classes))


def test_to_predict_none_earns_nothing():
    truth = torch.full((4, 1, 8, 8), BACKGROUND, dtype=torch.uint8)
    truth[:2, :, :4] = 1
    truth[2, :, :4] = 2
    nothing = torch.full_like(truth, BACKGROUND)
    assert mean_dice(label_counts(NAMED, nothing, truth), NAMED) == 0
    assert mean_dice(label_counts(NAMED, truth, truth), NAMED) == 1
    logits = NAMED.one_hot(truth) * 10
    assert mean_dice(score_counts(NAMED, NAMED.decision_logits(logits), truth), NAMED) == 1
    two = ClassesTask(("background", "road"))
    assert mean_dice(label_counts(two, nothing, truth), two) == 0


def test_scores_and_intervals_leave_out_what_an_image_has_not():
    some = [
        {**dict.fromkeys(COUNTS, 4), "boundary_f": 0.5}
        | {"dice": 0.5, "dice_red": a, "dice_green": b, "iou_red": a, "iou_green": b}
        for a, b in ((0.2, 0.9), (0.6, np.nan), (np.nan, 0.7), (np.nan, np.nan))
    ]
    scores = intervals(some, ("red", "green"))
    assert scores["dice_red"].value == pytest.approx(0.4)
    assert scores["dice_green"].value == pytest.approx(0.8)
    assert scores["dice"].value == scores["iou"].value == pytest.approx(0.6)
    assert scores["dice_red"][1:] == pytest.approx((0.2, 0.6))


def test_panels_have_a_legend_and_masks_a_palette():
    labels = np.array([[0, 1], [3, 255]], np.uint8)
    panel = np.asarray(draw_panel(np.zeros((40, 60, 3), np.uint8), labels, labels, "title", NAMED))
    plain = np.asarray(draw_panel(np.zeros((40, 60, 3), np.uint8), np.zeros((2, 2), np.uint8), None, "title"))
    assert panel.shape[0] > plain.shape[0]
    legend = {tuple(color) for color in panel[plain.shape[0] :].reshape(-1, 3).tolist()}
    assert set(NAMED.colors) <= legend
    image = mask_image(labels, NAMED)
    assert np.asarray(image).tolist() == [[0, 1], [3, 255]]
    assert np.asarray(image.convert("RGB"))[0, 1].tolist() == [128, 0, 0]  # as in Pascal VOC


def test_classes_from_training_to_files(run_of_classes, colored, tmp_path):
    flags = ("--data_path", colored, "--save_dir", run_of_classes / "saved_models")
    said = run_ok("evaluate.py", *flags, "--report", "report", cwd=tmp_path)
    found = json.loads((tmp_path / "report/scores.json").read_text())
    of_classes = [value for name, value in found.items() if name.startswith("dice_")]
    assert found["dice"] == pytest.approx(np.mean(of_classes), abs=1e-6) and found["dice"] > 0.5
    assert f"test Dice score: {found['dice']:.4f}" in said
    assert "Pixels of a class (row) by predicted class" in said
    run_ok("evaluate.py", *flags, "--subset", "valid", "--json", "valid.json", cwd=tmp_path)
    best = max(float(row["val_dice"]) for row in log_rows(run_of_classes))  # as training has counted it
    assert json.loads((tmp_path / "valid.json").read_text())["dice"] == pytest.approx(best, abs=1e-4)

    run_ok("inference.py", *flags, "--output_path", "out", "--save", "masks,panels,cutouts,overlays", cwd=tmp_path)
    matrix = np.zeros((4, 4), int)
    for row in rows(tmp_path / "report/images.csv"):
        files = tmp_path / f"out/{row['name']}_mask.png", colored / f"masks/{row['name']}.png"
        mask, truth = (np.asarray(Image.open(path)) for path in files)
        counted = truth != 255
        np.add.at(matrix, (truth[counted], mask[counted]), 1)
        for number, name in enumerate(NAMED.classes[1:], start=1):
            p, t = (mask == number) & counted, (truth == number) & counted
            expected = 2 * (p & t).sum() / (p.sum() + t.sum()) if p.any() or t.any() else np.nan
            assert float(row[f"dice_{name}"] or "nan") == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert found["confusion"] == matrix.tolist()
    assert (tmp_path / "out/index.html").is_file()
    said = run_ok("export.py", *flags, "--formats", "onnx", "--output_path", ".", cwd=tmp_path)
    assert "100.00" in said


def test_masks_without_a_class_are_refused_and_absent_ones_named(colored, tmp_path):
    root = shutil.copytree(colored, tmp_path / "data")
    flags = ("train.py", "--data_path", root, "--epochs", 1, *TINY)
    done = run_script(*flags, "--classes", "background,red,green,blue,violet", cwd=tmp_path)
    assert "WARNING: no pixel is violet in 32 training images." in done.stderr
    for file in (root / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(file)) > 0).astype(np.uint8) * 255).save(file)
    done = run_script(*flags, "--classes", "background,object", cwd=tmp_path)
    assert_one_error(done, "have no class but background", "255 is left out")


def test_images_are_segmented_without_masks_of_other_classes(run_of_classes, shared_dataset, tmp_path):
    flags = ("--data_path", shared_dataset, "--save_dir", run_of_classes / "saved_models")
    said = run_ok("inference.py", *flags, "--output_path", "out", cwd=tmp_path)
    assert "The masks are not used" in said
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 4


def test_saved_classes_never_name_a_file(run_of_classes, tmp_path):
    checkpoint = load_checkpoint(run_of_classes / "saved_models/tiny_last.pth")
    (tmp_path / "names").write_text("a\nb\n")
    checkpoint.training.settings["classes"] = str(tmp_path / "names")
    assert resumed_config({}, checkpoint, tmp_path).classes == ",".join(NAMED.classes)


def test_groups_are_scored_by_the_classes_they_have():
    row = {**dict.fromkeys(COUNTS, 4), "dice": 0.5, "boundary_f": 0.5}
    row |= {"pixels_cat": 9, "dice_cat": 0.9, "iou_cat": 0.8}
    row |= {"pixels_dog": 0, "dice_dog": 0.0, "iou_dog": 0.0}  # some pixels are taken for a dog
    rows = [{**row, "name": "Sphynx_1"}, {**row, "name": "Sphynx_2"}, {**row, "name": "Bombay_1", "dice_cat": 0.6}]
    assert intervals(rows[:2], ("cat", "dog"))["dice"].value == pytest.approx(0.45)
    scores = group_scores(rows, ("cat", "dog"))
    assert [(name, dice.value) for name, dice in scores.items()] == [("cats", 0.8), ("Bombay", 0.6), ("Sphynx", 0.9)]


def test_outlines_beside_ignored_pixels_do_not_count():
    y, x = torch.meshgrid(torch.arange(80), torch.arange(80), indexing="ij")
    distance = ((y - 40.0) ** 2 + (x - 40.0) ** 2).sqrt()[None, None]
    truth, counted = distance < 20, (distance < 20) | (distance > 30)
    assert boundary_f(distance < 26, truth, 2, counted).item() == 1  # nothing known is wrong
    right = (x > 39)[None, None]
    assert boundary_f(~truth & right, truth & right, 2, right).item() == 1  # the same outline
    assert boundary_f((distance < 10) & right, truth & right, 2, right).item() == 0


def test_check_and_preview_know_the_classes(colored, tmp_path):
    flags = ("--data_path", colored, "--check", "--preview", "preview.png")
    said = run_ok("oxford_pet.py", *flags, "--classes", colored / "classes.txt", cwd=tmp_path)
    assert "Drew 6 images" in said
    assert (tmp_path / "preview.png").is_file()
    done = run_script("oxford_pet.py", *flags, cwd=tmp_path)
    assert_one_error(done, "40 faults", "classes get names with --classes FILE", "(40 files)")


@pytest.mark.parametrize(
    ("script", "more"), [("evaluate.py", "--threshold auto"), ("inference.py", "--save probabilities")]
)
def test_flags_of_two_classes_are_refused(run_of_classes, colored, tmp_path, script, more):
    flags = ("--data_path", colored, "--save_dir", run_of_classes / "saved_models", *more.split())
    done = run_script(script, *flags, cwd=tmp_path)
    assert_one_error(done, more.split()[0], "is not for networks of named classes")
