"""Outlines of regions: exact on any mask, near it when simplified, and what other programs read of the files."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import convert_masks
from annotations import draw_polygon
from data.dataset import Dataset
from data.image_io import read_class_mask
from evaluation.config import POLYGONS
from evaluation.polygons import (
    Region,
    cut,
    proposals,
    regions,
    simplify,
    write_coco,
    write_labelme,
    write_yolo,
    write_yolo_names,
)
from helpers import run_ok, scene

NAMES = {1: "cat", 2: "garden gnome"}
RING = ["#######", "#     #", "# ### #", "# # # #", "# ### #", "#     #", "#######"]
FAULTLESS = 0.3  # pixels: at this tolerance no pixel's center changes sides


def pixels(rows: list[str]) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


def fill(region: Region, shape: tuple[int, int]) -> np.ndarray:
    """The pixels of a region, by its outline and its holes."""
    loops = [draw_polygon(loop, shape[::-1]) for loop in (region.outline, *region.holes)]
    return np.logical_xor.reduce(loops)


def smooth_labels(seed: int, shape=(180, 240)) -> np.ndarray:
    """Two classes of smooth, wavy shapes, one with a hole."""
    rng, (y, x) = np.random.default_rng(seed), np.indices(shape)
    labels = np.zeros(shape, np.uint8)
    for value, center in ((1, (90, 80)), (2, (90, 190))):
        angle, waves = np.arctan2(y - center[0], x - center[1]), rng.uniform(0, 5, 6)
        edge = 42 + sum(w * np.cos(k * angle + 7 * w) for k, w in enumerate(waves, start=1)) / 2
        labels[np.hypot(y - center[0], x - center[1]) < edge] = value
    labels[(y - 90) ** 2 + (x - 80) ** 2 < 150] = 0
    return labels


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("tolerance", [0, FAULTLESS])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.6, 0.9])
def test_any_mask_is_the_union_of_connected_regions_that_share_no_edge(share, tolerance):
    rng = np.random.default_rng(int(share * 10))
    for _ in range(20):
        mask = rng.random(rng.integers(1, 24, 2)) < share
        owner = np.zeros(mask.shape, int)
        for number, region in enumerate(regions(mask, {True: "a"}, tolerance), start=1):
            inside = fill(region, mask.shape)
            assert ndimage.label(inside)[1] == 1
            assert not owner[inside].any()
            owner[inside] = number
        np.testing.assert_array_equal(owner > 0, mask)
        for a, b in ((owner[1:], owner[:-1]), (owner[:, 1:], owner[:, :-1])):
            assert (a == b)[(a > 0) & (b > 0)].all()


def test_a_ring_in_a_ring():
    outer, inner = regions(pixels(RING), {True: "a"}, 0)
    assert outer.outline.tolist() == [[0, 0], [7, 0], [7, 7], [0, 7]]  # clockwise, from the upper left corner
    assert [hole.tolist() for hole in outer.holes] == [[[1, 1], [6, 1], [6, 6], [1, 6]]]
    assert inner.outline.tolist() == [[2, 2], [5, 2], [5, 5], [2, 5]]
    assert [hole.tolist() for hole in inner.holes] == [[[3, 3], [4, 3], [4, 4], [3, 4]]]


def test_values_without_a_name_are_no_regions():
    labels = np.array([[1, 1, 9], [2, 255, 2]])
    assert [region.name for region in regions(labels, NAMES)] == ["cat", "garden gnome", "garden gnome"]
    assert regions(labels, {7: "none"}) == []
    assert regions(np.zeros((3, 4)), NAMES) == []


@pytest.mark.parametrize(("shape", "corners"), [((1, 1), 4), ((1, 6), 6), ((40, 30), 4), ("slope", 6)])
def test_straight_edges_are_lines(shape, corners):
    y, x = np.indices((100, 100) if shape == "slope" else shape)
    mask = x >= y if shape == "slope" else x >= 0
    (region,) = regions(mask, {True: "a"})
    np.testing.assert_array_equal(fill(region, mask.shape), mask)
    assert len(region.outline) <= corners  # those of a slope are cut by half a pixel at most


@pytest.mark.parametrize(("tolerance", "least"), [(0, 1), (FAULTLESS, 1), (0.5, 0.99), (1.0, 0.98), (2.0, 0.95)])
def test_tolerance_trades_points_for_pixels(tolerance, least):
    counts = []
    for seed in range(5):
        labels = smooth_labels(seed)
        found = regions(labels, NAMES, tolerance)
        assert [(region.name, len(region.holes)) for region in found] == [("cat", 1), ("garden gnome", 0)]
        for region, value in zip(found, NAMES):
            assert iou(fill(region, labels.shape), labels == value) >= least
        counts.append(sum(len(region.outline) for region in found))
    exact = [sum(len(region.outline) for region in regions(smooth_labels(seed), NAMES, 0)) for seed in range(5)]
    assert tolerance == 0 or sum(counts) < sum(exact) * {FAULTLESS: 0.75, 0.5: 0.5, 1.0: 0.3, 2.0: 0.2}[tolerance]


@pytest.mark.parametrize("share", [1, 0.3])
def test_proposals_are_as_fine_as_what_the_network_saw(share):
    """Of a ragged outline with specks and small holes in and around it."""
    rng, (y, x) = np.random.default_rng(0), np.indices((200, 200))
    noise = ndimage.gaussian_filter(rng.normal(size=(200, 200)), 1.5) * 25
    mask = ndimage.zoom(np.hypot(y - 100, x - 100) + noise, 1 / share, order=1) < 70
    found, exact = proposals(mask, {True: "pet"}, (200, 200)), regions(mask, {True: "pet"}, 0)
    large = [region for region in exact if draw_polygon(region.outline, mask.shape[::-1]).sum() >= 6 / share**2]
    assert len(exact) > len(found) == len(large)
    points, before = (sum(len(cut(region)) for region in some) for some in (found, regions(mask, {True: "pet"})))
    assert points < before * (0.9 if share == 1 else 0.4)
    assert iou(np.logical_or.reduce([fill(region, mask.shape) for region in found]), mask) > 0.97


def test_no_corner_that_is_dropped_is_farther_than_the_tolerance():
    (region,) = regions(smooth_labels(1) == 2, {True: "a"}, 0)
    line, corners = simplify(region.outline, 1.0), region.outline[:, None]
    chord = np.roll(line, -1, axis=0) - line
    share = (((corners - line) * chord).sum(2) / (chord**2).sum(1)).clip(0, 1)[..., None]
    assert np.linalg.norm(corners - line - share * chord, axis=2).min(1).max() <= 1.5  # half a pixel is cut first


def test_a_cut_joins_holes_to_the_outline():
    mask = np.ones((30, 40), bool)
    mask[4:9, 5:9] = mask[12:20, 3:30] = mask[25:27, 20:24] = False
    (region,) = regions(mask, {True: "a"}, 0)
    line = cut(region)
    np.testing.assert_array_equal(draw_polygon(line, (40, 30)), mask)
    x, y = line.T
    assert (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2 == mask.sum()  # holes run against the outline
    assert cut(region._replace(holes=[])) is region.outline


@pytest.fixture
def written(tmp_path):
    """A folder with photographs, and with the files of three label maps in each format, the last of them empty."""
    names, size, images = list(NAMES.values()), (240, 180), []
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        traced, photo = regions(smooth_labels(seed) * (seed < 2), NAMES), tmp_path / f"photos/p{seed}.jpg"
        Image.new("RGB", size, "gray").save(photo)
        images.append((photo.name, size, traced))
        write_labelme(tmp_path / f"labelme/p{seed}.json", photo, size, traced)
        write_yolo(tmp_path / f"yolo/labels/p{seed}.txt", size, traced, names)
    write_coco(tmp_path / "coco/annotations.json", images, names)
    write_yolo_names(tmp_path / "yolo/data.yaml", names)
    return tmp_path


@pytest.mark.parametrize("kind", POLYGONS)
def test_masks_come_back_from_every_format(written, tmp_path, kind):
    flags = ["--annotations", written / kind, "--images", written / "photos", "--output", tmp_path / "out"]
    convert_masks.main([*map(str, flags), "--classes", "--keep_empty", "--names", ",".join(NAMES.values())])
    for seed in range(3):
        found = read_class_mask(tmp_path / f"out/masks/p{seed}.png", ("background", *NAMES.values()))
        labels = smooth_labels(seed) * (seed < 2)
        assert all(iou(found == value, labels == value) >= 0.99 for value in NAMES if seed < 2)
        assert seed < 2 or not found.any()


def test_labelme_file(written):
    """What LabelMe's loader requires (labelme/_label_file.py, 6.3.1), which needs Qt to be imported."""
    paths = sorted((written / "labelme").iterdir())
    assert [path.name for path in paths] == ["p0.json", "p1.json", "p2.json"]
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        assert (path.parent / content["imagePath"]).resolve() == (written / f"photos/{path.stem}.jpg").resolve()
        assert (content["imageWidth"], content["imageHeight"]) == (240, 180)
        assert content["imageData"] is None and content["flags"] == {} and type(content["version"]) is str
        assert [shape.pop("label") for shape in content["shapes"]] == [*NAMES.values()] * (path.stem != "p2")
        for shape in content["shapes"]:
            points = np.array(shape.pop("points"))
            assert points.ndim == 2 and points.shape[1] == 2 < len(points)
            assert shape == {"shape_type": "polygon", "group_id": None, "flags": {}, "description": ""}


