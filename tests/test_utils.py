import csv
import os
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import utils
from data.augment import IDENTITY, apply_colors, draw_colors
from runtime.errors import UsageError
from runtime.seeding import sample_rng


def masks(*rows):
    return torch.tensor(rows, dtype=torch.uint8)[:, None, None, :]


@pytest.mark.parametrize(
    ("prediction", "truth", "dice"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0], 1.0),  # nothing there, nothing said
        ([0, 0, 0, 1], [0, 0, 0, 0], 0.0),
        ([0, 0, 0, 0], [0, 0, 0, 1], 0.0),
        ([1, 1, 1, 1], [1, 1, 1, 1], 1.0),
        ([0, 1, 0, 0], [0, 1, 0, 0], 1.0),  # a single pixel
        ([1, 1, 0, 0], [0, 1, 1, 0], 0.5),
        ([1, 1, 1, 1], [1, 0, 0, 0], 0.4),
    ],
)
def test_dice_by_hand(prediction, truth, dice):
    assert utils.dice_score(masks(prediction), masks(truth)).tolist() == [pytest.approx(dice)]


def test_dice_is_per_image():
    scores = utils.dice_score(masks([1, 1, 0, 0], [0, 0, 0, 0]), masks([0, 1, 1, 0], [0, 0, 0, 0]))
    assert scores.tolist() == [0.5, 1.0]


def test_pixel_counts_add_up():
    counts = utils.pixel_counts(masks([1, 1, 0, 0, 0]), masks([0, 1, 1, 0, 0]))
    assert counts.tolist() == [[1, 1, 1, 2]]
    assert counts.dtype == torch.int64


def test_dice_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="differ in shape"):
        utils.dice_score(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))


def test_identity_changes_nothing():
    image, mask = torch.rand(3, 12, 10) * 255, torch.randint(0, 2, (1, 12, 10), dtype=torch.uint8)
    moved, moved_mask = utils.apply_augmentations(image, mask, torch.from_numpy(IDENTITY))
    torch.testing.assert_close(moved, image, atol=1e-3, rtol=0)
    assert torch.equal(moved_mask, mask)


def test_a_flip_is_a_flip():
    image, mask = torch.rand(3, 12, 10) * 255, torch.randint(0, 2, (1, 12, 10), dtype=torch.uint8)
    flip = torch.tensor([[-1.0, 0, 0], [0, 1, 0]])
    moved, moved_mask = utils.apply_augmentations(image, mask, flip)
    torch.testing.assert_close(moved, image.flip(-1), atol=1e-3, rtol=0)
    assert torch.equal(moved_mask, mask.flip(-1))


def test_image_and_mask_move_together_and_the_mask_stays_binary():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    mask = ((x - 30) ** 2 + (y - 25) ** 2 < 200).to(torch.uint8)[None]
    image = (mask.float() * 255).expand(3, -1, -1)
    for i in range(30):
        affine = torch.from_numpy(utils.draw_augmentation(np.random.default_rng(i)))
        moved, moved_mask = utils.apply_augmentations(image, mask, affine)
        assert set(moved_mask.unique().tolist()) <= {0, 1}
        assert ((moved[0] > 127.5) != moved_mask[0].bool()).float().mean() < 0.01


def test_augmentations_are_rotation_flip_crop_and_all_their_combinations():
    seen = set()
    for i in range(200):
        linear = utils.draw_augmentation(np.random.default_rng(i), degrees=10, min_scale=0.8)[:, :2].astype(float)
        scale = np.sqrt(abs(np.linalg.det(linear)))
        flipped = np.linalg.det(linear) < 0
        angle = np.degrees(np.arctan2(linear[1, 0] * (-1 if flipped else 1), linear[1, 1]))
        # Whatever is combined, it is a similarity: nothing is sheared or stretched.
        np.testing.assert_allclose(linear @ linear.T, scale**2 * np.eye(2), atol=1e-6)
        assert 0.8 - 1e-6 <= scale <= 1 + 1e-6
        assert abs(angle) <= 10 + 1e-6
        seen.add((bool(abs(angle) > 1e-4), bool(flipped), bool(scale < 1 - 1e-6)))
    assert len(seen) == 7  # all but doing nothing


