"""The scripts as users run them, in processes of their own."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from data.index import fingerprint, split_samples
from evaluation.config import EvalConfig, InferConfig
from helpers import PYTHON, SRC, TINY, assert_one_error, copy_run, run_ok, run_script
from plot_dice_curve import runs_by_id
from training.config import TrainConfig

LOG_HEADER = "run_id,epoch,train_loss,train_dice,val_loss,val_dice,learning_rate,seconds,images_per_second"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------------- training


def test_training_leaves_what_the_contract_names(trained):
    assert sorted(p.name for p in (trained / "saved_models").glob("[!.]*")) == [
        "tiny_best.pth",
        "tiny_last.pth",
    ]
    log = trained / "logs/tiny_training_log.csv"
    assert log.read_text().splitlines()[0] == LOG_HEADER
    table = rows(log)
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert len({row["run_id"] for row in table}) == 1
    assert float(table[1]["train_loss"]) < float(table[0]["train_loss"])
    content = torch.load(trained / "saved_models/tiny_last.pth", weights_only=True)
    assert content["progress"]["history"][1]["val_dice"] == float(table[1]["val_dice"])
    assert content["optimizer"]["state"][0]["step"] == 8  # two epochs of 32 images in batches of 8


def test_header_and_epoch_lines(tmp_path, shared_dataset):
    said = run_ok(
        *("train.py", "--data_path", shared_dataset, "--epochs", 1, "--augment", "--num_augmentations", 2, *TINY),
        *("--model_name", "resnet34_unet", "--learning_rate", "1e-3"),
        *("--augment_uncertain", "--save_every", 1, "--split", "official"),
        cwd=tmp_path,
    )
    for words in (
        "Device  cpu",
        "Model   resnet34_unet, 29,070,513 parameters, encoder from scratch",
        "(Oxford-IIIT Pet layout), split official: 24 train, 2 valid, 14 test; 64x64, cached, ",
        "augment bulk x2 (72 samples), medium",
        "Plan    recipe report: bce, Adam 0.001, plateau, batch 8, 9 steps an epoch, seed 42",
        "1 epochs",
    ):
        assert words in said
    assert re.search(r"epoch +1/1 +train loss \d\.\d+ dice \d\.\d+ +valid loss .* images/s +best", said)
    assert "Best valid Dice" in said.splitlines()[-1]
    assert (tmp_path / "saved_models/resnet34_unet_epoch_001.pth").is_file()


def test_resume_with_epochs_trains_more_under_the_same_run(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    before = rows(folder / "logs/tiny_training_log.csv")
    best = torch.load(folder / "saved_models/tiny_best.pth", weights_only=True)["progress"]["best_dice"]
    done = run_ok("train.py", "--data_path", shared_dataset, "--resume", cwd=folder)
    assert "This run is complete" in done
    said = run_ok("train.py", "--data_path", shared_dataset, "--model_name", "tiny", "--resume", "-e", 1, cwd=folder)
    assert "in epoch 3 of 3" in said
    after = rows(folder / "logs/tiny_training_log.csv")
    assert after[:2] == before
    assert [row["epoch"] for row in after] == ["1", "2", "3"]
    assert len({row["run_id"] for row in after}) == 1
    content = torch.load(folder / "saved_models/tiny_last.pth", weights_only=True)
    assert content["optimizer"]["state"][0]["step"] == 12
    assert content["progress"]["best_dice"] >= best
    assert content["settings"]["image_size"] == 64


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--augment", "online", "--augment_uncertain", *TINY)
    finals = []
    for name, first in (("whole", 2), ("parts", 1)):
        folder = tmp_path / name
        folder.mkdir()
        run_ok("train.py", *flags, "--epochs", first, cwd=folder)
        if first == 1:
            run_ok("train.py", *flags, "--resume", "--epochs", 1, cwd=folder)
        finals.append(torch.load(folder / "saved_models/tiny_last.pth", weights_only=True))
    whole, parts = finals
    assert all(torch.equal(value, parts["weights"][key]) for key, value in whole["weights"].items())
    for a, b in zip(whole["optimizer"]["state"].values(), parts["optimizer"]["state"].values()):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_learning_rate_given_on_resume_is_taken_up_and_others_are_refused(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    flags = ("train.py", "--data_path", shared_dataset, "--resume")
    before = (folder / "saved_models/tiny_last.pth").read_bytes()
    done = run_script(*flags, "--batch_size", 4, "--image_size", 96, cwd=folder)
    assert_one_error(done, "batch_size 8 (now 4)", "image_size 64 (now 96)", "without --resume")
    assert_one_error(run_script(*flags, "--split", "official", cwd=folder), "split 80-10-10 (now official)")
    assert_one_error(run_script(*flags, "--model_name", "unet", cwd=folder), "no checkpoint", "tiny_last.pth")
    assert (folder / "saved_models/tiny_last.pth").read_bytes() == before
    run_ok(*flags, "--epochs", 1, "--learning_rate", "5e-5", cwd=folder)
    assert rows(folder / "logs/tiny_training_log.csv")[2]["learning_rate"] == "5e-05"


def test_a_resume_on_other_pictures_is_refused(trained, dataset, tmp_path):
    folder = copy_run(trained, tmp_path / "run")
    for name in ("trainval", "test"):
        (dataset / f"annotations/{name}.txt").unlink()
    listed = (dataset / "annotations/list.txt").read_text().splitlines()
    (dataset / "annotations/list.txt").write_text("\n".join(listed[:-5]) + "\n")
    done = run_script("train.py", "--data_path", dataset, "--resume", cwd=folder)
    assert_one_error(done, "was trained on other images (32 for training, now 28)")


def test_a_checkpoint_of_the_first_versions_resumes(trained, shared_dataset, tmp_path):
    content = torch.load(trained / "saved_models/tiny_last.pth", weights_only=True)
    parts = split_samples(shared_dataset)
    content["data"]["fingerprints"] = {
        mode: fingerprint(getattr(parts, mode), sizes=False) for mode in ("train", "valid", "test")
    }
    (tmp_path / "saved_models").mkdir()
    torch.save(content, tmp_path / "saved_models/tiny_last.pth")
    run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=tmp_path)


def test_a_new_run_keeps_the_files_of_the_old_one(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    old = {p.name: p.read_bytes() for d in ("saved_models", "logs") for p in (folder / d).glob("[!.]*")}
    run_id = rows(folder / "logs/tiny_training_log.csv")[0]["run_id"]
    said = run_ok("train.py", "--data_path", shared_dataset, "--epochs", 1, *TINY, cwd=folder)
    assert said.count("An earlier file is now") == 3
    for name, data in old.items():
        stem, suffix = name.rsplit(".", 1)
        where = folder / ("logs" if suffix == "csv" else "saved_models")
        assert (where / f"{stem}_{run_id}.{suffix}").read_bytes() == data
        assert (where / name).read_bytes() != data


def test_an_unknown_model_warns_and_trains_the_default(tmp_path, shared_dataset):
    done = run_script("train.py", "--data_path", shared_dataset, "--model_type", "unte", "-e", 1, *TINY, cwd=tmp_path)
    assert done.returncode == 0
    assert "'unte'" in done.stderr
    assert "'unet'" in done.stderr
    assert (tmp_path / "saved_models/tiny_best.pth").is_file()


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_names_the_way_to_go_on(tmp_path, shared_dataset, signum, status):
    command = [*PYTHON, str(SRC / "train.py"), "--data_path", str(shared_dataset), "--epochs", "500"]
    process = subprocess.Popen(
        [*command, *map(str, TINY)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("Run"):
            break
    time.sleep(1.5)
    process.send_signal(signum)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors == ""
    content = torch.load(tmp_path / "saved_models/tiny_last.pth", weights_only=True)
    step, epoch = content["progress"]["step"], content["progress"]["epoch"]
    assert f"Stopped in epoch {epoch + 1} after step {step}" in said
    resume = said.strip().splitlines()[-1].removeprefix("To go on: python src/train.py ").split()
    assert resume == ["--model_name", "tiny", "--data_path", str(shared_dataset), "--resume"]
    # It was under way for 500 epochs: with --epochs it ends one further on.
    said = run_ok("train.py", *resume, "--epochs", 1, cwd=tmp_path)
    assert f"in epoch {epoch + 1} of {epoch + 1} after step {step}" in said
    assert len(rows(tmp_path / "logs/tiny_training_log.csv")) == epoch + 1


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_pictures(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--image_size", 64, "--encoder_weights", "none", "--learning_rate", "1e30")
    done = run_script("train.py", *flags, cwd=tmp_path)
    assert_one_error(done, "the loss is", ".jpg", "smaller --learning_rate", status=1)
    assert not list((tmp_path / "saved_models").glob("*.pth"))


# ----------------------------------------------------------------------------------------------- evaluation and inferen


def test_evaluation_reports_verdict_log_and_json(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    said = run_ok("evaluate.py", "--data_path", shared_dataset, "--json", "out/scores.json", cwd=folder).splitlines()
    report = json.loads((folder / "out/scores.json").read_text())
    assert re.fullmatch(r"TINY test Dice score: \d\.\d{4}", said[-2])
    assert float(said[-2].split()[-1]) == pytest.approx(report["dice"], abs=1e-4)
    tiers = ((0.9, "Outstanding"), (0.85, "Good"), (0.8, "Passable"), (0, "Below"))
    expected = next(verdict for least, verdict in tiers if report["dice"] >= least)
    assert said[-1].startswith(expected)
    assert report["images"] == 4
    assert report["encoder_start"] == "from scratch"
    (row,) = rows(folder / "logs/tiny_evaluation_log.csv")
    assert float(row["dataset_iou"]) == report["dataset_iou"]
    assert report["compute"].startswith("fp32")
    assert 0 < report["precision"] <= 1
    run_ok("evaluate.py", "--data_path", shared_dataset, "--subset", "valid", cwd=folder)
    assert [r["subset"] for r in rows(folder / "logs/tiny_evaluation_log.csv")] == ["test", "valid"]


def test_scores_do_not_depend_on_the_batch_and_equal_the_trainings_own(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    scores = []
    for batch in (1, 3):
        run_ok(
            "evaluate.py", "--data_path", shared_dataset, "--subset", "valid", "-b", batch, "--json", "s", cwd=folder
        )
        scores.append(json.loads((folder / "s").read_text()))
    keys = ("dice", "iou", "dataset_dice", "dataset_iou", "pixel_accuracy", "precision", "recall")
    for key in keys:
        assert scores[0][key] == pytest.approx(scores[1][key], abs=2e-4)
    log = rows(folder / "logs/tiny_training_log.csv")
    assert scores[0]["dice"] == pytest.approx(max(float(row["val_dice"]) for row in log), abs=2e-4)


def test_evaluation_refuses_what_the_model_was_trained_on(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    flags = ("evaluate.py", "--data_path", shared_dataset, "--subset", "train")
    assert_one_error(run_script(*flags, cwd=folder), "was trained on 32 of these 32 images", "--allow_seen")
    assert "32 train images" in run_ok(*flags, "--allow_seen", cwd=folder)


def test_inference_on_a_dataset_its_images_folder_and_one_picture(trained, shared_dataset, tmp_path):
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


def test_inference_never_writes_over_anything(trained, tmp_path):
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


def test_inference_says_where_its_dice_flatters(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    done = run_script("inference.py", "--data_path", shared_dataset, "--subset", "train", cwd=folder)
    assert "WARNING: 32 of them were trained on" in done.stderr
    assert run_script("inference.py", "--data_path", shared_dataset, cwd=folder).stderr == ""


def test_scores_are_not_lost_where_they_can_not_be_written(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    log = folder / "logs/tiny_evaluation_log.csv"
    log.write_text("a,b\n1,2,3,4\n")
    done = run_script("evaluate.py", "--data_path", shared_dataset, cwd=folder)
    assert "test Dice score" in done.stdout
    assert_one_error(done, "evaluation_log.csv has a row with more columns")
    assert_one_error(run_script("evaluate.py", "--data_path", shared_dataset, "--json", ".", cwd=folder), "is a folder")


@pytest.mark.parametrize("words", [["oxford_pet.py", "--data_path"], ["train.py", "--help"]])
def test_a_reader_that_goes_away_is_no_traceback(shared_dataset, tmp_path, words):
    command = [
        *PYTHON,
        str(SRC / words[0]),
        *words[1:],
        *([str(shared_dataset)] if words[1] != "--help" else []),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 1
    assert errors == ""


def test_a_long_path_is_one_line(tmp_path):
    assert_one_error(run_script("evaluate.py", "--model_path", "x" * 300, cwd=tmp_path), "x" * 300)


def test_a_process_that_reads_images_and_dies_is_explained(dataset, tmp_path):
    code = f"""
