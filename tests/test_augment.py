"""Augmentation: what is drawn, and what is applied to batches."""

import argparse
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import utils
from data.augment import IDENTITY, apply_colors, draw_augmentation, draw_colors, mix
from data.names import STRENGTHS, automatic_plan, planned_sizes, size_plan
from runtime.seeding import sample_rng
from stubs import Plain, make_batch, make_masks
from train import build_parser
from training.data import augmented, open_parts
from training.resolve import new_config


def test_image_and_mask_move_together():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    mask = ((x - 30) ** 2 + (y - 25) ** 2 < 200).to(torch.uint8)[None]
    image = (mask.float() * 255).expand(3, -1, -1)
    for i in range(30):
        affine = torch.from_numpy(utils.draw_augmentation(np.random.default_rng(i)))
        moved, moved_mask = utils.apply_augmentations(image, mask, affine)
        assert set(moved_mask.unique().tolist()) <= {0, 1}
        assert ((moved[0] > 127.5) != moved_mask[0].bool()).float().mean() < 0.01


@pytest.mark.parametrize("strength", STRENGTHS)
def test_augmentations_are_rotation_flip_crop_and_all_their_combinations(strength):
    (degrees, smallest, largest), kinds, scales, angles = STRENGTHS[strength], set(), [], []
    for i in range(400):
        linear = draw_augmentation(np.random.default_rng(i), degrees, smallest, largest)[:, :2].astype(float)
        scale = np.sqrt(abs(np.linalg.det(linear)))
        flipped = np.linalg.det(linear) < 0
        angle = np.degrees(np.arctan2(linear[1, 0] * (-1 if flipped else 1), linear[1, 1]))
        # Whatever is combined, it is a similarity: nothing is sheared or stretched.
        np.testing.assert_allclose(linear @ linear.T, scale**2 * np.eye(2), atol=1e-6)
        scales.append(scale)
        angles.append(abs(angle))
        kinds.add((abs(angle) > 1e-4, flipped, abs(scale - 1) > 1e-6))
    assert len(kinds) == 7  # all but doing nothing
    assert smallest - 1e-6 <= min(scales) < smallest + 0.05
    assert largest - 0.05 < max(scales) <= largest + 1e-6
    assert 0.9 * degrees < max(angles) <= degrees + 1e-4


def test_batch_is_augmented_like_its_images_at_torchs_grid():
    images, truth = torch.rand(6, 3, 24, 40) * 255, torch.randint(0, 2, (6, 1, 24, 40), dtype=torch.uint8)
    affine = torch.from_numpy(np.stack([utils.draw_augmentation(np.random.default_rng(i)) for i in range(6)]))
    together = utils.apply_augmentations(images, truth, affine)
    for i in range(6):
        alone = utils.apply_augmentations(images[i], truth[i], affine[i])
        assert torch.equal(together[0][i], alone[0])
        assert torch.equal(together[1][i], alone[1])
    grid = torch.nn.functional.affine_grid(affine, [6, 3, 24, 40], align_corners=False)
    expected = torch.nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(together[0], expected, atol=0.01, rtol=0)


class FakeDataset:
    """Five named samples that tell by which keys they were asked for."""

    samples, decodes = [SimpleNamespace(name=f"pet_{i}") for i in range(5)], True

    def __len__(self):
        return 5

    def read_batch(self, keys):
        return {"key": list(keys)}


def drawn(dataset, *key):
    """What was drawn for one key, as bytes."""
    return dataset[key]["affine"].numpy().tobytes()


def test_bulk_keeps_originals_and_adds_the_same_variants_every_time():
    first, more = (utils.augment_dataset(FakeDataset(), n, seed=1) for n in (3, 5))
    assert len(first) == 20
    assert all(drawn(first, 4, i) == IDENTITY.tobytes() for i in range(5))
    variants = [drawn(first, 3, i) for i in range(5, 20)]
    assert len(set(variants)) == 15
    assert variants == [drawn(more, 8, i) for i in range(5, 20)]
    assert first[3, 7]["key"] == (3, 2)  # the eighth item is a variant of the third picture
    assert variants[0] != drawn(utils.augment_dataset(FakeDataset(), seed=2), 3, 5)


def test_online_depends_on_seed_epoch_and_name_alone():
    dataset = utils.AugmentedDataset(FakeDataset(), seed=1)
    keys = [(e, i) for e in range(8) for i in range(5)]
    once = {key: drawn(dataset, *key) for key in keys}
    assert once == {key: drawn(dataset, *key) for key in reversed(keys)}
    assert len(set(once.values())) > 30
    assert IDENTITY.tobytes() in {drawn(dataset, e, 0) for e in range(60)}


def test_batch_is_drawn_like_its_samples():
    dataset = utils.augment_dataset(FakeDataset(), 2, seed=1, color_jitter=True)
    batch = dataset.read_batch([(0, 3), (5, 12), 7])
    for row, key in enumerate([(0, 3), (5, 12), (0, 7)]):
        sample = dataset[key]
        assert torch.equal(batch["affine"][row], sample["affine"])
        assert torch.equal(batch["colors"][row], sample["colors"])
    assert torch.equal(batch["colors"][0], torch.ones(3))  # an original
    assert "colors" not in utils.augment_dataset(FakeDataset(), 2, seed=1)[0]


