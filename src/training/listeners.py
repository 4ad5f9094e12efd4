"""What a run says of itself: a header, a line for each epoch, the command that resumes it, and TensorBoard."""

import importlib.util
import shlex
from pathlib import Path

import numpy as np
import torch

from data.dataset import ImageDataset
from data.layout import describe_layout, find_parts
from evaluation.predict import Predictor
from models.names import DENOISING
from runtime.errors import UsageError, plural
from runtime.options import options_of
from training.config import TrainConfig
from training.data import Data, spread_batch
from training.state import RunState
from visual.panels import draw_panel

PANELS = 4  # of TensorBoard in an epoch, always of the same validation images
SHOWN = {"batch_size", "image_size", "learning_rate", "optimizer", "scheduler", "seed"}  # even if by default


def print_header(state: RunState, data: Data, resumed_from: Path | None) -> None:
    """Device, model, data and plan: what a reader of the output wants to know later."""
    config, progress, net, root = state.config, state.progress, state.net, data.train.root
    processes = f"{net.context.size} processes of " if net.context.size > 1 else ""
    threads = f"{processes}{torch.get_num_threads()} threads"
    print(f"Device  {net.precision.device} ({threads}), {net.precision}, torch {torch.__version__}")
    count = sum(parameter.numel() for parameter in net.model.parameters())
    print(f"Model   {config.model_name}, {count:,} parameters, encoder {state.encoder_start}")
    split = "" if find_parts(root) else f", split {config.split}"
    sizes = ", ".join(f"{len(part):,} {part.mode}" for part in (data.train, data.valid, data.test) if part)
    cached = "not cached" if data.train.decodes else "cached"
    print(f"Data    {root} ({describe_layout(root)}){split}: {sizes}; {cached}")
    settings = [
        f"{name} {getattr(config, name)}"
        for name, (flag, default) in options_of(TrainConfig).items()
        if flag.resume and (name in SHOWN or getattr(config, name) != default) and name not in ("model_name", "split")
    ]
    print(f"Plan    {', '.join(settings)}")
    plan = f"{plural(progress.planned_epochs, 'epoch')} of {plural(state.terms[0].batches.steps, 'step')}"
    if resumed_from is not None:
        place = f"epoch {progress.epoch + 1} of {progress.planned_epochs} after step {progress.step}"
        plan = f"resumes from {resumed_from} in {place}; best {best_in_words(state)}"
    print(f"Run     {progress.run_id}: {plan}", flush=True)


def print_epoch(state: RunState, row: dict) -> None:
    """Prints a row of the log."""
    words = [f"epoch {row['epoch']:>3}/{state.progress.planned_epochs}"]
    for name, part in (("train", "train"), ("valid", "val")):
        dice = row[f"{part}_dice"]
        words.append(f"{name} loss {row[f'{part}_loss']:.4f}" + ("" if dice is None else f" dice {dice:.4f}"))
    words += [f"lr {row['learning_rate']:.1e}", f"{row['seconds']:.1f} s, {row['images_per_second']:.1f} images/s"]
    words += ["best"] if state.progress.best_epoch == row["epoch"] else []
    print("  ".join(words), flush=True)


def best_in_words(state: RunState) -> str:
    """The best score so far and its epoch, as `valid Dice 0.9062 in epoch 6`."""
    progress, score = state.progress, state.terms[0].score
    if progress.best_score is None:
        return f"{score} not known yet"
    return f"{score} {abs(progress.best_score):.4f} in epoch {progress.best_epoch}"


def resume_command(state: RunState) -> str:
    """The command that resumes a run: with the flags that its checkpoint does not keep."""
    config = state.config
    script = "src/pretrain.py" if config.classes == DENOISING else "src/train.py"
    words = [state.net.context.launcher, script, "--model_name", config.model_name]
    for name, (flag, default) in options_of(TrainConfig).items():
        value = getattr(config, name)
        if flag.resume is None and name not in ("epochs", "resume") and value != default:
            switch = f"--{name}" if value else f"--no-{name}"
            words += [switch] if isinstance(default, bool) else [f"--{name}", shlex.quote(str(value))]
    return " ".join([*words, "--resume"])


class TensorBoard:
    """Writes the rows of a run's log, and panels of validation images, into a folder of its own.

    Epochs that a resumed run trains again replace what was written of them.
    """

    def __init__(self, state: RunState, valid_set: ImageDataset):
        if not importlib.util.find_spec("tensorboard"):
            raise UsageError("--tensorboard needs another package: pip install -r requirements-tensorboard.txt")
        from torch.utils.tensorboard import SummaryWriter

        self.batch = spread_batch(valid_set, PANELS)
        folder = Path(state.config.log_dir) / "tensorboard" / state.progress.run_id
        self.writer = SummaryWriter(str(folder), purge_step=state.progress.epoch + 1)

    @torch.inference_mode()
    def __call__(self, state: RunState, row: dict) -> None:
        """Adds an epoch: a row of the log, and panels of what the network predicts after it."""
        for name, value in row.items():
            if name not in ("run_id", "epoch") and value is not None:
                self.writer.add_scalar(name, value, row["epoch"])
        model = (state.net.ema or state.net).model.eval()
        labels = model.task.label_map(Predictor(model, state.net.precision).predict(self.batch["image"])).cpu()
        for path, image, truth, predicted in zip(self.batch["path"], self.batch["image"], self.batch["labels"], labels):
            name, image = Path(path).stem, image.permute(1, 2, 0).numpy()
            panel = draw_panel(image, predicted[0].numpy(), truth[0].numpy(), name, model.task)
            self.writer.add_image(f"validation/{name}", np.asarray(panel), row["epoch"], dataformats="HWC")
        self.writer.flush()
