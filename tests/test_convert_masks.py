"""Masks from other tools: each format against a mask by hand, what the toolkit reads back, and each error."""

import base64
import io
import itertools
import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import annotations
import convert_masks
from data.dataset import Dataset
from data.image_io import read_class_mask
from data.view import View
from helpers import assert_one_error, run_script
from models.names import class_names
from models.task import BACKGROUND, IGNORED, PET, class_colors
from runtime.errors import DatasetError, UsageError

WIDTH, HEIGHT = 7, 5
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 7, "name": "garden gnome"}]
# A square of x 1..3, y 1..2, and a triangle: rows of 4, 3, 2, 1 pixels, as their centers lie below the diagonal.
SQUARE, TRIANGLE = [1, 1, 4, 1, 4, 3, 1, 3], [3, 0, 7.5, 0, 3, 4.5]
SQUARE_MASK = ["       ", " ###   ", " ###   ", "       ", "       "]
TRIANGLE_MASK = ["   ####", "   ### ", "   ##  ", "   #   ", "       "]
UNION_MASK = ["   ####", " ##### ", " ####  ", "   #   ", "       "]


def pixels(rows: list[str]) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


def save_image(path, size=(WIDTH, HEIGHT), orientation=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(noise).save(path, exif=exif)


def coco(*segmentations, size=(WIDTH, HEIGHT), file_name="a.png", **more) -> dict:
    """A file of one image; `more` goes into its annotations."""
    rows = [{"id": i, "image_id": 5, "category_id": 1, "segmentation": s, **more} for i, s in enumerate(segmentations)]
    image = {"id": 5, "file_name": file_name, "width": size[0], "height": size[1]}
    return {"images": [image], "annotations": rows, "categories": CATEGORIES}


def labelme(*shapes, path="a.png", size=(WIDTH, HEIGHT), data=None) -> dict:
    rows = [{"label": "cat", "shape_type": kind, "points": np.reshape(p, (-1, 2)).tolist()} for kind, p in shapes]
    return {"shapes": rows, "imagePath": path, "imageData": data, "imageWidth": size[0], "imageHeight": size[1]}


def base64_png(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def convert_folder(annotations, images, output, *flags):
    """Runs the tool; returns the folder of its output."""
    command = ["--annotations", annotations, "--images", images, "--output", output, *flags]
    convert_masks.main(list(map(str, command)))
    return output


@pytest.fixture
def convert(tmp_path):
    """Converts annotations, a dict of one file or several by name, and returns the folder of the output.

    A file's content is text, what becomes JSON, or an image.
    """
    save_image(tmp_path / "photos/a.png")

    def convert(content, *flags):
        files = content if "." in str(list(content)) else {"notes.json": content}
        for name, text in files.items():
            path = tmp_path / "notes" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(text, Image.Image):
                text.save(path)
            else:
                path.write_text(text if isinstance(text, str) else json.dumps(text))
        where = path if len(files) == 1 else tmp_path / "notes"
        return convert_folder(where, tmp_path / "photos", tmp_path / "out", *flags)

    return convert


def read_back(out) -> dict[str, np.ndarray]:
    """Every mask as the toolkit reads it, bool (H, W), once its image has been read at the same size."""
    masks = {}
    for sample in Dataset(out).samples:
        image, labels = View().read_at(sample)
        assert image.shape[:2] == labels.shape
        masks[sample.name] = labels == PET
    return masks


def run_lengths(mask: np.ndarray, compressed: bool) -> dict:
    """COCO's, as pycocotools writes them, or as a plain list."""
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    first, *rest = (len(list(run)) for _, run in itertools.groupby([False, *mask.T.ravel()]))
    return {"size": runs["size"], "counts": runs["counts"].decode() if compressed else [first - 1, *rest]}


def pairs(mask: np.ndarray) -> str:
    """Kaggle's run lengths, by its own words: 1-based, top to bottom, then left to right."""
    places = np.flatnonzero(np.pad(mask.T.ravel().astype(np.int8), 1)[1:] != np.pad(mask.T.ravel(), 1)[:-1]) + 1
    return " ".join(f"{start} {end - start}" for start, end in zip(places[::2], places[1::2]))


def labelme_mask(points, dtype=bool) -> dict:
    content = labelme(("mask", points))
    content["shapes"][0]["mask"] = base64_png(pixels(["# #", "###"]).astype(dtype))
    return content


YOLO_SQUARE = "0.142857 0.2 0.571429 0.2 0.571429 0.6 0.142857 0.6"
OF_UNION, OF_SQUARE, OF_TRIANGLE = (pairs(pixels(rows)) for rows in (UNION_MASK, SQUARE_MASK, TRIANGLE_MASK))
OBLIQUE = ("oriented_rectangle", [3, -0.5, 5.5, 2, 3, 4.5, 0.5, 2])
EMPTY = " " * 7
FORMATS = [
    (coco([SQUARE]), SQUARE_MASK),
    (coco([TRIANGLE]), TRIANGLE_MASK),
    (coco([SQUARE, TRIANGLE]), UNION_MASK),
    (coco([SQUARE], [TRIANGLE]), UNION_MASK),
    (coco([[-5, -5, 99, -5, 99, 99, -5, 99]]), ["#" * 7] * 5),
    (coco(SQUARE), SQUARE_MASK),  # polygons of any nesting
    (coco([SQUARE, [5, 4, 6, 4]]), SQUARE_MASK),
    (coco([np.reshape(SQUARE, (-1, 2)).tolist()]), SQUARE_MASK),
    (coco({"size": [5, 7], "counts": [6, 2, 3, 2, 3, 2, 17]}, iscrowd=1), SQUARE_MASK),
    (coco(run_lengths(pixels(UNION_MASK), compressed=True), iscrowd=1), UNION_MASK),
    (labelme(("polygon", TRIANGLE)), TRIANGLE_MASK),
    (labelme((None, TRIANGLE)), TRIANGLE_MASK),
    (labelme(("rectangle", [4, 3, 1, 1])), SQUARE_MASK),
    (labelme(("rectangle", SQUARE)), SQUARE_MASK),  # of four points, as AnyLabeling writes it
    (labelme(("rotation", SQUARE)), SQUARE_MASK),
    (labelme(OBLIQUE), ["  ##   ", " ####  ", " ####  ", "  ##   ", EMPTY]),
    (labelme(("circle", [2.5, 2.5, 2.5, 4])), [EMPTY, " ###   ", " ###   ", " ###   ", EMPTY]),
    (labelme(("circle", [2.5, 2.5, 4.5, 2.5])), ["  #    ", " ###   ", "#####  ", " ###   ", "  #    "]),
    (labelme(("rectangle", [1, 1, 4, 3]), ("polygon", TRIANGLE)), UNION_MASK),
    (labelme_mask([3, 1, 5, 2]), [EMPTY, "   # # ", "   ### ", EMPTY, EMPTY]),
    (labelme_mask([3, 1, 5, 2], np.uint8), [EMPTY, "   # # ", "   ### ", EMPTY, EMPTY]),
    (labelme_mask([-1, 4, 1, 5]), [EMPTY] * 4 + [" #     "]),  # cut at the edge
    (labelme_mask([5.6, 0, 7, 1]), ["     # ", "     ##", EMPTY, EMPTY, EMPTY]),
    ({"a.txt": f"0 {YOLO_SQUARE}\n"}, SQUARE_MASK),
    ({"a.txt": f"1 {YOLO_SQUARE}", "classes.txt": "dog\ncat\n"}, SQUARE_MASK),
    ({"labels/train/a.txt": f"1 {YOLO_SQUARE}", "data.yaml": "names: [dog, cat]", "train.txt": "a.png"}, SQUARE_MASK),
    ({"labels/a.txt": f"1 {YOLO_SQUARE}\n\n", "data.yaml": "names:\n  0: dog\n  1: cat\n"}, SQUARE_MASK),
    ({"t.csv": f"img,rle_mask\na.png,{OF_UNION}\n"}, UNION_MASK),
    ({"t.csv": f"ImageId,EncodedPixels\na.png,{OF_SQUARE}\na.png,{OF_TRIANGLE}\n"}, UNION_MASK),
    ({"t.csv": f"id,width,annotation\na,7,{OF_UNION}\n"}, UNION_MASK),
    ({"t.csv": f"ImageId,ClassId,EncodedPixels\na.png,1,{OF_SQUARE}\na.png,3,{OF_TRIANGLE}\n"}, UNION_MASK),
]


@pytest.mark.parametrize(("content", "expected"), FORMATS)
def test_shapes_of_every_format(convert, content, expected):
    out = convert(content)
    np.testing.assert_array_equal(read_back(out)["a"], pixels(expected))
    with Image.open(out / "masks/a.png") as mask:
        assert mask.mode == "L" and set(np.unique(mask)) <= {0, 255}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths(share, compressed):
    mask = np.random.default_rng(1).random((90, 130)) < share
    np.testing.assert_array_equal(annotations.draw_run_lengths(run_lengths(mask, compressed), (130, 90)), mask)


def test_labelme_folder_finds_images_and_takes_the_embedded_one_where_there_is_none(convert, tmp_path):
    save_image(tmp_path / "photos/inside/b.png")
    data = base64_png(np.full((HEIGHT, WIDTH, 3), 99, np.uint8))
    square = ("rectangle", [1, 1, 4, 3])
    files = {
        "1.json": labelme(square, path="..\\photos\\a.png", data=data),
        "inside/2.json": labelme(square, path="b.png"),
        "3.json": labelme(square, path="C:\\me\\lost.jfif", data=data),
        "._3.json": "what macOS leaves on other disks",
    }
    out = convert(files)
    assert {k: v.sum() for k, v in read_back(out).items()} == {"a": 6, "inside/b": 6, "lost": 6}
    assert (out / "images/lost.jfif").read_bytes() == base64.b64decode(data)
    assert (out / "images/a.png").read_bytes() == (tmp_path / "photos/a.png").read_bytes()


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("upright", [True, False])
def test_exif_orientation(convert, tmp_path, orientation, upright):
    save_image(tmp_path / "photos/a.jpg", orientation=orientation)
    size = (HEIGHT, WIDTH) if upright and orientation > 4 else (WIDTH, HEIGHT)
    expected = np.zeros(size[::-1], bool)
    expected[1:3, 1:4] = True
    mask = read_back(convert(coco([SQUARE], size=size, file_name="a.jpg")))["a"]
    np.testing.assert_array_equal(mask, expected)


def test_categories_and_images_without_any(convert, tmp_path, capsys):
    content = coco([SQUARE], [TRIANGLE])
    content["annotations"][1]["category_id"] = 7
    for name in "bcde":
        save_image(tmp_path / f"photos/{name}.png")
        content["images"].append({"id": name, "file_name": f"{name}.png"})
    out = convert(content, "--category", "garden gnome")
    np.testing.assert_array_equal(read_back(out)["a"], pixels(TRIANGLE_MASK))
    words = "1 image, 0 with an empty mask; 4 without a shape skipped, b.png, c.png, d.png, ...\n"
    assert words in capsys.readouterr().out
    (tmp_path / "out").rename(tmp_path / "first")
    sums = {name: mask.sum() for name, mask in read_back(convert(content, "--keep_empty")).items()}
    assert sums == {"a": 14, "b": 0, "c": 0, "d": 0, "e": 0}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (labelme(("polygon", SQUARE), ("point", [9, 9])), ["1 of 2 shapes", "shape 2", "point"]),
        (labelme(("linestrip", [1, 1, 2, 2, 3, 1]), ("rectangle", [1, 1, 4, 3])), ["shape 1", "linestrip"]),
        (labelme(("polygon", SQUARE), ("polygon", [1, 1, 2, 2]), ("circle", [1, 1])), ["2 of 3", "shape 2", "shape 3"]),
        (coco([[1, 1, 2, 2]], [SQUARE], []), ["2 of 3", "annotation 0 (it has 4", "annotation 2 (it has no outline"]),
        (coco(None, [SQUARE], bbox=[1, 1, 3, 2]), ["annotation 0 (it has no outline, at most a box"]),
        ({"a.txt": "0 0.5 0.5 0.2 0.2\n0 0.142857 0.2 0.571429 0.2 0.571429 0.6 0.142857 0.6\n"}, ["a.txt, line 1"]),
    ],
)
def test_shapes_that_cover_nothing_are_left_out_and_named_at_once(convert, tmp_path, capsys, content, words):
    with pytest.raises(UsageError, match="without --strict") as caught:
        convert(content, "--strict")
    assert not (tmp_path / "out").exists()
    np.testing.assert_array_equal(read_back(convert(content))["a"], pixels(SQUARE_MASK))
    warning = capsys.readouterr().err
    assert warning.startswith("warning: left out, ") and warning.count("\n") == 1
    assert all(word in warning and word in str(caught.value) for word in words), warning


