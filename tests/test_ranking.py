"""Images ranked by how wrong their masks look."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax

from data.image_io import read_mask
from evaluation.ranking import self_confidence, softmin, uncertainty
from helpers import SRC, TINY, Script, assert_one_error, disc, expect_success, rows, run_ok, run_script, save


def test_softmin_is_between_minimum_and_mean():
    confidence = torch.rand(500, generator=torch.Generator().manual_seed(1))
    expected = (confidence.numpy() * softmax(-confidence.numpy() / 0.1)).sum()
    assert softmin(confidence, 0.1) == pytest.approx(expected, abs=1e-5)
    assert confidence.min() < softmin(confidence) < confidence.mean()
    assert softmin(confidence, 1e-4) == pytest.approx(confidence.min().item(), abs=1e-3)
    assert softmin(torch.zeros(0)) == 1


def test_self_confidence_is_the_probability_of_the_label():
    decision, labels = torch.tensor([[2.0, 2.0, -1.0]]), torch.tensor([[1, 0, 2]])
    expected = torch.tensor([[2.0, -2.0, -1.0]]).sigmoid()
    torch.testing.assert_close(self_confidence(decision, labels), expected)


def test_spoiled_masks_come_first(dataset, trained, tmp_path):
    test = [row.split()[0] for row in (dataset / "annotations/list.txt").read_text().splitlines()[1:]]
    spoiled = test[::8]
    flags = ("evaluate.py", "--data_path", dataset, "--model_path", trained / "saved_models/tiny_best.pth")
    for number, name in enumerate(spoiled):
        file = dataset / f"annotations/trimaps/{name}.png"
        trimap = np.asarray(Image.open(file)).copy()
        if number % 2:
            trimap = np.roll(trimap, 25, axis=1)
        else:
            trimap[:, trimap.shape[1] // 2 :] = 2
        Image.fromarray(trimap).save(file)
    said = run_ok(*flags, "--subset", "all", "--allow_seen", "--label_errors", "--report", "out", cwd=tmp_path)
    assert "Ranked 40 images by likely label error" in said
    ranked = rows(tmp_path / "out/label_errors/label_errors.csv")
    assert {row["name"] for row in ranked[: len(spoiled)]} == set(spoiled)
    scores = [float(row["score"]) for row in ranked]
    assert scores == sorted(scores)
    assert [row["rank"] for row in ranked] == [str(i) for i in range(1, 41)]
    panels = sorted(path.name for path in (tmp_path / "out/label_errors").glob("*.png"))
    assert panels == [f"{i:03d}_{row['name']}.png" for i, row in enumerate(ranked, start=1)]
    shown = np.asarray(Image.open(tmp_path / "out/label_errors" / panels[0]))
    assert (shown == (255, 0, 255)).all(-1).sum() > 20  # the doubtful region is outlined


def test_suspect_masks_can_be_corrected_and_brought_back(own, trained, tmp_path):
    """The steps of docs/evaluation.md."""
    flags = ("--data_path", own, "--model_path", trained / "saved_models/tiny_best.pth", "--subset", "all")
    run_ok("evaluate.py", *flags, "--label_errors", "--report", "report", cwd=tmp_path)
    (tmp_path / "corrected").mkdir()
    names = [row["name"] for row in rows(tmp_path / "report/label_errors/label_errors.csv")]
    masks = {name: read_mask(own / f"masks/{name}.png") for name in names}
    for name in names[:3]:  # by hand: nothing is changed
        shutil.move(tmp_path / f"report/label_errors/{name}.json", tmp_path / "corrected")
    flags = ("--annotations", "corrected", "--images", own / "images", "--output", "mended", "--keep_empty")
    expect_success(Script(SRC.parent / "tools/convert_masks.py", flags, tmp_path).finish())
    for name in names[:3]:
        mask = np.asarray(Image.open(tmp_path / f"mended/masks/{name}.png")) > 0
        assert (mask == (masks[name] > 0)).mean() > 0.99  # outlines are simplified
    assert len(list((tmp_path / "mended/masks").iterdir())) == 3


def test_each_fold_looks_at_its_own_validation_images(shared_dataset, tmp_path):
    data = ("--data_path", shared_dataset)
    for number in (1, 2):
        run_ok("train.py", *data, *TINY, "--fold", f"{number}/2", "--epochs", 1, cwd=tmp_path)
    best = [tmp_path / f"saved_models/fold_{number}/tiny_best.pth" for number in (1, 2)]
    run_ok("evaluate.py", *data, "--model_path", *best, "--label_errors", "--report", "out", cwd=tmp_path)
    ranked = rows(tmp_path / "out/label_errors/label_errors.csv")
    assert len({row["name"] for row in ranked}) == len(ranked) == 40  # the test part by both
    flags = ("--model_path", best[0], best[0], "--label_errors", "--report", "out")
    twice = run_script("evaluate.py", *data, *flags, cwd=tmp_path)
    assert_one_error(twice, "the images of the checkpoints overlap")
    assert "test images" not in twice.stdout  # before the work


def test_uncertain_outlines_have_more_entropy():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    distance = 20 - torch.hypot(x - 32, y - 32)
    sharp, soft = uncertainty((5 * distance)[None]), uncertainty((0.2 * distance)[None])
    assert 0 < sharp < 0.3 < soft < 1
    assert uncertainty(torch.zeros(1, 8, 8)) == pytest.approx(1)  # no outline, nothing known
    assert uncertainty(torch.full((3, 8, 8), -20.0)) < 1e-6


def test_images_without_masks_are_ranked_without_copies(tmp_path, model_flags):
    folder = tmp_path / "photos"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(6):
        pixels, mask = disc(i)
        save(folder / f"images/{i}.png", pixels)
        if i < 2:
            save(folder / f"masks/{i}.png", mask.astype(np.uint8) * 255)
    save(folder / "images/copy of 0.png", disc(0)[0][:, ::-1])  # of one with a mask
    save(folder / "images/copy of 5.png", disc(5)[0])
    flags = ("--data_path", f"{folder}/images/*.png", "--output_path", "next", "--save", "uncertain")
    run_ok("inference.py", *flags, *model_flags, cwd=tmp_path)
    assert [path.name for path in (tmp_path / "next").iterdir()] == ["uncertain.csv"]
    listed = rows(tmp_path / "next/uncertain.csv")
    names = [row["name"] for row in listed]
    assert len(names) == 4
    assert {*names} - {"5", "copy of 5"} == {"2", "3", "4"}
    scores = [float(row["uncertainty"]) for row in listed]
    assert scores == sorted(scores, reverse=True)
