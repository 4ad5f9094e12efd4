"""Pre-training by denoising, and what train.py takes of it."""

import dataclasses

import pytest
import torch
from PIL import Image, ImageEnhance

from data.dataset import ImageDataset
from data.inputs import list_images
from data.loader import Batches
from data.view import View
from helpers import TINY, assert_one_error, rows, run_ok, run_script
from models.checkpoint import load_checkpoint
from runtime.errors import DatasetError
from stubs import CPU, photograph
from training.config import TrainConfig
from training.data import open_images
from training.terms.denoise import LEVEL, DenoiseTerm, NoisyDataset, loss_of_statistics


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 30 images."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(30):
        ImageEnhance.Contrast(photograph(number)).enhance(2).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, images):
    """What pretrain.py has said, and the folder of its files."""
    folder = tmp_path_factory.mktemp("pretrained")
    flags = ("--data_path", images, "--epochs", 16, "--batch_size", 2, "--ema", 0, *TINY)
    return run_ok("pretrain.py", *flags, cwd=folder), folder / "saved_models/pretrained"


def test_noise_is_drawn_anew_each_epoch_and_found_again(images):
    dataset = NoisyDataset(ImageDataset(list_images(images), View(64)), 5)
    clean = dataset.dataset.read_batch([0, 1])["image"].float()
    first, second, again = (dataset.read_batch([(epoch, 0), (epoch, 1)]) for epoch in (0, 1, 0))
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["noise"], second["noise"])
    torch.testing.assert_close(first["image"], clean + 255 * LEVEL * first["noise"])
    assert first["noise"].std().item() == pytest.approx(1, abs=0.02)


def test_the_guess_from_a_pixel_alone_is_a_linear_regression(images):
    batch = NoisyDataset(ImageDataset(list_images(images), View(64)), 5).read_batch(list(range(8)))
    errors = []
    for image, noise in zip(batch["image"].flatten(2).double(), batch["noise"].flatten(2).double()):
        for values, truth in zip(image, noise):
            line = torch.stack([values, torch.ones_like(values)], dim=1)
            fit = torch.linalg.lstsq(line, truth[:, None]).solution
            errors.append((line @ fit - truth[:, None]).square().mean().item())
    assert loss_of_statistics(batch["image"]) == pytest.approx(sum(errors) / len(errors), rel=0.02)


def test_loss_is_the_squared_error_of_each_image():
    noise = torch.tensor([[1.0, -2.0, 3.0, 0.5, 0.0, 1.0], [0.0] * 6]).view(2, 3, 1, 2)
    term = DenoiseTerm(Batches(range(2), 2, 0), CPU)
    batch = term.prepare({"image": 255 * noise, "noise": noise}, None, 0, 0)
    loss, _ = term.loss(torch.zeros_like(noise), batch)
    assert batch.scale * loss.item() == pytest.approx((1 + 4 + 9 + 0.25 + 0 + 1) / 6 / 2)


def test_a_network_learns_more_than_the_guess(pretrained):
    said, folder = pretrained
    guess = float(said.split("has a loss of ")[1].split(";")[0])
    log = rows(folder.parents[1] / "logs/pretrained/tiny_training_log.csv")
    losses = [float(row["val_loss"]) for row in log]
    assert losses[-1] < 0.9 * guess
    assert not any(row[name] for row in log for name in ("train_dice", "val_dice"))
    best = min(range(16), key=losses.__getitem__)
    assert f"Best valid loss {losses[best]:.4f} in epoch {best + 1}: saved_models/pretrained/tiny_best.pth" in said
    assert load_checkpoint(folder / "tiny_best.pth").progress.best_score == pytest.approx(-losses[best])
    assert "classes denoising" in said
    assert "optimizer adamw" in said
    plot = ("plot_dice_curve.py", "--log_dir", "logs/pretrained", "--save_dir", "saved_models/pretrained")
    assert_one_error(run_script(*plot, cwd=folder.parents[1]), "tiny has no Dice, because it was pre-trained")
    assert "Drew tiny" in run_ok(*plot, "--curves", "loss,learning_rate", cwd=folder.parents[1])
    assert "27 train, 3 valid" in said
    assert "(images without masks)" in said


def test_it_starts_a_training_and_segments_nothing_before(pretrained, shared_dataset, tmp_path):
    file = pretrained[1] / "tiny_best.pth"
    for script in ("evaluate.py", "inference.py"):
        done = run_script(script, "--data_path", shared_dataset, "--model_path", file, cwd=tmp_path)
        assert_one_error(done, "was pre-trained and can't segment yet")
    flags = ("train.py", "--data_path", shared_dataset, "--init", file, "--epochs", 1, "--learning_rate", 1e-30)
    assert "encoder from tiny_best.pth, like all but the head" in run_ok(*flags, cwd=tmp_path)
    before, after = (load_checkpoint(f).weights for f in (file, tmp_path / "saved_models/tiny_best.pth"))
    assert torch.equal(before["stem.0.weight"], after["stem.0.weight"])
    assert after["head.weight"].shape[0] == 1
    run_ok(*flags, "--classes", "species", cwd=tmp_path)
    assert load_checkpoint(tmp_path / "saved_models/tiny_best.pth").weights["head.weight"].shape[0] == 3


def test_own_images_may_lack_masks(images, tmp_path):
    own = tmp_path / "own"
    (own / "masks").mkdir(parents=True)
    (own / "images").symlink_to(images)
    Image.new("L", (200, 150)).save(own / "masks/03.png")
    config = TrainConfig(classes="denoising", data_path=str(own), image_size=64)
    data = open_images(config)
    assert (len(data.train), len(data.valid), len(data.record.train_names)) == (27, 3, 27)
    for number in range(30):
        Image.new("L", (200, 150)).save(own / f"masks/{number:02}.png")
    assert len(open_images(config).train) == 24
    with pytest.raises(DatasetError, match="no trainval.txt"):
        open_images(dataclasses.replace(config, split="official"))


def test_other_images_and_flags_of_masks_are_refused(pretrained, images, tmp_path):
    folder = tmp_path / "few"
    folder.mkdir()
    for number in range(9):
        photograph(number).save(folder / f"{number}.png")
    assert_one_error(run_script("pretrain.py", "--data_path", folder, cwd=tmp_path), "9 images; at least ten")
    photograph(10).save(folder / "10.png")
    last = ("--resume", pretrained[1] / "tiny_last.pth", "--epochs", 1)
    assert_one_error(run_script("pretrain.py", "--data_path", folder, *last, cwd=tmp_path), "trained on other images")
    assert_one_error(run_script("pretrain.py", "--loss", "dice", cwd=tmp_path), "--loss")
    done = run_script("train.py", "--data_path", images, "--recipe", "denoising", cwd=tmp_path)
    assert_one_error(done, "invalid choice: 'denoising'")
