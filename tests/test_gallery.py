"""The page of panels."""

import html.parser
import shutil
import subprocess
from urllib.parse import unquote

import pytest
from PIL import Image

from helpers import log_rows, run_ok, scene
from visual.gallery import write_gallery


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
    assert Image.open(tmp_path / "index.png").size == (4 * 368 + 8, 128 + 8)


@pytest.mark.parametrize(("labelled", "order"), [(True, "the worst first"), (False, "by name")])
def test_the_order_of_the_page_is_said(tmp_path, model_flags, labelled, order):
    for folder in ("images", "masks")[: 1 + labelled]:
        (tmp_path / folder).mkdir()
        for name in ("b.png", "a.png"):
            scene().convert("L" if folder == "images" else "1").save(tmp_path / folder / name)
    said = run_ok("inference.py", "images", *model_flags, "--output_path", "out", cwd=tmp_path)
    assert f"All panels, {order}: out/index.html" in said


@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser")
@pytest.mark.parametrize(("button", "expected"), [(0, "acb"), (1, "bca"), (2, "abc")])
def test_browser_sorts_the_page(tmp_path, button, expected):
    panels = [("a_panel.png", 0.1), ("b_panel.png", 0.9), ("c_panel.png", 0.5)]
    for name, _ in panels:
        scene().save(tmp_path / name)
    write_gallery(tmp_path, panels, "Results")
    page = tmp_path / "index.html"
    page.write_text(page.read_text() + f"<script>document.querySelectorAll('button')[{button}].click()</script>")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "".join(image[0] for image in Page(done.stdout).images) == expected, done.stderr


def test_inference_writes_page_and_sheet(tmp_path, shared_dataset, model_flags):
    run_ok("inference.py", *model_flags, "--data_path", shared_dataset, "--output_path", "out", cwd=tmp_path)
    page = Page((tmp_path / "out/index.html").read_text(encoding="utf-8"))
    assert sorted(page.images) == sorted(p.name for p in (tmp_path / "out").glob("*_panel.png"))
    assert page.dice == sorted(page.dice)
    assert page.dice == sorted(float(row["dice"]) for row in log_rows(tmp_path, "inference"))
