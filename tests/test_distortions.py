"""Distortions: what each does, and that a draw depends on seed, epoch and image alone."""

from argparse import ArgumentTypeError

import numpy as np
import pytest
import torch
from scipy import ndimage

from data.augment import AugmentedDataset, augment_batch
from data.distortions import DISTORTIONS, apply_distortions, draw_distortions
from data.names import change_names
from data.pets import load_dataset
from stubs import photograph

NAMES = list(DISTORTIONS)


def batch(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    images = np.stack([np.asarray(photograph(i)).transpose(2, 0, 1) for i in range(count)])
    targets = (images[:, :1] > 128).astype(np.uint8)
    return torch.from_numpy(images), torch.from_numpy(targets)


def distorted(name: str, amount: float = 1.0, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    images, targets = batch()
    amounts = torch.zeros(3, len(NAMES))
    amounts[1, NAMES.index(name)] = amount
    return apply_distortions(images, targets, amounts, torch.full((3,), seed))


@pytest.mark.parametrize("name", NAMES)
def test_a_distortion_changes_its_image_alone_and_more_the_stronger_it_is(name):
    images, targets = batch()
    weak, _ = distorted(name, 0.3)
    strong, moved = distorted(name, 1.5)
    for found in (weak, strong):
        assert torch.equal(found[[0, 2]], images[[0, 2]].float())
        assert found.min() >= 0 and found.max() <= 255
    change = [(found[1] - images[1]).abs().mean() for found in (weak, strong)]
    assert 0 < change[0] < change[1]
    assert torch.equal(moved[[0, 2]], targets[[0, 2]])
    assert torch.equal(moved, targets) == (name != "elastic")
    assert set(moved.unique().tolist()) <= {0, 1}
    again, _ = distorted(name, 1.5)
    assert torch.equal(again, strong)
    if name not in ("blur", "jpeg"):  # which have no random numbers
        assert not torch.equal(distorted(name, 1.5, seed=6)[0], strong)


def test_elastic_moves_image_and_target_together():
    images, targets = batch()
    found, moved = DISTORTIONS["elastic"](
        targets.float() * 255, targets, torch.ones(3), [torch.Generator().manual_seed(i) for i in range(3)]
    )
    assert ((found > 127.5) != moved.bool()).float().mean() < 0.02
    assert (moved != targets).float().mean() > 0.02


def test_blur_equals_scipys():
    images, _ = batch(1)
    found, _ = DISTORTIONS["blur"](images.float(), images[:, :1], torch.ones(1), [None])
    sigma = min(images.shape[-2:]) / 100
    reach = int(4.5 * sigma)
    for ours, channel in zip(found[0], images[0].numpy().astype(float)):
        theirs = ndimage.gaussian_filter(channel, sigma, mode="mirror", truncate=reach / sigma)
        assert np.abs(ours.numpy() - theirs).max() < 0.5


def test_what_is_drawn():
    rows = np.array([draw_distortions(np.random.default_rng(i), "gamma,jpeg", 0.5) for i in range(1000)])
    assert (rows[:, [0, 2, 3, 5]] == 0).all()
    for number in (1, 4):
        some = rows[:, number][rows[:, number] > 0]
        assert 240 < len(some) < 360
        assert some.min() >= 0.05 and some.max() <= 0.5
    assert change_names("jpeg, color, elastic") == "color,elastic,jpeg"
    assert change_names("all, paste") == ",".join(["color", *NAMES, "paste"])
    with pytest.raises(ArgumentTypeError, match="no distortion is called 'rain'"):
        change_names("rain")
    with pytest.raises(ArgumentTypeError, match="paste and cutmix exclude each other"):
        change_names("paste,cutmix")


@pytest.mark.parametrize("variants", [0, 2])
def test_a_draw_depends_on_seed_epoch_and_image_alone(shared_dataset, variants):
    def images(keys, seed=1):
        dataset = load_dataset(shared_dataset, "train", image_size=64)
        found = AugmentedDataset(dataset, seed, variants, distort=",".join(NAMES)).read_batch(keys)
        return augment_batch(found, torch.device("cpu"))[0]

    first = 40 if variants else 0  # of the variants
    together = images([(4, first + index) for index in range(12)])
    alone = torch.cat([images([(4, first + index)]) for index in range(12)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-3)
    assert not torch.equal(together, images([(4, first + index) for index in range(12)], seed=2))
    same = torch.equal(together, images([(5, first + index) for index in range(12)]))
    assert same == bool(variants)