def test_an_image_whose_only_shape_is_left_out_gets_no_empty_mask(convert, tmp_path, capsys):
    save_image(tmp_path / "photos/b.png")
    content = coco([SQUARE])
    content["images"].append({"id": 6, "file_name": "b.png"})
    content["annotations"].append({"id": 9, "image_id": 6, "category_id": 1, "segmentation": []})
    out = convert(content, "--keep_empty")
    assert list(read_back(out)) == ["a"] and not (out / "images/b.png").exists()
    assert "1 image, 0 with an empty mask; 1 without a shape skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path: .\nnames:\n- cat\n- 'big, dog'\nnc: 2\n", {0: "cat", 1: "big, dog"}),
        ('names:\n  - t-shirt # worn\n\n  - "a: b"\ntrain: x\n', {0: "t-shirt", 1: "a: b"}),
        ("names: [cat, t-shirt,'x y']", {0: "cat", 1: "t-shirt", 2: "x y"}),
        ("names: {0: cat, 2: dog}\ntrain: [a, b]", {0: "cat", 2: "dog"}),
        ("# my set\nnames: # two\n  0: cat\n  5: garden gnome\nother:\n  1: no", {0: "cat", 5: "garden gnome"}),
        ("names: [\n  'cat',\n  'dog'\n]\n", {0: "cat", 1: "dog"}),
    ],
)
def test_names_of_data_yaml(tmp_path, text, expected):
    (tmp_path / "data.yaml").write_text(text)
    assert annotations.yolo_names(tmp_path / "data.yaml") == expected


