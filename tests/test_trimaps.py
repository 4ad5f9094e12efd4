"""Three classes: pet, background and border, from training to pictures."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import f1_score
from torch.utils._python_dispatch import TorchDispatchMode

from data.image_io import read_trimap
from evaluation.config import EvalConfig
from evaluation.evaluator import score_sample
from evaluation.metrics import intervals
from evaluation.predictor import Prediction, Predictor, label_map_at_size
from helpers import TINY, assert_one_error, run_ok, run_script
from models.checkpoint import build_from_checkpoint, load_checkpoint
from models.task import BACKGROUND_ORANGE, BORDER_DARK, PET_BLUE, TASKS
from runtime.device import Precision
from test_own_pictures import write_own
from training.losses import LOSSES, bce_loss, dice_loss
from visual.panels import draw_panel

CPU = Precision(torch.device("cpu"))
BINARY, TRIMAP = TASKS["binary"], TASKS["trimap"]


class Operations(TorchDispatchMode):
    """Notes the names of torch's operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def three(*shape) -> torch.Tensor:
    return torch.randn(*shape[:1], 3, *shape[1:], generator=torch.Generator().manual_seed(3)) * 3


def test_pet_and_border_together_are_pet():
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


def test_losses_of_three_classes_by_hand():
    logits, trimap = three(2, 4, 4), torch.randint(1, 4, (2, 1, 4, 4), dtype=torch.uint8)
    shares = logits.softmax(dim=1).numpy()
    truth = np.stack([(trimap[:, 0] == value).numpy() for value in (1, 2, 3)], axis=1)
    with Operations() as called:
        assert bce_loss(logits, trimap, TRIMAP).item() == pytest.approx(
            -np.log(shares[truth.astype(bool)]).mean(), rel=1e-5
        )
    assert not [name for name in called.names if "nll_loss" in name]  # which --deterministic forbids on CUDA
    dice = [
        (2 * (shares[n, c] * truth[n, c]).sum() + 1) / (shares[n, c].sum() + truth[n, c].sum() + 1)
        for n in range(2)
        for c in range(3)
    ]
    assert dice_loss(logits, trimap, TRIMAP).item() == pytest.approx(1 - np.mean(dice), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_perfect_trimaps_cost_nothing(name):
    trimap = torch.randint(1, 4, (1, 1, 16, 16), dtype=torch.uint8)
    logits = F.one_hot(trimap[:, 0].long() - 1, 3).permute(0, 3, 1, 2) * 40.0
    assert LOSSES[name](logits.requires_grad_(), trimap, TRIMAP).item() == pytest.approx(0, abs=1e-4)


def test_dice_of_each_class_is_scikit_learns():
    rows = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        trimap = torch.randint(1, 4, (1, 1, 20, 20), generator=generator, dtype=torch.uint8)
        view = TRIMAP.decision_logits(torch.randn(1, 3, 20, 20, generator=generator))
        row = score_sample(Prediction(view, view), trimap, TRIMAP, EvalConfig())
        expected = f1_score(trimap.flatten(), TRIMAP.label_map(view).flatten(), labels=[1, 2, 3], average=None)
        assert [row[name] for name in ("pet_dice", "background_dice", "border_dice")] == pytest.approx(expected)
        rows.append(row)
    found = intervals(rows)
    assert found["border_dice"].value == pytest.approx(np.mean([row["border_dice"] for row in rows]))
    assert found["border_dice"].low <= found["border_dice"].value <= found["border_dice"].high


def test_tta_averages_the_shares_of_the_classes():
    class Classes(torch.nn.Module):
        stride, task = 32, TRIMAP

        def forward(self, images):
            side = torch.linspace(-2, 2, images.shape[-1])
            return images.float() / 99 - 1 + torch.stack([side, -side, 0 * side])[None, :, None, :]

    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    plain, mean = Predictor(Classes(), CPU, tta=True).predict(images)
    assert plain.shape == mean.shape == (1, 2, 64, 64)
    assert torch.equal(plain, TRIMAP.decision_logits(Classes()(images)))
    straight, mirrored = Classes()(images), Classes()(images.flip(-1)).flip(-1)
    two = TRIMAP.decision_logits(torch.stack([straight, mirrored]).softmax(dim=2).mean(0).log())
    assert (mean - two).abs().mean() < (plain - two).abs().mean()


def test_a_threshold_moves_the_pet_and_not_the_border_within():
    decided = TRIMAP.decision_logits(three(1, 8, 8))[0]
    low, high = (label_map_at_size(TRIMAP, decided, cut, 16, 16) for cut in (-1.0, 1.0))
    assert (high != 2).sum() < (low != 2).sum()
    assert np.array_equal(low[high != 2], high[high != 2])
    assert set(np.unique(label_map_at_size(BINARY, decided[:1], 0.0, 8, 8))) == {1, 2}


def test_panels_show_three_colours():
    trimap = np.repeat(np.array([[1, 2, 3]], np.uint8), 3, axis=0)
    panel = draw_panel(np.zeros((3, 3, 3), np.uint8), trimap, trimap, "three")
    colours = {colour for _, colour in panel.getcolors(1 << 20)}
    assert {PET_BLUE, BACKGROUND_ORANGE, BORDER_DARK} <= colours


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory, shared_dataset):
    """A folder with saved_models/ and logs/ of a ResNet34-UNet of three classes."""
    folder = tmp_path_factory.mktemp("three_classes")
    flags = ("--data_path", shared_dataset, "--classes", "trimap", "--loss", "bce_dice", "--augment", "online")
    said = run_ok("train.py", *flags, "--epochs", 4, *TINY, cwd=folder)
    assert "three classes" in said
    return folder


def test_three_classes_from_training_to_pictures(three_classes, shared_dataset, tmp_path):
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


def test_two_classes_give_no_trimaps_and_masks_teach_none(trained, tmp_path):
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
