"""torch.hub entry points, in a process whose own modules have the same names as ours."""

import copy
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import torch
import torch.multiprocessing
from PIL import Image

from models.build import build_model
from models.checkpoint import save_checkpoint
from stubs import make_checkpoint

ROOT = Path(__file__).resolve().parent.parent
# The caller's program. Its own models, utils and data are imported first, data.extra only after torch.hub.load.
CALLER = """
import os, sys
import models, utils
from data import WORD
import torch
import torchvision  # brings modules of its own
import numpy

names = {"models", "utils", "data", "runtime", "evaluation", "training", "visual", "train", "hubconf"}
def state():
    ours = {name: id(module) for name, module in sys.modules.items() if name.partition(".")[0] in names}
    return ours, list(sys.path), {n for n, m in sys.modules.items() if src in str(getattr(m, "__file__", None))}

root = sys.argv[1]
src = os.path.join(root, "src", "")
before = state()
fresh = torch.hub.load(root, "unet", source="local", attention="se")
trained = torch.hub.load(root, "from_checkpoint", source="local", path="best.pth")
try:
    torch.hub.load(root, "from_checkpoint", source="local", path="missing.pth")
except Exception as error:
    assert f"{type(error).__name__}: {error}".startswith("CheckpointError: there is no checkpoint missing.pth")
assert state() == before, (state(), before)

import data.extra
assert sys.modules["models"] is models
assert WORD == models.build_model == utils.name == data.extra.WORD == "mine"
assert (fresh.config["out_channels"], fresh.config["attention"], trained.training) == (1, "se", False)
images = torch.load("images.pt")
with torch.inference_mode():
    assert fresh.eval()(images).shape == (1, 1, 40, 33)
    torch.save(trained(images), "logits.pt")
"""


def test_networks_load_beside_modules_of_the_same_names(tmp_path):
    (tmp_path / "data").mkdir()
    own = {"models.py": "build_model = 'mine'", "utils.py": "name = 'mine'", "runtime.py": "raise SystemExit(1)"}
    own |= {"data/__init__.py": "WORD = 'mine'", "data/extra.py": "WORD = 'mine'"}
    for name, text in {**own, "main.py": CALLER}.items():
        (tmp_path / name).write_text(text)
    model, images = build_model("resnet34_unet").eval(), torch.arange(3 * 40 * 33).view(1, 3, 40, 33) % 256
    network = {"model_name": "resnet34_unet", "config": model.config, "weights": model.state_dict()}
    save_checkpoint(make_checkpoint(**network), [tmp_path / "best.pth"])
    torch.save(images, tmp_path / "images.pt")  # of no multiple of 32: padded inside
    subprocess.run([sys.executable, "main.py", str(ROOT)], cwd=tmp_path, check=True)
    with torch.inference_mode():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(images), atol=1e-4, rtol=0)


def test_entry_points_are_these_and_documented():
    names = runpy.run_path(str(ROOT / "hubconf.py"))
    entries = {name: value for name, value in names.items() if callable(value) and not name.startswith("_")}
    assert sorted(entries) == ["from_checkpoint", "model", "pets", "resnet34_unet", "unet"]
    assert all(entry.__doc__ for entry in entries.values())


def segment_in_worker(model, image, queue):
    queue.put((model.segment(image), model.training))


def test_networks_can_be_sent_to_spawned_workers():
    model, image = torch.hub.load(str(ROOT), "pets", source="local"), Image.open(ROOT / "docs/chelsea.png")
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=segment_in_worker, args=(model, image, queue))
    worker.start()
    mask, training = queue.get(timeout=120)
    worker.join()
    assert not training
    assert (mask == model.segment(image)).all()


def test_a_pickle_keeps_weights_precision_and_what_is_frozen():
    model = torch.hub.load(str(ROOT), "resnet34_unet", source="local", out_channels=3).half()
    model.encoder.requires_grad_(False)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert twin is not model and twin.training and twin.config == model.config
        assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in model.parameters()]
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters()))