@pytest.mark.parametrize("images", ["photos", ".", "photos/cats"])
def test_paths_of_labelme_are_those_from_its_file(tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    names = ["cats/a", "cats/b"] if "cats" in images else ["a", "cats/a", "dogs/a"]
    for number, name in enumerate(names):
        save_image(tmp_path / f"photos/{name}.png", (WIDTH + number, HEIGHT))
        file = tmp_path / f"deep/notes/{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        path = f"{'../' * (2 + name.count('/'))}photos/{name}.png"
        file.write_text(json.dumps(labelme(("polygon", SQUARE), path=path, size=(WIDTH + number, HEIGHT))))
    masks = read_back(convert_folder("deep/notes", images, "out"))
    below = {"photos": "", ".": "photos/", "photos/cats": ""}[images]
    assert sorted(masks) == sorted(f"{below}{name.removeprefix('cats/' * ('cats' in images))}" for name in names)
    assert sorted(mask.shape[1] for mask in masks.values()) == [WIDTH + number for number in range(len(names))]


def test_files_of_labelme_that_were_moved_beside_their_images(tmp_path):
    moved = tmp_path / "corrected"
    for kind in ("cats", "dogs"):
        save_image(moved / f"{kind}/a.png")
        content = labelme(("polygon", SQUARE), path=f"../../photos/{kind}/a.png")
        (moved / f"{kind}/a.json").write_text(json.dumps(content))
    assert sorted(read_back(convert_folder(moved, moved, tmp_path / "out"))) == ["cats/a", "dogs/a"]


@pytest.mark.parametrize(
    "layout", ["{part}/images/{n}.png {part}/labels/{n}.txt", "images/{part}/{n}.png labels/{part}/{n}.txt"]
)
@pytest.mark.parametrize("parts", [("train", "valid", "test"), ("train", "val"), ("train", "test")])
def test_a_division_into_parts_is_kept(tmp_path, layout, parts):
    image, label = layout.split()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/data.yaml").write_text("names: [cat]")
    (tmp_path / "in/README.roboflow.txt").write_text("exported")
    for part in parts:
        for n in range(3):  # the same names in all parts
            save_image(tmp_path / "in" / image.format(part=part, n=n))
            file = tmp_path / "in" / label.format(part=part, n=n)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"0 {YOLO_SQUARE}\n")
    dataset = Dataset(convert_folder(tmp_path / "in", tmp_path / "in", tmp_path / "out"))
    assert [sample.name for sample in dataset.samples] == sorted(f"{part}/{n}" for part in parts for n in range(3))
    validated = parts != ("train", "test")  # train.py needs a part to validate on
    assert len(dataset.parts) == (len(parts) if validated else 0)


