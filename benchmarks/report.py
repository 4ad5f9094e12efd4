"""Writes REPORT.md and its plots from benchmarks/results: `python benchmarks/report.py`.

Nothing in the report is written by hand but its sentences: figures, intervals and verdicts are computed here from
study.csv and the tables of the other benchmarks. What has not been run is called that.
"""

import csv
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

import utils
from measure import RESULTS, ROOT
from study import EXPERIMENTS, LAST, TABLE, settings_of

RESAMPLES = 10_000
TITLES = {"report": "`--recipe report`", "strong": "`--recipe strong`", "smp": "segmentation_models.pytorch's example"}


@dataclass
class Trained:
    """All runs of an experiment, one a seed."""

    name: str
    rows: list[dict]

    def figures(self, column: str) -> list[float]:
        """A column's numbers, by seed."""
        return [float(row[column]) for row in self.rows if row[column] != ""]

    def curves(self, column: str = "valid_curve") -> np.ndarray:
        """Dice by seed and epoch."""
        return np.array([[float(x) for x in row[column].split()] for row in self.rows])

    @property
    def scored(self) -> "Trained":
        """The runs whose test pictures were looked at."""
        return Trained(self.name, [row for row in self.rows if row["test_pixels"]])

    def pixels(self) -> np.ndarray:
        """True positives, false positives, false negatives: (seeds, pictures, 3)."""
        return np.array([[p.split() for p in row["test_pixels"].split(";")] for row in self.rows], dtype=np.float64)


def load() -> dict[str, dict[str, Trained]]:
    """What the table has of each experiment: group, name, runs."""
    rows = utils.read_rows(TABLE)
    groups: dict[str, dict[str, Trained]] = {}
    for group, members in EXPERIMENTS.items():
        for name, flags in members.items():
            found = [row for row in rows if row["settings"] == settings_of(flags)]
            if found:
                found.sort(key=lambda row: int(row["seed"]))
                groups.setdefault(group, {})[name] = Trained(name, found)
    return groups


# ------------------------------------------------------------------------------------------------------------ intervals


def dice_of_resamples(trained: Trained) -> np.ndarray:
    """Dataset Dice of bootstrap samples of pictures and seeds, (RESAMPLES,).

    Pictures are the same in every call, so that two experiments are compared on the same ones; seeds are drawn for each
    by itself. Of few seeds a bootstrap spreads too little, by (k - 1) / k in variance: that is made up for.
    """
    pixels = trained.pixels()
    seeds, pictures, _ = pixels.shape
    rng = np.random.default_rng(0)
    dice = np.empty((seeds, RESAMPLES))
    for start in range(0, RESAMPLES, 1000):
        weights = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=1000).astype(np.float64)
        tp, fp, fn = np.moveaxis(weights @ pixels, -1, 0)
        dice[:, start : start + 1000] = 2 * tp / (2 * tp + fp + fn)
    mean = dice.mean(axis=0)
    if seeds > 1:
        dice = mean + (dice - mean) * (seeds / (seeds - 1)) ** 0.5
    drawn = np.random.default_rng(sum(map(ord, trained.name))).integers(seeds, size=(seeds, RESAMPLES))
    return np.take_along_axis(dice, drawn, axis=0).mean(axis=0)


@dataclass
class Difference:
    """Of two experiments' dataset Dice, first minus second, with its 95 % interval over seeds and pictures."""

    value: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.value:+.4f} ({self.low:+.4f} to {self.high:+.4f})"

    @property
    def verdict(self) -> str:
        """What may be said of it."""
        if self.seeds < 3:
            return f"can't be told: {self.seeds} seed{'s' * (self.seeds > 1)}"
        if self.low > 0:
            return "helps"
        return "hurts" if self.high < 0 else "can't be told from this data"


