"""Writes REPORT.md and its plots from benchmarks/results: `python benchmarks/report.py`.

Nothing in the report is written by hand but its sentences: figures, intervals and verdicts are computed here from
study.csv and the tables of the other benchmarks. What has not been run is called that.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import matplotlib
import numpy as np
import scipy.stats

matplotlib.use("Agg")
from matplotlib import pyplot as plt

import measure
import utils
from study import EXPERIMENTS, LAST, TABLE, settings_of

RESULTS, ROOT = measure.RESULTS, measure.ROOT
RESAMPLES = 10_000
VALID = f"valid_dice_last_{LAST}"
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


def load(image_size="96", data="partial set", encoder_weights="none") -> dict[str, dict[str, Trained]]:
    """What the table has of each experiment under these conditions: group, name, runs."""
    here = {"image_size": image_size, "data": data, "split": "official", "encoder_weights": encoder_weights}
    rows = [row for row in utils.read_rows(TABLE) if here.items() <= row.items()]
    groups: dict[str, dict[str, Trained]] = {}
    for group, members in EXPERIMENTS.items():
        for name, flags in members.items():
            found = [row for row in rows if row["settings"] == settings_of(flags)]
            if found:
                found.sort(key=lambda row: int(row["seed"]))
                groups.setdefault(group, {})[name] = Trained(name, found)
    return groups


# ------------------------------------------------------------------------------------------------------------ intervals


@functools.cache
def resamples(pictures: int) -> np.ndarray:
    """Weights of pictures in bootstrap samples, (RESAMPLES, pictures): the same for all that is compared."""
    drawn = np.random.default_rng(0).multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLES)
    return drawn.astype(np.float64)


def dice_of_resamples(trained: Trained) -> np.ndarray:
    """Dataset Dice, mean over seeds, of bootstrap samples of the pictures, (RESAMPLES,)."""
    pixels = trained.pixels()
    tp, fp, fn = np.moveaxis(resamples(pixels.shape[1]) @ pixels, -1, 0)  # each (seeds, RESAMPLES)
    return (2 * tp / (2 * tp + fp + fn)).mean(axis=0)


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
            return "better"
        return "worse" if self.high < 0 else "can't be told from this data"


def compare(first: Optional[Trained], second: Optional[Trained]) -> Optional[Difference]:
    """The difference of two experiments; None where one has not been scored."""
    if not (first and second and first.scored.rows and second.scored.rows):
        return None
    first, second = first.scored, second.scored
    figures = [one.figures("test_dataset_dice") for one in (first, second)]
    value = statistics.mean(figures[0]) - statistics.mean(figures[1])
    # Two sources of error: which pictures the test has, of which there are many, and which seeds were drawn, of which
    # there are few. Degrees of freedom as Welch and Satterthwaite have them.
    of_pictures = np.var(dice_of_resamples(first) - dice_of_resamples(second), ddof=1)
    of_seeds = [statistics.variance(some) / len(some) if len(some) > 1 else 0.0 for some in figures]
    total = of_pictures + sum(of_seeds)
    spread = sum(one**2 / (len(some) - 1) for one, some in zip(of_seeds, figures) if one)
    freedom = total**2 / spread if spread else np.inf
    reach = scipy.stats.t.ppf(0.975, freedom) * total**0.5
    return Difference(value, value - reach, value + reach, min(map(len, figures)))


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
    return table(["", "epochs", "validation Dice", "test, dataset Dice", f"minus {against}", "which is"], rows)


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
        line = axis.plot(
            x, curves.mean(axis=0), marker=marker, markersize=4, label=(titles or {}).get(name, name).strip("`")
        )[0]
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


def section_recipes(groups: dict) -> list[str]:
    """The recipes against each other."""
    group = groups.get("recipes", {})
    if not group:
        return ["Not run yet."]
    parts = [table_of(group, "report", TITLES)]
    found = compare(group.get("strong"), group.get("smp"))
    if found:
        parts.append(f"`--recipe strong` minus segmentation_models.pytorch's example: **{found}**.")
    otherwise = {
        "dice": "Dice per picture",
        "dataset_dice_last_epoch": "dataset Dice after the last epoch",
        "dataset_dice_tta": "dataset Dice, `--tta`",
    }
    last = [
        [TITLES[name], *(by_seed(one.figures(f"test_{kind}")) for kind in otherwise)] for name, one in group.items()
    ]
    parts.append("The same, otherwise scored:")
    parts.append(table(["", *otherwise.values()], last))
    parts.append(draw(group, "study_recipes.png", "Recipes: validation Dice, mean and range of the seeds", TITLES))
    return parts


def section_ingredients(groups: dict) -> list[str]:
    """What the strong recipe was chosen among."""
    group, longer = groups.get("ingredients", {}), groups.get("ingredients, longer", {})
    if not group:
        return ["Not run yet."]
    return [
        f"""Each row is the first one with one thing changed. The choice was made by the validation column alone, before
