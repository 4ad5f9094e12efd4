"""Draws the curves of both networks from their training logs: `python src/plot_dice_curve.py`."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into a file; never needs a screen
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageShow

import cli
import utils
from checkpoint import resumed_after

# Report B's colours. Who can't tell them apart tells markers, and dashes from lines.
STYLES = {"resnet34_unet": ("ResNet34-UNet", "tab:red", "o"), "unet": ("UNet", "tab:blue", "s")}
MORE = (("tab:green", "^"), ("tab:purple", "D"), ("tab:brown", "v"), ("tab:olive", "P"), ("tab:cyan", "X"))
KINDS = {"dice": ("train_dice", "val_dice"), "loss": ("train_loss", "val_loss"), "learning_rate": ("learning_rate",)}


@dataclass
class Run:
    """A run's log, and how it is drawn."""

    title: str
    colour: str
    marker: str
    rows: list[dict]
    resumed: list[int]  # after which epochs


def read_curve(log: Path) -> list[dict]:
    """Reads a training log as rows of numbers and the run's id, in order of epochs.

    Raises:
        UsageError: a row lacks a column or holds no number.
    """
    columns = ["epoch", *itertools.chain(*KINDS.values())]
    try:
        rows = [
            {"run_id": row["run_id"], **{name: float(row[name]) for name in columns}} for row in utils.read_rows(log)
        ]
    except (KeyError, TypeError, ValueError):
        raise cli.UsageError(f"{log} is no training log of this program; move it away and train again") from None
    return sorted(rows, key=lambda row: row["epoch"])


def latest_runs(folder: Path, saved: Path) -> list[Run]:
    """The run of each network whose log bears the plain name."""
    runs = []
    for name, (title, colour, marker) in STYLES.items():
        rows = read_curve(folder / f"{name}_training_log.csv")
        if rows:
            runs.append(Run(title, colour, marker, rows, resumed_after(saved, name, rows[0]["run_id"])))
    if not runs:
        raise cli.UsageError(f"there is no training log in {folder}; train first, or name its folder with --log_dir")
    return runs


def runs_by_id(folder: Path, saved: Path, ids: list[str]) -> list[Run]:
    """The runs with these ids, from whatever log holds them.

    Raises:
        UsageError: no log holds one of them.
    """
    known = {}
    for name in STYLES:
        for log in sorted(folder.glob(f"{name}_training_log*.csv")):
            for row in read_curve(log):
                # A run that went back to an older state has left rows of the same epochs: the log in use comes first.
                known.setdefault(row["run_id"], (name, {}))[1].setdefault(row["epoch"], row)
    looks = itertools.cycle([*(style[1:] for style in STYLES.values()), *MORE])
    runs = []
    for run_id in ids:
        if run_id not in known:
            raise cli.UsageError(f"no log in {folder} has a run {run_id}; there are {', '.join(known) or 'none'}")
        name, epochs = known[run_id]
        rows = [epochs[epoch] for epoch in sorted(epochs)]
        colour, marker = next(looks)
        runs.append(Run(f"{STYLES[name][0]} {run_id}", colour, marker, rows, resumed_after(saved, name, run_id)))
    return runs


def draw(runs: list[Run], kinds: list[str], file: Path) -> None:
    """Draws curves over epochs, one picture a kind: training dashed, validation solid, the best epoch ringed."""
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
    with utils.atomic_write(file, "wb") as stream:
        figure.savefig(stream, dpi=150, format="png")
    plt.close(figure)


def draw_run(run: Run, kind: str, axis) -> None:
    """A run's curves of one kind."""
    epochs = [row["epoch"] for row in run.rows]
    best = max(run.rows, key=lambda row: row["val_dice"])
    style = {"color": run.colour, "marker": run.marker, "markersize": 4}
    for column in KINDS[kind]:
        label, dash = run.title, "-"
        if column.startswith("train"):
            label, dash = f"{run.title} training", "--"
        elif kind == "dice":
            label = f"{run.title} validation (best {best['val_dice']:.4f}, epoch {best['epoch']:.0f})"
        elif kind == "loss":
            label = f"{run.title} validation"
        fill = {"markerfacecolor": "white"} if dash == "--" else {}
        axis.plot(epochs, [row[column] for row in run.rows], dash, label=label, **style, **fill)
    axis.plot(best["epoch"], best[KINDS[kind][-1]], "o", markersize=12, markerfacecolor="none", color=run.colour)
    for number, epoch in enumerate(run.resumed):
        label = {"label": f"{run.title} resumed"} if number == 0 else {}
        axis.axvline(epoch + 0.5, color=run.colour, linestyle=":", linewidth=1, **label)


def kinds(text: str) -> list[str]:
    """An argparse type: kinds of curves, with commas between them."""
    return cli.words_of(text, KINDS, "curve")


def main(argv=None) -> None:
    """Reads the logs that are there, draws one plot."""
    parser = cli.Parser(prog="plot_dice_curve.py", description="Draw the curves of the training logs.")
    cli.add_folder_flags(parser)
    flag = parser.add_argument
    flag("--curves", type=kinds, default="dice", metavar="KINDS", help=f"which ones: {','.join(KINDS)}")
    flag("--runs", nargs="+", metavar="ID", help="runs by their ids; by default the latest of each network")
    flag("--show", action="store_true", help="open the plot when it is drawn")
    args = parser.parse_args(argv)
    folder, saved = Path(args.log_dir), Path(args.save_dir)
    runs = runs_by_id(folder, saved, args.runs) if args.runs else latest_runs(folder, saved)
    file = cli.writable_folder(folder) / "dice_score_comparison.png"
    draw(runs, args.curves, file)
    print(f"Drew {' and '.join(run.title for run in runs)}: {file}")
    if args.show and not ImageShow.show(Image.open(file)):
        print("There is no program here to show it with.")


if __name__ == "__main__":
    cli.run(main)
