"""Panels, outlines, the preview, and the page of panels."""

import html.parser
import shutil
import subprocess
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from helpers import log_rows, run_ok, write_scenes
from visual.gallery import write_gallery
from visual.panels import draw_outline


def test_outline_width_grows_with_the_image():
    for side, width in ((100, 2), (400, 2), (1200, 6), (4000, 20)):
        mask = np.zeros((side, side + 7), bool)
        mask[:, : side // 2] = True
        drawn = draw_outline(np.zeros((*mask.shape, 3), np.uint8), mask)[side // 2].any(1)
        found = np.flatnonzero(drawn)
        assert (len(found), found[0]) == (width, side // 2 - width // 2)


def test_preview_shows_images_and_variants(shared_own, tmp_path):
    said = run_ok("oxford_pet.py", "--preview", "sheets/sheet.png", "--data_path", shared_own, cwd=tmp_path)
    assert "Drew 6 images (left) and 5 variants of each" in said
    pixels = np.asarray(Image.open(tmp_path / "sheets/sheet.png")).astype(int)
    assert pixels.shape == (6 * 196 + 4, 6 * 196 + 4, 3)
    outline = (np.abs(pixels - [255, 0, 255]).sum(2) == 0).reshape(6 * 196 + 4, -1)
    cells = [
        outline[4 + r * 196 : 196 + r * 196, 4 + c * 196 : 196 + c * 196].sum() for r in range(6) for c in range(6)
    ]
    assert min(cells) > 50
    first_row = [pixels[4:196, 4 + c * 196 : 196 + c * 196] for c in range(6)]
    assert all(np.abs(first_row[0] - other).mean() > 3 for other in first_row[1:])


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


def test_page_shows_panels_worst_first_without_network(tmp_path):
    names = [("b & <i>.png_panel.png", 0.9), ("sub/ä 1%_panel.png", 0.25), ("q'\"_panel.png", ""), ("a_panel.png", 0.5)]
    write_gallery(tmp_path, names, "Results & more")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.images == ["sub/ä 1%_panel.png", "a_panel.png", "b & <i>.png_panel.png", "q'\"_panel.png"]
    assert page.dice == [0.25, 0.5, 0.9, 2]
    assert not page.outside
    assert "<title>Results &amp; more</title>" in text
    assert "b &amp; &lt;i&gt;.png: Dice 0.9000" in text


@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser")
@pytest.mark.parametrize(("button", "expected"), [(0, "acb"), (1, "bca"), (2, "abc")])
def test_browser_sorts_the_page(tmp_path, button, expected):
    write_gallery(tmp_path, [("a_panel.png", 0.1), ("b_panel.png", 0.9), ("c_panel.png", 0.5)], "Results")
    page = tmp_path / "index.html"
    page.write_text(page.read_text() + f"<script>document.querySelectorAll('button')[{button}].click()</script>")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "".join(image[0] for image in Page(done.stdout).images) == expected, done.stderr


def test_inference_writes_the_page_and_says_its_order(tmp_path, shared_dataset, model_flags):
    flags = (*model_flags, "--output_path", "out", "--data_path")
    said = run_ok("inference.py", *flags, shared_dataset, cwd=tmp_path)
    assert "All panels, the worst first: out/index.html" in said
    page = Page((tmp_path / "out/index.html").read_text(encoding="utf-8"))
    assert sorted(page.images) == sorted(p.name for p in (tmp_path / "out").glob("*_panel.png"))
    assert page.dice == sorted(page.dice)
    assert page.dice == sorted(float(row["dice"]) for row in log_rows(tmp_path, "inference"))
    write_scenes(tmp_path, "plain/a.png", "plain/b.png")
    assert "All panels, by name: out/index.html" in run_ok("inference.py", *flags, "plain", cwd=tmp_path)
