"""Learning from images without masks."""

import pytest
import torch
from PIL import Image

from data.dataset import Dataset, ImageDataset
from data.view import View
from evaluation.predict import Predictor
from helpers import SRC, TINY, Script, assert_one_error, log_rows, run_ok, run_script
from models.checkpoint import load_checkpoint
from models.task import TASKS
from runtime.device import Precision
from runtime.errors import DatasetError
from stubs import CPU, Brightness, photograph
from training.config import TrainConfig
from training.data import Data
from training.terms import Batch
from training.terms.fixmatch import FixMatchTerm, UnlabeledBatches, open_folder


def part_of(root, mode: str) -> ImageDataset:
    return ImageDataset(Dataset(root).part(mode), View(64))


def opened(folder, known: ImageDataset) -> tuple[ImageDataset, int]:
    """`open_folder`, with the validation images."""
    data = Data(None, None, known, ImageDataset([], View(64)))
    return open_folder(TrainConfig(unlabeled=str(folder), image_size=64), data)


def test_every_image_comes_once_in_each_pass():
    batches = UnlabeledBatches(range(5), 3, seed=7, steps=3)
    keys = [key for epoch in range(5) for step in range(3) for key in batches.keys(epoch, step)]
    assert [cycle for cycle, _ in keys] == [number // 5 for number in range(45)]
    for cycle in range(9):
        assert sorted(index for c, index in keys if c == cycle) == list(range(5))
    assert [index for _, index in keys[:5]] != [index for _, index in keys[5:10]]


def fixmatch(dataset, confidence: float) -> FixMatchTerm:
    """Labels are how bright pixels are."""
    return FixMatchTerm(UnlabeledBatches(dataset, 4, 3, 8), Predictor(Brightness(), Precision(CPU)), confidence, True)


def test_confident_pixels_alone_count_and_labels_follow_the_images(shared_dataset):
    term = fixmatch(part_of(shared_dataset, "train"), 0.75)
    batch, first = term.batches.read(0, 0), Batch(torch.zeros(1, 3, 64, 64), None)
    part = term.prepare(batch, first, 0, 0)
    assert part.images.shape == (4, 3, 64, 64)
    everything = fixmatch(term.batches.dataset, 0.5).prepare(batch, first, 0, 0)
    assert everything.counted.all()
    assert torch.equal(everything.target, part.target)
    # The strongly augmented images show what the labels say: a disc is still brighter than the rest.
    inside = part.target > 0
    assert part.images.mean(1, keepdim=True)[inside].mean() > 2 * part.images.mean(1, keepdim=True)[~inside].mean()
    logits = torch.randn(4, 1, 64, 64)
    loss, (share, dice) = term.loss(logits, part)
    assert 0.1 < share / 4 < 0.9
    assert dice / 4 > 0.8  # the discs are bright
    by_hand = torch.nn.functional.binary_cross_entropy_with_logits(logits, part.target, reduction="none")
    expected = 4 * (by_hand * part.counted).sum() / by_hand.numel()
    torch.testing.assert_close(loss, expected)
    assert part.scale == 1 / 4
    smaller = term.prepare(batch, Batch(torch.zeros(1, 3, 48, 48), None), 0, 0)  # at the size of the step
    assert smaller.images.shape == (4, 3, 48, 48)
    assert smaller.target.shape == smaller.counted.shape == (4, 1, 48, 48)


def test_likeliest_class():
    shares = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]])[:, :, None, None]
    labels, likeliest = TASKS["trimap"].most_likely(shares)
    assert labels.squeeze().tolist() == [[0, 1, 0], [1, 0, 0]]
    assert likeliest.squeeze().tolist() == pytest.approx([0.5, 0.7])
    labels, likeliest = TASKS["binary"].most_likely(shares[:, :1])
    assert labels.squeeze().tolist() == [0, 1]
    assert likeliest.squeeze().tolist() == pytest.approx([0.8, 0.7])


def test_copies_of_scored_images_are_left_out(shared_dataset, tmp_path):
    known = part_of(shared_dataset, "valid")
    (tmp_path / "more").mkdir()
    photograph(1).save(tmp_path / "more/new.png")
    image = Image.open(known.samples[0].image_path)
    image.save(tmp_path / "more/same.jpg", quality=60)
    (tmp_path / "more/equal.jpg").write_bytes(known.samples[1].image_path.read_bytes())
    dataset, left_out = opened(tmp_path, known)
    assert [sample.name for sample in dataset.samples] == ["more/new"]
    assert left_out == 2
    assert dataset.read_batch([(0, 0)])["image"].shape == (1, 3, 64, 64)


def test_of_a_dataset_its_images_are_taken_and_a_broken_one_is_told_at_once(dataset):
    nothing = ImageDataset([], View(64))
    kept, _ = opened(dataset, nothing)
    assert len(kept) == 40  # no masks
    assert len(opened(dataset / "images", nothing)[0]) == 40
    path = kept.samples[7].image_path
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DatasetError, match=rf"1 fault: .*{path.name}"):
        opened(dataset, nothing)


def test_the_rest_without_masks_is_logged(shared_dataset, tmp_path):
    flags = ("--train_fraction", 0.3, "--unlabeled", "rest", "--ema", "--batch_size", 4)
    said = run_ok("train.py", "--data_path", shared_dataset, "--epochs", 2, *flags, *TINY, cwd=tmp_path)
    assert "images without masks" in said
    data = load_checkpoint(tmp_path / "saved_models/tiny_last.pth").data
    assert len(data.seen_names) == 32 - len(data.train_names)
    rows = log_rows(tmp_path, "training")
    assert list(rows[0])[9:] == ["confident_share", "pseudo_dice"]
    assert all(0 <= float(row[key]) <= 1 for row in rows for key in ("confident_share", "pseudo_dice"))


def test_a_folder_in_two_processes(shared_dataset, tmp_path):
    (tmp_path / "more").mkdir()
    for number in range(5):
        photograph(number).save(tmp_path / f"more/{number}.png")
    flags = ("--data_path", shared_dataset, "--unlabeled", "more", "--batch_size", 3, *TINY)
    flags += ("--ema", "--accumulate", 2)
    done = Script(SRC / "train.py", (*flags, "--epochs", 1), cwd=tmp_path, processes=2).finish()
    assert done.returncode == 0, done.stderr
    (row,) = log_rows(tmp_path, "training")
    assert list(row)[9:] == ["confident_share"]  # there are no masks to compare with
    assert 0 <= float(row["confident_share"]) <= 1
    photograph(9).save(tmp_path / "more/9.png")
    done = run_script("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=tmp_path)
    assert_one_error(done, "was trained with another --unlabeled (its content counts")
