"""A page and a sheet of all panels in a folder: index.html, which needs no server and no network, and index.png."""

import html
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageOps

from runtime.errors import plural
from runtime.files import atomic_write
from visual.panels import contact_sheet, write_png

SHEET, COLUMNS = 48, 4  # panels on the sheet and in a row of it, at most
THUMB = (360, 120)  # width and height of a panel on it

PAGE = """<!DOCTYPE html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; margin: 1em }}
figure {{ display: inline-block; margin: 0 1em 1em 0; vertical-align: top }}
img {{ display: block; max-width: 100% }}
</style>
<h1>{title}</h1>
<p>{count}. Sort by
<button onclick="sort((a, b) => a.dice - b.dice)">worst first</button>
<button onclick="sort((a, b) => b.dice - a.dice)">best first</button>
<button onclick="sort((a, b) => a.name.localeCompare(b.name))">name</button></p>
<main>
{figures}
</main>
<script>
const main = document.querySelector("main");
const sort = order => main.append(...[...main.children].sort((a, b) => order(a.dataset, b.dataset)));
</script>
"""
FIGURE = """<figure data-dice="{dice}" data-name="{name}">
<a href="{link}"><img src="{link}" alt="{name}" loading="lazy"></a>
<figcaption>{name}{score}</figcaption>
</figure>"""


def write_gallery(folder: Path, panels: list[tuple[str, object]], title: str) -> None:
    """Writes index.html with all panels and index.png with the first of them, the worst first.

    Panels are their paths below the folder, each with its Dice, or "" where there is no ground truth.
    """
    rated = sorted((2 if dice == "" else dice, path) for path, dice in panels)  # those without ground truth last
    figures = []
    for dice, path in rated:
        name, link = html.escape(path.removesuffix("_panel.png")), html.escape(quote(path, errors="surrogateescape"))
        score = f": Dice {dice:.4f}" if dice <= 1 else ""
        figures.append(FIGURE.format(name=name, score=score, dice=dice, link=link))
    with atomic_write(folder / "index.html", sync=False) as file:
        count = plural(len(panels), "image")
        file.write(PAGE.format(title=html.escape(title), count=count, figures="\n".join(figures)))
    drawn = (Image.open(folder / path) for _, path in rated[:SHEET])
    thumbs = [np.asarray(ImageOps.pad(panel, THUMB, color="white", centering=(0, 0))) for panel in drawn]
    write_png(contact_sheet(thumbs, min(COLUMNS, len(thumbs)), gap=8), folder / "index.png")
