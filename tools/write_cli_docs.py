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
from runtime.cli import shown_default  # noqa: E402
from runtime.options import options_of  # noqa: E402
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


def flag_table(config_class, only=None, defaults=None) -> str:
    """The flags as a table in Markdown: spellings, meaning, default. Arguments: see `Parser`."""
    rows = ["| flag | meaning | default |", "| --- | --- | --- |"]
    for name, (flag, default) in options_of(config_class).items():
        if only is not None and name not in only:
            continue
        value = "\\|".join(flag.choices) or (flag.metavar or "").replace("|", "\\|")
        value = f" [{value}]" if flag.bare is not None else f" {value}" if value else ""
        aliases = (f"--no-{name}",) if isinstance(default, bool) else flag.aliases
        first = value.strip() if flag.nargs == "*" else f"--{name}{value}"
        spellings = ", ".join(f"`{spelling}`" for spelling in (first, *aliases))
        default = (defaults or {}).get(name, default)
        shown = "off" if default == 0 else shown_default(default)
        rows.append(f"| {spellings} | {flag.help} | {shown} |".replace("<", "&lt;"))
    return "\n".join(rows)


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
