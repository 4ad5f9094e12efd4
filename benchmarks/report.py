"""Writes REPORT.md and its plots from benchmarks/results: `python benchmarks/report.py`.

Nothing in the report is written by hand but its sentences: figures, intervals and verdicts are computed here from
study.csv and the tables of the other benchmarks. What has not been run is called that.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Optional

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

import measure
import utils
from evidence import RESAMPLES, Difference, Trained, compare, load
from study import LAST

RESULTS, ROOT = measure.RESULTS, measure.ROOT
VALID = f"valid_dice_last_{LAST}"
TITLES = {"report": "`--recipe report`", "strong": "`--recipe strong`", "smp": "segmentation_models.pytorch's example"}


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


def section_short(groups: dict) -> str:
    """What is worth knowing, in a few lines."""
    recipes, lines = groups.get("recipes", {}), []
    strong = recipes.get("strong")
    for other in ("report", "smp"):
        found = compare(strong, recipes.get(other))
        if found:
            lines.append(f"- Dataset Dice of `--recipe strong` minus that of {TITLES[other]}: **{found}**.")
    group = groups.get("ingredients", {})
    verdicts: dict[str, list[str]] = {}
    for name, trained in group.items():
        found = compare(trained, group.get("as it is")) if name != "as it is" else None
        if found:
            verdicts.setdefault(found.verdict, []).append(f"{name} {found.value:+.4f}")
    for verdict in sorted(verdicts):
        lines.append(
            f"- One thing changed in what the strong recipe grew from, {verdict}: {', '.join(verdicts[verdict])}."
        )
    return "\n".join(lines) or "Not run yet."


def section_recipes(groups: dict) -> list[str]:
    """The recipes against each other."""
    group = groups.get("recipes", {})
    if not group:
        return ["Not run yet."]
    parts = [table_of(group, "report", TITLES)]
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
    return [
        table_of(group, base),
        draw(group, f"study_{name.replace(', ', '_').replace(' ', '_')}.png", title, images=images),
    ]


def claims(groups: dict) -> str:
    """What both reports claim, and what is found here."""
    networks, augmentation, scheduler = (groups.get(name, {}) for name in ("networks", "augmentation", "scheduler"))
    three = compare(augmentation.get("3 variants"), augmentation.get("off"))
    more = compare(augmentation.get("6 variants"), augmentation.get("3 variants"))
    rows = [
        [
            "ResNet34-UNet scores higher than UNet (A, B; B's encoder was pre-trained, here both start from scratch)",
            *judged(compare(networks.get("resnet34_unet"), networks.get("unet"))),
        ],
        ["ResNet34-UNet converges faster (A), starts higher (B); likewise", *convergence(networks)],
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
        "## In short",
        section_short(groups),
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
        "With `--recipe strong`:",
        *section_group(groups, "networks, strong recipe", "unet", "Two networks, strong recipe: validation Dice"),
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
