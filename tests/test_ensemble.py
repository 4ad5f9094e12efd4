"""Several checkpoints as one network, and test-time augmentation."""

import dataclasses

import pytest
import torch

from data.dataset import Dataset, ImageDataset
from data.view import View
from evaluation.config import EvalConfig
from evaluation.metrics import dice_score
from evaluation.network import Ensemble, open_network
from evaluation.predict import Predictor
from helpers import TINY, assert_one_error, log_rows, rows, run_ok, run_script
from models.build import build_model
from models.checkpoint import load_checkpoint, save_checkpoint
from models.task import TASKS
from stubs import FP32, Brightness


@pytest.mark.parametrize("channels", [1, 3])
def test_probabilities_are_averaged(channels):
    members = [build_model("tiny", out_channels=channels).eval() for _ in range(3)]
    images = torch.rand(2, 3, 40, 33) * 255
    with torch.inference_mode():
        together = Ensemble(members)(images)
        task = members[0].task
        expected = torch.stack([task.probabilities(member(images)) for member in members]).mean(0)
    torch.testing.assert_close(task.probabilities(together), expected, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def two(trained, shared_dataset, tmp_path_factory):
    """Two checkpoints that differ."""
    folder = tmp_path_factory.mktemp("second")
    flags = ("--data_path", shared_dataset, *TINY, "--epochs", 1, "--learning_rate", "1e-2")
    run_ok("train.py", *flags, cwd=folder)
    return trained / "saved_models/tiny_best.pth", folder / "saved_models/tiny_best.pth"


def test_an_ensemble_is_scored_as_one_network(two, shared_dataset, tmp_path):
    data = ("--data_path", shared_dataset, "--amp", "off", "--model_path", *two)
    said = run_ok("evaluate.py", *data, "--report", "both", cwd=tmp_path)
    assert said.splitlines()[-2].startswith("TINY test Dice score")
    dice = {row["name"]: float(row["dice"]) for row in rows(tmp_path / "both/images.csv")}
    members = [load_checkpoint(path).build(path) for path in two]
    part = ImageDataset(Dataset(shared_dataset).part("test"), View(64))
    for sample, pet in zip(part.samples, part):
        with torch.inference_mode():
            mean = sum(member(pet["image"][None]).sigmoid() for member in members) / 2
        assert dice[sample.name] == pytest.approx(dice_score(mean > 0.5, pet["labels"][None]).item(), abs=1e-3)
    run_ok("inference.py", *data, cwd=tmp_path)
    found = [float(row["dice"]) for row in log_rows(tmp_path, "inference")]
    assert sorted(found) == pytest.approx(sorted(dice.values()), abs=1e-3)
    for kind in ("inference", "evaluation"):
        assert {row["checkpoint"] for row in log_rows(tmp_path, kind)} == {" ".join(map(str, two))}


def test_training_images_of_all_members_are_refused(two, shared_dataset, tmp_path):
    checkpoint = load_checkpoint(two[0])
    data = dataclasses.replace(checkpoint.data, train_names=[*checkpoint.data.train_names, "dog3_39"])

    def save(name: str, **fields) -> None:
        save_checkpoint(dataclasses.replace(checkpoint, **fields), [tmp_path / name])

    save("other.pth", data=data)
    network = open_network(EvalConfig(), [str(two[0]), str(tmp_path / "other.pth")])
    assert network.path == two[0]
    assert network.seen == set(data.train_names)
    save("larger.pth", image_size=96)
    flags = ("evaluate.py", "--data_path", shared_dataset, "--model_path", two[0], tmp_path / "larger.pth")
    assert_one_error(run_script(*flags, cwd=tmp_path), "differ in classes, or in size")
    save("seed.pth", data=dataclasses.replace(checkpoint.data, seed=7))
    flags = ("evaluate.py", "--data_path", shared_dataset, "--model_path", two[0], "--compare", tmp_path / "seed.pth")
    assert_one_error(run_script(*flags, "--allow_seen", cwd=tmp_path), "has other test images")


class Leaning(Brightness):
    """Brightness, but surer of pet on the left."""

    def body(self, x):
        return super().body(x) + torch.linspace(1, -1, x.shape[-1])


def test_tta_undoes_its_flips():
    gray = Leaning().mean.expand(2, 3, 64, 64)
    plain, tta = (Predictor(Leaning(), FP32, tta).predict(gray) for tta in (False, True))
    assert torch.allclose(plain, torch.linspace(1, -1, 64).expand(2, 1, 64, 64), atol=1e-5)
    assert torch.allclose(tta, torch.zeros(2, 1, 64, 64), atol=1e-5)  # straight and flipped, the leaning is gone


class Watched(Brightness):
    """Remembers the sizes that it sees."""

    stride = 32

    def body(self, x):
        self.seen = [*getattr(self, "seen", []), x.shape[-1]]
        return super().body(x)


@pytest.mark.parametrize(("size", "scales"), [(64, (64, 32, 96)), (100, (128, 96, 160)), (256, (256, 192, 320))])
def test_tta_has_six_passes_and_undoes_its_scales(size, scales):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images = (128 + 60 * torch.sin(x / 9) * torch.cos(y / 11)).expand(1, 3, size, size)
    plain, model = Predictor(Brightness(), FP32).predict(images), Watched()
    tta = Predictor(model, FP32, tta=True).predict(images)
    assert model.seen == [scale for scale in scales for _ in range(2)]
    assert tta.shape == plain.shape
    assert 0 < (tta - plain).abs().max() < 0.05


def test_tta_averages_class_probabilities():
    class Classes(torch.nn.Module):
        stride, task = 32, TASKS["trimap"]

        def forward(self, images):
            side = torch.linspace(-2, 2, images.shape[-1])
            return images.float() / 99 - 1 + torch.stack([side, -side, 0 * side])[None, :, None, :]

    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    plain, mean = (Predictor(Classes(), FP32, tta).predict(images) for tta in (False, True))
    assert plain.shape == mean.shape == (1, 2, 64, 64)
    assert torch.equal(plain, TASKS["trimap"].decision_logits(Classes()(images)))
    straight, mirrored = Classes()(images), Classes()(images.flip(-1)).flip(-1)
    two = TASKS["trimap"].decision_logits(torch.stack([straight, mirrored]).softmax(dim=2).mean(0).log())
    assert (mean - two).abs().mean() < (plain - two).abs().mean()
