"""Exported networks do what the checkpoint does, without our code."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from data.pets import load_dataset
from data.view import View
from evaluation.export import check, export, load_exported
from helpers import SRC, assert_one_error, run_ok, run_script, scene, turned
from models.checkpoint import load_checkpoint
from runtime.errors import RunError

PUBLISHED = SRC.parent / "saved_models/pets.pth"


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    flags = ("--save_dir", trained / "saved_models", "--output_path", ".", "--formats", "onnx,pt2")
    return folder, run_ok("export.py", *flags, cwd=folder)


def run_alone(code: str, folder) -> None:
    """Runs lines in a process that knows nothing of this project."""
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_pt2_file_needs_only_torch(exported, trained, tmp_path, batch):
    folder, said = exported
    images = torch.randint(0, 256, (batch, 3, 64, 64), dtype=torch.uint8)
    torch.save(images, tmp_path / "images.pt")
    network = f"torch.export.load({str(folder / 'tiny_best.pt2')!r}).module()"
    run_alone(f"import torch\ntorch.save({network}(torch.load('images.pt')), 'found.pt')", tmp_path)
    model = load_checkpoint(trained / "saved_models/tiny_best.pth").build("best")
    torch.testing.assert_close(torch.load(tmp_path / "found.pt"), model(images).sigmoid(), atol=1e-4, rtol=0)
    assert "tiny_best.pt2" in said and "tiny_best.onnx" in said


@pytest.mark.parametrize("kind", ["pet alone", pytest.param("three classes", marks=pytest.mark.long)])
def test_the_documented_lines_give_the_masks_of_inference(kind, exported, trained, tmp_path):
    text = (SRC.parent / "docs/inference.md").read_text().partition("## Use without this code")[2]
    lines = text.partition("```python\n")[2].partition("```")[0] + "\nimport sys\nassert 'torch' not in sys.modules"
    checkpoint, photo = PUBLISHED, Image.open(SRC.parent / "docs/chelsea.png")
    (tmp_path / "saved_models").mkdir()
    file = tmp_path / "saved_models/unet_best.onnx"
    if kind == "pet alone":
        checkpoint, photo = trained / "saved_models/tiny_best.pth", scene(360, 240)
        os.link(exported[0] / "tiny_best.onnx", file)
    else:
        export(load_checkpoint(checkpoint).build(checkpoint), View.of(load_checkpoint(checkpoint)), file)
    for options in ({"format": "PNG"}, {"format": "JPEG", "exif": turned()}):
        photo.save(tmp_path / "pet.jpg", **options)
        photo = photo.resize((3 * photo.width, 3 * photo.height))  # the JPEG: its decoder leaves detail out
        run_alone(lines, tmp_path)
        flags = ("--model_path", checkpoint, "--amp", "off", "--save", "masks")
        run_ok("inference.py", "pet.jpg", *flags, cwd=tmp_path)
        names = ("inference_results/pet_mask.png", "mask.png")
        ours, theirs = (np.asarray(Image.open(tmp_path / name)) > 0 for name in names)
        assert ours.shape == theirs.shape
        assert 0.05 < ours.mean() < 0.95
        assert (ours == theirs).mean() > 0.999


def test_published_weights_are_a_small_checkpoint(trained, shared_dataset, tmp_path):
    source = trained / "saved_models/tiny_best.pth"
    flags = ("--formats", "weights", "--data_path", shared_dataset / "images", "--output_path", tmp_path)
    run_ok("export.py", "--model_path", source, *flags, cwd=tmp_path)
    file = tmp_path / "tiny_best_weights.pth"
    before, after = load_checkpoint(source), load_checkpoint(file)
    assert file.stat().st_size < source.stat().st_size / 3
    assert after.weights["head.weight"].dtype == torch.float16
    assert after.data == before.data
    assert after.progress.run_id == before.progress.run_id
    flags = ("--data_path", shared_dataset, "--model_path", file, "--compare", source, "--json", "scores.json")
    run_ok("evaluate.py", *flags, cwd=tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())["differences"]["dice"][0] == pytest.approx(0, abs=1e-3)
    said = run_script("train.py", "--data_path", shared_dataset, "--resume", file, cwd=tmp_path)
    assert_one_error(said, "holds a model but no training state")
    run_ok("train.py", "--data_path", shared_dataset, "--init", file, "--epochs", 1, cwd=tmp_path)


def test_int8_is_nearly_equal_and_both_files_say_what_they_take_and_give(trained, shared_dataset, tmp_path):
    source = ("--model_path", trained / "saved_models/tiny_best.pth", "--formats", "onnx,onnx-int8")
    assert_one_error(run_script("export.py", *source, cwd=tmp_path), "name a dataset with --data_path")
    run_ok("export.py", *source, "--data_path", shared_dataset, "--output_path", tmp_path, cwd=tmp_path)
    files = [tmp_path / f"tiny_best{ending}.onnx" for ending in ("", "_int8")]
    assert sorted(tmp_path.iterdir()) == files
    batch = load_dataset(shared_dataset, "test", image_size=64).read_batch([0, 1, 2, 3])
    masks, dice = batch["mask"].numpy(), []
    for file in files:
        found = load_exported(file)(batch["image"].numpy()) > 0.5
        dice.append(2 * (found * masks).sum() / (found.sum() + masks.sum()))
        facts = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
        assert (facts["image_size"], facts["classes"], facts["threshold"]) == ("64", "pet", "0.5")
        assert "RGB, bytes of 0 to 255" in facts["images"]
        assert "bilinear with antialiasing" in facts["resize"]
    assert dice[0] == pytest.approx(dice[1], abs=0.02)
    assert onnx.TensorProto.INT8 in {tensor.data_type for tensor in onnx.load(files[1]).graph.initializer}


def test_a_network_that_differs_is_not_passed_off(exported, trained):
    folder, _ = exported
    model = load_checkpoint(trained / "saved_models/tiny_best.pth").build("best")
    model.head.bias.data += 3
    images = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    with pytest.raises(RunError, match="does not do what the checkpoint does"):
        check(model, folder / "tiny_best.onnx", images)


def test_export_never_replaces_the_checkpoint(trained, tmp_path):
    source = tmp_path / "model.pt2"
    os.link(trained / "saved_models/tiny_best.pth", source)
    before = source.read_bytes()
    assert_one_error(run_script("export.py", "--model_path", source, cwd=tmp_path), "is the checkpoint itself")
    assert source.read_bytes() == before
