"""Writes a trained network into one file that needs none of this code.

python src/export.py --model_path saved_models/unet_best.pth --formats pt2,onnx --data_path dataset/images
"""

import importlib.util
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

import cli
from evaluate import open_checkpoint
from inference import find_pictures, read_small
from models import SegmentationModel
from pictures import DatasetError

FORMATS = ("pt2", "onnx")
CHECKED = 16  # pictures, at most


class Exported(torch.nn.Module):
    """What the file holds: bytes (N, 3, S, S) in 0..255 to probabilities, float (N, C, S, S).

    They are of pet, and C is 1; or of pet, background and border, where the network was trained on three classes.
    """

    def __init__(self, model: SegmentationModel):
        super().__init__()
        self.model = model.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.model(images.float())
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def export(model: SegmentationModel, size: int, path: Path) -> None:
    """Writes a network as torch.export's .pt2 or as ONNX, by the ending of the path.

    Args:
        model: on the CPU; normalisation is in it.
        size: side of the images, in pixels; how many there are at a time stays open.
        path: the file.
    """
    # Two images, because a dimension of one would be taken for a constant.
    example = (torch.zeros(2, 3, size, size, dtype=torch.uint8),)
    shapes = {"images": {0: torch.export.Dim("batch")}}
    with torch.no_grad(), warnings.catch_warnings(), path.open("wb") as file:
        warnings.simplefilter("ignore")  # torch's own, about its own code
        program = torch.export.export(Exported(model), example, dynamic_shapes=shapes)
        if path.suffix == ".onnx":
            names = {"input_names": ["images"], "output_names": ["probabilities"]}
            made = torch.onnx.export(program, dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
            file.write(made.model_proto.SerializeToString())
        else:
            torch.export.save(program, file)


def load_exported(path: Path):
    """The exported network as a function from bytes (N, 3, S, S) to probabilities (N, C, S, S), both NumPy arrays."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": images})[0]
    module = torch.export.load(path).module()
    return lambda images: module(torch.from_numpy(images)).numpy()


def _masks(probabilities: np.ndarray) -> np.ndarray:
    """Pet or not, bool (N, H, W): with three classes what is not background."""
    return (probabilities[:, 0] if probabilities.shape[1] == 1 else 1 - probabilities[:, 1]) > 0.5


def check(model: SegmentationModel, path: Path, images: list[torch.Tensor]) -> str:
    """Says how far the masks of an exported network are from ours, one by one and in a batch.

    Raises:
        RunError: they differ in more than one pixel of a thousand.
    """
    exported, batch = load_exported(path), torch.stack(images)
    with torch.inference_mode():
        ours = Exported(model)(batch).numpy()
    with torch.no_grad():
        theirs = exported(batch.numpy())
        one = exported(batch[:1].numpy())
    equal = float((_masks(theirs) == _masks(ours)).mean())
    apart = float(np.abs(theirs - ours).max())
    alone = float(np.abs(one - theirs[:1]).max())
    if equal < 0.999:
        raise cli.RunError(f"{path.name} does not do what the checkpoint does; please report this")
    return (
        f"{path.stat().st_size / 1e6:.1f} MB; of the masks of {len(batch)} pictures {equal:.5%} of the pixels equal "
        f"ours, probabilities differ by {apart:.1e} at most, and by {alone:.1e} between batch and single picture"
    )


def sample_images(args, content: dict, size: int) -> list[torch.Tensor]:
    """Up to CHECKED pictures, uint8 (3, S, S), of --data_path, or drawn ones where nothing is given."""
    if args.data_path is None:
        from sample_pets import draw_pet

        drawn = (draw_pet(np.random.default_rng(i), size=(size, size))[0] for i in range(4))
        return [torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()) for image in drawn]
    pictures, _ = find_pictures(args, content)
    return [read_small(picture, size)[0] for picture in pictures[:CHECKED]]


def formats(text: str) -> list[str]:
    """An argparse type: formats, with commas between them."""
    return cli.words_of(text, FORMATS, "format")


def main(argv=None) -> None:
    """Loads, exports, checks."""
    parser = cli.Parser(prog="export.py", description="Write a trained network into one file that needs no other code.")
    cli.add_checkpoint_flags(parser)
    cli.add_folder_flags(parser)
    flag = parser.add_argument_group("export").add_argument
    flag("--formats", type=formats, default="pt2", metavar="NAMES", help=f"which ones: {','.join(FORMATS)}")
    flag("--output_path", metavar="DIR", help="where the files go; by default beside the checkpoint")
    flag("--data_path", metavar="PATH", help="pictures to check the files on; by default drawn ones")
    parser.set_defaults(subset="test", recursive=False, cache="off")
    args = parser.parse_args(argv)
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    if "onnx" in args.formats and lacking:
        raise cli.UsageError(f"ONNX needs {', '.join(lacking)}: pip install -r requirements-export.txt")
    model, content, path = open_checkpoint(args)
    folder = cli.writable_folder(args.output_path or path.parent)
    size = content["preprocessing"]["image_size"]
    images = sample_images(args, content, size)
    print(f"Exporting {content['model']['name'].upper()} ({path}): bytes (N, 3, {size}, {size}) to probabilities")
    for ending in args.formats:
        file = folder / f"{path.stem}.{ending}"
        if file.resolve() == path.resolve():
            raise cli.UsageError(f"{file} is the checkpoint itself; name a folder with --output_path")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # an older file stays until this one is checked
            fresh = Path(scratch) / file.name
            export(model, size, fresh)
            print(f"{file}: {check(model, fresh, images)}")
            fresh.replace(file)


if __name__ == "__main__":
    cli.run(main, DatasetError)
