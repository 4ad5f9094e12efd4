"""Learning from images without masks."""

import signal

import pytest
import torch
from data.unlabeled import WithUnlabeled, open_folder
from PIL import Image
from training.semi_supervised import pseudo_label

from data.augment import BatchAugmentation
from data.datasets import load_dataset
from data.loader import ResumableBatchSampler
from data.pixels import RGB
from evaluation.predictor import Predictor
from helpers import SRC, TINY, Script, assert_one_error, log_rows, run_ok, run_script
from models.checkpoint import load_checkpoint
from models.task import TASKS
from runtime.device import Precision
from runtime.distributed import DistributedContext
from runtime.errors import DatasetError, UsageError
from stubs import CPU, Brightness, photograph

REST = ("--train_fraction", 0.3, "--unlabeled", "rest", "--confidence", 0.7, "--batch_size", 4)


def test_every_image_comes_once_in_each_pass_and_a_resumed_epoch_continues():
    def keys(epoch, start=0):
        sampler = ResumableBatchSampler(10, 4, 7, unlabeled=5, unlabeled_batch=3)
        sampler.epoch, sampler.start = epoch, start
        return list(sampler)

    extra = [key for epoch in range(5) for batch in keys(epoch) for key in batch if key[1] >= 10]
    assert len(extra) == 5 * 3 * 3
    assert [cycle for cycle, _ in extra] == [number // 5 for number in range(45)]
    for cycle in range(9):
        assert sorted(index for c, index in extra if c == cycle) == list(range(10, 15))
    assert extra[:5] != [(0, index) for _, index in extra[5:10]]
    assert keys(2)[1:] == keys(2, start=1)
    plain = ResumableBatchSampler(10, 4, 7)
    assert [[key for key in batch if key[1] < 10] for batch in keys(0)] == list(plain)


def test_confident_pixels_alone_count_and_labels_follow_the_images(shared_dataset):
    dataset = load_dataset(shared_dataset, "train", image_size=64)
    batch = WithUnlabeled(dataset, dataset, 3).read_batch([(0, 0), (0, 32), (0, 33), (0, 34), (0, 35)])
    assert len(batch["image"]) == 1
    assert len(batch["unlabeled"]["image"]) == 4
    predictor = Predictor(Brightness(), Precision(CPU))  # logits are how bright a pixel is
    found, sums = pseudo_label(batch["unlabeled"], predictor, BatchAugmentation(), 0.75, 0, 0)
    assert found.images.shape == (4, 3, 64, 64)
    everything, _ = pseudo_label(batch["unlabeled"], predictor, BatchAugmentation(), 0.5, 0, 0)
    assert everything.confident.all()
    assert torch.equal(everything.labels, found.labels)
    share, dice, count = sums.tolist()
    assert count == 4
    assert 0.1 < share / 4 < 0.9
    assert dice / 4 > 0.8  # the discs are bright
    # The strongly augmented images show what the labels say: a disc is still brighter than the rest.
    inside = found.labels > 0
    assert found.images.mean(1, keepdim=True)[inside].mean() > 2 * found.images.mean(1, keepdim=True)[~inside].mean()
    logits = torch.randn(4, 1, 64, 64)
    by_hand = torch.nn.functional.binary_cross_entropy_with_logits(logits, found.labels, reduction="none")
    found = found._replace(weight=1 / 4)
    expected = (by_hand * found.confident).sum() / by_hand.numel()
    torch.testing.assert_close(found.loss(logits, TASKS["binary"]), expected)
    pieces = found.tensor_split(3)
    assert torch.equal(torch.cat([piece.images for piece in pieces]), found.images)
    parts = [piece.loss(some, TASKS["binary"]) for piece, some in zip(pieces, logits.tensor_split(3))]
    torch.testing.assert_close(sum(parts), expected)


def test_likeliest_class():
    shares = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]])[:, :, None, None]
    labels, likeliest = TASKS["trimap"].most_likely(shares)
    assert labels.squeeze().tolist() == [[0, 1, 0], [1, 0, 0]]
    assert likeliest.squeeze().tolist() == pytest.approx([0.5, 0.7])
    labels, likeliest = TASKS["binary"].most_likely(shares[:, :1])
    assert labels.squeeze().tolist() == [0, 1]
    assert likeliest.squeeze().tolist() == pytest.approx([0.8, 0.7])


