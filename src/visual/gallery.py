"""A page and a sheet of all panels in a folder: index.html, which needs no server and no network, and index.png."""

import html
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from runtime.files import atomic_write
from visual.panels import write_png

SHEET, COLUMNS = 48, 4  # panels on the sheet and in a row of it, at most
THUMB, GAP = (360, 120), 8  # width and height of a panel on it, at most, and what is between them

PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; margin: 1em }}
figure {{ display: inline-block; margin: 0 1em 1em 0; vertical-align: top }}
img {{ display: block; max-width: 100% }}
</style>
<h1>{title}</h1>
<p>{count} images. Sort by
<button onclick="sort('worst')">worst first</button>
<button onclick="sort('best')">best first</button>
<button onclick="sort('name')">name</button></p>
<main>
{figures}
</main>
<script>
const orders = {{
  worst: (a, b) => a.dataset.dice - b.dataset.dice,
  best: (a, b) => b.dataset.dice - a.dataset.dice,
  name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
}};
function sort(order) {{
  const main = document.querySelector("main");
  main.append(...[...main.children].sort(orders[order]));
}}
</script>
</html>
"""
FIGURE = """<figure data-dice="{dice}" data-name="{name}">
<a href="{link}"><img src="{link}" alt="{name}" loading="lazy"></a>
<figcaption>{name}{score}</figcaption>
</figure>"""


def write_gallery(folder: Path, panels: list[tuple[str, object]], title: str) -> None:
    """Writes index.html with all panels and index.png with the first of them, the worst first.

    Args:
        folder: where the panels are.
        panels: path of each, from the folder on, and its Dice, or "" where there is no ground truth.
        title: stands above the page.
    """
    rated = sorted((2 if dice == "" else dice, path) for path, dice in panels)  # those without ground truth last
    figures = []
    for dice, path in rated:
        name, link = html.escape(path.removesuffix("_panel.png")), html.escape(quote(path, errors="surrogateescape"))
        score = f": Dice {dice:.4f}" if dice <= 1 else ""
        figures.append(FIGURE.format(name=name, score=score, dice=dice, link=link))
    page = PAGE.format(title=html.escape(title), count=len(panels), figures="\n".join(figures))
    with atomic_write(folder / "index.html", sync=False) as file:
        file.write(page)
    if panels:
        write_png(draw_sheet([folder / path for _, path in rated[:SHEET]]), folder / "index.png")


def draw_sheet(files: list[Path]) -> Image.Image:
    """A contact sheet of these images, in rows, from left to right."""
    columns, cell = min(COLUMNS, len(files)), (THUMB[0] + GAP, THUMB[1] + GAP)
    rows = -(-len(files) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), "white")
    for number, file in enumerate(files):
        row, column = divmod(number, columns)
        with Image.open(file) as panel:
            panel.thumbnail(THUMB)
            sheet.paste(panel, (GAP + column * cell[0], GAP + row * cell[1]))
    return sheet
