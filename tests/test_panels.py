"""Panels, outlines and the preview."""

import numpy as np
from PIL import Image

from helpers import run_ok
from models.task import TASKS, TRIMAP_COLORS
from visual.panels import draw_outline, draw_panel


def test_outline_width_grows_with_the_image():
    for side, width in ((100, 2), (400, 2), (1200, 6), (4000, 20)):
        mask = np.zeros((side, side + 7), bool)
        mask[:, : side // 2] = True
        drawn = draw_outline(np.zeros((*mask.shape, 3), np.uint8), mask)[side // 2].any(1)
        found = np.flatnonzero(drawn)
        assert (len(found), found[0]) == (width, side // 2 - width // 2)


def test_panels_show_three_colors():
    trimap = np.repeat(np.array([[0, 1, 2]], np.uint8), 3, axis=0)
    panel = draw_panel(np.zeros((3, 3, 3), np.uint8), trimap, trimap, "three", TASKS["trimap"])
    colours = {colour for _, colour in panel.getcolors(1 << 20)}
    assert set(TRIMAP_COLORS) <= colours


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