def test_coco_file_is_read_by_pycocotools(written):
    coco = pytest.importorskip("pycocotools.coco").COCO(written / "coco/annotations.json")
    assert [row["name"] for row in coco.loadCats(coco.getCatIds())] == list(NAMES.values())
    assert [row["file_name"] for row in coco.loadImgs(coco.getImgIds())] == ["p0.jpg", "p1.jpg", "p2.jpg"]
    rows = coco.loadAnns(coco.getAnnIds())
    assert [(row["image_id"], row["category_id"], row["iscrowd"]) for row in rows] == [
        (image, category, 0) for image in (1, 2) for category in (1, 2)
    ]
    for row in rows:
        mask = smooth_labels(row["image_id"] - 1) == row["category_id"]
        assert iou(coco.annToMask(row) > 0, mask) >= 0.99
        assert row["area"] == pytest.approx(mask.sum(), rel=0.01)
        y, x = np.nonzero(mask)
        assert row["bbox"] == pytest.approx([x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1], abs=1)


def test_yolo_files(written):
    folder = written / "yolo"
    expected = 'path: .\ntrain: images\nval: images\nnames:\n  0: "cat"\n  1: "garden gnome"\n'
    assert (folder / "data.yaml").read_text() == expected
    assert (folder / "labels/p2.txt").read_text() == ""
    lines = [line.split() for line in (folder / "labels/p0.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == ["0", "1"]
    assert all(len(line) % 2 and 0 <= float(value) <= 1 for line in lines for value in line[1:])


@pytest.mark.parametrize("kind", POLYGONS)
def test_inference_writes_what_convert_masks_reads(tmp_path, model_flags, kind):
    names = ("a", "cats/a", "cats/old/a", "dogs/a")
    for number, name in enumerate(names):
        (tmp_path / f"in/{name}").parent.mkdir(parents=True, exist_ok=True)
        scene(90 + 9 * number).save(tmp_path / f"in/{name}.png")
    flags = ("--data_path", "in/**/*.png", "--output_path", "out", "--save", f"masks,{kind}")
    assert f"Results (masks, {kind}) are in out" in run_ok("inference.py", *model_flags, *flags, cwd=tmp_path)
    flags = ("--annotations", tmp_path / "out", "--images", tmp_path / "in", "--output", tmp_path / "back")
    convert_masks.main([*map(str, flags)])
    samples = Dataset(tmp_path / "back").samples
    assert [sample.name for sample in samples] == [*names]
    for sample in samples:
        assert sample.image_path.read_bytes() == (tmp_path / f"in/{sample.name}.png").read_bytes()
        found, mask = (
            np.asarray(Image.open(file)) > 0 for file in (sample.mask_path, tmp_path / f"out/{sample.name}_mask.png")
        )
        assert iou(found, mask) > 0.97