def test_a_batch_is_augmented_like_its_images():
    images, truth = torch.rand(4, 3, 20, 20) * 255, torch.randint(0, 2, (4, 1, 20, 20), dtype=torch.uint8)
    affine = torch.from_numpy(np.stack([utils.draw_augmentation(np.random.default_rng(i)) for i in range(4)]))
    together = utils.apply_augmentations(images, truth, affine)
    for i in range(4):
        alone = utils.apply_augmentations(images[i], truth[i], affine[i])
        assert torch.equal(together[0][i], alone[0])
        assert torch.equal(together[1][i], alone[1])


def test_the_grid_is_torchs_own():
    affine = torch.from_numpy(np.stack([utils.draw_augmentation(np.random.default_rng(i)) for i in range(6)]))
    images, truth = torch.rand(6, 3, 24, 40) * 255, torch.randint(0, 2, (6, 1, 24, 40), dtype=torch.uint8)
    grid = torch.nn.functional.affine_grid(affine, [6, 3, 24, 40], align_corners=False)
    expected = torch.nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(utils.apply_augmentations(images, truth, affine)[0], expected, atol=0.01, rtol=0)


class FakeDataset:
    """Five named samples that tell by which keys they were asked for."""

    samples = [SimpleNamespace(name=f"pet_{i}") for i in range(5)]

    def __len__(self):
        return 5

    def read_batch(self, keys):
        return {"key": list(keys)}


def drawn(dataset, *key):
    """What was drawn for one key, as bytes."""
    return dataset[key]["affine"].numpy().tobytes()


def test_bulk_keeps_originals_and_adds_the_same_variants_every_time():
    first, again = (utils.augment_dataset(FakeDataset(), num_augmentations=3, seed=1) for _ in range(2))
    assert len(first) == 20
    assert all(drawn(first, 4, i) == IDENTITY.tobytes() for i in range(5))
    variants = [drawn(first, 3, i) for i in range(5, 20)]
    assert len(set(variants)) == 15
    assert variants == [drawn(again, 8, i) for i in range(5, 20)]
    assert first[3, 7]["key"] == (3, 2)  # the eighth item is a variant of the third picture
    other = utils.augment_dataset(FakeDataset(), num_augmentations=3, seed=2)
    assert variants[0] != drawn(other, 3, 5)


def test_more_variants_keep_the_earlier_ones():
    few, many = (utils.augment_dataset(FakeDataset(), n, seed=1) for n in (2, 5))
    assert [drawn(few, 0, i) for i in range(15)] == [drawn(many, 0, i) for i in range(15)]


def test_online_is_drawn_anew_every_epoch_and_only_from_seed_epoch_and_name():
    dataset = utils.AugmentedDataset(FakeDataset(), seed=1)
    keys = [(e, i) for e in range(8) for i in range(5)]
    once = {key: drawn(dataset, *key) for key in keys}
    assert once == {key: drawn(dataset, *key) for key in reversed(keys)}
    assert len(set(once.values())) > 30
    assert IDENTITY.tobytes() in {drawn(dataset, e, 0) for e in range(60)}


def test_a_batch_is_drawn_like_its_samples():
    dataset = utils.augment_dataset(FakeDataset(), 2, seed=1, color_jitter=True)
    batch = dataset.read_batch([(0, 3), (5, 12), 7])
    for row, key in enumerate([(0, 3), (5, 12), (0, 7)]):
        sample = dataset[key]
        assert torch.equal(batch["affine"][row], sample["affine"])
        assert torch.equal(batch["colors"][row], sample["colors"])
    assert torch.equal(batch["colors"][0], torch.ones(3))  # an original
    assert "colors" not in utils.augment_dataset(FakeDataset(), 2, seed=1)[0]