import os, runpy
from data import datasets
parent, write = os.getpid(), datasets.write_record
datasets.write_record = lambda *pair: write(*pair) if os.getpid() == parent else os._exit(9)
runpy.run_path({str(SRC / "train.py")!r}, run_name="__main__")
"""
    flags = ("--data_path", str(dataset), "--num_workers", "1", "--cache", "off", *map(str, TINY))
    done = subprocess.run([*PYTHON, "-c", code, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert_one_error(done, "--num_workers 0", status=1)


def test_inference_on_a_folder_of_any_pictures(trained, tmp_path):
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


def test_without_a_wish_for_pictures_none_are_written(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    run_ok("inference.py", "--data_path", shared_dataset, cwd=folder)
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["logs", "saved_models"]


def test_plot_of_one_model_and_of_both(trained, tmp_path):
    folder = copy_run(trained, tmp_path)
    assert "Drew tiny:" in run_ok("plot_dice_curve.py", cwd=folder)
    first = (folder / "logs/dice_score_comparison.png").read_bytes()
    run = "r,{},0.5,{},0.5,{},1e-4,1,1"
    lines = [LOG_HEADER, *(run.format(epoch, 0.1 * epoch, 0.09 * epoch) for epoch in range(1, 8))]
    (folder / "logs/unet_training_log.csv").write_text("\n".join(lines) + "\n")
    assert "Drew UNet and tiny:" in run_ok("plot_dice_curve.py", cwd=folder)
    picture = Image.open(folder / "logs/dice_score_comparison.png")
    assert (folder / "logs/dice_score_comparison.png").read_bytes() != first
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    for red, green, blue in ((44, 160, 44), (31, 119, 180)):  # tiny and UNet
        assert (np.abs(pixels - [red, green, blue]).sum(1) < 12).sum() > 200


def test_plot_of_chosen_curves_and_runs(trained, shared_dataset, tmp_path):
    folder = copy_run(trained, tmp_path)
    run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=folder)
    (first,) = {row["run_id"] for row in rows(folder / "logs/tiny_training_log.csv")}
    log = (folder / "logs/tiny_training_log.csv").read_text().replace(first, "another")
    (folder / "logs/tiny_training_log_another.csv").write_text(log)
    # Rows of the same run that an older state left behind: of every epoch there is one, in order.
    text = (folder / "logs/tiny_training_log.csv").read_text()
    (folder / "logs/tiny_training_log_more.csv").write_text(text.replace(",0.", ",1."))
    (run,) = runs_by_id(folder / "logs", folder / "saved_models", [first])
    assert [row["epoch"] for row in run.rows] == [1, 2, 3]
    assert max(row["val_dice"] for row in run.rows) <= 1
    plain = run_ok("plot_dice_curve.py", cwd=folder)
    one = Image.open(folder / "logs/dice_score_comparison.png").size
    assert "another" not in plain
    kinds = ("--curves", "dice,loss,learning_rate")
    said = run_ok("plot_dice_curve.py", *kinds, "--runs", first, "another", cwd=folder)
    assert f"tiny {first} and tiny another" in said
    width, height = Image.open(folder / "logs/dice_score_comparison.png").size
    assert (width, height > 2 * one[1]) == (one[0], True)
    assert_one_error(run_script("plot_dice_curve.py", "--runs", "none", cwd=folder), "no log in logs has a run none")
    assert_one_error(run_script("plot_dice_curve.py", "--curves", "speed", cwd=folder), "no curve is called 'speed'")


def test_the_plot_knows_where_a_run_was_resumed(trained, shared_dataset, tmp_path):
    from models.checkpoint import resumed_after

    folder = copy_run(trained, tmp_path)
    for _ in range(2):
        run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=folder)
    run_id = rows(folder / "logs/tiny_training_log.csv")[0]["run_id"]
    assert resumed_after(folder / "saved_models", "tiny", run_id) == [2, 3]
    assert resumed_after(folder / "saved_models", "tiny", "another") == []
    run_ok("train.py", "--data_path", shared_dataset, "--epochs", 1, *TINY, cwd=folder)  # and renames the first
    assert resumed_after(folder / "saved_models", "tiny", run_id) == [2, 3]


# -------------------------------------------------------------------------------------------------------------- bad usa


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "0"], ["--epochs", "between 1"]),
        (["--epochs", "ten"], ["'ten' is no whole number"]),
        (["--batch_size", "-3"], ["--batch_size"]),
        (["--learning_rate", "nan"], ["--learning_rate", "above 0"]),
        (["-lr", "0"], ["above 0"]),
        (["--image_size", "17"], ["--image_size", "between 64"]),
        (["--loss", "mse"], ["--loss", "bce_dice"]),
        (["--augment", "double"], ["bulk", "online"]),
        (["--epoch", "3"], ["--epoch"]),
        (["--device", "cuda"], ["cuda is not available here"]),
        (["--resume", "nowhere.pth"], ["no checkpoint nowhere.pth"]),
        (["--resume"], ["no checkpoint", "train one with"]),
        (["--model_name", "resnet", "--encoder_weights", "nowhere.pth"], ["nowhere.pth can't be loaded"]),
        (["--model_name", "unet", "--encoder_weights", "imagenet"], ["UNet has no encoder"]),
        (["--save_dir", "file"], ["file", "name another"]),
        (["--log_dir", "file/logs"], ["file/logs", "name another"]),
    ],
)
def test_bad_flags_of_training_end_in_one_line(tmp_path, shared_dataset, flags, words):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    (tmp_path / "file").write_text("no folder")
    assert_one_error(run_script("train.py", "--data_path", shared_dataset, *flags, cwd=tmp_path), *words)
    assert not list(tmp_path.glob("*/*.pth"))


@pytest.mark.parametrize("script", ["evaluate.py", "inference.py"])
def test_bad_checkpoints_end_in_one_line(trained, shared_dataset, tmp_path, script):
    folder = copy_run(trained, tmp_path)
    flags = (script, "--data_path", shared_dataset)
    assert_one_error(run_script(*flags, "--model", "nowhere.pth", cwd=folder), "no checkpoint nowhere.pth")
    assert_one_error(run_script(*flags, "--model_type", "unet", cwd=folder), "unet_best.pth", "tiny_best.pth")
    best = "saved_models/tiny_best.pth"
    contradiction = run_script(*flags, "--model_type", "unet", "--model", best, cwd=folder)
    assert_one_error(contradiction, "holds a tiny, but --model_name says unet")
    assert_one_error(run_script(*flags, "--model_type", "segnet", cwd=folder), "no model is called 'segnet'")
    data = (folder / best).read_bytes()
    (folder / best).unlink()
    (folder / best).write_bytes(data[: len(data) // 2])
    assert_one_error(run_script(*flags, cwd=folder), "tiny_best.pth is truncated", "tiny_last.pth")


def test_bad_paths_of_inference_end_in_one_line(trained, tmp_path):
    folder = copy_run(trained, tmp_path)
    (folder / "empty").mkdir()
    (folder / "text.jpg").write_text("no picture")
    bad = (("nowhere", "does not exist"), ("empty", "no images in empty"), ("text.jpg", "text.jpg can't be read"))
    for path, words in bad:
        assert_one_error(run_script("inference.py", "--data_path", path, "--save_results", cwd=folder), words)
    done = run_script("inference.py", "--data_path", "text.jpg", "--output_path", "text.jpg", cwd=folder)
    assert_one_error(done, "can't write to the folder text.jpg")


def test_plot_without_or_with_a_foreign_log(tmp_path):
    assert_one_error(run_script("plot_dice_curve.py", cwd=tmp_path), "no training log in logs")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/unet_training_log.csv").write_text("a,b\n1,2\n")
    assert_one_error(run_script("plot_dice_curve.py", cwd=tmp_path), "unet_training_log.csv is no training log")


def test_torch_and_torchvision_that_do_not_fit_are_explained(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(SRC / "evaluate.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert_one_error(done, "operator torchvision::nms does not exist", "pip install")


@pytest.mark.parametrize(
    "script",
    ["train.py", "evaluate.py", "inference.py", "plot_dice_curve.py", "export.py", "oxford_pet.py"],
)
def test_help_of_every_script(script, tmp_path):
    said = run_ok(script, "--help", cwd=tmp_path)
    assert said.startswith(f"usage: {script}")
    assert not list(tmp_path.iterdir())


def test_every_spelling_of_both_reports_is_a_flag():
    from evaluate import build_parser as evaluate_parser
    from inference import build_parser as inference_parser
    from train import build_parser as train_parser

    report_a = "--data_path d --model_type resnet34_unet --epochs 30 --batch_size 32 --learning_rate 1e-4 --augment"
    report_b = "--data_path d --epochs 2 --batch_size 8 --learning_rate 1e-4 --model_name unet --resume"
    evaluation = "--data_path d --model_path m.pth --model_type unet --batch_size 4"
    inference = "--data_path d --model m.pth --model_type unet --save_results"
    assert train_parser().parse_overrides(report_a.split())["augment"] == "bulk"
    assert train_parser().parse_overrides(report_b.split())["resume"] == ""
    config = EvalConfig(**evaluate_parser().parse_overrides(evaluation.split()))
    assert (config.model_path, config.model_name, config.batch_size) == ("m.pth", "unet", 4)
    config = InferConfig(**inference_parser().parse_overrides(inference.split()))
    assert (config.model_path, config.batch_size, config.save_results) == ("m.pth", 1, True)
    config = TrainConfig.from_flags(train_parser().parse_overrides(["-e", "3", "-b", "4", "-lr", "1e-3"]))
    assert (config.epochs, config.batch_size, config.learning_rate) == (3, 4, 1e-3)
