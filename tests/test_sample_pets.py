"""The drawn sample: its layout, that the same arguments give the same bytes, and that it never touches real data."""

import numpy as np
import pytest
from PIL import Image

import sample_pets
from data.layout import read_list
from helpers import assert_one_error, run_script

COUNT, SIDE = 24, 64


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return sample_pets.draw_sample_dataset(tmp_path_factory.mktemp("drawn") / "sample", COUNT, seed=3, side=SIDE)


def names(root, name):
    return [pet.name for pet in read_list(root, name)]


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_layout_is_the_datasets_own(sample):
    listed = names(sample, "list")
    assert len(listed) == len(set(listed)) == COUNT
    assert sorted(path.name for path in (sample / "images").iterdir()) == sorted(f"{name}.jpg" for name in listed)
    assert sorted(path.stem for path in (sample / "annotations/trimaps").iterdir()) == sorted(listed)
    assert (sample / "annotations/list.txt").read_text().startswith("#Image CLASS-ID SPECIES BREED ID\n#SPECIES")
    assert not list(sample.parent.glob(".*")), "the draft folder is gone"
    known = {breed.name: [str(breed.class_id), str(breed.species), str(breed.breed_id)] for breed in sample_pets.BREEDS}
    for name, *numbers in map(str.split, (sample / "annotations/list.txt").read_text().splitlines()[2:]):
        assert numbers == known[name.rsplit("_", 1)[0]]
        assert numbers[1] == ("1" if name[0].isupper() else "2")
    assert len({tuple(numbers) for numbers in known.values()}) == len(known) == 4


@pytest.mark.parametrize("count", [8, 9, COUNT])
def test_parts_are_disjoint_and_hold_every_breed(tmp_path, count):
    root = sample_pets.draw_sample_dataset(tmp_path / "s", count, side=32)
    trainval, test = names(root, "trainval"), names(root, "test")
    assert sorted(trainval + test) == sorted(names(root, "list"))
    for part in (trainval, test):
        assert {name.rsplit("_", 1)[0] for name in part} == {breed.name for breed in sample_pets.BREEDS}
    assert not (root / "annotations" / "test.txt").read_text().startswith("#")
    if count == COUNT:
        assert len(test) == COUNT // 3


def test_pictures_and_trimaps_fit_together(sample):
    sizes, shares = set(), []
    for name in names(sample, "list"):
        values = np.asarray(Image.open(sample / f"annotations/trimaps/{name}.png"))
        with Image.open(sample / "images" / f"{name}.jpg") as picture:
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            sizes.add(picture.size)
            assert values.shape == picture.size[::-1]
        assert set(np.unique(values)) == {1, 2, 3}
        shares.append((values != 2).mean())
    assert len(sizes) > 5 and all(0.7 * SIDE < length < 1.3 * SIDE for size in sizes for length in size)
    assert 0.2 < np.mean(shares) < 0.5 and min(shares) > 0.08 and max(shares) < 0.8


def test_picture_shows_the_pet_where_the_trimap_says(monkeypatch):
    """With the scene painted one unlikely colour, everything outside the border has it and the pet does not."""
    flat = lambda rng, size, *_: np.full((size[1], size[0], 3), (0.0, 255.0, 0.0), dtype=np.float32)  # noqa: E731
    monkeypatch.setattr(sample_pets, "_scene", flat)
    for breed in sample_pets.BREEDS:
        picture, image = sample_pets.draw_pet(np.random.default_rng(8), breed, (240, 200))
        colours, values = np.asarray(picture).astype(int), np.asarray(image)
        green = colours[..., 1] - colours[..., [0, 2]].max(axis=2) > 90
        assert green[values == 2].mean() > 0.97, "only whiskers lie outside"
        assert green[values == 1].mean() < 0.01


def test_same_arguments_give_the_same_bytes_and_a_larger_count_only_adds(sample, tmp_path):
    again = contents(sample_pets.draw_sample_dataset(tmp_path / "again", COUNT, seed=3, side=SIDE))
    assert again == contents(sample)
    fewer = sample_pets.draw_sample_dataset(tmp_path / "fewer", 10, seed=3, side=SIDE)
    pictures = {name: data for name, data in contents(fewer).items() if not name.endswith(".txt")}
    assert len(pictures) == 20 and pictures.items() <= again.items()
    assert set(names(fewer, "test")) <= set(names(sample, "test"))
    other = contents(sample_pets.draw_sample_dataset(tmp_path / "other", 8, seed=4, side=SIDE))
    assert all(data != again[name] for name, data in other.items() if name.endswith(".jpg"))


def test_second_call_does_nothing(tmp_path, capsys, monkeypatch):
    arguments = ["--data_path", str(tmp_path / "s"), "--count", "8", "--side", "32"]
    sample_pets.main(arguments)
    first = capsys.readouterr()
    assert first.out.count("\n") == 1 and "8 images drawn" in first.out and str(tmp_path / "s") in first.out
    before = contents(tmp_path)
    monkeypatch.setattr(sample_pets, "draw_pet", None)  # would fail if it were called
    sample_pets.main(arguments)
    assert "nothing to do" in capsys.readouterr().out and contents(tmp_path) == before


def test_other_files_are_refused_and_left_alone(sample, tmp_path):
    (tmp_path / "real/images").mkdir(parents=True)
    (tmp_path / "real/images/Abyssinian_1.jpg").write_bytes(b"a photograph")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path), contents(sample)
    assert_one_error(run_script(sample_pets.__file__, "--data_path", "real", "--count", 8, cwd=tmp_path), "real")
    for other in (sample, tmp_path / "file"):  # a sample with other arguments, a plain file
        with pytest.raises(FileExistsError, match="left alone"):
            sample_pets.draw_sample_dataset(other, COUNT, seed=4, side=SIDE)
    assert (contents(tmp_path), contents(sample)) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "real"]


def test_broken_off_run_is_made_good(tmp_path, monkeypatch):
    root = tmp_path / "s"
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(sample_pets, "draw_pet", None)
        sample_pets.draw_sample_dataset(root, 8, side=32)
    assert not root.exists()
    root.mkdir()  # an empty folder is as good as none
    sample_pets.draw_sample_dataset(root, 8, side=32)
    assert len(names(root, "list")) == 8 and [path.name for path in tmp_path.iterdir()] == ["s"]