def compare(first: Optional[Trained], second: Optional[Trained]) -> Optional[Difference]:
    """The difference of two experiments; None where one has not been scored."""
    if not (first and second and first.scored.rows and second.scored.rows):
        return None
    first, second = first.scored, second.scored
    values = [statistics.mean(one.figures("test_dataset_dice")) for one in (first, second)]
    low, high = np.percentile(dice_of_resamples(first) - dice_of_resamples(second), [2.5, 97.5])
    return Difference(values[0] - values[1], low, high, min(len(first.rows), len(second.rows)))


# --------------------------------------------------------------------------------------------------------------- tables


def table(header: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def by_seed(figures: list[float]) -> str:
    """Mean, and every seed's figure."""
    if not figures:
        return "not looked at"
    each = f" ({', '.join(f'{x:.4f}' for x in figures)})" if len(figures) > 1 else " (one seed)"
    return f"{statistics.mean(figures):.4f}{each}"


def table_of(group: dict[str, Trained], base: Optional[str], titles=None) -> str:
    """A row an experiment: validation and test Dice by seed, and the difference to one of them."""
    rows = []
    for name, trained in group.items():
        found = compare(trained, group.get(base)) if name != base else None
        against = [str(found), found.verdict] if found else ["" if name == base else "not scored", ""]
        row = [(titles or {}).get(name, name), trained.rows[0]["epochs"], by_seed(trained.figures(VALID))]
        rows.append([*row, by_seed(trained.figures("test_dataset_dice")), *against])
    against = (titles or {}).get(base, base)
    return table(
        ["", "epochs", "validation Dice", "test, dataset Dice", f"minus {against}", "so, compared with it, it"], rows
    )


VALID = f"valid_dice_last_{LAST}"


def first_epoch_above(curve: np.ndarray, level: float) -> str:
    """The first epoch, from 1, at which a curve reaches a level."""
    above = np.flatnonzero(curve >= level)
    return str(above[0] + 1) if len(above) else "never"


# ---------------------------------------------------------------------------------------------------------------- plots


def draw(group: dict[str, Trained], file: str, title: str, titles=None, images: Optional[Callable] = None) -> str:
    """Draws validation Dice over epochs, or over pictures seen: mean of the seeds, and their range.

    Returns:
        The Markdown that shows it.
    """
    figure, axis = plt.subplots(figsize=(8, 4.5))
    for (name, trained), marker in zip(group.items(), "osD^vPX*<>phd"):
        curves = trained.curves()
        x = np.arange(1, curves.shape[1] + 1) * (images(name) if images else 1)
        line = axis.plot(x, curves.mean(axis=0), marker=marker, markersize=4, label=(titles or {}).get(name, name))[0]
        axis.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.2)
    axis.set(xlabel="passes over the training pictures" if images else "epoch", ylabel="validation Dice", title=title)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    with utils.atomic_write(ROOT / "docs" / file, "wb") as stream:
        figure.savefig(stream, dpi=100, format="png", metadata={"Software": None})
    plt.close(figure)
    return f"![{title}](docs/{file})"


# --------------------------------------------------------------------------------------------------------------- report


def benchmark(name: str) -> list[dict]:
    """The rows of another benchmark's table."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def section_recipes(groups: dict) -> list[str]:
    """The recipes against each other."""
    group = groups.get("recipes", {})
    if not group:
        return ["Not run yet."]
    parts = [table_of(group, "report", TITLES)]
    found = compare(group.get("strong"), group.get("smp"))
    if found:
        parts.append(f"`--recipe strong` minus segmentation_models.pytorch's example: **{found}**.")
    last = [
        [TITLES[name], by_seed(one.scored.figures("test_dataset_dice_last_epoch")), by_seed(one.figures("test_dice"))]
        for name, one in group.items()
    ]
    parts.append("The same, otherwise scored:")
    parts.append(table(["", "dataset Dice after the last epoch", "Dice per picture, best epoch"], last))
    parts.append(draw(group, "study_recipes.png", "Recipes: validation Dice, mean and range of the seeds", TITLES))
    return parts


def section_ingredients(groups: dict) -> list[str]:
    """What the strong recipe was chosen among."""
    group = groups.get("ingredients", {})
    if not group:
        return ["Not run yet."]
    return [
        f"""Each row is the first one with one thing changed. The choice was made by the validation column alone, before
