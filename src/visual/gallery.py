"""A page and a sheet of all panels in a folder: index.html, which needs no server and no network, and index.png."""

import html
import json
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from runtime.files import atomic_write
from visual.panels import write_png

SHEET = 48  # panels on the sheet, at most
THUMB = (360, 120)  # width and height of a panel on it, at most

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
<figcaption>{name}{said}</figcaption>
</figure>"""


def write_gallery(folder: Path, panels: list[tuple[str, object]], title: str) -> None:
    """Writes index.html with all panels and index.png with the first of them, the worst first.

    Args:
        folder: where the panels are.
        panels: path of each, from the folder on, and its Dice, or "" where there is no ground truth.
        title: stands above the page.
    """
    panels = sorted(panels, key=lambda panel: (panel[1] == "", panel[1] if panel[1] != "" else 0, panel[0]))
    figures = []
    for path, dice in panels:
        name = html.escape(path.removesuffix("_panel.png"))
        said = "" if dice == "" else f": Dice {dice:.4f}"
        link = html.escape(quote(path, errors="surrogateescape"))
        figures.append(FIGURE.format(name=name, said=said, dice=json.dumps(2 if dice == "" else dice), link=link))
    page = PAGE.format(title=html.escape(title), count=len(panels), figures="\n".join(figures))
    with atomic_write(folder / "index.html", sync=False) as file:
        file.write(page)
    if panels:
        write_png(draw_sheet([folder / path for path, _ in panels[:SHEET]]), folder / "index.png")


def draw_sheet(files: list[Path], columns: int = 4) -> Image.Image:
    """A contact sheet of these images, in rows, from left to right."""
    rows = -(-len(files) // columns)
    columns = min(columns, len(files))
    sheet = Image.new("RGB", (columns * (THUMB[0] + 8) + 8, rows * (THUMB[1] + 8) + 8), "white")
    for number, file in enumerate(files):
        with Image.open(file, formats=("PNG",)) as panel:
            panel.thumbnail(THUMB)
            row, column = divmod(number, columns)
            sheet.paste(panel, (8 + column * (THUMB[0] + 8), 8 + row * (THUMB[1] + 8)))
    return sheet