def test_coco_files_of_parts(tmp_path):
    for part in ("train", "valid"):
        save_image(tmp_path / f"in/{part}/a.png")
        (tmp_path / f"in/{part}/_annotations.coco.json").write_text(json.dumps(coco([SQUARE])))
    out = convert_folder(tmp_path / "in", tmp_path / "in", tmp_path / "out")
    assert {*Dataset(out).parts} == {"train", "valid"}


@pytest.mark.parametrize(("photo", "mask"), [("{}.jpg", "{}_mask.png"), ("sub/{}.png", "sub/{}-Label_1.png")])
def test_masks_beside_their_images_are_no_images(tmp_path, photo, mask, capsys):
    folder = tmp_path / "mixed"
    folders, sizes = (folder, folder, tmp_path / "out"), [(WIDTH + number, HEIGHT) for number in range(4)]
    for number, size in enumerate(sizes):
        save_image(folder / photo.format(f"x_{number}"), size)
    with pytest.raises(UsageError, match="call them like their images with _mask at the end, or name another folder"):
        convert_folder(*folders, "--threshold", "auto")
    for number, size in enumerate(sizes):
        Image.fromarray(pixels(SQUARE_MASK)).resize(size).save(folder / mask.format(f"x_{number}"))
    with pytest.raises(UsageError, match="--threshold auto"):
        convert_folder(*folders)
    masks = read_back(convert_folder(*folders, "--threshold", "auto"))
    ending = mask.lower()[mask.index("}") + 1 : -4].replace("1", "0")
    assert f"Masks are called like their images with '{ending}'" in capsys.readouterr().out
    assert {mask.shape[1] for mask in masks.values()} == {WIDTH + number for number in range(4)}
    assert all(0 < mask.mean() < 0.5 for mask in masks.values())