def test_copies_of_scored_images_are_left_out(shared_dataset, tmp_path):
    known = load_dataset(shared_dataset, "valid", image_size=64).samples
    (tmp_path / "more").mkdir()
    photograph(1).save(tmp_path / "more/new.png")
    image = Image.open(known[0].image_path)
    image.save(tmp_path / "more/same.jpg", quality=60)
    (tmp_path / "more/equal.jpg").write_bytes(known[1].image_path.read_bytes())
    dataset, left_out = open_folder(str(tmp_path), known, 64, RGB)
    assert [sample.name for sample in dataset.samples] == ["more/new"]
    assert left_out == 2
    assert dataset.read_batch([(0, 0)])["image"].shape == (1, 3, 64, 64)


def test_of_a_dataset_its_images_are_taken_and_a_broken_one_is_told_at_once(dataset):
    kept, _ = open_folder(str(dataset), [], 64, RGB)
    assert len(kept) == 40  # no masks
    assert len(open_folder(str(dataset / "images"), [], 64, RGB)[0]) == 40
    path = kept.samples[7].image_path
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DatasetError, match=rf"1 fault: .*{path.name}"):
        open_folder(str(dataset), [], 64, RGB)


def test_every_process_has_an_image_without_a_mask():
    with pytest.raises(UsageError, match="steps of 1 images can.t be shared by 2 .* larger --unlabeled_batch"):
        ResumableBatchSampler(20, 4, 0, DistributedContext(0, 2), 9, 1)


def test_the_rest_without_masks_resumes_exactly_and_is_logged(shared_dataset, tmp_path):
    contents = []
    for name in ("whole", "parts"):
        folder = tmp_path / name
        folder.mkdir()
        flags = ("--data_path", shared_dataset, "--epochs", 2, *REST, *TINY)
        if name == "whole":
            said = run_ok("train.py", *flags, cwd=folder)
            assert "images without masks" in said
            assert "average 0.99" in said  # implied
        else:
            script = Script(SRC / "train.py", ("--checkpoint_minutes", 1e-9, *flags), cwd=folder)
            script.wait_for("epoch   1/2")
            script.send_signal(signal.SIGTERM)
            assert script.finish().returncode in (0, 143)
            run_ok("train.py", "--data_path", shared_dataset, "--resume", cwd=folder)
        contents.append(load_checkpoint(folder / "saved_models/tiny_last.pth"))
    first, second = contents
    assert len(first["data"]["seen_names"]) == 32 - len(first["data"]["train_names"])
    for part in (first["weights"], first["average"]["trained_weights"]):
        other = second["weights"] if part is first["weights"] else second["average"]["trained_weights"]
        assert all(torch.equal(part[key], other[key]) for key in part)
    rows = log_rows(tmp_path / "whole", "training")
    assert list(rows[0])[9:] == ["confident_share", "pseudo_dice"]
    assert all(0 <= float(row[key]) <= 1 for row in rows for key in ("confident_share", "pseudo_dice"))
    assert [row["pseudo_dice"] for row in rows] == [
        row["pseudo_dice"] for row in log_rows(tmp_path / "parts", "training")
    ]


def test_a_folder_in_two_processes(shared_dataset, tmp_path):
    (tmp_path / "more").mkdir()
    for number in range(5):
        photograph(number).save(tmp_path / f"more/{number}.png")
    flags = ("--data_path", shared_dataset, "--unlabeled", "more", "--unlabeled_batch", 3, "--accumulate", 2, *TINY)
    done = Script(SRC / "train.py", (*flags, "--epochs", 1), cwd=tmp_path, processes=2).finish()
    assert done.returncode == 0, done.stderr
    (row,) = log_rows(tmp_path, "training")
    assert row["pseudo_dice"] == ""
    assert 0 <= float(row["confident_share"]) <= 1
    photograph(9).save(tmp_path / "more/9.png")
    done = run_script("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=tmp_path)
    assert_one_error(done, "learned from other images without masks")


def test_flags_that_contradict(shared_dataset, tmp_path):
    for flags, words in (
        (("--unlabeled", "rest"), "--train_fraction leaves out; give one below 1"),
        (("--confidence", 0.9), "--confidence needs --unlabeled"),
        (("--unlabeled", "nowhere"), "the folder nowhere does not exist"),
        (("--unlabeled", "rest", "--train_fraction", 0.5, "--ema", 0), "--unlabeled needs the average of --ema"),
    ):
        assert_one_error(run_script("train.py", "--data_path", shared_dataset, *flags, *TINY, cwd=tmp_path), words)
