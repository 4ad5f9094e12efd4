"""A page of all panels in a folder, which needs no server and no network."""

import html
from pathlib import Path
from urllib.parse import quote

from runtime.errors import plural
from runtime.files import atomic_write

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
    """Writes index.html, with the worst panels first.

    Panels are their paths below the folder, each with its Dice, or "" where there is no ground truth.
    """
    figures = []
    for dice, path in sorted((2 if dice == "" else dice, path) for path, dice in panels):  # without ground truth: last
        name, link = html.escape(path.removesuffix("_panel.png")), html.escape(quote(path, errors="surrogateescape"))
        score = f": Dice {dice:.4f}" if dice <= 1 else ""
        figures.append(FIGURE.format(name=name, score=score, dice=dice, link=link))
    with atomic_write(folder / "index.html", sync=False) as file:
        count = plural(len(panels), "image")
        file.write(PAGE.format(title=html.escape(title), count=count, figures="\n".join(figures)))
