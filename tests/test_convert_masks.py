"""Masks from other tools: each format against a mask by hand, what the toolkit reads back, and each error."""

import base64
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import convert_masks
from data.index import list_samples
from models.task import PET
from runtime.errors import UsageError

WIDTH, HEIGHT = 7, 5
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 7, "name": "garden gnome"}]
# A square of x 1..3, y 1..2, and a triangle: rows of 4, 3, 2, 1 pixels, as their centers lie below the diagonal.
SQUARE, TRIANGLE = [1, 1, 4, 1, 4, 3, 1, 3], [3, 0, 7.5, 0, 3, 4.5]
SQUARE_MASK = ["       ", " ###   ", " ###   ", "       ", "       "]
TRIANGLE_MASK = ["   ####", "   ### ", "   ##  ", "   #   ", "       "]
UNION_MASK = ["   ####", " ##### ", " ####  ", "   #   ", "       "]


def pixels(rows: list[str]) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


def save_image(path, size=(WIDTH, HEIGHT), orientation=None, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(noise).save(path, exif=exif, **more)


def coco(*segmentations, size=(WIDTH, HEIGHT), file_name="a.png", **more) -> dict:
    """A file of one image; `more` goes into its annotations."""
    rows = [{"id": i, "image_id": 5, "category_id": 1, "segmentation": s, **more} for i, s in enumerate(segmentations)]
    image = {"id": 5, "file_name": file_name, "width": size[0], "height": size[1]}
    return {"images": [image], "annotations": rows, "categories": CATEGORIES}


def labelme(*shapes, path="a.png", size=(WIDTH, HEIGHT), data=None) -> dict:
    rows = [{"label": "cat", "shape_type": kind, "points": np.reshape(p, (-1, 2)).tolist()} for kind, p in shapes]
    return {"shapes": rows, "imagePath": path, "imageData": data, "imageWidth": size[0], "imageHeight": size[1]}


@pytest.fixture
def convert(tmp_path):
    """Converts annotations, a dict of one file or several by name, and returns the folder of the output."""
    save_image(tmp_path / "photos/a.png")

    def convert(content, *flags):
        files = content if ".json" in str(list(content)) else {"notes.json": content}
        for name, text in files.items():
            path = tmp_path / "notes" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text if isinstance(text, str) else json.dumps(text))
        where = path if len(files) == 1 else tmp_path / "notes"
        command = ["--annotations", where, "--images", tmp_path / "photos", "--output", tmp_path / "out", *flags]
        convert_masks.main(list(map(str, command)))
        return tmp_path / "out"

    return convert


def read_back(out) -> dict[str, np.ndarray]:
    """Every mask as the toolkit reads it, bool (H, W), once its image has been read at the same size."""
    masks = {}
    for sample in list_samples(out):
        image, trimap = sample.read()
        assert image.shape[:2] == trimap.shape
        masks[sample.name] = trimap == PET
    return masks


def encode(mask: np.ndarray) -> tuple[list[int], str]:
    """COCO's run lengths, plain and compressed, written from the format's description."""
    column_major, counts = mask.T.ravel(), []
    value = False
    while sum(counts) < mask.size:
        rest = column_major[sum(counts) :]
        counts.append(int(np.argmax(rest != value)) if (rest != value).any() else len(rest))
        value = not value
    text = ""
    for i, count in enumerate(counts):
        rest = count - counts[i - 2] if i > 2 else count
        while not -16 <= rest < 16:
            text += chr(48 + 32 + rest % 32)
            rest //= 32
        text += chr(48 + rest % 32)
    return counts, text


def test_encoder_by_hand():
    assert encode(pixels(["##", " #"])) == ([0, 1, 1, 2], "0111")  # the last is 2 - 1
    assert encode(pixels([" " * 9 + "#"] * 5)) == ([45, 5], "]15")  # 45 = 13 + 32: 13 + 32 + 48 is "]", then 1


@pytest.mark.parametrize(
    ("segmentations", "expected"),
    [
        ([[SQUARE]], SQUARE_MASK),
        ([[TRIANGLE]], TRIANGLE_MASK),
        ([[SQUARE, TRIANGLE]], UNION_MASK),
        ([[SQUARE], [TRIANGLE]], UNION_MASK),
        ([[[-5, -5, 99, -5, 99, 99, -5, 99]]], ["#" * 7] * 5),
        ([{"size": [5, 7], "counts": [6, 2, 3, 2, 3, 2, 17]}], SQUARE_MASK),
        ([{"size": [5, 7], "counts": encode(pixels(UNION_MASK))[1]}], UNION_MASK),
    ],
)
def test_coco(convert, segmentations, expected):
    out = convert(coco(*segmentations, iscrowd=int(isinstance(segmentations[0], dict))))
    np.testing.assert_array_equal(read_back(out)["a"], pixels(expected))
    with Image.open(out / "masks/a.png") as mask:
        assert mask.mode == "L" and set(np.unique(mask)) <= {0, 255}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999, 1.0])
