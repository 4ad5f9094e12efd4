"""Draws the curves of networks from their training logs."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into a file; never needs a screen
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageShow

from models.checkpoint import resumed_after
from models.names import MODELS
from runtime.errors import UsageError
from runtime.files import atomic_write, read_rows, writable_folder

TITLES = {"resnet34_unet": "ResNet34-UNet", "unet": "UNet"}
# ResNet34-UNet is red and UNet blue, as in report B. Markers and dashes are for the color-blind.
LOOKS = (("tab:red", "o"), ("tab:blue", "s"), ("tab:green", "^"), ("tab:purple", "D"), ("tab:brown", "v"))
LOOKS += (("tab:olive", "P"), ("tab:cyan", "X"))
NAMES = [*TITLES, *(name for name in MODELS if name not in TITLES)]
COLORS = {name: color for name, (color, _) in zip(NAMES, LOOKS)}
COLUMNS = {"dice": ("train_dice", "val_dice"), "loss": ("train_loss", "val_loss"), "learning_rate": ("learning_rate",)}


@dataclass
class Run:
    """A run's log, and how it is drawn."""

    title: str
    color: str
    marker: str
    rows: list[dict]
    resumed: list[int]  # after which epochs


def read_curve(log: Path) -> list[dict]:
    """Reads a training log as rows of numbers and the run's id, in order of epochs.

    Raises:
        UsageError: a row lacks a column or holds no number.
    """
    columns = ["epoch", *itertools.chain(*COLUMNS.values())]
    try:
        rows = [{"run_id": row["run_id"], **{name: _number(row, name) for name in columns}} for row in read_rows(log)]
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{log} is no training log of this program; move it away and train again") from None
    return sorted(rows, key=lambda row: row["epoch"])


def _number(row: dict, name: str) -> float:
    """A column of a row; NaN where the epoch was not validated, and where a pre-training has no Dice."""
    return math.nan if name in ("train_dice", "val_dice", "val_loss") and row[name] == "" else float(row[name])


def latest_runs(folder: Path, saved: Path) -> list[Run]:
    """The run of each network whose log bears the plain name."""
    runs, logs = [], {name: read_curve(folder / f"{name}_training_log.csv") for name in NAMES}
    shown = [*TITLES, *(name for name in NAMES if logs[name] and name not in TITLES)]  # these two keep their colors
    for name, look in zip(shown, itertools.cycle(LOOKS)):
        rows = logs[name]
        if rows:
            runs.append(Run(TITLES.get(name, name), *look, rows, resumed_after(saved, name, rows[0]["run_id"])))
    if not runs:
        raise UsageError(f"there is no training log in {folder}; train first, or name its folder with --log_dir")
    return runs


def runs_by_id(folder: Path, saved: Path, ids: list[str]) -> list[Run]:
    """The runs with these ids, from whatever log holds them.

    Raises:
        UsageError: no log holds one of them.
    """
    known = {}
    for name in NAMES:
        for log in sorted(folder.glob(f"{name}_training_log*.csv")):
            for row in read_curve(log):
                # A run that went back to an older state has left rows of the same epochs: the log in use comes first.
                known.setdefault(row["run_id"], (name, {}))[1].setdefault(row["epoch"], row)
    runs = []
    for run_id, look in zip(ids, itertools.cycle(LOOKS)):
        if run_id not in known:
            raise UsageError(f"no log in {folder} has a run {run_id}; there are {', '.join(known) or 'none'}")
        name, epochs = known[run_id]
        rows = [epochs[epoch] for epoch in sorted(epochs)]
        runs.append(Run(f"{TITLES.get(name, name)} {run_id}", *look, rows, resumed_after(saved, name, run_id)))
    return runs


def draw(runs: list[Run], kinds: list[str], file: Path) -> None:
    """Draws curves over epochs, one plot a kind: training dashed, validation solid, the best epoch ringed.

    Raises:
        UsageError: a run has no such curve.
    """
    for run in runs:
        if "dice" in kinds and all(math.isnan(row["train_dice"]) for row in run.rows):
            raise UsageError(f"{run.title} has no Dice, because it was pre-trained; draw its --curves loss")
    figure, axes = plt.subplots(len(kinds), figsize=(8, 1 + 4 * len(kinds)), squeeze=False)
    for kind, axis in zip(kinds, axes[:, 0]):
        for run in runs:
            draw_run(run, kind, axis)
        title = kind.replace("_", " ")
        axis.set(xlabel="epoch", ylabel="Dice score" if kind == "dice" else title)
        axis.set_title("Dice score over training" if kind == "dice" else f"{title.capitalize()} over training")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    with atomic_write(file, "wb") as stream:
        figure.savefig(stream, dpi=150, format="png")
    plt.close(figure)


def _score(row: dict) -> float:
    """By what the best epoch is chosen: Dice, or in a pre-training the loss. Epochs without validation come last."""
    scores = (row["val_dice"], -row["val_loss"], -math.inf)
    return next(score for score in scores if not math.isnan(score))


def draw_run(run: Run, kind: str, axis) -> None:
    """A run's curves of one kind."""
    best = max(run.rows, key=_score)
    style = {"color": run.color, "marker": run.marker, "markersize": 4}
    for column in COLUMNS[kind]:
        label, dash = run.title, "-"
        if column.startswith("train"):
            label, dash = f"{run.title} training", "--"
        elif kind == "dice":
            label = f"{run.title} validation (best {best['val_dice']:.4f}, epoch {best['epoch']:.0f})"
        elif kind == "loss":
            label = f"{run.title} validation"
        fill = {"markerfacecolor": "white"} if dash == "--" else {}
        points = [(row["epoch"], row[column]) for row in run.rows if not math.isnan(row[column])]
        axis.plot(*zip(*points), dash, label=label, **style, **fill)
    axis.plot(best["epoch"], best[COLUMNS[kind][-1]], "o", markersize=12, markerfacecolor="none", color=run.color)
    for number, epoch in enumerate(run.resumed):
        label = {"label": f"{run.title} resumed"} if number == 0 else {}
        axis.axvline(epoch + 0.5, color=run.color, linestyle=":", linewidth=1, **label)


def draw_curves(save_dir: str, log_dir: str, kinds: list[str], ids: list[str] | None, show: bool) -> None:
    """Draws one plot, dice_score_comparison.png in the folder of the logs.

    Args:
        save_dir: folder of checkpoints, which know where runs were resumed.
        log_dir: folder of training logs.
        kinds: keys of COLUMNS.
        ids: of the runs; None for the latest of each network.
        show: open the plot when it is drawn.
    """
    folder, saved = Path(log_dir), Path(save_dir)
    runs = runs_by_id(folder, saved, ids) if ids else latest_runs(folder, saved)
    file = writable_folder(folder) / "dice_score_comparison.png"
    draw(runs, kinds, file)
    print(f"Drew {' and '.join(run.title for run in runs)}: {file}")
    if show and not ImageShow.show(Image.open(file, formats=("PNG",))):
        print("There is no program here to show it with.")
