"""Writes a trained network into one file: for other programs, or as a small checkpoint to publish."""

import dataclasses
import importlib.util
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data.dataset import ImageDataset
from data.inputs import find_samples
from data.view import View
from evaluation.config import EXPORT_FORMATS, ExportConfig
from models.base import SegmentationModel
from models.checkpoint import Checkpoint, load_checkpoint, open_checkpoint, save_checkpoint
from runtime.errors import RunError, UsageError, plural
from runtime.files import put_in_place, writable_folder

CHECKED = 16  # images, at most
CALIBRATED = 200  # images, at most, from which the ranges of int8 values are taken


class Exported(torch.nn.Module):
    """What the file holds: bytes (N, 3, S, S) in 0..255 to probabilities, float (N, C, S, S).

    C is 1, of pet; 3, of background, pet and border; or the number of named classes. Images that are not 8-bit RGB are
    float (N, channels, S, S) in 0..255.
    """

    def __init__(self, model: SegmentationModel):
        super().__init__()
        self.model = model.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.task.probabilities(self.model(images.float()))


def export(model: SegmentationModel, view: View, path: Path) -> None:
    """Writes a network on the CPU as torch.export's .pt2, or as ONNX, by the ending of the path.

    How many images there are at a time stays open, their size does not.
    """
    # Two images, because a dimension of one would be taken for a constant.
    shape = 2, view.channels, view.size, view.size
    example = (torch.zeros(shape, dtype=torch.uint8 if view.rgb else torch.float32),)
    shapes = {"images": {0: torch.export.Dim("batch")}}
    with torch.no_grad(), warnings.catch_warnings(), path.open("wb") as file:
        warnings.simplefilter("ignore")  # torch's own, about its own code
        program = torch.export.export(Exported(model), example, dynamic_shapes=shapes)
        if path.suffix != ".onnx":
            torch.export.save(program, file)
            return
        import onnx

        names = {"input_names": ["images"], "output_names": ["probabilities"]}
        network = torch.onnx.export(program, dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
        content = network.model_proto  # made anew at each access
        onnx.helper.set_model_props(content, describe(model, view))
        file.write(content.SerializeToString())


def describe(model: SegmentationModel, view: View) -> dict[str, str]:
    """What a user of an ONNX file must know, as its metadata."""
    kind = "RGB, bytes of 0 to 255" if view.rgb else f"{plural(view.channels, 'channel')}, float32 of 0 to 255"
    classes = model.task.classes or (("pet",) if model.task.out_channels == 1 else ("background", "pet", "border"))
    return {
        "image_size": str(view.size),
        "images": f"(N, channels, height, width), {kind}; the normalization is inside",
        "resize": "to a square; bilinear with antialiasing, as Pillow's BILINEAR",
        "classes": ",".join(classes),
        "probabilities": "(N, classes, height, width); resize their logits, bilinear, before the threshold",
        "threshold": "0.5",
    }


def quantize(source: Path, images: list[torch.Tensor], path: Path) -> None:
    """Writes an ONNX file in 8 bits from one in float32; the ranges of features are those of images (3, S, S)."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = iter([{"images": image.numpy()[None]} for image in images])

    class Reader(CalibrationDataReader):
        def get_next(self):
            return next(batches, None)

    prepared, level = path.with_name("prepared.onnx"), logging.root.manager.disable
    logging.disable(logging.WARNING)  # the quantiser logs hints for its authors through the root logger
    try:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        # Unsigned features and signed weights are what x86 processors multiply fastest (VNNI). Biases as integers would
        # need scales and zero points, three numbers in place of one.
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        options = {"per_channel": True, "extra_options": {"QuantizeBias": False}}
        quantize_static(str(prepared), str(path), Reader(), **types, **options)
    finally:
        logging.disable(level)
    network = onnx.load(path)
    network.metadata_props.extend(onnx.load(source).metadata_props)
    shorten_names(network.graph)
    onnx.save(network, path)


def shorten_names(graph) -> None:
    """Gives all but inputs and outputs of an ONNX graph short names, and drops the shapes that a reader infers."""
    names = {"": "", **{value.name: value.name for value in (*graph.input, *graph.output)}}

    def short(name: str) -> str:
        return names.setdefault(name, f"{len(names):x}")

    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    for node in graph.node:
        node.name, node.input[:], node.output[:] = "", map(short, node.input), map(short, node.output)
    del graph.value_info[:]


def publishable(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint without training state, in half precision: a sixth of the size or less."""
    weights = {
        name: value.half() if value.is_floating_point() and name not in ("mean", "std") else value
        for name, value in checkpoint.weights.items()
    }
    return dataclasses.replace(checkpoint, weights=weights).without_training()


def load_exported(path: Path):
    """The exported network as a function from bytes (N, 3, S, S) to probabilities (N, C, S, S), both NumPy arrays."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": images})[0]
    rebuilt = path.suffix == ".pth"
    module = Exported(load_checkpoint(path).build(path)) if rebuilt else torch.export.load(path).module()
    return lambda images: module(torch.from_numpy(images)).numpy()


def check(model: SegmentationModel, path: Path, images: list[torch.Tensor], least: float = 0.999) -> str:
    """Compares the masks of an exported network with ours, and returns the result in words.

    Raises RunError: a smaller share of the pixels than `least` is equal.
    """
    exported, batch = load_exported(path), torch.stack(images)
    with torch.no_grad():
        ours = Exported(model)(batch).numpy()
        theirs, alone = exported(batch.numpy()), exported(batch[:1].numpy())
    equal = float((model.task.decided(theirs) == model.task.decided(ours)).mean())
    apart, alone = (float(np.abs(a - b).max()) for a, b in ((theirs, ours), (alone, theirs[:1])))
    words = f"{equal:.5%} of the pixels of {plural(len(batch), 'mask')} equal ours"
    if equal < least:
        raise RunError(f"{path.name} does not do what the checkpoint does: {words}; use other --formats")
    return (
        f"{path.stat().st_size / 1e6:.1f} MB; {words}, probabilities differ by {apart:.1e} at most, and by {alone:.1e} "
        "between batch and single image"
    )


def sample_images(data_path: str | None, checkpoint: Checkpoint, subset: str, count: int) -> list[torch.Tensor]:
    """Up to `count` images, (C, S, S), of `data_path`, or random shapes where it is None."""
    view = View.of(checkpoint)
    if data_path is None:
        noise = torch.rand(4, view.channels, 8, 8, generator=torch.Generator().manual_seed(0))
        drawn = F.interpolate(noise, (view.size, view.size), mode="bicubic").clamp(0, 1) * 255
        return list(drawn.to(torch.uint8) if view.rgb else drawn)
    samples, _ = find_samples([data_path], checkpoint, subset)
    dataset = ImageDataset([dataclasses.replace(sample, mask_path=None) for sample in samples[:count]], view)
    return list(dataset.read_batch(range(len(dataset)))["image"])


def export_checkpoint(config: ExportConfig) -> None:
    """Writes the files of a config and checks them. Raises UsageError: packages or images are missing."""
    int8 = "onnx-int8" in config.formats
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    if lacking and (int8 or "onnx" in config.formats):
        raise UsageError(f"ONNX needs {', '.join(lacking)}: pip install -r requirements-export.txt")
    if int8 and config.data_path is None:
        raise UsageError("onnx-int8 takes the ranges of its values from images; name a dataset with --data_path")
    model, checkpoint, path = open_checkpoint(config.model_path, config.model_name, config.save_dir)
    folder, view = writable_folder(config.output_path or path.parent), View.of(checkpoint)
    images = sample_images(config.data_path, checkpoint, "test", CHECKED)
    # They are looked for before the work on other formats is done.
    calibration = sample_images(config.data_path, checkpoint, "valid", CALIBRATED) if int8 else []
    kind = "bytes" if view.rgb else "floats of 0 to 255"
    print(f"Exporting {checkpoint.model_name.upper()} ({path}): ", end="")
    print(f"{kind} (N, {model.in_channels}, {view.size}, {view.size}) to probabilities")
    for ending in config.formats:
        file = folder / f"{path.stem}{EXPORT_FORMATS[ending]}"
        if file.resolve() == path.resolve():
            raise UsageError(f"{file} is the checkpoint itself; name a folder with --output_path")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # an older file stays until this one is checked
            fresh, whole = Path(scratch) / file.name, Path(scratch) / "whole.onnx"
            if ending == "weights":
                save_checkpoint(publishable(checkpoint), [fresh])
            else:
                export(model, view, whole if ending == "onnx-int8" else fresh)
            if ending == "onnx-int8":
                quantize(whole, calibration, fresh)
            print(f"{file}: {check(model, fresh, images, 0.95 if ending == 'onnx-int8' else 0.999)}")
            put_in_place(fresh, file)