def test_run_lengths_of_any_number(share):
    mask = np.random.default_rng(1).random((90, 130)) < share
    for counts in encode(mask):
        drawn = convert_masks.draw_shape({"segmentation": {"size": [90, 130], "counts": counts}}, (130, 90))
        np.testing.assert_array_equal(drawn, mask)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([("polygon", TRIANGLE)], TRIANGLE_MASK),
        ([(None, TRIANGLE)], TRIANGLE_MASK),
        ([("rectangle", [4, 3, 1, 1])], SQUARE_MASK),
        ([("circle", [2.5, 2.5, 2.5, 4])], ["       ", " ###   ", " ###   ", " ###   ", "       "]),
        ([("circle", [2.5, 2.5, 4.5, 2.5])], ["  #    ", " ###   ", "#####  ", " ###   ", "  #    "]),
        ([("rectangle", [1, 1, 4, 3]), ("polygon", TRIANGLE)], UNION_MASK),
    ],
)
def test_labelme(convert, shapes, expected):
    np.testing.assert_array_equal(read_back(convert(labelme(*shapes)))["a"], pixels(expected))


def test_labelme_folder_finds_images_and_takes_the_embedded_one_where_there_is_none(convert, tmp_path):
    save_image(tmp_path / "photos/inside/b.png")
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    square = ("rectangle", [1, 1, 4, 3])
    files = {
        "1.json": labelme(square, path="..\\photos\\a.png", data=data),
        "inside/2.json": labelme(square, path="b.png"),
        "3.json": labelme(square, path="C:\\me\\lost.jfif", data=data),
        "._3.json": "what macOS leaves on other disks",
    }
    out = convert(files)
    assert {k: v.sum() for k, v in read_back(out).items()} == {"a": 6, "b": 6, "lost": 6}
    assert (out / "images/lost.jpg").read_bytes() == buffer.getvalue()
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
    save_image(tmp_path / "photos/b.png")
    content = coco([SQUARE], [TRIANGLE])
    content["annotations"][1]["category_id"] = 7
    content["images"].append({"id": 6, "file_name": "b.png"})
    out = convert(content, "--category", "garden gnome")
    np.testing.assert_array_equal(read_back(out)["a"], pixels(TRIANGLE_MASK))
    assert "1 images, 0 with an empty mask; 1 without a shape skipped" in capsys.readouterr().out
    (tmp_path / "out").rename(tmp_path / "first")
    assert {k: v.sum() for k, v in read_back(convert(content, "--keep_empty")).items()} == {"a": 14, "b": 0}


BROKEN = {"size": [5, 7], "counts": [6, 2, 3]}
ERRORS = {
    "not JSON": ("{", (), ["notes.json", "export it again"]),
    "a list": ("[]", (), ["notes.json", "export it again"]),
    "no categories": ({"images": []}, (), ["'categories' is missing", "export it again"]),
    "unknown id": (coco([SQUARE], category_id=3), (), ["annotation 0", "not listed"]),
    "no such category": (coco([SQUARE]), ("--category", "dog"), ["no category 'dog'", "cat, garden gnome"]),
    "missing image": (coco([SQUARE], file_name="no.png"), (), ["1 of 1 images", "no.png", "--images"]),
    "odd": (coco([SQUARE[:-1]]), (), ["annotation 0", "7 coordinates", "draw it again"]),
    "two points": (labelme(("polygon", [1, 1, 2, 2])), (), ["shape 1", "4 coordinates", "draw it again"]),
    "not finite": (coco([[float("nan"), *SQUARE[1:]]]), (), ["annotation 0", "coordinates"]),
    "empty outline": (coco([]), (), ["annotation 0", "no outline"]),
    "box": (coco(None, bbox=[0, 0, 2, 2]), (), ["annotation 0", "no outline, at most a box; draw a polygon"]),
    "line": (labelme(("line", [1, 1, 2, 2])), (), ["shape 1", "line can't be filled"]),
    "run lengths": (coco(BROKEN), (), ["annotation 0", "7x5", "export it again"]),
    "size of run lengths": (coco({**BROKEN, "size": [7, 5], "counts": [35]}), (), ["annotation 0", "7x5"]),
    "compressed": (coco({**BROKEN, "counts": "oo"}), (), ["annotation 0", "7x5"]),
    "size": (coco([SQUARE], size=(8, 5)), (), ["image 5", "8x5", "7x5", "annotate that file"]),
    "imageData": (labelme(path="no.png", data="?"), ("--keep_empty",), ["notes.json", "export it again"]),
    "no shape": (labelme(), (), ["none of its 1 images"]),
    "twice": ({"1.json": labelme(), "2.json": labelme()}, ("--keep_empty",), ["2.json", "one name", "rename one"]),
    "one stem": (
        {"1.json": labelme(path="b.png", data="A"), "2.json": labelme(path="B.jpg", data="A")},
        ("--keep_empty",),
        ["B.jpg", "2.json", "b.png", "one name", "rename one"],
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_place_and_leave_nothing(convert, tmp_path, case):
    content, flags, words = ERRORS[case]
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
    command = [sys.executable, convert_masks.__file__, "--annotations", "no.json", "--images", ".", "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: no.json: there is no JSON file; name another one")
    assert not list(tmp_path.iterdir())
