"""Parts of a dataset, and copies that never stand in two of them."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from data.dataset import Dataset, read_groups
from data.layout import Sample, read_list
from data.split import _deal_out, stratified_subset
from helpers import TINY, assert_one_error, make_dataset, rows, run_ok, run_script, write_list, write_own
from runtime.errors import UsageError
from stubs import photograph


def names(pets):
    return [pet.name for pet in pets]


def test_80_10_10_is_disjoint_complete_and_stratified(tmp_path):
    root = make_dataset(tmp_path / "data", count=120, breeds=4)
    parts = Dataset(root).split("80-10-10", seed=3)
    assert [len(part) for part in parts[:3]] == [96, 12, 12]
    assert sorted(names(parts.train + parts.valid + parts.test)) == sorted(names(read_list(root, "list")))
    for part, share in zip(parts[:3], (24, 3, 3)):
        assert [sum(p.breed == b for p in part) for b in (1, 2, 3, 4)] == [share] * 4
    assert names(Dataset(root).split("80-10-10", seed=4).test) != names(parts.test)
    rows = (root / "annotations/list.txt").read_text().splitlines()
    write_list(root, "list", rows[::-1])
    assert Dataset(root).split("80-10-10", seed=3) == parts


def test_official_split_takes_the_lists(shared_dataset):
    parts = Dataset(shared_dataset).split("official")
    trainval = read_list(shared_dataset, "trainval")
    assert parts.valid == trainval[9::10]
    assert parts.train == [pet for i, pet in enumerate(trainval, 1) if i % 10]
    assert parts.test == read_list(shared_dataset, "test")


def test_training_fractions_are_stratified_and_nested():
    pets = [SimpleNamespace(breed=i % 4, name=str(i)) for i in range(83)]
    parts = [{p.name for p in stratified_subset(pets, round(83 * percent / 100), 3)} for percent in range(1, 100)]
    assert [len(part) for part in parts] == [round(83 * percent / 100) for percent in range(1, 100)]
    assert all(small <= large for small, large in zip(parts, parts[1:]))
    for part in parts:
        breeds = [sum(int(name) % 4 == breed for name in part) for breed in range(4)]
        assert max(breeds) - min(breeds) <= 2
    assert parts[49] != {p.name for p in stratified_subset(pets, 42, 4)}


def test_subset_all_scores_every_labelled_image_of_any_layout(trained, dataset, own, tmp_path):
    flags = ("--model_path", trained / "saved_models/tiny_best.pth", "--subset", "all", "--data_path")
    for path in sorted((own / "images").iterdir())[8:]:
        path.unlink()
        (own / f"masks/{path.stem}.png").unlink()
    assert "8 labelled images" in run_ok("evaluate.py", *flags, own, cwd=tmp_path)
    assert "40 labelled images" in run_ok("evaluate.py", *flags, dataset, "--allow_seen", cwd=tmp_path)
    for name in ("list", "trainval"):
        (dataset / f"annotations/{name}.txt").unlink()
    done = run_script("evaluate.py", *flags, dataset, cwd=tmp_path)
    assert_one_error(done, "was trained on 13 of these 14 images", "--allow_seen")


def make_near_copies(samples, photo=3):
    """Makes the first of these samples a photograph and the others mirror images of it, with their trimaps."""
    image, trimap = photograph(photo).resize((80, 64)), Image.open(samples[0].mask_path)
    for number, sample in enumerate(samples):
        (ImageOps.mirror(image) if number else image).save(sample.image_path, quality=95 - number)
        (ImageOps.mirror(trimap) if number else trimap).save(sample.mask_path)


def test_near_copies_stay_together_in_80_10_10_alone(dataset):
    parts = Dataset(dataset).split()
    copies = [parts.test[0], parts.valid[0], parts.valid[1]]
    make_near_copies(copies)
    together = Dataset(dataset).split()
    assert together.moved == [3]
    assert set(copies) <= set(together.train)
    official = Dataset(dataset).split("official")
    make_near_copies([official.test[0], official.train[0]], photo=4)
    assert Dataset(dataset).split("official") == official


@pytest.mark.parametrize(("groups", "sizes"), [("near", (36, 2, 2)), ("bytes", (34, 3, 3)), ("off", (32, 4, 4))])
def test_groups_choose_which_copies_stay_together(dataset, tmp_path, groups, sizes):
    parts = Dataset(dataset).split()
    shutil.copyfile(parts.test[0].image_path, parts.valid[0].image_path)
    make_near_copies([parts.test[1], parts.valid[1]])
    flags = ("train.py", "--data_path", dataset, *TINY, "--epochs", 1, "--groups", groups)
    counts = "{} train, {} valid, {} test".format(*sizes)
    said = run_ok(*flags, cwd=tmp_path)
    assert counts in said
    assert ("moved into training, in 2 groups (--groups near)" in said) == (groups == "near")
    assert counts in run_ok("train.py", "--data_path", dataset, "--resume", "--epochs", 1, cwd=tmp_path)
    assert f"{sizes[2]} test images" in run_ok("evaluate.py", "--data_path", dataset, cwd=tmp_path)


@pytest.mark.parametrize("split", ["80-10-10", "official"])
def test_a_limit_draws_images_evenly_for_all_parts(dataset, tmp_path, split):
    limited = Dataset(dataset, limit=20, seed=3)
    assert [sum(sample.breed == breed for sample in limited.samples) for breed in (1, 2, 3, 4)] == [5] * 4
    assert limited.samples == Dataset(dataset, limit=20, seed=3).samples != Dataset(dataset, limit=20).samples
    parts = Dataset(dataset, limit=20).split(split)
    counts = "{} train, {} valid, {} test".format(*map(len, parts[:3]))
    assert sum(map(len, parts[:3])) == 20
    flags = ("--data_path", dataset)
    assert counts in run_ok("train.py", *flags, *TINY, "--split", split, "--limit", 20, "--epochs", 1, cwd=tmp_path)
    assert counts in run_ok("train.py", *flags, "--resume", "--epochs", 1, cwd=tmp_path)
    assert f"{len(parts.test)} test image" in run_ok("evaluate.py", *flags, "--report", "report", cwd=tmp_path)
    assert [row["name"] for row in rows(tmp_path / "report/images.csv")] == names(parts.test)
    assert not (dataset / ".pixel_cache").exists()  # that of the whole dataset stays as it is
    done = run_script("train.py", *flags, "--resume", "--limit", 30, cwd=tmp_path)
    assert_one_error(done, "has limit 20 (now 30)")


def test_a_limit_takes_images_of_every_own_part(tmp_path):
    for number, part in enumerate(("train", "valid", "test")):
        write_own(tmp_path / part, count=(24, 8, 8)[number])
    assert [len(part) for part in Dataset(tmp_path, limit=10).split()[:3]] == [6, 2, 2]


def test_near_copies_are_looked_for_once(dataset, monkeypatch):
    make_near_copies(Dataset(dataset).samples[:2])
    first = Dataset(dataset).near_copies
    assert first == [Dataset(dataset).samples[:2]]
    with monkeypatch.context() as patch:
        patch.setattr("data.copies.find_near_copies", lambda samples: [])
        assert Dataset(dataset).near_copies == first
    photograph(5).save(Dataset(dataset).samples[1].image_path)
    assert Dataset(dataset).near_copies == []
    assert len(list((dataset / ".pixel_cache").glob("near_copies_*.json"))) == 1


def test_near_copies_of_training_images_are_told(dataset, tmp_path):
    official, divided = Dataset(dataset).split("official"), Dataset(dataset).split()
    learned = next(sample for sample in official.train if sample in divided.train)
    tested = next(sample for sample in official.test if sample in divided.test)
    make_near_copies([learned, tested])
    data = ("--data_path", dataset)
    run_ok("train.py", *data, *TINY, "--split", "official", "--epochs", 1, cwd=tmp_path)
    said = run_ok("evaluate.py", *data, "--json", "scores.json", "--report", "report", cwd=tmp_path)
    dice = {row["name"]: float(row["dice"]) for row in rows(tmp_path / "report/images.csv")}
    del dice[tested.name]
    without = sum(dice.values()) / len(dice)
    assert "Without 1 near copy of training images" in said
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["without_near_copies"]["dice"][0] == pytest.approx(without, abs=1e-6)
    said = run_ok("train.py", *data, *TINY, "--epochs", 1, "--save_dir", "divided", cwd=tmp_path)
    assert "Of 40 images 1 were moved into training, in 1 group (--groups near)." in said
    assert "near copies" not in run_ok("evaluate.py", *data, "--save_dir", "divided", cwd=tmp_path)


@pytest.mark.parametrize("split", ["80-10-10", "official"])
def test_folds_are_disjoint_complete_and_stratified(tmp_path, split):
    root = make_dataset(tmp_path / "data", count=80, breeds=4)
    whole = Dataset(root).split(split)
    parts = [Dataset(root).split(split, fold=[number, 5]) for number in range(1, 6)]
    pool = sorted(names(whole.train + whole.valid))
    assert sorted(name for part in parts for name in names(part.valid)) == pool
    for part in parts:
        assert part.test == whole.test
        assert sorted(names(part.train + part.valid)) == pool
        breeds = [sum(sample.breed == breed for sample in part.valid) for breed in (1, 2, 3, 4)]
        assert max(breeds) - min(breeds) <= 1
    assert Dataset(root).split(split, fold=[2, 5]) == parts[1]
    copied = [parts[0].valid[0], parts[3].valid[2], whole.test[0]]
    make_near_copies(copied)
    homes = [{s.name for s in copied} & set(names(Dataset(root).split(split, fold=[n, 5]).valid)) for n in range(1, 6)]
    assert sorted(map(len, homes)) == [0, 0, 0, 0, 3 if split == "80-10-10" else 2]


def test_a_run_per_fold_and_their_ensemble(shared_dataset, tmp_path):
    data, seen = ("--data_path", shared_dataset), []
    for number in (1, 2):
        run_ok("train.py", *data, *TINY, "--fold", f"{number}/2", "--epochs", 1, cwd=tmp_path)
        last = tmp_path / f"saved_models/fold_{number}/tiny_last.pth"
        assert (tmp_path / f"logs/fold_{number}/tiny_training_log.csv").is_file()
        seen.append(set(torch.load(last, weights_only=True)["data"]["train_names"]))
    assert not seen[0] & seen[1]
    said = run_ok("train.py", *data, "--resume", last, "--epochs", 1, "--save_dir", last.parent, cwd=tmp_path)
    assert f"{len(seen[1])} train" in said
    best = [tmp_path / f"saved_models/fold_{number}/tiny_best.pth" for number in (1, 2)]
    assert "4 test images" in run_ok("evaluate.py", *data, "--model_path", *best, cwd=tmp_path)
    flags = ("evaluate.py", *data, "--subset", "valid", "--model_path")
    run_ok(*flags, best[0], cwd=tmp_path)
    assert_one_error(run_script(*flags, *best, cwd=tmp_path), "was trained on")


def test_groups_stay_together_and_parts_keep_their_sizes(tmp_path):
    root = make_dataset(tmp_path / "data", count=120, breeds=4)
    groups = {sample.name: f"video {int(sample.name.split('_')[1]) // 6}" for sample in Dataset(root).samples}

    def assert_apart(parts, groups):
        homes = [{groups[name] for name in names(part)} for part in parts[:3]]
        assert not (homes[0] & homes[1] or homes[0] & homes[2] or homes[1] & homes[2])

    parts = Dataset(root, groups).split()
    assert [len(part) for part in parts[:3]] == [96, 12, 12]
    assert all(len({sample.breed for sample in part}) == 4 for part in parts[1:3])
    assert_apart(parts, groups)
    for number in (1, 2, 3):
        fold = Dataset(root, groups).split(fold=[number, 3])
        assert 36 <= len(fold.valid) <= 42
        assert_apart(fold, groups)
    test = names(Dataset(root).split("official").test)
    apart = {name: f"{group} {name in test}" for name, group in groups.items()}
    apart.update(dict.fromkeys((test[0], next(name for name in groups if name not in test)), "both"))
    official = Dataset(root, apart).split("official")
    assert_apart(official, apart)
    assert 7 <= len(official.valid) <= 9
    assert len(official.test) == 39


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([500, 400, 300, *[50] * 10], [1350, 200, 150]),
        ([300, 250, 200, 150, 100, *[20] * 20], [1120, 140, 140]),
        ([10, 10, 10], [10, 10, 10]),
        ([90, 1, 1], [90, 1, 1]),
    ],
)
def test_large_groups_leave_parts_their_sizes(sizes, expected):
    ends = np.cumsum([0, *sizes]).tolist()
    groups = [list(range(*ends[i : i + 2])) for i in range(len(sizes))]
    parts = _deal_out(list(range(ends[-1])), groups, {"train": 0.8, "valid": 0.1, "test": 0.1})
    assert [len(part) for part in parts.values()] == expected
    assert sorted(sum(parts.values(), [])) == list(range(ends[-1]))
    homes = {number: mode for mode, part in parts.items() for number in part}
    assert all(len({homes[number] for number in group}) == 1 for group in groups)


def test_groups_by_regex_and_file(shared_dataset, tmp_path):
    samples, file = Dataset(shared_dataset).samples, tmp_path / "groups.csv"
    by_breed = read_groups(r"regex:^(\D+\d)_", samples)
    assert set(by_breed.values()) == {"Cat0", "Cat1", "dog2", "dog3"}
    assert read_groups("regex:Cat.", samples) == {name: name[:4] for name in by_breed if name[0] == "C"}
    file.write_text("Cat0_0,a b\nCat1_1 a\n\ndog2_2\tb\n")
    assert read_groups(str(file), samples) == {"Cat0_0": "a b", "Cat1_1": "a", "dog2_2": "b"}
    file.write_text("photo 1 clip\n")
    assert read_groups(str(file), [Sample("photo 1", Path("photo 1.jpg"))]) == {"photo 1": "clip"}
    for pattern in ("nothing", "^()"):
        with pytest.raises(UsageError, match="finds a group in no name, such as Cat0_0"):
            read_groups(f"regex:{pattern}", samples)
    for text, said in (
        ("Cat0_0", "not `name group`"),
        ("x y", "not `name group` of an image"),
        ("Cat0_0 a\nCat0_0 b", "line 2 names an image twice"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=said):
            read_groups(str(file), samples)
    with pytest.raises(UsageError, match="can't be read"):
        read_groups("nowhere.txt", samples)


def test_a_run_remembers_its_groups(shared_dataset, tmp_path):
    data = ("--data_path", shared_dataset)
    flags = ("train.py", *data, *TINY, "--epochs", 1, "--groups")
    run_ok(*flags, r"regex:_(\d)", cwd=tmp_path)
    content = torch.load(tmp_path / "saved_models/tiny_last.pth", weights_only=True)
    digits = {name.split("_")[1][0] for name in content["data"]["train_names"]}
    assert len(content["data"]["groups"]) == 40
    run_ok("train.py", *data, "--resume", "--epochs", 1, cwd=tmp_path)
    run_ok("evaluate.py", *data, "--report", "report", cwd=tmp_path)
    assert not digits & {row["name"].split("_")[1][0] for row in rows(tmp_path / "report/images.csv")}
    assert_one_error(run_script(*flags, "regex:(", cwd=tmp_path), "is no regular expression")
