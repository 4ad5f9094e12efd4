"""Writes docs/cli.md, the tables of all flags, from the configs: `python tools/write_cli_docs.py`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from evaluation.config import DemoConfig, EvalConfig, InferConfig  # noqa: E402  the path must be set first
from export import ExportConfig  # noqa: E402
from oxford_pet import DatasetConfig  # noqa: E402
from plot_dice_curve import PlotConfig  # noqa: E402
from pretrain import DEFAULTS, FLAGS  # noqa: E402
from runtime.options import flag_table  # noqa: E402
from training.config import RECIPES, TrainConfig  # noqa: E402

SCRIPTS = {
    "train.py": TrainConfig,
    "pretrain.py": TrainConfig,
    "evaluate.py": EvalConfig,
    "inference.py": InferConfig,
    "export.py": ExportConfig,
    "demo.py": DemoConfig,
    "plot_dice_curve.py": PlotConfig,
    "oxford_pet.py": DatasetConfig,
}


def document() -> str:
    """The text of docs/cli.md."""
    parts = [
        "# Flags",
        "Written by `python tools/write_cli_docs.py` from the configs of the scripts. Hyphens work like underscores: "
        "`--batch-size` is `--batch_size`. Every switch has a form that turns it off.",
    ]
    for script, config in SCRIPTS.items():
        differing = {"only": FLAGS, "defaults": DEFAULTS} if script == "pretrain.py" else {}
        parts += [f"## {script}", flag_table(config, **differing)]
        if script == "train.py":
            parts.append("`--model_type NAME` is as `--model_name`; an unknown name warns and trains the default.")
    parts += ["## Recipes", "`--recipe report`: the defaults of train.py. `denoising` is that of pretrain.py."]
    for recipe, rows in RECIPES.items():
        for row, values in rows.items():
            title = f"`--recipe {recipe}`" + ("" if row == "all" else f", {row} also")
            parts += [f"{title}: {', '.join(f'`--{name} {value}`' for name, value in values.items())}."]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "docs/cli.md").write_text(document())