the test column existed: the mean of the last {LAST} epochs, since one epoch says little with so few pictures.""",
        table_of(group, "as it is"),
        *(["Twice as long:", table_of(longer, "colour jitter")] if longer else []),
    ]


def section_group(groups: dict, name: str, base: str, title: str, images: Optional[Callable] = None) -> list[str]:
    """Any other group: table and curves."""
    group = groups.get(name, {})
    if not group:
        return ["Not run yet."]
    return [table_of(group, base), draw(group, f"study_{name}.png", title, images=images)]


def claims(groups: dict) -> str:
    """What both reports claim, and what is found here."""
    networks, augmentation, scheduler = (groups.get(name, {}) for name in ("networks", "augmentation", "scheduler"))
    three = compare(augmentation.get("3 variants"), augmentation.get("off"))
    more = compare(augmentation.get("6 variants"), augmentation.get("3 variants"))
    rows = [
        [
            "ResNet34-UNet scores higher than UNet (A, B)",
            *judged(compare(networks.get("resnet34_unet"), networks.get("unet"))),
        ],
        ["ResNet34-UNet converges faster (A), starts higher (B)", *convergence(networks)],
        ["Augmentation, 3 variants a picture, improves Dice (A)", *judged(three)],
        ["Variants bring less and less (A): 6 against 3", *diminishing(three, more)],
        ["The plateau scheduler improves Dice (A)", *judged(compare(scheduler.get("plateau"), scheduler.get("none")))],
        ["Overfitting is no major issue (A)", *overfitting(groups.get("recipes", {}).get("report"))],
        ["ResNet34-UNet needs 7 GB, UNet 14.5 GB at batch 32 (A)", *memory()],
        [
            "Test Dice 0.9710 (B)",
            "its split was drawn anew for each part, so most test pictures had been trained on",
            "can't be told: nothing here is comparable with it",
        ],
    ]
    return table(["claim (report)", "measured here", "verdict"], rows)


def judged(found: Optional[Difference]) -> list[str]:
    """A claimed improvement: the difference, and whether it is confirmed."""
    if found is None:
        return ["not run yet", "can't be told"]
    return [
        str(found),
        {"better": "confirmed", "worse": "not confirmed: the reverse"}.get(found.verdict, found.verdict),
    ]


def diminishing(first: Optional[Difference], further: Optional[Difference]) -> list[str]:
    """Whether what is added further surely brings less than what was added first."""
    if first is None or further is None:
        return ["not run yet", "can't be told"]
    told = min(first.seeds, further.seeds) >= 3
    less = told and first.low > 0 and further.high < first.value
    return [str(further), "confirmed" if less else "can't be told from this data"]


def convergence(networks: dict[str, Trained]) -> list[str]:
    """Whether ResNet34-UNet is ahead of UNet in each of the first three epochs, whatever the seed."""
    resnet, unet = networks.get("resnet34_unet"), networks.get("unet")
    if not (resnet and unet):
        return ["not run yet", "can't be told"]
    means = [one.curves().mean(axis=0) for one in (resnet, unet)]
    level = 0.95 * means[1].max()
    measured = "95 % of UNet's best validation Dice in epoch {}; UNet in epoch {}".format(
        *(int(np.argmax(mean >= level)) + 1 if mean.max() >= level else "none" for mean in means)
    )
    if min(len(resnet.rows), len(unet.rows)) < 3:
        return [measured, "can't be told: too few seeds"]
    curves = [one.curves()[:, :3] for one in (resnet, unet)]
    if (curves[0].min(axis=0) > curves[1].max(axis=0)).all():
        return [measured, "confirmed: ahead in the first three epochs with every seed"]
    behind = (curves[0].max(axis=0) < curves[1].min(axis=0)).all()
    return [
        measured,
        "not confirmed: the reverse" if behind else "can't be told: seeds overlap in the first three epochs",
    ]


def overfitting(recipe: Optional[Trained]) -> list[str]:
    """How far training is above validation when `--recipe report` ends."""
    if recipe is None:
        return ["not run yet", "can't be told"]
    gap = recipe.curves("train_curve").mean(axis=0)[-1] - recipe.curves().mean(axis=0)[-1]
    measured = f"`--recipe report`, without augmentation: training Dice is {gap:.2f} above validation Dice at the end"
    return [measured, "confirmed" if gap < 0.03 else "not confirmed"]


def memory() -> list[str]:
    """What both networks need, as benchmarks/memory.py measured."""
    peaks = {
        row["model"]: float(row["peak_gigabytes"])
        for row in utils.read_rows(RESULTS / "memory.csv")
        if row["mode"] == "fp32"
    }
    small, large = peaks["resnet34_unet"], peaks["unet"]
    measured = f"{small} GB and {large} GB in float32, 256x256, a process on the CPU: {small / large:.0%}"
    return [measured, "confirmed: UNet needs about twice as much or more" if small < 0.6 * large else "not confirmed"]


def section_full() -> str:
    """The command for the whole dataset, and how long it takes."""
    row = next(
        row for row in utils.read_rows(RESULTS / "training_step_resnet34_unet.csv") if row["variant"] == "train.py"
    )
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
        ", ".join(sorted({row[key] for row in rows})) for key in ("data", "image_size", "machine", "versions", "commit")
    )
    runs = len({(row["settings"], row["seed"]) for row in rows})
    train, valid, test = rows[0]["pictures"].split()
    return f"""{runs} trainings on the **{data}** of the Oxford-IIIT Pet dataset (1,035 of its 7,349 pairs; six breeds
are nine tenths of it): {train} pictures for training, {valid} for validation, {test} for the test, by the official
lists.
**No figure here is comparable with figures on the whole dataset.** All networks start from scratch; the
network is ResNet34-UNet unless it says otherwise; pictures have {side} pixels a side; each experiment says how many
epochs it had.
{machine}; {versions}; commits {commits}.

Test figures are of the epoch with the best validation Dice, at threshold 0.5, without test-time augmentation; pet and
border count as pet. Dataset Dice is of all pictures' pixels together. Intervals are at 95 %: the error that the choice
of test pictures brings, from {RESAMPLES:,} bootstrap samples of them, and the error of few seeds, together (Welch's
t). A difference is called one where its interval excludes zero and there are three seeds. One in twenty would look like
one by chance.

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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image_size", default="96", help="of the runs to report")
    parser.add_argument("--data", default="partial set", help="what the table calls theirs")
    parser.add_argument("--encoder_weights", default="none", help="what they started from")
    write(load(**vars(parser.parse_args())))
    print("Wrote REPORT.md and docs/study_*.png")
