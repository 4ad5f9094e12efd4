"""Draws the curves of both networks from their training logs: `python src/plot_dice_curve.py`."""

from dataclasses import dataclass

from runtime import cli
from runtime.options import option, words_of

CURVES = ("dice", "loss", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """The settings of plot_dice_curve.py."""

    save_dir: str = option("saved_models", "folder of checkpoints", metavar="DIR")
    log_dir: str = option("logs", "folder of CSV logs and the plot", metavar="DIR")
    curves: list[str] = option(
        ("dice",), f"which ones, with commas: {', '.join(CURVES)}", words_of(CURVES, "curve"), metavar="NAMES"
    )
    runs: list[str] | None = option(
        None, "runs by their ids; by default the latest of each network", nargs="+", metavar="ID"
    )
    show: bool = option(False, "open the plot when it is drawn")


def build_parser() -> cli.Parser:
    """Flags of plot_dice_curve.py."""
    return cli.Parser("plot_dice_curve.py", __doc__, PlotConfig)


def main(argv=None) -> None:
    """Reads the logs that are there, draws one plot."""
    config = PlotConfig(**build_parser().parse_overrides(argv))
    cli.import_torch()
    from visual.curves import draw_curves

    draw_curves(config.save_dir, config.log_dir, config.curves, config.runs, config.show)


if __name__ == "__main__":
    cli.run(main, less_memory="")
