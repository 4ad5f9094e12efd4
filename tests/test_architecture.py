"""The rooms of src/: imports go downwards only, and no argparse.Namespace leaves the command line."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers import SRC

FLOORS = ["runtime", "models", "data", "visual", "evaluation", "training"]  # from the ground up
SCRIPTS = {path.stem for path in SRC.glob("*.py")}
SHARED = {"oxford_pet", "utils"}  # the names that scripts and notebooks may import


def imported(tree: ast.Module) -> list[str]:
    """Top-level packages and modules that a file imports, wherever the import stands."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.append(node.module)
    return [name.split(".")[0] for name in names]


def faults(src: Path) -> list[str]:
    """Imports against the order of the rooms, and namespaces below the scripts."""
    wrong = []
    for path in sorted(src.rglob("*.py")):
        tree, where = ast.parse(path.read_text()), path.relative_to(src)
        room = where.parts[0] if len(where.parts) > 1 else None
        for name in imported(tree):
            if room and name in FLOORS and FLOORS.index(name) > FLOORS.index(room):
                wrong.append(f"{where} imports {name}, which is above it")
            if room and name in SCRIPTS:
                wrong.append(f"{where} imports the script {name}")
            if not room and path.stem not in SHARED and name in SCRIPTS - SHARED:
                wrong.append(f"{where} imports the script {name}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "Namespace":
                wrong.append(f"{where}:{node.lineno} uses a Namespace")
            if not isinstance(node, ast.FunctionDef):
                continue
            if "args" in [argument.arg for argument in node.args.args] and room != "runtime":
                wrong.append(f"{where}:{node.lineno} takes args")
            if node.end_lineno - node.lineno >= 60:
                wrong.append(f"{where}:{node.lineno} {node.name} has over 60 lines")
    return wrong


def test_rooms_import_downwards_only_and_functions_are_short():
    assert {path.name for path in SRC.iterdir() if path.is_dir()} - {"__pycache__"} == set(FLOORS)
    assert faults(SRC) == []


def test_pyproject_and_requirements_agree():
    root = SRC.parent
    listed = re.search(r"dependencies = \[.*?\n(.*?)\]", (root / "pyproject.toml").read_text(), re.DOTALL)[1]
    assert re.findall(r'"(.+)"', listed) == (root / "requirements.txt").read_text().split()


def test_installing_the_project_brings_requirements_and_no_modules(tmp_path):
    pytest.importorskip("setuptools", "77")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(SRC.parent / name, tmp_path)
    shutil.copytree(SRC, tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist()}
        assert folder.endswith(".dist-info")
        assert b"Requires-Dist: torch>=" in archive.read(f"{folder}/METADATA")


LIGHT = ("train", "pretrain", "evaluate", "inference", "export", "plot_dice_curve", "demo", "oxford_pet")


@pytest.mark.parametrize("script", LIGHT)
def test_flags_are_parsed_before_torch_is_imported(script):
    """`--help` and a mistyped flag answer at once; recipes and tables of names import nothing heavy either."""
    code = f"""
import sys
sys.path.insert(0, {str(SRC)!r})
for name in ("torch", "torchvision", "numpy", "PIL", "matplotlib"):
    sys.modules[name] = None  # whoever imports it gets an ImportError
import {script}
parser = {script}.build_parser()
assert "--help" in parser.format_help()
parser.parse_overrides(["--no_such_flag"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: unrecognized arguments: --no_such_flag")
