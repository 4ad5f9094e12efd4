"""What is told of each epoch of a run: the console and TensorBoard. The CSV log is written with each checkpoint."""

import importlib.util
from pathlib import Path

import numpy as np
import torch

from data.dataset import ImageDataset
from evaluation.predict import Predictor
from models.checkpoint import Progress
from runtime.device import Precision
from runtime.errors import UsageError
from training.state import LOG_COLUMNS, RunState
from visual.panels import draw_panel

PANELS = 4  # an epoch, always of the same validation images


class Console:
    """Prints a line for each epoch."""

    def __init__(self, progress: Progress):
        self.progress = progress

    def __call__(self, row: dict) -> None:
        """Prints a row of the log."""

        def part(name: str) -> str:
            loss, dice = row[f"{name}_loss"], row[f"{name}_dice"]
            return f"loss {loss:.4f}" + ("" if dice is None else f" dice {dice:.4f}")

        valid = "not validated" if row["val_loss"] is None else f"valid {part('val')}"
        print(
            f"epoch {row['epoch']:>3}/{self.progress.planned_epochs}  train {part('train')}  {valid}  "
            f"lr {row['learning_rate']:.1e}  {row['seconds']:.1f} s, {row['images_per_second']:.1f} images/s"
            f"{'  best' if self.progress.best_epoch == row['epoch'] else ''}",
            flush=True,
        )


def _written_epochs(place: Path) -> set[int]:
    """The epochs whose curves are in a run's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(place)).Reload() if place.is_dir() else None
    known = events is not None and "train_loss" in events.Tags()["scalars"]
    return {point.step for point in events.Scalars("train_loss")} if known else set()


class TensorBoard:
    """Writes the rows of a run's log, and panels, into a folder of its own.

    Epochs that a resumed run trains again replace what was written of them.

    Args:
        folder: the run's id names a folder in it.
        state: of the run.
        valid_set: the validation images.
        precision: where and how to compute.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, state: RunState, valid_set: ImageDataset, precision: Precision):
        if not importlib.util.find_spec("tensorboard"):
            raise UsageError("--tensorboard needs another package: pip install -r requirements-tensorboard.txt")
        from torch.utils.tensorboard import SummaryWriter

        self.state, self.dataset, self.precision = state, valid_set, precision
        self.numbers = np.linspace(0, len(valid_set) - 1, min(PANELS, len(valid_set))).astype(int).tolist()
        place, progress = folder / state.progress.run_id, state.progress
        written = _written_epochs(place)
        earlier = [row for row in progress.history if row["epoch"] not in written]  # trained without a board
        self.writer = SummaryWriter(str(place), purge_step=progress.epoch + 1)
        for row in earlier:
            self._write_curves(row)

    def _write_curves(self, row: dict) -> None:
        for name, value in row.items():
            if name not in LOG_COLUMNS[:2] and value is not None:
                self.writer.add_scalar(name, value, row["epoch"])

    @torch.inference_mode()
    def __call__(self, row: dict) -> None:
        """Adds an epoch: a row of the log, and panels of what the network predicts after it."""
        self._write_curves(row)
        model = (self.state.ema or self.state.net).model.eval()
        batch, task = self.dataset.read_batch(self.numbers), model.task
        labels = task.label_map(Predictor(model, self.precision).predict(batch["image"]).final).cpu()
        for number, image, truth, predicted in zip(self.numbers, batch["image"], batch["labels"], labels):
            name, image = self.dataset.samples[number].name, image.permute(1, 2, 0).numpy()
            panel = draw_panel(image, predicted[0].numpy(), task.visible(truth[0].numpy()), name, task)
            self.writer.add_image(f"validation/{name}", np.asarray(panel), row["epoch"], dataformats="HWC")
        self.writer.flush()
