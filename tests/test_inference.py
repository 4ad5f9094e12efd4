"""Inference for people who have pictures: odd files, all kinds of results, the page of panels."""

import csv
import html.parser
import math
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from data.image_io import read_image
from helpers import assert_one_error, run_ok, run_script
from models.checkpoint import build_from_checkpoint, load_checkpoint
from visual.gallery import write_gallery
from visual.panels import draw_outline


@pytest.fixture(scope="module")
def model_flags(trained) -> tuple:
    return "--model_path", trained / "saved_models/tiny_best.pth"


def scene(width: int = 90, height: int = 60) -> Image.Image:
    """A light disc off the middle, on dark ground: what the trained model knows."""
    image = Image.new("RGB", (width, height), (30, 40, 50))
    ImageDraw.Draw(image).ellipse([width * 0.1, height * 0.2, width * 0.5, height * 0.8], fill=(210, 200, 190))
    return image


def log_of(folder: Path) -> list[dict]:
    with (folder / "logs/tiny_inference_log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def odd_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Pictures of many formats and modes; returns the size, (width, height), at which each is shown."""
    folder.mkdir()
    picture, sizes = scene(), {}
    turned = Image.Exif()
    turned[0x0112] = 6
    saves = {
        "plain.jpg": (picture, {}),
        "turned.jpg": (picture, {"exif": turned}),
        "gray.jpg": (picture.convert("L"), {}),
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "rgba.png": (picture.convert("RGBA"), {}),
        "palette.png": (picture.quantize(16), {}),
        "bits.png": (picture.convert("1"), {}),
        "deep.png": (Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257), {}),
        "small.webp": (picture, {}),
        "old.bmp": (picture, {}),
        "print.tiff": (picture.convert("CMYK"), {}),
        "floats.tif": (picture.convert("F"), {}),
        "moving.gif": (picture.quantize(16), {"save_all": True, "append_images": [picture.quantize(4)]}),
        "naïve 猫 file.PNG": (picture, {}),
        "same.png": (picture, {}),
        "same.jpg": (picture, {}),
        "one pixel.png": (Image.new("RGB", (1, 1)), {}),
        "tall.png": (scene(9, 700), {}),
    }
    for name, (image, options) in saves.items():
        image.save(folder / name, **options)
        sizes[name] = image.size[::-1] if name == "turned.jpg" else image.size
    return sizes


