"""Draws the curves of networks from their training logs."""

import itertools
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL import Image, ImageShow

from models.checkpoint import checkpoint_path, read_progress
from models.names import MODELS
from runtime.errors import UsageError
from runtime.files import atomic_write, read_rows, writable_folder

TITLES = {"resnet34_unet": "ResNet34-UNet", "unet": "UNet"}
# ResNet34-UNet is red and UNet blue, as in report B. Markers and dashes are for the color-blind.
LOOKS = list(zip(["tab:red", "tab:blue", "tab:green", "tab:purple", "tab:brown", "tab:olive", "tab:cyan"], "os^DvPX"))
COLUMNS = {"dice": ("train_dice", "val_dice"), "loss": ("train_loss", "val_loss"), "learning_rate": ("learning_rate",)}


class Run(NamedTuple):
    """A run of a network: its rows by epoch, with None where there is no value."""

    run_id: str
    name: str
    rows: dict[float, dict]

    def points(self, column: str) -> tuple[list, list]:
        """Epochs and values of a column."""
        epochs = [epoch for epoch in sorted(self.rows) if self.rows[epoch][column] is not None]
        return epochs, [self.rows[epoch][column] for epoch in epochs]

    def best(self) -> dict | None:
        """The row with the best validation Dice or, in a pre-training, loss."""
        column, sign = ("val_dice", 1) if self.points("val_dice")[0] else ("val_loss", -1)
        return max((self.rows[e] for e in self.points(column)[0]), key=lambda row: sign * row[column], default=None)


def read_runs(folder: Path, ending: str = "*.csv") -> dict[str, Run]:
    """The runs in all logs called <network>_training_log<ending>, by their ids. Raises UsageError: a log is damaged."""
    runs, columns = {}, ["epoch", *itertools.chain(*COLUMNS.values())]
    for name in sorted(MODELS, key=[*TITLES, *MODELS].index):
        for log in sorted(folder.glob(f"{name}_training_log{ending}")):
            try:
                for row in read_rows(log):
                    values = {column: float(row[column]) if row[column] else None for column in columns}
                    # A run that went back to an older state has left rows of the same epochs: the log in use is first.
                    run = runs.setdefault(row["run_id"], Run(row["run_id"], name, {}))
                    run.rows.setdefault(values["epoch"], values)
            except (KeyError, ValueError):
                raise UsageError(f"{log} is no training log of this program; move it away and train again") from None
    return runs


def resumed_after(save_dir, model_name: str, run_id: str) -> list[int]:
    """After which epochs a run was resumed, as far as a checkpoint of it is still there."""
    for kind in ("last", f"last_{run_id}"):
        progress = read_progress(checkpoint_path(save_dir, model_name, kind))
        if progress is not None and progress.run_id == run_id:
            return progress.resumed
    return []


def draw_run(axis, run: Run, title: str, kind: str, color: str, marker: str) -> None:
    """One kind of curve: training dashed, validation solid, the best epoch ringed."""
    if kind == "dice" and not run.points("train_dice")[0]:
        raise UsageError(f"{title} has no Dice, because it was pre-trained; draw its --curves loss")
    best = run.best()
    for column in COLUMNS[kind]:
        part = {"train": " training", "val": " validation"}.get(column.partition("_")[0], "")
        score = f" (best {best['val_dice']:.4f}, epoch {best['epoch']:.0f})" if best and column == "val_dice" else ""
        style = {"linestyle": "--", "fillstyle": "none"} if part == " training" else {}
        axis.plot(*run.points(column), label=title + part + score, color=color, marker=marker, markersize=4, **style)
    if best:
        axis.plot(best["epoch"], best[column], "o", markersize=12, fillstyle="none", color=color)


def draw_curves(save_dir: str, log_dir: str, kinds: list[str], ids: list[str] | None, show: bool) -> None:
    """Draws dice_score_comparison.png in the folder of the logs, one plot a kind (a key of COLUMNS).

    The runs are those with the ids, or the latest of each network, whose log bears the plain name.
    """
    folder = Path(log_dir)
    known = read_runs(folder, "*.csv" if ids else ".csv")
    for run_id in ids or ():
        if run_id not in known:
            raise UsageError(f"no log in {folder} has a run {run_id}; there are {', '.join(known) or 'none'}")
    if not known:
        raise UsageError(f"there is no training log in {folder}; train first, or name its folder with --log_dir")
    # Among the latest runs the first two networks keep their looks where one of them is missing.
    latest = {**dict.fromkeys(TITLES), **{run.name: run for run in known.values()}}
    chosen = [known[run_id] for run_id in ids] if ids else latest.values()
    looks = [(run, *look) for run, look in zip(chosen, itertools.cycle(LOOKS)) if run]
    titles = [TITLES.get(run.name, run.name) + (f" {run.run_id}" if ids else "") for run, *_ in looks]
    figure = Figure(figsize=(8, 1 + 4 * len(kinds)), layout="tight")
    for kind, axis in zip(kinds, figure.subplots(len(kinds), squeeze=False)[:, 0]):
        for title, (run, color, marker) in zip(titles, looks):
            draw_run(axis, run, title, kind, color, marker)
            for number, epoch in enumerate(resumed_after(save_dir, run.name, run.run_id)):
                label = "" if number else f"{title} resumed"
                axis.axvline(epoch + 0.5, color=color, linestyle=":", linewidth=1, label=label)
        quantity = "Dice score" if kind == "dice" else kind.replace("_", " ").capitalize()
        axis.set(xlabel="epoch", ylabel=quantity, title=f"{quantity} over training")
        axis.locator_params(axis="x", integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    file = writable_folder(folder) / "dice_score_comparison.png"
    with atomic_write(file, "wb") as stream:
        figure.savefig(stream, dpi=150, format="png")
    print(f"Drew {' and '.join(titles)}: {file}")
    if show and not ImageShow.show(Image.open(file)):
        print("There is no program here to show it with.")