def test_rows_of_a_csv_without_pixels_are_images_without_shapes(convert, tmp_path):
    save_image(tmp_path / "photos/b.png")
    save_image(tmp_path / "photos/c.png")
    out = convert({"t.csv": "ImageId,EncodedPixels\na.png,1 3\nb.png,\nc.png,-1\n"}, "--keep_empty")
    assert {name: mask.sum() for name, mask in read_back(out).items()} == {"a": 3, "b": 0, "c": 0}


def test_run_lengths_of_a_csv_can_be_long(convert, tmp_path):
    save_image(tmp_path / "photos/a.png", (600, 500))
    mask = np.random.default_rng(2).random((500, 600)) < 0.5
    out = convert({"t.csv": f"img,rle\na.png,{pairs(mask)}\n"})
    np.testing.assert_array_equal(read_back(out)["a"], mask)


LABEL_MAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ngarden gnome:0,128,0::\n"


def palette_mask() -> Image.Image:
    """As Pascal VOC and CVAT write it: cat where the square is, the gnome on the triangle, a void pixel."""
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    numbers[pixels(SQUARE_MASK)], numbers[pixels(TRIANGLE_MASK)], numbers[4, 6] = 1, 2, 255
    image = Image.fromarray(numbers, "P")
    image.putpalette(np.uint8(class_colors(256)).tobytes())
    return image


@pytest.mark.parametrize("mode", ["P", "RGB", "RGBA"])
@pytest.mark.parametrize(
    ("name", "label_map"),
    [
        ("labelmap.txt", LABEL_MAP),
        ("label_colors.txt", "0 0 0 background\n128 0 0 cat\n0 128 0 garden gnome\n"),
        ("my.json", {"cat": "#800000", "garden gnome": [0, 128, 0]}),
        ("my.txt", "\ncat: #800000\ngarden gnome: 0, 128,0\n"),
        ("my.csv", "name,r,g,b\ncat,128,0,0\ngarden gnome,0,128,0\n"),
    ],
)
def test_colors(convert, tmp_path, mode, name, label_map):
    (tmp_path / name).write_text(label_map if isinstance(label_map, str) else json.dumps(label_map))
    mask = palette_mask()
    assert mask.convert("RGB").getpixel((6, 4)) == (224, 224, 192)
    flags = ["--label_map", str(tmp_path / name)] if "my" in name else []
    out = convert({"SegmentationClass/a.png": mask.convert(mode)}, *flags, "--classes")
    numbers = np.asarray(Image.open(out / "masks/a.png"))
    np.testing.assert_array_equal(numbers, np.asarray(mask))
    assert (out / "classes.txt").read_text() == "background\ncat\ngarden gnome\n"
    (tmp_path / "out").rename(tmp_path / "first")
    binary = read_back(convert({"a_mask.tif": mask.convert(mode)}, *flags, "--names", "cat"))["a"]
    np.testing.assert_array_equal(binary, np.asarray(mask) == 1)


