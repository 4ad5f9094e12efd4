"""Samples at their own size and as square tensors."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data.augment import AugmentedDataset
from data.loader import Batches, StepReader
from data.pets import OxfordPetDataset, SimpleOxfordPetDataset, load_dataset
from training.terms.denoise import NoisyDataset
from training.terms.fixmatch import UnlabeledBatches


def invert(sample: dict) -> dict:
    return {**sample, "mask": 1 - sample["mask"]}


@pytest.mark.parametrize("transform", [None, invert])
def test_samples_at_their_own_size(shared_dataset, transform):
    dataset = OxfordPetDataset(shared_dataset, "train", transform=transform)
    sample = dataset[0]
    assert sample["image"].shape == (64, 80, 3)
    assert sample["mask"].shape == sample["trimap"].shape == (64, 80)
    assert sample["path"] == str(dataset.samples[0].image_path)
    np.testing.assert_array_equal(sample["mask"], (sample["trimap"] == 2) == bool(transform))


def test_torchs_own_loader_takes_the_samples(shared_dataset):
    dataset = load_dataset(shared_dataset, "train", image_size=64, transform=invert)
    batch = next(iter(DataLoader(dataset, batch_size=4)))
    assert batch["image"].shape == (4, 3, 64, 64)
    assert len(batch["path"]) == 4
    assert torch.equal(batch["mask"], (batch["trimap"] == 2).to(torch.uint8))


def test_simple_samples_are_square_tensors(shared_dataset):
    sample = load_dataset(shared_dataset, "valid")[0]
    assert {name: tuple(values.shape) for name, values in sample.items() if name != "path"} == {
        **{"image": (3, 256, 256), "mask": (1, 256, 256), "labels": (1, 256, 256), "trimap": (1, 256, 256)}
    }
    assert {values.dtype for name, values in sample.items() if name != "path"} == {torch.uint8}
    assert set(sample["mask"].unique().tolist()) == {0, 1}
    assert set(sample["trimap"].unique().tolist()) == {1, 2, 3}


def test_uncertain_border_is_a_function_of_seed_epoch_and_image(shared_dataset):
    dataset = SimpleOxfordPetDataset(shared_dataset, "train", augment_uncertain=True, seed=5)
    sample, again, later = dataset[0, 2], dataset[0, 2], dataset[1, 2]
    border = sample["trimap"] == 3
    assert 0.4 < sample["mask"][border].float().mean() < 0.6
    assert torch.equal(sample["mask"][~border], (sample["trimap"][~border] == 1).to(torch.uint8))
    assert torch.equal(sample["mask"], again["mask"])
    assert not torch.equal(sample["mask"], later["mask"])


def test_datasets_reach_processes_that_start_afresh(dataset):
    plain = load_dataset(dataset, "train", image_size=64, cache=True)
    sets = (plain, AugmentedDataset(plain, 3), NoisyDataset(plain, 3))
    reader = StepReader([*(Batches(one, 8, 3) for one in sets), UnlabeledBatches(plain, 3, 3, 4), None])
    theirs = pickle.loads(pickle.dumps(reader)).read_batch((1, 2))  # noqa: S301
    for one, other in zip(reader.read_batch((1, 2)), theirs):
        assert (one is other is None) or (torch.equal(one["image"], other["image"]) and one.keys() == other.keys())
