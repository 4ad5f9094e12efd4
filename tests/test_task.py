"""What networks learn: two classes and three, from training to files."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from data.image_io import read_trimap
from evaluation.predictor import label_map_at_size
from helpers import TINY, assert_one_error, run_ok, run_script, write_own
from models.checkpoint import build_from_checkpoint, load_checkpoint
from models.task import TASKS
from stubs import three

BINARY, TRIMAP = TASKS["binary"], TASKS["trimap"]


def test_foreground_is_pet_and_border():
    logits = three(2, 5, 6)
    shares = logits.softmax(dim=1)
    decision = TRIMAP.decision_logits(logits)
    assert decision.shape == (2, 2, 5, 6)
    torch.testing.assert_close(decision[:, :1].sigmoid(), shares[:, :1] + shares[:, 2:])
    assert torch.equal(BINARY.decision_logits(logits[:, :1]), logits[:, :1])
    trimaps = TRIMAP.label_map(decision)
    assert torch.equal(trimaps != 2, decision[:, :1] > 0)
    foreground = trimaps != 2
    assert torch.equal((trimaps == 3)[foreground], (logits[:, 2:] > logits[:, :1])[foreground])


def test_threshold_moves_the_pet_and_not_the_border_inside():
    decided = TRIMAP.decision_logits(three(1, 8, 8))[0]
    low, high = (label_map_at_size(TRIMAP, decided, cut, 16, 16) for cut in (-1.0, 1.0))
    assert (high != 2).sum() < (low != 2).sum()
    assert np.array_equal(low[high != 2], high[high != 2])
    assert set(np.unique(label_map_at_size(BINARY, decided[:1], 0.0, 8, 8))) == {1, 2}


def test_trimaps_need_a_network_and_a_dataset_with_borders(trained, tmp_path):
    flags = (
        "--model_path",
        trained / "saved_models/tiny_best.pth",
        "--data_path",
        ".",
        "--output_path",
        "out",
    )
    assert_one_error(
        run_script("inference.py", *flags, "--save", "trimaps", cwd=tmp_path), "was not trained with --classes trimap"
    )
    own = write_own(tmp_path / "own")
    done = run_script("train.py", "--data_path", own, "--classes", "trimap", *TINY, cwd=tmp_path)
    assert_one_error(done, "--classes trimap needs trimaps", "masks without a border")


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory, shared_dataset):
    """A folder with saved_models/ and logs/ of a ResNet34-UNet of three classes."""
    folder = tmp_path_factory.mktemp("three_classes")
    flags = ("--data_path", shared_dataset, "--classes", "trimap", "--loss", "bce_dice", "--augment", "online")
    said = run_ok("train.py", *flags, "--epochs", 4, *TINY, cwd=folder)
    assert "three classes" in said
    return folder


def test_three_classes_from_training_to_images(three_classes, shared_dataset, tmp_path):
    content = load_checkpoint(three_classes / "saved_models/tiny_best.pth")
    assert content["model"]["config"]["out_channels"] == 3
    flags = ("--data_path", shared_dataset, "--save_dir", three_classes / "saved_models")
    said = run_ok("evaluate.py", *flags, "--csv", "rows.csv", "--json", "all.json", "--worst", 1, cwd=tmp_path)
    assert "border dice" in said
    found = json.loads((tmp_path / "all.json").read_text())
    assert 0 < found["pet_dice"] <= 1
    low, high = found["intervals"]["border_dice"]
    assert low <= found["border_dice"] <= high
    assert len(list((tmp_path / "worst_panels").glob("*.png"))) == 1

    kinds = "trimaps,masks,probabilities,panels"
    run_ok("inference.py", *flags, "--output_path", "out", "--save", kinds, cwd=tmp_path)
    with (tmp_path / "rows.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    pictures = sorted((tmp_path / "out").glob("*_trimap.png"))
    assert len(pictures) == len(rows)
    values = set()
    for picture in pictures:
        trimap, mask = read_trimap(picture), np.asarray(Image.open(str(picture).replace("_trimap", "_mask")))
        assert np.array_equal(mask == 255, trimap != 2)
        values |= set(np.unique(trimap).tolist())
    assert {1, 2} <= values

    # What the file says of a picture is what the network says.
    model = build_from_checkpoint(content, "best")
    name = pictures[0].name.removesuffix("_trimap.png")
    image = Image.open(shared_dataset / f"images/{name}.jpg").resize((64, 64), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    with torch.inference_mode():
        shares = model(pixels[None]).softmax(dim=1)
    run_ok("export.py", *flags[2:], "--output_path", ".", cwd=tmp_path)
    exported = torch.export.load(tmp_path / "tiny_best.pt2").module()
    torch.testing.assert_close(exported(pixels[None]), shares, rtol=1e-3, atol=1e-4)


def test_three_classes_are_resumed_as_such(three_classes, shared_dataset):
    flags = ("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1)
    assert_one_error(run_script(*flags, "--classes", "binary", cwd=three_classes), "classes trimap (now binary)")
