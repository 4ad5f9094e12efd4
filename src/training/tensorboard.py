"""Curves and panels for TensorBoard."""

import importlib.util
from pathlib import Path

import numpy as np
import torch

from data.dataset import ImageDataset
from evaluation.predict import Predictor
from runtime.errors import UsageError
from training.state import LOG_COLUMNS, RunState
from visual.panels import draw_panel

PANELS = 4  # an epoch, always of the same validation images


class TensorBoard:
    """Writes the rows of a run's log, and panels of validation images, into a folder of its own.

    Epochs that a resumed run trains again replace what was written of them.
    """

    def __init__(self, state: RunState, valid_set: ImageDataset):
        if not importlib.util.find_spec("tensorboard"):
            raise UsageError("--tensorboard needs another package: pip install -r requirements-tensorboard.txt")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        self.dataset = valid_set
        self.numbers = np.linspace(0, len(valid_set) - 1, min(PANELS, len(valid_set))).astype(int).tolist()
        folder = Path(state.config.log_dir) / "tensorboard" / state.progress.run_id
        folder.mkdir(parents=True, exist_ok=True)
        events = EventAccumulator(str(folder)).Reload()
        written = events.Scalars("train_loss") if "train_loss" in events.Tags()["scalars"] else []
        self.writer = SummaryWriter(str(folder), purge_step=state.progress.epoch + 1)
        for row in state.progress.history:  # epochs that were trained without a board
            if row["epoch"] not in {point.step for point in written}:
                self._write_curves(row)

    def _write_curves(self, row: dict) -> None:
        for name, value in row.items():
            if name not in LOG_COLUMNS[:2] and value is not None:
                self.writer.add_scalar(name, value, row["epoch"])

    @torch.inference_mode()
    def __call__(self, state: RunState, row: dict) -> None:
        """Adds an epoch: a row of the log, and panels of what the network predicts after it."""
        self._write_curves(row)
        model = (state.net.ema or state.net).model.eval()
        batch, task = self.dataset.read_batch(self.numbers), model.task
        labels = task.label_map(Predictor(model, state.net.precision).predict(batch["image"])).cpu()
        for number, image, truth, predicted in zip(self.numbers, batch["image"], batch["labels"], labels):
            name, image = self.dataset.samples[number].name, image.permute(1, 2, 0).numpy()
            panel = draw_panel(image, predicted[0].numpy(), truth[0].numpy(), name, task)
            self.writer.add_image(f"validation/{name}", np.asarray(panel), row["epoch"], dataformats="HWC")
        self.writer.flush()