def test_colors_by_hand():
    image = torch.tensor([[100.0, 200.0], [50.0, 150.0], [0.0, 100.0]]).view(1, 3, 1, 2)
    torch.testing.assert_close(apply_colors(image, torch.ones(1, 3)), image)
    torch.testing.assert_close(apply_colors(image, torch.tensor([[1.1, 1.0, 1.0]])), image * 1.1)
    torch.testing.assert_close(apply_colors(image, torch.tensor([[1.0, 0.0, 1.0]])), torch.full_like(image, 100.0))
    gray = apply_colors(image, torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(gray[0, :, 0, 0], torch.full((3,), 0.299 * 100 + 0.587 * 50))
    assert apply_colors(image, torch.tensor([[9.0, 1.0, 1.0]])).max() == 255
    draws = np.stack([draw_colors(np.random.default_rng(i), 0.25) for i in range(100)])
    assert draws.min() >= 0.75 and draws.max() <= 1.25 and draws.std(0).min() > 0.1


def test_augmentation_flags_reach_the_batches(shared_dataset):
    def first_batch(*flags) -> dict:
        words = ["--data_path", str(shared_dataset), "--image_size", "64", "--augment", "online", *flags]
        config = new_config(build_parser().parse_overrides(words), False, None)
        return augmented(config, open_parts(config).train).read_batch([(epoch, 1) for epoch in range(100)])

    def widest(batch: dict) -> float:
        affine = batch["affine"]
        return torch.rad2deg(torch.atan2(-affine[:, 0, 1], affine[:, 1, 1])).abs().max().item()

    plain = first_batch()
    assert "colors" not in plain
    assert (plain["labels"] == plain["labels"][0]).all()
    assert 5 < widest(plain) <= 10
    assert first_batch("--distort", "color")["colors"].unique(dim=0).shape[0] > 80
    assert widest(first_batch("--augment_strength", "strong")) > 12
    uncertain = first_batch("--augment_uncertain")["labels"]
    assert (uncertain != uncertain[0]).any()


def two_worlds(count: int = 6):
    """Pictures whose pixels tell which one they are from, each with a pet in a place of its own."""
    images = torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 3, 12, 16).clone()
    masks = torch.zeros(count, 1, 12, 16, dtype=torch.uint8)
    for i in range(count):
        masks[i, :, i : i + 4, 2 * i : 2 * i + 5] = 1
    return images, masks


@pytest.mark.parametrize("kind", ["paste", "cutmix"])
def test_mixed_images_take_each_pixel_from_one_source(kind):
    images, targets = two_worlds()
    mixed, answers = mix(images, targets, kind, np.random.default_rng(3))
    changed = 0
    for i in range(len(images)):
        sources = set(mixed[i].unique().tolist())
        (other,) = (sources - {float(i)}) or {None}
        if other is None:
            assert torch.equal(answers[i], targets[i])
            continue
        changed += 1
        taken = mixed[i, :1] == other
        assert torch.equal(answers[i], torch.where(taken, targets[int(other)], targets[i]))
        if kind == "paste":
            assert torch.equal(taken, targets[int(other)] == 1)
        else:
            rows, columns = (taken[0].any(dim=d).nonzero().flatten() for d in (1, 0))
            assert taken.sum() == len(rows) * len(columns)  # a rectangle
            assert 0.05 < taken.float().mean() < 0.6
    assert 0 < changed < len(images)
    assert torch.equal(mix(images, targets, kind, np.random.default_rng(3))[0], mixed)
    alone = mix(images[:1], targets[:1], kind, np.random.default_rng(0))
    assert torch.equal(alone[0], images[:1])
    assert torch.equal(alone[1], targets[:1])


def test_plans_of_sizes():
    assert planned_sizes("64:2,96:1") == [64, 64, 96]
    assert planned_sizes("grow") == []
    assert automatic_plan(128, 32, 12) == "64:3,96:4"
    assert automatic_plan(128, 32, 1) is None
    for size, stride, epochs in ((128, 32, 12), (256, 16, 40), (96, 32, 4), (64, 32, 10)):
        sizes = planned_sizes(automatic_plan(size, stride, epochs) or "fixed")
        assert sizes == sorted(sizes)
        assert len(sizes) <= 3 * epochs / 4
        assert all(2 * stride <= side < size and side % stride == 0 for side in sizes)
    for text in ("64", "64:0", "8:3", "64:2,", "a:b", "5000:1", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="no plan of sizes"):
            size_plan(text)


@pytest.mark.parametrize("side", [4, 12, 8])
def test_epochs_train_at_their_planned_sizes(side):
    term, batch = make_masks(Plain(), sizes="4:1,12:1"), make_batch()
    batch["labels"] *= 2  # background and border: nothing between may come of them
    images, labels, *_ = term.prepare(batch, None, {4: 0, 12: 1, 8: 2}[side], 0)
    assert images.shape[-2:] == labels.shape[-2:] == (side, side)
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) == {0, 2}


def test_purposes_and_names_draw_different_numbers():
    keys = [(1, 0, "a", 0), (1, 0, "a", 1), (1, 0, "b", 0), (1, 1, "a", 0), (2, 0, "a", 0)]
    assert len({sample_rng(*key).integers(2**62) for key in keys}) == 5