@pytest.mark.parametrize(
    ("flags", "names", "expected"),
    [
        ([], ["cat", "garden gnome"], ["   2222", " 11222 ", " 1122  ", "   2   ", "       "]),
        (["--names", "garden gnome,cat"], ["garden gnome", "cat"], ["   1111", " 22111 ", " 2211  ", "   1   ", ""]),
        (["--names", "cat"], ["cat"], ["", " 111   ", " 111   ", "", ""]),
    ],
)
def test_classes_are_numbered_in_order_and_later_shapes_win(convert, flags, names, expected):
    content = coco([SQUARE], [TRIANGLE])
    content["annotations"][1]["category_id"] = 7
    out = convert(content, "--classes", *flags)
    assert (out / "classes.txt").read_text().splitlines() == ["background", *names]
    assert class_names(str(out / "classes.txt")) == ",".join(["background", *names])  # as train.py reads it
    labels = read_class_mask(out / "masks/a.png", ("background", *names))
    wanted = [[int(letter.strip() or 0) for letter in row.ljust(7)] for row in expected]
    np.testing.assert_array_equal(labels - BACKGROUND, wanted)


def test_shapes_of_the_background_erase_and_ignored_ones_are_left_out(convert, tmp_path):
    content = labelme(("rectangle", [0, 0, 7, 5]), ("polygon", TRIANGLE), ("rectangle", [1, 1, 4, 3]))
    content["shapes"][1]["label"], content["shapes"][2]["label"] = "_background_", "__ignore__"
    out = convert(content, "--classes")
    assert (out / "classes.txt").read_text().splitlines() == ["background", "cat"]
    expected = np.where(pixels(SQUARE_MASK), IGNORED, np.where(pixels(TRIANGLE_MASK), 0, 1))
    np.testing.assert_array_equal(np.asarray(Image.open(out / "masks/a.png")), expected)
    (tmp_path / "out").rename(tmp_path / "first")
    np.testing.assert_array_equal(read_back(convert(content))["a"], ~pixels(TRIANGLE_MASK))


def colored(label_map: str, mask=None) -> dict:
    return {"SegmentationClass/a.png": mask or palette_mask(), "labelmap.txt": label_map}


