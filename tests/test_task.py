"""What networks learn: two classes and three, from training to files."""

import json

import numpy as np
import torch
from PIL import Image

from evaluation.predict import label_map_at_size
from helpers import TINY, rows, run_ok
from models.checkpoint import load_checkpoint
from models.task import BACKGROUND, BORDER, TASKS
from stubs import three

BINARY, TRIMAP = TASKS["binary"], TASKS["trimap"]


def test_foreground_is_pet_and_border():
    logits = three(2, 5, 6)
    shares = logits.softmax(dim=1)
    decision = TRIMAP.decision_logits(logits)
    assert decision.shape == (2, 2, 5, 6)
    torch.testing.assert_close(decision[:, :1].sigmoid(), shares[:, 1:2] + shares[:, 2:])
    assert torch.equal(BINARY.decision_logits(logits[:, :1]), logits[:, :1])
    labels = TRIMAP.label_map(decision)
    foreground = labels != BACKGROUND
    assert torch.equal(foreground, decision[:, :1] > 0)
    assert torch.equal((labels == BORDER)[foreground], (logits[:, 2:] > logits[:, 1:2])[foreground])


def test_threshold_moves_the_pet_and_not_the_border_inside():
    decided = TRIMAP.decision_logits(three(1, 8, 8))[0]
    low, high = (label_map_at_size(TRIMAP, decided, cut, 16, 16) for cut in (-1.0, 1.0))
    assert (high > 0).sum() < (low > 0).sum()
    assert np.array_equal(low[high > 0], high[high > 0])
    assert set(np.unique(label_map_at_size(BINARY, decided[:1], 0.0, 8, 8))) == {0, 1}


def test_three_classes_from_training_to_images(shared_dataset, tmp_path):
    flags = ("--data_path", shared_dataset, "--classes", "trimap", "--loss", "bce_dice", "--augment", "online")
    assert "classes trimap" in run_ok("train.py", *flags, "--epochs", 4, *TINY, cwd=tmp_path)
    checkpoint = load_checkpoint(tmp_path / "saved_models/tiny_best.pth")
    assert checkpoint.config["out_channels"] == 3
    data = ("--data_path", shared_dataset)
    printed = run_ok("evaluate.py", *data, "--json", "all.json", "--report", "report", cwd=tmp_path)
    assert "border dice" in printed
    scores = json.loads((tmp_path / "all.json").read_text())
    assert 0 < scores["pet_dice"] <= 1
    dice, low, high = scores["intervals"]["border_dice"]
    assert low <= dice == scores["border_dice"] <= high

    run_ok("inference.py", *data, "--output_path", "out", "--save", "trimaps,masks,probabilities,panels", cwd=tmp_path)
    pictures = sorted((tmp_path / "out").glob("*_trimap.png"))
    assert len(pictures) == len(rows(tmp_path / "report/images.csv"))
    values = set()
    for picture in pictures:
        trimap = np.asarray(Image.open(picture))
        mask = np.asarray(Image.open(str(picture).replace("_trimap", "_mask")))
        assert np.array_equal(mask == 255, trimap != 2)
        values |= {*np.unique(trimap).tolist()}
    assert {1, 2} <= values <= {1, 2, 3}

    # What the exported file says of an image is what the network says.
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        shares = checkpoint.build("best")(images).softmax(dim=1)
    run_ok("export.py", "--output_path", ".", cwd=tmp_path)
    exported = torch.export.load(tmp_path / "tiny_best.pt2").module()
    torch.testing.assert_close(exported(images), shares, rtol=1e-3, atol=1e-4)
