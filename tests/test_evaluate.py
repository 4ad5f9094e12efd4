"""evaluate.py as a process."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from data.dataset import Dataset
from data.image_io import read_mask
from data.pets import SimpleOxfordPetDataset
from helpers import TINY, assert_one_error, copy_run, log_rows, rows, run_ok, run_script, write_own
from models.checkpoint import load_checkpoint, save_checkpoint


def test_evaluation_reports_verdict_log_and_json(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    said = run_ok("evaluate.py", "--data_path", shared_dataset, "--json", "out/scores.json", cwd=folder).splitlines()
    report = json.loads((folder / "out/scores.json").read_text())
    assert re.fullmatch(r"TINY test Dice score: \d\.\d{4}", said[-2])
    assert float(said[-2].split()[-1]) == pytest.approx(report["dice"], abs=1e-4)
    verdicts = ((0.9, "Outstanding"), (0.85, "Good"), (0.8, "Passable"), (0, "Below"))
    assert said[-1].startswith(next(verdict for least, verdict in verdicts if report["dice"] >= least))
    assert report["images"] == 4 and said[-1].endswith(" (on 4 images alone)")
    assert report["encoder_start"] == "from scratch"
    (row,) = log_rows(folder, "evaluation")
    assert float(row["dataset_iou"]) == report["dataset_iou"]
    assert report["compute"] in said[0]
    assert 0 < report["precision"] <= 1
    run_ok("evaluate.py", "--data_path", shared_dataset, "--subset", "valid", cwd=folder)
    said = run_ok("evaluate.py", "--data_path", shared_dataset, "--subset", "all", "--allow_seen", cwd=folder)
    assert "alone" not in said  # of 40
    *_, row, _ = log_rows(folder, "evaluation")
    assert row["subset"] == "valid"
    assert float(row["dice"]) == pytest.approx(max(float(row["val_dice"]) for row in log_rows(folder)), abs=2e-4)


def test_scores_are_printed_although_the_log_is_malformed(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    log = folder / "logs/tiny_evaluation_log.csv"
    log.write_text("a,b\n1,2,3,4\n")
    done = run_script("evaluate.py", "--data_path", shared_dataset, cwd=folder)
    assert "test Dice score" in done.stdout
    assert_one_error(done, "evaluation_log.csv has a row with more columns")


def test_evaluation_with_every_option(trained, shared_dataset, tmp_path):
    last, best = (trained / f"saved_models/tiny_{kind}.pth" for kind in ("last", "best"))
    base = ("evaluate.py", "--data_path", shared_dataset, "--model_path", best)
    options = ("--original_size", "--tta", "--threshold", "auto", "--compare", last)
    said = run_ok(*base, "--json", "all.json", "--report", "out", *options, cwd=tmp_path)
    for words in ("the images' own sizes", "95 % interval", "cats", "dog2", "Minus"):
        assert words in said
    found = json.loads((tmp_path / "all.json").read_text())
    dice, low, high = found["intervals"]["dice"]
    assert low <= found["dice"] == dice <= high
    assert 0.05 <= found["threshold"] <= 0.95
    assert f"Threshold {found['threshold']:.2f}" in said
    assert {"cats", "dogs", "dog2"} <= found["groups"].keys()
    assert json.loads((tmp_path / "out/scores.json").read_text()) == found
    table = rows(tmp_path / "out/images.csv")
    assert np.mean([float(row["dice"]) for row in table]) == pytest.approx(found["dice"], abs=1e-6)
    panels = sorted(p.name for p in (tmp_path / "out/worst").iterdir())
    worst = sorted(table, key=lambda row: float(row["dice"]))
    assert panels == [f"{rank:03d}_{row['name']}.png" for rank, row in enumerate(worst, start=1)]


def test_bad_flags_of_evaluation_are_one_error_line(trained, shared_dataset, tmp_path):
    base = ("evaluate.py", "--data_path", shared_dataset, "--save_dir", trained / "saved_models")
    for flags, words in (
        (("--json", "."), "is a folder"),
        (("--report", shared_dataset / "images"), "is where the images or masks are"),
    ):
        assert_one_error(run_script(*base, *flags, cwd=tmp_path), words)


def test_masks_of_another_size_and_the_same_shape_are_used(own, tmp_path):
    sizes = {}
    for number, sample in enumerate(Dataset(own).samples):
        if number % 2:
            mask = Image.fromarray(read_mask(sample.mask_path))
            sizes[sample.name] = (2 * mask.width + 1, 2 * mask.height)  # 1 % wider than the image
            mask.resize(sizes[sample.name], Image.Resampling.NEAREST).save(sample.mask_path)
    said = run_ok("train.py", "--data_path", own, "--epochs", 2, *TINY, cwd=tmp_path)
    assert "20 of 40 masks have another size than their images, of the same shape" in said
    dataset = SimpleOxfordPetDataset(own, "train", image_size=64)
    for sample in dataset:
        light = sample["image"].float().mean(0) > 110
        assert (light == sample["mask"][0].bool()).float().mean() > 0.93
    flags = ("--original_size", "--subset", "all", "--allow_seen", "--report", "report")
    assert "20 of 40 masks have another size" in run_ok("evaluate.py", "--data_path", own, *flags, cwd=tmp_path)
    table = rows(tmp_path / "report/images.csv")
    scored_at = {row["name"]: (int(row["width"]), int(row["height"])) for row in table}
    assert {name: scored_at[name] for name in sizes} == sizes  # scored at the sizes of the masks
    run_ok("inference.py", "--data_path", own, "--output_path", "out", cwd=tmp_path)
    for mask in (tmp_path / "out").glob("*_mask.png"):  # of the sizes of the images
        (image,) = (own / "images").glob(f"{mask.name.removesuffix('_mask.png')}.*")
        assert Image.open(mask).size == Image.open(image).size


def test_checkpoint_of_another_dataset_takes_own_images(shared_own, shared_dataset, trained, tmp_path):
    checkpoint = load_checkpoint(trained / "saved_models/tiny_best.pth")
    checkpoint.data.split = "official"
    save_checkpoint(checkpoint, [tmp_path / "official.pth"])
    flags = ("--model_path", "official.pth", "--data_path")
    assert "4 test images" in run_ok("evaluate.py", *flags, shared_own, cwd=tmp_path)
    few = write_own(tmp_path / "few", count=4)  # which no split can divide
    for path in (few, few / "images"):
        said = run_ok("inference.py", *flags, path, cwd=tmp_path)
        assert "over 4 images with ground truth" in said