BROKEN = {"size": [5, 7], "counts": [6, 2, 3]}
NO_PNG = {"label": "a", "shape_type": "mask", "points": [[1, 1], [2, 2]], "mask": "AAAA"}
ERRORS = {  # content, words of the error, flags
    "not JSON": ("{", ["notes.json", "export it again"]),
    "no categories": ({"images": []}, ["'categories' is missing", "export it again"]),
    "unknown id": (coco([SQUARE], category_id=3), ["annotation 0", "not listed"]),
    "no such category": (coco([SQUARE]), ["no category 'dog'", "cat, garden gnome"], "--category", "dog"),
    "missing image": (coco([SQUARE], file_name="no.png"), ["1 of 1 image missing", "no.png of notes.json, image 5"]),
    "odd": (coco([SQUARE[:-1]]), ["annotation 0", "7 coordinates", "draw it again"]),
    "not finite": (coco([[float("nan"), *SQUARE[1:]]]), ["annotation 0", "coordinates"]),
    "no PNG": (labelme() | {"shapes": [NO_PNG]}, ["notes.json, shape 1", "its mask is no PNG"]),
    "no mask": (labelme(("mask", [1, 1, 2, 2])), ["shape 1", "'mask' is missing"]),
    "YOLO without image": ({"b.txt": f"0 {YOLO_SQUARE}"}, ["1 of 1 image missing", "photos/b of b.txt", "--images"]),
    "YOLO words": ({"a.txt": "cat 1 2 3"}, ["a.txt", "invalid literal", "export it again"]),
    "unnamed": ({"labels/a.txt": f"3 {YOLO_SQUARE}", "data.yaml": "names: [cat]"}, ["data.yaml names no class 3"]),
    "no names": ({"labels/a.txt": "", "data.yaml": "nc: 3"}, ["data.yaml has no names"]),
    "columns": ({"a.csv": "x,y\n1,2\n"}, ["its columns are x, y; call them image and rle"]),
    "run pairs": ({"a.csv": "img,rle\na.png,30 7\n"}, ["row 2", "7x5"]),
    "odd pairs": ({"a.csv": "img,rle\na.png,30\n"}, ["row 2", "export it again"]),
    "no label map": ({"a.png": palette_mask()}, ["a.png", "--label_map"]),
    "unknown color": (colored("cat:128,0,0::"), ["1 color without", "`cat: #008000` to", "labelmap.txt"]),
    "unknown colors": (
        {f"{n}.png": Image.new("RGB", (7, 5), (0, n, 0)) for n in (5, 6, 7)} | {"labelmap.txt": "cat:0,6,0"},
        ["notes has 2 colors without a name", "labelmap.txt, or", "out: #000500, #000700"],
    ),
    "colors unlike VOC's": (
        {"SegmentationClass/a.png": Image.new("RGB", (7, 5), (0, 7, 0))},
        ["1 color without", "`cat: #000700` to a file of all colors for --label_map"],
    ),
    "one color": (colored("cat:128,0,0\ndog:#800000"), ["gives cat and dog one color"]),
    "label map": (colored("cat:128,0,0\n\nwhat 7"), ["line 3 of", "no name and color"]),
    "size of colors": (colored(LABEL_MAP, palette_mask().resize((3, 2))), ["3x2", "7x5"]),
    "class name": (coco([SQUARE]) | {"categories": [{"id": 1, "name": "a/b"}]}, ["a/b"], "--classes"),
    "run lengths": (coco(BROKEN), ["annotation 0", "7x5", "export it again"]),
    "compressed": (coco({**BROKEN, "counts": "oo"}), ["annotation 0", "7x5"]),
    "size": (coco([SQUARE], size=(8, 5)), ["image 5", "8x5", "7x5", "annotate that file"]),
    "imageData": (labelme(path="no.png", data="?"), ["notes.json", "export it again"], "--keep_empty"),
    "no shape": (labelme(), ["of its 1 image none has a shape"]),
    "one name": (
        {"1.json": labelme(path="b.png", data="A"), "2.json": labelme(path="B.jpg", data="A")},
        ["B.jpg", "2.json", "b.png", "one name", "rename one"],
        "--keep_empty",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_place_and_leave_nothing(convert, tmp_path, case):
    content, words, *flags = ERRORS[case]
    with pytest.raises(UsageError) as caught:
        convert(content, *flags)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"notes", "photos"}


def test_output_that_holds_something_is_left_alone(convert, tmp_path):
    (tmp_path / "out").mkdir()
    convert(coco([SQUARE]))  # an empty folder is as good as none
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")}
    with pytest.raises(UsageError, match=r"is not empty and is left alone"):
        convert(coco([TRIANGLE]))
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")} == before


def test_command_line_says_it_in_one_line(tmp_path):
    flags = ("--annotations", "no.json", "--images", ".", "--output", "out")
    done = run_script(convert_masks.__file__, *flags, cwd=tmp_path)
    assert_one_error(done, "no.json: there is no .json, .csv, .txt, .png, .bmp, ")
    assert not list(tmp_path.iterdir())


def test_a_pascal_voc_dataset_is_converted_by_the_command_in_the_error(tmp_path):
    root = tmp_path / "VOC 2012"
    for i in range(20):
        save_image(root / f"JPEGImages/{i}.jpg")
    for i in range(12):  # of the others boxes alone are known
        (root / "SegmentationClass").mkdir(exist_ok=True)
        palette_mask().save(root / f"SegmentationClass/{i}.png")
    (root / "ImageSets").mkdir()
    with pytest.raises(DatasetError, match="is in the layout of Pascal VOC") as error:
        Dataset(root)
    command, data = re.search(
        "`python tools/convert_masks.py (.*)`, and use --data_path (.*)", str(error.value)
    ).groups()
    convert_masks.main(shlex.split(command))
    samples = Dataset(*shlex.split(data)).samples
    assert len(samples) == 12
    np.testing.assert_array_equal(View().read_labels(samples[0]), (np.asarray(palette_mask()) % 255) > 0)
    more = (str(tmp_path / "named"), "--classes", "--names", "aeroplane,bicycle")
    convert_masks.main([*shlex.split(command)[:-1], *more])
    assert class_names(str(tmp_path / "named/classes.txt")) == "background,aeroplane,bicycle"
