"""Draws docs/speed.png from benchmarks/results: images a second in training, by variant."""

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

import measure
from runtime.files import read_rows

TITLES = {"resnet34_unet": "ResNet34-UNet", "unet": "UNet"}
OTHERS, PLAIN, OURS = "tab:gray", "lightsteelblue", "tab:blue"


def color(variant: str) -> str:
    """Gray for the code of others, light for our network in plain loops, blue for train.py."""
    if variant.startswith("train.py"):
        return OURS
    return OTHERS if "smp" in variant or "milesial" in variant or "the same" in variant else PLAIN


def main() -> None:
    """Draws the tables of both networks, one above the other."""
    tables = {name: read_rows(measure.RESULTS / f"training_step_{name}.csv") for name in TITLES}
    heights = [len(rows) for rows in tables.values()]
    figure, axes = plt.subplots(
        len(tables), figsize=(8, 1.6 + 0.32 * sum(heights)), gridspec_kw={"height_ratios": heights}
    )
    for axis, (name, rows) in zip(axes, tables.items()):
        rates = [float(row["images_per_second"]) for row in rows]
        bars = axis.barh([row["variant"] for row in rows], rates, color=[color(row["variant"]) for row in rows])
        axis.bar_label(bars, [f"{rate:.2f}  (x{float(row['ratio']):.2f})" for rate, row in zip(rates, rows)], padding=3)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.25 * max(rates))
        axis.set_title(f"{TITLES[name]}: training images a second (x the first)", loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    row = tables["resnet34_unet"][0]
    size, batch = row["image_size"], row["batch_size"]
    figure.text(0.01, 0.005, f"{size}x{size}, batch {batch}; {row['machine']}; {row['versions']}", fontsize=8)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(measure.ROOT / "docs/speed.png", dpi=100)


if __name__ == "__main__":
    main()
