"""Entry points for torch.hub.

    model = torch.hub.load(DIR, "resnet34_unet", source="local")                       # fresh weights; also "unet"
    model = torch.hub.load(DIR, "pets", source="local")                          # trained on cats and dogs
    model = torch.hub.load(DIR, "from_checkpoint", path="best.pth", source="local")    # trained weights

DIR is the folder of this file. Models take pixels (N, 3, H, W) in 0..255 and return logits (N, out_channels, H, W);
normalization is inside. To store one, save its `state_dict()`: the classes can't be imported by name afterwards.
"""

import contextlib
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

        return build_model(name, **config)


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

    `model.segment(image)` takes a PIL image and returns its mask, uint8 (H, W) of 0 and 255, or with `alpha=True` how
    much of each pixel is pet, float32 (H, W) of 0 to 1.
    """
    with _own_modules():
        from evaluation.segment import segment
        from models.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(path)
        model = checkpoint.build(path)
        model.segment = functools.partial(segment, model, checkpoint)
        return model
