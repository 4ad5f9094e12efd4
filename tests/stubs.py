"""Networks whose output is known, the least that a trainer needs, and images with detail."""

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import nn

from data.loader import Batches
from evaluation.predict import Predictor
from models.base import SegmentationModel
from models.checkpoint import Checkpoint, DataRecord, Progress
from models.task import TASKS
from runtime.device import Precision
from runtime.distributed import SINGLE_PROCESS
from training.config import TrainConfig
from training.loop import Trainer
from training.state import RunState
from training.step import MetricLogger, Net
from training.terms.masks import MasksTerm

CPU = torch.device("cpu")
FP32 = Precision(CPU)


class Brightness(SegmentationModel):
    """Logits are how bright a pixel is: what it predicts is known without training."""

    stride = 16

    def build(self, attention, decoder):
        """It has no layers."""

    def body(self, x):
        return x.mean(1, keepdim=True)


class Plain(nn.Module):
    """A network without batch norm, so that images don't touch each other."""

    task, stride = TASKS["binary"], 4

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))

    def forward(self, images):
        return self.layers(images / 255)


def make_net(model, context=SINGLE_PROCESS, precision=FP32, scaled=False, ema=None) -> Net:
    """A network in plain gradient descent."""
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    return Net(model, torch.optim.SGD(model.parameters(), lr=0.5), scaler, precision, context, ema)


def make_masks(model, context=SINGLE_PROCESS, precision=FP32, images=7, **flags) -> MasksTerm:
    """Learning from the masks of a single batch."""
    batches = Batches(range(images), images, 0, context)
    return MasksTerm(batches, TrainConfig(**flags), Predictor(model, precision))


def make_run(model, net=None, terms=None, **flags) -> Trainer:
    """The least that a step of the loop needs."""
    config = TrainConfig(scheduler="none", model_name="unet", save_dir="nowhere", **flags)
    terms = terms or [make_masks(model, **flags)]
    progress = Progress(run_id="run", planned_epochs=1)
    return Trainer(RunState(config, net or make_net(model), None, "", progress, terms), None, None)


def train_batch(run: Trainer, *read: dict | None) -> torch.Tensor:
    """Takes a step and returns the sums of its metrics."""
    metrics = MetricLogger(run.state.terms)
    run.train_batch(list(read), metrics)
    return metrics.sums


def make_batch(count: int = 7) -> dict:
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return {"image": pixels, "labels": (pixels[:, :1] > 99).to(torch.uint8), "path": [f"{i}.jpg" for i in range(count)]}


def make_checkpoint(**changes) -> Checkpoint:
    """A checkpoint of a run of one epoch, with weights of no network unless they are given."""
    generator = torch.Generator().manual_seed(0)
    weights = {"a.weight": torch.randn(50, 40, generator=generator), "steps": torch.tensor(3)}
    entries = {
        "model_name": "unet",
        "config": {},
        "weights": weights,
        "image_size": 64,
        "data": DataRecord(split="official", seed=1, fingerprints={}, train_names=["a"]),
        "encoder_start": "from scratch",
        "progress": Progress(run_id="run-1", planned_epochs=1, best_score=0.5, best_epoch=1),
    }
    return Checkpoint(**{**entries, **changes})


def three(*shape) -> torch.Tensor:
    return torch.randn(*shape[:1], 3, *shape[1:], generator=torch.Generator().manual_seed(3)) * 3


def photograph(number: int) -> Image.Image:
    """A smooth random image in colors, with some detail."""
    rng = np.random.default_rng([5, number])
    layers = [ndimage.zoom(rng.uniform(0, 255, (n, n, 3)), (150 / n, 200 / n, 1), order=1) for n in (3, 7, 25)]
    return Image.fromarray(np.average(layers, axis=0, weights=(3, 2, 1)).astype(np.uint8))
