"""The pixel cache."""

import os
import shutil
import signal

import numpy as np
import pytest
import torch

from data.cache import open_cache
from data.dataset import Dataset
from data.image_io import read_mask
from data.pets import SimpleOxfordPetDataset
from data.view import View
from helpers import TINY, Script, run_ok, save, write_list
from runtime.errors import DatasetError


def opened(root, size):
    return open_cache(root, Dataset(root).samples, View(size))


@pytest.mark.parametrize("uncertain", [False, True])
def test_cached_samples_equal_decoded_ones(dataset, uncertain):
    options = {"image_size": 48, "augment_uncertain": uncertain}
    decoded = SimpleOxfordPetDataset(dataset, "train", **options)
    cached = SimpleOxfordPetDataset(dataset, "train", cache=True, **options)
    for key in [0, 5, (3, 5), (4, 5)]:
        for (name, a), b in zip(decoded[key].items(), cached[key].values()):
            assert a == b if name == "path" else torch.equal(a, b), name
    a, b = decoded.read_batch([(1, 2), 7, (0, 2)]), cached.read_batch([(1, 2), 7, (0, 2)])
    assert all(torch.equal(a[name], b[name]) for name in ("image", "mask", "trimap"))
    assert a["path"] == b["path"] == [str(cached.samples[i].image_path) for i in (2, 7, 2)]


def caches(root):
    return sorted(p.name for p in (root / ".pixel_cache").iterdir() if p.name != "lock")


def test_cache_is_made_once_and_again_after_any_change(dataset, capsys, monkeypatch):
    def made() -> bool:
        opened(dataset, 32)
        return "Decoding" in capsys.readouterr().out

    assert made()
    assert not made()
    monkeypatch.setattr("PIL.__version__", "another")  # may resize in another way
    assert made()
    pet = Dataset(dataset).samples[0]
    save(pet.image_path, np.full((64, 80, 3), 200, np.uint8))  # another picture
    assert made()
    save(pet.mask_path, np.full((64, 80), 1, np.uint8))  # another trimap
    assert made()
    record = opened(dataset, 32).read([pet.name])[0]
    assert (record[:3] == 200).all() and (record[3] == 1).all()
    for name in ("list", "trainval", "test"):  # other lists
        write_list(dataset, name, (dataset / f"annotations/{name}.txt").read_text().splitlines()[:-1])
    assert made()
    assert len(caches(dataset)) == 1  # what is out of date is removed
    opened(dataset, 40)  # another size
    assert len(caches(dataset)) == 2


def test_no_space_or_permission_falls_back_with_a_message(dataset, monkeypatch, capsys):
    usage = shutil.disk_usage(dataset)

    def fails(number: int, words: str):
        def fail(*_args, **_options):
            raise OSError(number, words)

        return fail

    for owner, name, function, words in (
        (shutil, "disk_usage", lambda _path: usage._replace(free=1000), "leaves less than 1 GB free"),
        (os, "fsync", fails(28, "No space left on device"), "No space left"),
        (type(dataset), "mkdir", fails(13, "Permission denied"), "Permission denied"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, function)
            assert opened(dataset, 32) is None
        said = capsys.readouterr().err
        assert words in said and "decoded at every access" in said
    assert caches(dataset) == []
    assert opened(dataset, 32) is not None
    monkeypatch.setattr(np, "load", fails(13, "Permission denied"))  # as of another user's
    assert opened(dataset, 32) is None


def test_truncated_cache_is_one_error(dataset):
    cache = opened(dataset, 32)
    with cache.file.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(DatasetError, match="is damaged; delete it"):
        opened(dataset, 32)


OPENS = """
import sys, time
from pathlib import Path
from data import cache
from data.dataset import Dataset
from data.view import View

def read_all(*_):
    print("writing", flush=True)
    time.sleep(60)

if "slowly" in sys.argv:
    cache.read_all = read_all
print(cache.open_cache(Path.cwd(), Dataset(Path.cwd()).samples, View(64)).file)
"""


def test_several_processes_at_once_make_one_cache(dataset):
    done = [script.finish() for script in [Script(OPENS, (), dataset) for _ in range(3)]]
    assert len({run.stdout.splitlines()[-1] for run in done}) == 1
    assert sum("Decoding" in run.stdout for run in done) == 1
    assert len(caches(dataset)) == 1


def test_killed_decoding_leaves_nothing_that_is_used(dataset):
    script = Script(OPENS, ("slowly",), dataset)
    script.wait_for("writing")
    script.send_signal(signal.SIGKILL)
    script.finish()
    assert [name.endswith(".tmp") for name in caches(dataset)] == [True]
    assert opened(dataset, 64).read([Dataset(dataset).samples[0].name]).shape == (1, 4, 64, 64)
    assert [name.endswith(".npy") for name in caches(dataset)] == [True]


def test_training_does_not_depend_on_cache_or_workers(dataset, tmp_path):
    results = []
    for i, flags in enumerate([(), ("--no-cache",), ("--no-cache", "--num_workers", 2)]):
        folder = tmp_path / str(i)
        folder.mkdir()
        said = run_ok(
            *("train.py", "--data_path", dataset, "--epochs", 1, *TINY, "--augment", "online", "--distort", "color"),
            *("--augment_uncertain", *flags),
            cwd=folder,
        )
        assert ("not cached" in said) == bool(flags)
        results.append(torch.load(folder / "saved_models/tiny_last.pth", weights_only=True)["weights"])
    for other in results[1:]:
        assert all(torch.equal(value, other[key]) for key, value in results[0].items())


def test_what_workers_note_of_files_is_said_once(own, tmp_path):
    for path in sorted((own / "masks").iterdir())[:30]:
        mask = read_mask(path) * 255
        mask[mask.any(axis=1).argmax()] //= 2
        save(path, mask)
    flags = ("--data_path", own, *TINY, "--epochs", 2, "--no-cache", "--num_workers")
    said = [run_ok("train.py", *flags, workers, cwd=tmp_path).splitlines() for workers in (0, 2)]
    said = [[line for line in lines if line.startswith("Gray levels are divided")] for lines in said]
    assert said[0] == said[1]
    assert len(said[0]) == 1