def test_everything_that_is_a_picture_comes_out_and_the_rest_is_listed(tmp_path, model_flags):
    sizes = odd_files(tmp_path / "odd")
    (tmp_path / "odd/text.jpg").write_text("no picture")
    whole = (tmp_path / "odd/plain.jpg").read_bytes()
    (tmp_path / "odd/cut off.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "odd/notes.txt").write_text("not even by its name")
    kinds = "masks,probabilities,overlays,cutouts,panels"
    flags = (*model_flags, "--data_path", "odd", "--output_path", "out", "--save", kinds)
    done = run_script("inference.py", *flags, "--batch_size", 3, cwd=tmp_path)
    assert_one_error(done, f"2 of {len(sizes) + 2} images", "text.jpg", "cut off.jpg", status=1)
    for name, (width, height) in sizes.items():
        stem = name.replace(".", "_") if name.startswith("same") else name.rpartition(".")[0]
        found = {kind: Image.open(tmp_path / f"out/{stem}_{kind}.png") for kind in ("mask", "probability", "overlay")}
        for kind, image in found.items():
            assert image.size == (width, height), (name, kind)
        mask, levels = np.asarray(found["mask"]), np.asarray(found["probability"])
        assert set(np.unique(mask)) <= {0, 255}
        assert found["probability"].mode == "I;16"
        assert np.array_equal(mask == 255, levels > 32767), name  # half of 65535
        cutout = np.asarray(Image.open(tmp_path / f"out/{stem}_cutout.png"))
        assert np.array_equal(cutout[..., 3], mask), name
        shown = read_image(tmp_path / "odd" / name, upright=True)
        assert np.array_equal(cutout[..., :3], shown), name
        assert np.array_equal(np.asarray(found["overlay"]), draw_outline(shown, mask)), name
    log = {Path(row["picture"]).name: row for row in log_of(tmp_path)}
    assert len(log) == len(sizes) + 2
    assert "can't be read" in log["text.jpg"]["error"]
    assert {log[name]["error"] for name in sizes} == {""}
    assert (int(log["turned.jpg"]["width"]), int(log["turned.jpg"]["height"])) == (60, 90)


def test_outlines_are_wide_enough_to_see():
    for side, width in ((100, 2), (400, 2), (1200, 6), (4000, 20)):
        mask = np.zeros((side, side + 7), bool)
        mask[:, : side // 2] = True
        drawn = draw_outline(np.zeros((*mask.shape, 3), np.uint8), mask)[side // 2].any(1)
        found = np.flatnonzero(drawn)
        assert (len(found), found[0]) == (width, side // 2 - width // 2)


def test_results_are_what_the_network_says(tmp_path, trained, model_flags):
    scene().save(tmp_path / "pet.png")
    flags = (*model_flags, "--data_path", "pet.png", "--output_path", "out", "--amp", "off")
    run_ok("inference.py", *flags, "--save", "masks,probabilities", cwd=tmp_path)
    content = load_checkpoint(trained / "saved_models/tiny_best.pth")
    model = build_from_checkpoint(content, "best")
    pixels = torch.from_numpy(read_image(tmp_path / "pet.png", 64).transpose(2, 0, 1).copy())[None]
    with torch.inference_mode():
        logits = torch.nn.functional.interpolate(model(pixels), (60, 90), mode="bilinear")[0, 0]
    mask = np.asarray(Image.open(tmp_path / "out/pet_mask.png")) == 255
    assert (mask == (logits > 0).numpy()).mean() > 0.999
    assert 0.1 < mask.mean() < 0.9
    levels = np.asarray(Image.open(tmp_path / "out/pet_probability.png")) / 65535
    assert np.abs(levels - logits.sigmoid().numpy()).max() < 1e-3
    assert not (tmp_path / "out/index.html").exists()  # of one picture
    # A threshold moves the mask, and not the probabilities.
    run_ok("inference.py", *flags, "--save", "masks,probabilities", "--threshold", 0.9, cwd=tmp_path)
    stricter = np.asarray(Image.open(tmp_path / "out/pet_mask.png")) == 255
    assert (stricter == (logits > math.log(9)).numpy()).mean() > 0.999
    again = np.asarray(Image.open(tmp_path / "out/pet_probability.png")) / 65535
    assert np.abs(again - levels).max() < 1e-4


def test_folders_below_and_patterns(tmp_path, model_flags):
    for name in ("a/one.png", "a/b/one.png", "a/b/two.jpg", "c/three.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        scene().save(tmp_path / "in" / name)
    flags = (*model_flags, "--save", "masks", "--output_path")

    def masks(folder: str) -> list[str]:
        return sorted(str(p.relative_to(tmp_path / folder)) for p in (tmp_path / folder).rglob("*_mask.png"))

    everything = ["a/b/one_mask.png", "a/b/two_mask.png", "a/one_mask.png", "c/three_mask.png"]
    run_ok("inference.py", *flags, "out", "--data_path", "in", "--recursive", cwd=tmp_path)
    assert masks("out") == everything
    run_ok("inference.py", *flags, "in/out", "--data_path", "in", "--recursive", cwd=tmp_path)
    run_ok("inference.py", *flags, "in/out", "--data_path", "in", "--recursive", cwd=tmp_path)  # not of its own results
    assert masks("in/out") == everything
    shutil.rmtree(tmp_path / "in/out")
    run_ok("inference.py", *flags, "some", "--data_path", "in/a/**/*.png", cwd=tmp_path)
    assert masks("some") == ["b/one_mask.png", "one_mask.png"]
    for _ in range(2):
        run_ok("inference.py", *flags, "in/a/out", "--data_path", "in/a/**/*.png", cwd=tmp_path)
    assert masks("in/a/out") == ["b/one_mask.png", "one_mask.png"]
    assert_one_error(run_script("inference.py", *flags, "no", "--data_path", "in/*.gif", cwd=tmp_path), "no images")


def test_a_log_that_can_not_be_continued_is_told_before_the_work(tmp_path, model_flags):
    scene().save(tmp_path / "one.png")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/tiny_inference_log.csv").write_text("a,b\n1,2,3\n")
    flags = ("--data_path", "one.png", "--output_path", "out")
    done = run_script("inference.py", *model_flags, *flags, cwd=tmp_path)
    assert_one_error(done, "inference_log.csv has a row with more columns than its header")
    assert not list(tmp_path.rglob("*_mask.png"))


def test_results_never_come_to_lie_among_pictures(tmp_path, model_flags, dataset):
    for name in ("self/a/x.png", "self/a/x_mask.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        scene().save(tmp_path / name)
    before = (tmp_path / "self/a/x_mask.png").read_bytes()
    for flags in (
        ("--data_path", "self", "--recursive", "--output_path", "self"),
        ("--data_path", "self/a/x.png", "--output_path", "self/a"),
        ("--data_path", dataset, "--output_path", dataset / "annotations/trimaps"),
    ):
        done = run_script("inference.py", *model_flags, *flags, "--save", "masks", cwd=tmp_path)
        assert_one_error(done, "is where the images or masks are")
    assert (tmp_path / "self/a/x_mask.png").read_bytes() == before
    flags = ("--data_path", dataset, "--allow_seen", "--worst", 1, "--output_path", dataset / "images")
    assert_one_error(run_script("evaluate.py", *model_flags, *flags, cwd=tmp_path), "is where the images or masks are")
    # Where results lie below the pictures, a second run does not take them for pictures.
    (tmp_path / "few").mkdir()
    scene().save(tmp_path / "few/one.png")
    for _ in range(2):
        flags = ("--data_path", ".", "--recursive", "--save_results", "--save", "masks")
        assert "Segmenting 1 images" in run_ok("inference.py", *model_flags, *flags, cwd=tmp_path / "few")


def test_names_and_files_that_try_everything(tmp_path, model_flags):
    folder = tmp_path / "in/images"
    folder.mkdir(parents=True)
    (tmp_path / "in/masks").mkdir()
    good = ["two\nlines.png", "ok.png"]
    for name in (*good, "x" * 250 + ".png"):
        scene().save(folder / name)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "abc"
    scene(48, 40).save(folder / "exif.jpg", exif=exif)
    whole = (folder / "exif.jpg").read_bytes()
    for position in range(24, 60):  # whatever is wrong in there, it is a picture or it is listed
        (folder / f"exif{position}.jpg").write_bytes(whole[:position] + b"\0" + whole[position + 1 :])
    (tmp_path / "in/masks/ok.json").write_text("{}")  # no mask of ok.png
    flags = (*model_flags, "--data_path", tmp_path / "in/*/*", "--output_path", "out")
    done = run_script("inference.py", *flags, cwd=tmp_path)
    assert_one_error(done, "xxx", "can't be written", status=1)
    for name in good:
        assert (tmp_path / f"out/{name[:-4]}_panel.png").is_file()
    log = {Path(row["picture"]).name: row for row in log_of(tmp_path)}
    assert len(log) == 4 + 36
    assert log["ok.png"]["error"] == log["ok.png"]["dice"] == ""


def test_a_bomb_is_refused_and_a_large_picture_is_not(tmp_path, model_flags):
    (tmp_path / "in").mkdir()
    scene(6000, 5000).save(tmp_path / "in/large.png", compress_level=1)
    Image.new("1", (20000, 10000)).save(tmp_path / "in/bomb.png")
    flags = (*model_flags, "--data_path", "in", "--output_path", "out", "--save", "masks")
    done = run_script("inference.py", *flags, cwd=tmp_path)
    assert_one_error(done, "1 of 2 images", "bomb.png", "decompression bomb", status=1)
    assert Image.open(tmp_path / "out/large_mask.png").size == (6000, 5000)


def test_wrong_wishes_of_inference_end_in_one_line(tmp_path, model_flags):
    scene().save(tmp_path / "pet.png")
    for flags, words in (
        (("--save", "masks,maps"), "no result is called 'maps'; there are masks, probabilities"),
        (("--threshold", 0), "0 is not between 0 and 1"),
    ):
        assert_one_error(
            run_script("inference.py", *model_flags, "--data_path", "pet.png", *flags, cwd=tmp_path), words
        )


# --------------------------------------------------------------------------------------------------------- the page


class Page(html.parser.HTMLParser):
    """What a browser would find on a page."""

    def __init__(self, text: str):
        super().__init__()
        self.images, self.dice, self.outside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(unquote(attrs["src"]))
        if tag == "figure":
            self.dice.append(float(attrs["data-dice"]))
        self.outside += [value for value in attrs.values() if value and "//" in value]


def test_the_page_shows_every_panel_worst_first_and_needs_nothing_from_outside(tmp_path):
    names = [("b & <i>.png_panel.png", 0.9), ("sub/ä 1%_panel.png", 0.25), ("q'\"_panel.png", ""), ("a_panel.png", 0.5)]
    (tmp_path / "sub").mkdir()
    for name, _ in names:
        scene().save(tmp_path / name)
    write_gallery(tmp_path, names, "Results & more")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.images == ["sub/ä 1%_panel.png", "a_panel.png", "b & <i>.png_panel.png", "q'\"_panel.png"]
    assert all((tmp_path / image).is_file() for image in page.images)
    assert page.dice == [0.25, 0.5, 0.9, 2]
    assert not page.outside
    assert "<title>Results &amp; more</title>" in text
    assert "b &amp; &lt;i&gt;.png: Dice 0.9000" in text
    sheet = Image.open(tmp_path / "index.png")
    assert sheet.width > 4 * 100


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser")
@pytest.mark.parametrize(("order", "expected"), [("worst", "acb"), ("best", "bca"), ("name", "abc")])
def test_a_browser_shows_and_sorts_the_page(tmp_path, order, expected):
    panels = [("a_panel.png", 0.1), ("b_panel.png", 0.9), ("c_panel.png", 0.5)]
    for name, _ in panels:
        scene().save(tmp_path / name)
    write_gallery(tmp_path, panels, "Results")
    page = tmp_path / "index.html"
    page.write_text(page.read_text() + f"<script>sort('{order}')</script>")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "".join(image[0] for image in Page(done.stdout).images) == expected, done.stderr


def test_inference_writes_page_and_sheet(tmp_path, shared_dataset, model_flags):
    run_ok("inference.py", *model_flags, "--data_path", shared_dataset, "--output_path", "out", cwd=tmp_path)
    page = Page((tmp_path / "out/index.html").read_text(encoding="utf-8"))
    assert sorted(page.images) == sorted(p.name for p in (tmp_path / "out").glob("*_panel.png"))
    assert page.dice == sorted(page.dice)
    assert page.dice == sorted(float(row["dice"]) for row in log_of(tmp_path))