def test_colours_by_hand():
    image = torch.tensor([[100.0, 200.0], [50.0, 150.0], [0.0, 100.0]]).view(1, 3, 1, 2)
    torch.testing.assert_close(apply_colors(image, torch.ones(1, 3)), image)
    brighter = apply_colors(image, torch.tensor([[1.1, 1.0, 1.0]]))
    torch.testing.assert_close(brighter, image * 1.1)
    flat = apply_colors(image, torch.tensor([[1.0, 0.0, 1.0]]))
    torch.testing.assert_close(flat, torch.full_like(image, 100.0))
    gray = apply_colors(image, torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(gray[0, :, 0, 0], torch.full((3,), 0.299 * 100 + 0.587 * 50))
    assert apply_colors(image, torch.tensor([[9.0, 1.0, 1.0]])).max() == 255


def test_colours_stay_within_their_strength():
    draws = np.stack([draw_colors(np.random.default_rng(i), 0.25) for i in range(100)])
    assert draws.min() >= 0.75
    assert draws.max() <= 1.25
    assert draws.std(0).min() > 0.1


def test_purposes_and_names_draw_different_numbers():
    draws = {
        sample_rng(*key).integers(2**62)
        for key in [(1, 0, "a", 0), (1, 0, "a", 1), (1, 0, "b", 0), (1, 1, "a", 0), (2, 0, "a", 0)]
    }
    assert len(draws) == 5


def test_device_is_chosen_and_a_missing_one_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert utils.get_device().type == "cpu"
    with pytest.raises(UsageError, match="cuda is not available here; there is cpu"):
        utils.get_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert utils.get_device().type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert utils.get_device().type == "cuda"
    assert utils.get_device("cpu").type == "cpu"


def test_atomic_write_leaves_the_old_file_where_writing_fails(tmp_path):
    file = tmp_path / "log.csv"
    file.write_text("old")
    with pytest.raises(RuntimeError, match="no more ink"), utils.atomic_write(file) as stream:
        stream.write("half")
        raise RuntimeError("no more ink")
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def test_atomic_write_syncs_the_file_then_renames_then_syncs_the_folder(tmp_path, monkeypatch):
    done = []
    kind = {True: "folder", False: "file"}
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: done.append(kind[stat.S_ISDIR(os.fstat(fd).st_mode)]) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda *args: done.append("rename") or replace(*args))
    with utils.atomic_write(tmp_path / "x") as file:
        file.write("text")
    assert done == ["file", "rename", "folder"]


def test_atomic_write_follows_links_and_spares_devices(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with utils.atomic_write(tmp_path / "link") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    (tmp_path / "null").symlink_to("/dev/null")
    with utils.atomic_write(tmp_path / "null") as file:
        file.write("nothing")
    assert not (tmp_path / "null").resolve().is_file()


def test_long_names_and_names_that_are_no_text_are_written(tmp_path):
    name = tmp_path / ("\u732b" * 80 + ".png")
    with utils.atomic_write(name, "wb") as file:
        file.write(b"x")
    assert name.read_bytes() == b"x"
    utils.append_rows(tmp_path / "log.csv", [{"picture": "caf\udce9.jpg"}])
    assert utils.read_rows(tmp_path / "log.csv") == [{"picture": "caf\udce9.jpg"}]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_atomic_write_obeys_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        with utils.atomic_write(tmp_path / "file") as stream:
            stream.write("text")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_logs_grow_and_gain_columns(tmp_path):
    log = tmp_path / "log.csv"
    utils.append_rows(log, [{"a": 1, "b": 'quoted, "text"'}])
    utils.append_rows(log, [{"a": 2, "b": "x", "c": 3}])
    with log.open() as file:
        assert list(csv.DictReader(file)) == [
            {"a": "1", "b": 'quoted, "text"', "c": ""},
            {"a": "2", "b": "x", "c": "3"},
        ]
    assert utils.read_rows(tmp_path / "none.csv") == []
    log.write_text("a,b\n1,2")  # without an end, as some editors leave it
    utils.append_rows(log, [{"a": 3, "b": 4}])
    assert log.read_text() == "a,b\n1,2\n3,4\n"