the test column existed: the mean of the last {LAST} epochs, since one epoch says little with so few pictures.""",
        table_of(group, "as it is"),
    ]


def section_group(groups: dict, name: str, base: str, title: str, images: Optional[Callable] = None) -> list[str]:
    """Any other group: table and curves."""
    group = groups.get(name, {})
    if not group:
        return ["Not run yet."]
    return [table_of(group, base), draw(group, f"study_{name}.png", title, images=images)]


def claims(groups: dict) -> str:
    """What both reports claim, and what is found here."""
    networks, rows = groups.get("networks", {}), []

    def judged(found: Optional[Difference]) -> tuple[str, str]:
        if found is None:
            return "not run yet", "can't be told"
        said = {"helps": "confirmed", "hurts": "not confirmed: the reverse"}
        return str(found), said.get(found.verdict, found.verdict)

    resnet, unet = networks.get("resnet34_unet"), networks.get("unet")
    rows.append(["ResNet34-UNet scores higher than UNet (A, B)", *judged(compare(resnet, unet))])
    if resnet and unet:
        curves = [one.curves().mean(axis=0) for one in (resnet, unet)]
        level = 0.95 * max(curves[1])
        epochs = [first_epoch_above(curve, level) for curve in curves]
        ahead = min(len(resnet.rows), len(unet.rows)) >= 3 and resnet.curves()[:, :3].min() > unet.curves()[:, :3].max()
        measured = f"95 % of UNet's best validation Dice in epoch {epochs[0]}; UNet in epoch {epochs[1]}"
        ahead = "confirmed" if ahead else "not confirmed: in the first three epochs the seeds overlap"
        rows.append(["ResNet34-UNet converges faster (A), starts higher (B)", measured, ahead])
    augmentation = groups.get("augmentation", {})
    off = augmentation.get("off")
    rows.append(
        ["Augmentation, 3 variants a picture, improves Dice (A)", *judged(compare(augmentation.get("3 variants"), off))]
    )
    more = compare(augmentation.get("6 variants"), augmentation.get("3 variants"))
    verdict = "can't be told" if more is None or more.seeds < 3 else "confirmed" if more.low <= 0 else "not confirmed"
    rows.append(
        ["Beyond some number variants bring less and less (A): 6 against 3", str(more or "not run yet"), verdict]
    )
    scheduler = groups.get("scheduler", {})
    plateau = compare(scheduler.get("plateau"), scheduler.get("none"))
    rows.append(["The plateau scheduler improves Dice (A)", *judged(plateau)])
    recipe = groups.get("recipes", {}).get("report")
    if recipe:
        gap = recipe.curves("train_curve").mean(axis=0)[-1] - recipe.curves().mean(axis=0)[-1]
        measured = f"`--recipe report`: training Dice is {gap:.3f} above validation Dice at the end"
        rows.append(["Overfitting is no major issue (A)", measured, "confirmed" if gap < 0.03 else "not confirmed"])
    memory = {row["model"]: float(row["peak_gigabytes"]) for row in benchmark("memory") if row["mode"] == "fp32"}
    small, large = memory["resnet34_unet"], memory["unet"]
    measured = f"{small} GB and {large} GB in float32, 256x256, a process on the CPU"
    saves = "confirmed" if small < 0.6 * large else "not confirmed"
    rows.append(
        ["ResNet34-UNet needs 7 GB, UNet 14.5 GB at batch 32 (A)", measured, f"{saves}: half, and both need less"]
    )
    rows.append(
        [
            "Test Dice 0.9710 (B)",
            "its split was drawn anew for each part, so most test pictures had been trained on",
            "can't be told: nothing here is comparable with it",
        ]
    )
    return table(["claim (report)", "measured here", "verdict"], rows)


def section_full() -> str:
    """The command for the whole dataset, and how long it takes."""
    row = next(row for row in benchmark("training_step_resnet34_unet") if row["variant"] == "train.py")
    rate = float(row["images_per_second"])
    return f"""```
python src/train.py --download --split official --image_size 256 --recipe strong --encoder_weights imagenet
python src/evaluate.py --tta
```

