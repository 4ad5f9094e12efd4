"""Draws the Dice curves of both networks from their training logs: `python src/plot_dice_curve.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into a file; never needs a screen
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

import cli
import utils

STYLES = {"resnet34_unet": ("ResNet34-UNet", "tab:red", "o"), "unet": ("UNet", "tab:blue", "s")}  # report B's colours


def read_curve(log: Path) -> list[dict]:
    """Reads a training log as rows of numbers, in order of epochs.

    Raises:
        UsageError: a row lacks a column or holds no number.
    """
    try:
        rows = [{k: float(row[k]) for k in ("epoch", "train_dice", "val_dice")} for row in utils.read_rows(log)]
    except (KeyError, TypeError, ValueError):
        raise cli.UsageError(f"{log} is no training log of this program; move it away and train again") from None
    return sorted(rows, key=lambda row: row["epoch"])


def draw(curves: dict[str, list[dict]], file: Path) -> None:
    """Draws Dice over epochs: a colour and a marker a network, training dashed, validation solid."""
    figure, axes = plt.subplots(figsize=(8, 5))
    for name, rows in curves.items():
        title, colour, marker = STYLES[name]
        epochs = [row["epoch"] for row in rows]
        best = max(rows, key=lambda row: row["val_dice"])
        valid = f"{title} validation (best {best['val_dice']:.4f}, epoch {best['epoch']:.0f})"
        style = {"color": colour, "marker": marker, "markersize": 4}
        axes.plot(epochs, [row["train_dice"] for row in rows], "--", label=f"{title} training", alpha=0.7, **style)
        axes.plot(epochs, [row["val_dice"] for row in rows], "-", label=valid, **style)
    axes.set(xlabel="epoch", ylabel="Dice score", title="Dice score over training")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with utils.atomic_write(file, "wb") as stream:
        figure.savefig(stream, dpi=150, format="png")
    plt.close(figure)


def main(argv=None) -> None:
    """Reads the logs that are there, draws one plot."""
    parser = cli.Parser(prog="plot_dice_curve.py", description="Draw the Dice curves of the training logs.")
    parser.add_argument("--log_dir", default="logs", metavar="DIR", help="where the logs are, and the plot goes")
    args = parser.parse_args(argv)
    folder = Path(args.log_dir)
    curves = {name: read_curve(folder / f"{name}_training_log.csv") for name in STYLES}
    curves = {name: rows for name, rows in curves.items() if rows}
    if not curves:
        raise cli.UsageError(f"there is no training log in {folder}; train first, or name its folder with --log_dir")
    file = cli.writable_folder(folder) / "dice_score_comparison.png"
    draw(curves, file)
    print(f"Drew {' and '.join(STYLES[name][0] for name in curves)}: {file}")


if __name__ == "__main__":
    cli.run(main)
