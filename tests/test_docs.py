"""examples/own_images.ipynb, cell by cell, and docs/labelling.md, from its first line to its last."""

import json
import os
import subprocess
import sys

import pytest

import labelling_loop
from helpers import SRC, rows

NOTEBOOK = SRC.parent / "examples/own_images.ipynb"


@pytest.mark.slow
def test_every_cell_runs_and_says_what_is_kept(tmp_path):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=NOTEBOOK.parent, env=environment, capture_output=True, text=True, check=True)
    kept = [line for cell in cells for output in cell["outputs"] for line in output.get("text", [])]
    for line in kept:  # figures differ from machine to machine
        words = line.split()[:2]
        assert not words or any(text.split()[:2] == words for text in done.stdout.splitlines()), line
    assert "test Dice score: 0.9" in done.stdout


def test_outputs_are_small_and_name_no_machine():
    text = NOTEBOOK.read_text()
    assert len(text) < 250_000
    assert "/home/" not in text
    assert "/tmp/" not in text


@pytest.mark.long
def test_the_page_is_followed(tmp_path):
    labelling_loop.main(["--folder", str(tmp_path / "loop")])
    assert float(rows(tmp_path / "loop/round2/efficientnet_lite0_unet_evaluation_log.csv")[-1]["dice"]) > 0.9
    assert len(list((tmp_path / "loop/my_data/train/masks").iterdir())) == 30
