"""Images a second through a trained network, without gradients: ours beside segmentation_models.pytorch, in one run.

    python benchmarks/inference.py

Then from a folder of images (JPEG, 500x375) to results, beside the network alone on images in memory.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import measure
import peers
from data.layout import Sample
from data.view import View
from evaluation.config import InferConfig
from evaluation.infer import Segmenter
from evaluation.predict import Predictor
from models.build import build_model
from runtime.device import choose_precision, get_device
from sample_pets import draw_pet

COUNT = 64


def plain_predict(model, device: torch.device, layout=torch.contiguous_format, bf16: bool = False) -> Callable:
    """Images, as bytes, to logits, as a plain script computes them."""
    model = model.to(device, memory_format=layout).eval()

    def predict(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return model(images.to(device).float().contiguous(memory_format=layout)).float().cpu()

    return predict


def our_predict(name: str, device: torch.device, size: int) -> Callable:
    """The same in inference.py."""
    precision = choose_precision("auto", device, size)
    predictor = Predictor(precision.to_device(build_model(name)).eval(), precision)
    return torch.inference_mode()(lambda images: predictor.predict(images).cpu())


def from_folder(scratch: Path, device: torch.device, size: int, batch_size: int) -> dict[str, Callable]:
    """Calls that segment a folder of COUNT drawn images, and the network alone on as many."""
    samples = []
    for i in range(COUNT):
        path = scratch / f"pet_{i}.jpg"
        draw_pet(np.random.default_rng(i), size=(500, 375))[0].save(path, quality=90)
        samples.append(Sample(path.stem, path))
    precision = choose_precision("auto", device, size)
    predictor = Predictor(precision.to_device(build_model("resnet34_unet")).eval(), precision)
    images = measure.random_images(batch_size, size)

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(COUNT // batch_size):
            predictor.predict(images).cpu()

    def segment(kinds: list[str]) -> Callable:
        config, folder = InferConfig(batch_size=batch_size), scratch / "out" if kinds else None
        return lambda: Segmenter(predictor, View(size), config, kinds, folder).run(samples)

    return {
        "bare network": bare,
        "inference.py, nothing saved": segment([]),
        "inference.py --save masks": segment(["masks"]),
        "inference.py --save masks,panels": segment(["masks", "panels"]),
    }


def main() -> None:
    """Prints a table and writes it into benchmarks/results/inference.csv."""
    parser = measure.parser(__doc__, rounds=7, image_size=256, batch_size=8)
    args = parser.parse_args()
    device, size = get_device(args.device), args.image_size
    images = measure.random_images(args.batch_size, size)
    last, rows = torch.channels_last, []
    for name, other in (("resnet34_unet", "smp"), ("unet", "unet")):
        who = "smp Unet(resnet34)" if other == "smp" else "our network, plain loop"
        predictors = {
            f"{who}, fp32": plain_predict(peers.build(other), device),
            f"{who}, channels last, bf16": plain_predict(peers.build(other), device, last, True),
            "inference.py": our_predict(name, device, size),
        }
        calls = {who: lambda predict=predict: predict(images) for who, predict in predictors.items()}
        rows += measure.rates(measure.take_turns(calls, args.rounds, device), args.batch_size, "images", model=name)
    setting = {"image_size": size, "batch_size": args.batch_size}
    measure.report("inference", rows, device, **setting)
    with tempfile.TemporaryDirectory() as scratch:
        calls = from_folder(Path(scratch), device, size, args.batch_size)
        rows = measure.rates(measure.take_turns(calls, args.rounds, device), COUNT, "images")
    measure.report("inference_folder", rows, device, **setting)


if __name__ == "__main__":
    main()
