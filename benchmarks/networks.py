"""All networks: parameters, multiply-adds, and images a second in training and inference.

    python benchmarks/networks.py

Weights are freshly drawn: they don't change the time. All networks take turns in one run.
"""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

import measure
from evaluation.predict import Predictor
from models.base import SegmentationModel
from models.build import build_model
from models.names import MODELS
from runtime.device import choose_precision, get_device
from training.resolve import new_config
from training.step import training_step
from training.terms import Batch

NETWORKS = {
    **{name: {} for name in MODELS},
    "resnet34_unet, stem": {"decoder": "stem"},
    "resnet34_unet, transformer": {"attention": "transformer"},
}


def build(variant: str) -> SegmentationModel:
    """The network of a row."""
    torch.manual_seed(0)
    return build_model(variant.partition(",")[0], **NETWORKS[variant])


def multiply_adds(model: SegmentationModel, size: int) -> int:
    """Of one image: convolutions and products of matrices, not batch norms and activations."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.train()(torch.zeros(1, 3, size, size))  # what torch fuses for evaluation is not counted
    return counter.get_total_flops() // 2


def training(variant: str, images: torch.Tensor, device: torch.device) -> Callable[[], None]:
    """A step of the strong recipe on these images, without augmentation."""
    config = new_config({"recipe": "strong"}, False, None)
    precision = choose_precision(config.amp, device, images.shape[-1])
    net, masks = measure.make_net(config, precision.to_device(build(variant)), precision, len(images))
    batch = Batch(images, (images[:, :1] > 128).to(torch.uint8).to(device), scale=1 / len(images))
    return lambda: training_step(net, [masks], [batch])


def inference(variant: str, images: torch.Tensor, device: torch.device) -> Callable[[], None]:
    """The forward pass of inference.py."""
    precision = choose_precision("auto", device, images.shape[-1])
    predictor = Predictor(precision.to_device(build(variant)).eval(), precision)
    return torch.inference_mode()(lambda: predictor.predict(images))


def main() -> None:
    """Prints a table and writes it into benchmarks/results/networks.csv."""
    parser = measure.parser(__doc__, rounds=3, image_size=128, batch_size=8)
    args = parser.parse_args()
    device, size = get_device(args.device), args.image_size
    images = measure.random_images(args.batch_size, size)
    rates = {}
    for kind in (training, inference):
        calls = {variant: kind(variant, images, device) for variant in NETWORKS}
        seconds = measure.take_turns(calls, args.rounds, device)
        rates[kind] = {row["variant"]: row for row in measure.rates(seconds, args.batch_size, "images")}
    rows = []
    for variant in NETWORKS:
        model = build(variant)
        rows.append(
            {
                "network": variant,
                "million_parameters": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
                "billion_multiply_adds": round(multiply_adds(model, size) / 1e9, 2),
                "training_images_per_second": rates[training][variant]["images_per_second"],
                "inference_images_per_second": rates[inference][variant]["images_per_second"],
                "n": args.rounds,
            }
        )
    precision = str(choose_precision("auto", device, size))
    measure.report("networks", rows, device, image_size=size, batch_size=args.batch_size, precision=precision)


if __name__ == "__main__":
    main()
