"""Entry points for torch.hub.

    model = torch.hub.load(DIR, "resnet34_unet", source="local")                       # fresh weights; also "unet"
    model = torch.hub.load(DIR, "pets", source="local")                          # trained on cats and dogs
    model = torch.hub.load(DIR, "from_checkpoint", path="best.pth", source="local")    # trained weights

DIR is the folder of this file. Models take pixels (N, 3, H, W) in 0..255 and return logits (N, out_channels, H, W);
normalization is inside. They can be pickled, such as for worker processes; what reads the pickle needs this folder at
the same place. To store one for longer, save its `state_dict()`.
"""

import contextlib
import copy
import functools
import pathlib
import sys

import torch

dependencies = ["torch", "torchvision", "numpy", "PIL", "tqdm"]

_SRC = pathlib.Path(__file__).resolve().parent / "src"


@contextlib.contextmanager
def _own_modules():
    """Makes the modules of src/ importable within the context, and leaves no trace of them.

    Modules of the caller with the same names (`models`, `utils`, ...) are set aside meanwhile. Our code works on
    without entries in sys.modules; but what imports lazily must be called within the context.
    """
    names = {entry.stem for entry in _SRC.iterdir()}

    def take() -> dict:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}

    path, others = sys.path.copy(), take()
    sys.path.insert(0, str(_SRC))
    try:
        yield
    finally:
        take()
        sys.modules.update(others)
        sys.path[:] = path


def _build(name: str, **config) -> torch.nn.Module:
    with _own_modules():
        from models.build import build_model

        return _with_pickle(build_model(name, **config), name)


def _with_pickle(model: torch.nn.Module, name: str, facts: dict | None = None) -> torch.nn.Module:
    """A model that pickle rebuilds through this file: its class, which only this model has, can't be imported by name.

    The facts are the plain checkpoint that `model.segment` looks at, without weights.
    """

    def reduce(self):
        rebuild = functools.partial(torch.hub.load, str(_SRC.parent), "_rebuild", source="local")
        learns = [parameter.requires_grad for parameter in self.parameters()]
        return rebuild, (name, self.config, self.state_dict(), learns, self.training, facts)

    def deepcopy(self, memo):  # as Python does it, not by the pickle
        memo[id(self)] = twin = self.__new__(type(self))
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    type(model).__reduce__, type(model).__deepcopy__ = reduce, deepcopy
    return model


def _rebuild(name: str, config: dict, weights: dict, learns: list, training: bool, facts: dict | None):
    """The model of a pickle, its weights where they were."""
    with _own_modules():
        from evaluation.network import segment
        from models.build import build_model
        from models.checkpoint import Checkpoint, parse

        model = _with_pickle(build_model(name, **config), name, facts).train(training)
        if facts is not None:
            model.segment = functools.partial(segment, model, parse(Checkpoint, facts))
    model.load_state_dict(weights, assign=True)
    for parameter, learned in zip(model.parameters(), learns):
        parameter.requires_grad_(learned)
    return model


def unet(out_channels: int = 1, attention: str = "none") -> torch.nn.Module:
    """UNet with freshly drawn weights.

    Args:
        out_channels: 1 for pet against background, 3 for background, pet and border.
        attention: block at the end of each decoder step: none, se or cbam.
    """
    return _build("unet", out_channels=out_channels, attention=attention)


def resnet34_unet(out_channels: int = 1, attention: str = "none", decoder: str = "plain") -> torch.nn.Module:
    """UNet decoder on a ResNet34 encoder, with freshly drawn weights; its decoder is plain, or stem at full size."""
    return _build("resnet34_unet", out_channels=out_channels, attention=attention, decoder=decoder)


def model(name: str, **config) -> torch.nn.Module:
    """Any network by its name in `train.py --model_name`, such as `swin_t_unet`, with freshly drawn weights."""
    return _build(name, **config)


def pets() -> torch.nn.Module:
    """The small network that comes with this program, trained on cats and dogs; see docs/model_card.md."""
    return from_checkpoint(_SRC.parent / "saved_models/pets.pth")


def from_checkpoint(path) -> torch.nn.Module:
    """The network of a checkpoint of train.py, on the CPU in evaluation mode.

    `model.segment(image)` takes a file, a PIL image or an array in RGB, uint8 (H, W, 3), and returns its mask, uint8
    (H, W) of 0 and 255, or with `alpha=True` how much of each pixel is pet, float32 (H, W) of 0 to 1.
    """
    with _own_modules():
        from evaluation.network import segment
        from models.checkpoint import load_checkpoint, plain

        checkpoint = load_checkpoint(path)
        facts = plain(checkpoint.without_training()) | {"weights": {}}
        model = _with_pickle(checkpoint.build(path), checkpoint.model_name, facts)
        model.segment = functools.partial(segment, model, checkpoint)
        return model