3,312 training pictures (trainval.txt without every tenth), 40 epochs: {3312 * 40 / rate / 3600:.1f} hours at the
{rate:g} pictures a second that `benchmarks/training_step.py` measured ({row["machine"]}).
It has not been run here: neither the whole dataset nor ImageNet's weights nor a GPU could be had, so there is no figure
for it. The best published one for such a network is a dataset Dice of 0.9553 (segmentation_models.pytorch's example,
FPN with ResNet34 and an ImageNet start)."""


def section_run(groups: dict) -> str:
    """What was run on what."""
    rows = [row for group in groups.values() for trained in group.values() for row in trained.rows]
    data, side, machine, versions, commits = (
        " and ".join(sorted({row[key] for row in rows}))
        for key in ("data", "image_size", "machine", "versions", "commit")
    )
    runs = len({(row["settings"], row["seed"]) for row in rows})
    pictures = next((len(row["test_pixels"].split(";")) for row in rows if row["test_pixels"]), 0)
    return f"""{runs} trainings on the **{data}** of the Oxford-IIIT Pet dataset (1,035 of its 7,349 pairs; six breeds
are nine tenths of it): 607 pictures for training, 67 for validation, {pictures} for the test, by the official lists.
**No figure here is comparable with figures on the whole dataset.** All networks start from scratch; the
network is ResNet34-UNet unless it says otherwise; pictures have {side} pixels a side; each experiment says how many
epochs it had.
{machine}; {versions}; commits {commits}.

Test figures are of the epoch with the best validation Dice, at threshold 0.5, without test-time augmentation; pet and
border count as pet. Dataset Dice is of all pictures' pixels together. Intervals are at 95 %, from {RESAMPLES:,}
bootstrap samples of seeds and test pictures at once. A difference is called one where its interval
excludes zero and there are three seeds.

![A drawn sample: picture, ground truth, prediction](docs/panel.png)

(a drawn sample, not a photograph of the dataset)"""


def write(groups: dict) -> None:
    """Puts the report together."""
    passes = {"1 variant": 2, "3 variants": 4, "6 variants": 7}  # of the pictures, in an epoch
    parts = [
        "# What helps, and by how much",
        """Written by `python benchmarks/report.py` from benchmarks/results/study.csv, which
`python benchmarks/study.py` fills. Every figure below is computed from it.""",
        "## What was run",
        section_run(groups),
        "## Three recipes",
        "The same encoder, the same number of pictures seen.",
        *section_recipes(groups),
        "## How the strong recipe was chosen",
        *section_ingredients(groups),
        "## The reports' own experiments",
        claims(groups),
        "### UNet and ResNet34-UNet",
        *section_group(groups, "networks", "unet", "Two networks: validation Dice, mean and range of the seeds"),
        "### Augmentation",
        "All see as many pictures: with 3 fixed variants beside each, an epoch is four passes.",
        *section_group(
            groups, "augmentation", "off", "Augmentation: validation Dice", lambda name: passes.get(name, 1)
        ),
        "### Learning rate",
        *section_group(groups, "scheduler", "none", "Schedulers: validation Dice, mean and range of the seeds"),
        "### How much data",
        *section_group(groups, "fraction", "100 %", "Parts of the training set: validation Dice"),
        "## On the whole dataset",
        section_full(),
    ]
    with utils.atomic_write(ROOT / "REPORT.md") as file:
        file.write("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    write(load())
    print("Wrote REPORT.md and docs/study_*.png")
