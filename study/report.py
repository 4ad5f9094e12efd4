"""Writes REPORT.md and its plots from study/results and benchmarks/results: `python study/report.py`.

Only the sentences are written by hand: figures, intervals and verdicts are computed, here and in claims.py, from
study.csv and the tables of the benchmarks. Experiments without runs are listed as not run yet.
"""

import argparse
import collections
import itertools
import statistics
import sys
import textwrap
from collections.abc import Callable

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

import experiments
import measure
from claims import judge_claims
from evidence import RESAMPLES, UNTOLD, Difference, Trained, compare, load
from experiments import ROOT, START
from plot_dice_curve import COLORS
from runner import LAST, TABLE
from runtime.files import atomic_write, read_rows

VALID = f"valid_dice_last_{LAST}"
TITLES = {
    "report": "`--recipe report`",
    "report, augmented": "`--recipe report --augment`",
    "strong": "`--recipe strong`",
    "smp": "segmentation_models.pytorch's recipe",
}
ABOUT = {  # by name of the data
    "partial set": " (1,035 of its 7,349 pairs, named in study/results/partial_set.txt; six breeds are nine "
    "tenths of it). **No figure here is comparable with figures on the whole dataset**"
}


# --------------------------------------------------------------------------------------------------------------- tables


def prose(text: str) -> str:
    """A paragraph, in lines of 120 characters."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def table(header: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def by_seed(figures: list[float], missing: str = "not scored") -> str:
    """The mean, and each seed's figure."""
    if not figures:
        return missing
    each = f" ({', '.join(f'{x:.4f}' for x in figures)})" if len(figures) > 1 else " (one seed)"
    return f"{statistics.mean(figures):.4f}{each}"


def table_of(
    name: str, group: dict[str, Trained], base: str, titles=None, last: int = LAST, paired: bool = False
) -> str:
    """A row per experiment: validation Dice of the `last` epochs, test Dice by seed, and the difference to `base`."""
    rows = []
    for member in experiments.EXPERIMENTS[name]:
        title, trained = (titles or {}).get(member, member), group.get(member)
        if trained is None:
            rows.append([title, "", "not run yet", "", "", ""])
            continue
        found = compare(trained, group.get(base), paired) if member != base else None
        against = [str(found), found.verdict] if found else ["", ""]
        valid = trained.curves()[:, -last:].mean(axis=1).tolist()
        row = [title, trained.rows[0]["epochs"], by_seed(valid)]
        rows.append([*row, by_seed(trained.figures("test_dataset_dice")), *against])
    against = (titles or {}).get(base, base)
    valid = f"validation Dice, last {last} epochs" if last > 1 else "validation Dice, last epoch"
    return table(["", "epochs", valid, "test, dataset Dice", f"difference to {against}", "verdict"], rows)


# ---------------------------------------------------------------------------------------------------------------- plots


def draw(group: dict[str, Trained], file: str, title: str, titles=None, images: Callable | None = None) -> str:
    """Draws validation Dice over epochs, or over images seen: the mean of the seeds and, for few curves, their range.

    Returns:
        Markdown that shows the plot.
    """
    figure, axis = plt.subplots(figsize=(8, 4.5))
    axis.set_prop_cycle(color=[*plt.colormaps["tab10"].colors, "black"])  # an eleventh curve must differ, too
    few = len(group) <= 4
    bottom = 1.0
    looks = zip(itertools.cycle(["--", "-", "-.", ":"]), "osD^vPX*<>phd")
    for order, ((name, trained), (style, marker)) in enumerate(zip(group.items(), looks)):
        curves = trained.curves()
        mean = curves.mean(axis=0)
        x = np.arange(1, curves.shape[1] + 1) * (images(name) if images else 1)
        look = {
            "linestyle": style,
            "marker": marker,
            "markersize": 4,
            "color": COLORS.get(name),
            "zorder": 9 - order,
        }
        line = axis.plot(x, mean, label=(titles or {}).get(name, name).strip("`"), **look)[0]
        if few:
            axis.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.15)
        bottom = min(bottom, mean[min(1, len(mean) - 1) :].min())
    title += ", mean and range of the seeds" if few else ", mean of the seeds"
    count = next(iter(group.values())).rows[0]["pictures"].split()[1]
    axis.set(
        xlabel="passes over the training images" if images else "epoch",
        ylabel=f"validation Dice, per image ({count} images)",
        title=title,
    )
    axis.set_ylim(bottom=bottom - 0.02)  # lower values of the first epoch are cut off
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    with atomic_write(ROOT / "docs" / file, "wb") as stream:
        figure.savefig(stream, dpi=100, format="png", metadata={"Software": None})
    plt.close(figure)
    return f"![{title}](docs/{file})"


# --------------------------------------------------------------------------------------------------------------- report


def section_short(groups: dict) -> str:
    """The main results, a line each."""
    recipes, lines = groups.get("recipes", {}), []
    strong = recipes.get("strong")
    for other in ("report", "report, augmented", "smp"):
        found = compare(strong, recipes.get(other))
        if found:
            handicap = (
                " (its example as it is, meant for an ImageNet start: without augmentation, in half the steps)"
                if other == "smp"
                else ""
            )
            lines.append(f"- `--recipe strong` minus {TITLES[other]}{handicap}: {stressed(found)}.")
    for name, recipe in (("networks", "report"), ("networks, strong recipe", "strong")):
        unet = groups.get(name, {}).get("unet")
        found = compare(unet, groups.get(name, {}).get("resnet34_unet"))
        if found:
            epochs = unet.rows[0]["epochs"]
            lines.append(f"- UNet instead of ResNet34-UNet, `--recipe {recipe}`, {epochs} epochs: {stressed(found)}.")
    augmentation = groups.get("augmentation", {})
    found = compare(augmentation.get("3 variants"), augmentation.get("off"))
    if found:
        lines.append(f"- Three variants beside each image, no more images seen in all: {stressed(found)}.")
    group = groups.get("ingredients", {})
    verdicts: dict[str, list[str]] = {}
    for name, trained in group.items():
        found = compare(trained, group.get("as it is")) if name != "as it is" else None
        if found:
            verdicts.setdefault(found.verdict, []).append(f"{name} {round(found.value, 4) + 0.0:+.4f}")
    for verdict in sorted(verdicts):
        lines.append(f"- One ingredient changed, ten epochs: {', '.join(verdicts[verdict])}: {verdict}.")
    claimed = judge_claims(groups)
    counts = collections.Counter(row[-1].split(":")[0] for row in claimed)
    counted = ", ".join(f"{counts[word]} {word}" for word in ("confirmed", "not confirmed", UNTOLD))
    lines.append(f"- Of {len(claimed)} claims of the two reports: {counted}.")
    return "\n".join(lines)


def stressed(found: Difference) -> str:
    """A difference in bold; if it is inconclusive, with that verdict."""
    unsure = f", {found.verdict}" if found.verdict.startswith(UNTOLD) else ""
    return f"**{found}**{unsure}"


def section_recipes(groups: dict) -> list[str]:
    """The recipes against each other."""
    group = groups.get("recipes", {})
    if not group:
        return ["Not run yet."]
    otherwise = {
        "dice": "Dice per image",
        "dataset_dice_last_epoch": "dataset Dice after the last epoch",
        "dataset_dice_tta": "dataset Dice, `--tta`",
    }
    last = [
        [TITLES[name], *(by_seed(one.figures(f"test_{kind}"), "not measured") for kind in otherwise)]
        for name, one in group.items()
    ]
    return [
        prose("""Each starts from scratch with a ResNet34 encoder and sees the same number of images.
        `--recipe report` is what the reports describe: Adam at 1e-4 and cross-entropy, as both have it, with B's
        batches of 8 and A's scheduler and clipping. A trains with `--augment`, which has its own row: its best epoch is
        one of 10, and the scheduler, which counts epochs, acts later.
        segmentation_models.pytorch's recipe is that of its binary example: Dice loss, Adam at 2e-4, cosine, batches of
        16 and so half the steps, no augmentation; here with its Unet and from scratch, and not tuned for either."""),
        table_of("recipes", group, "report", TITLES),
        "The same runs, scored in other ways:",
        table(["", *otherwise.values()], last),
        draw(
            group,
            "study_recipes.png",
            "Recipes",
            TITLES,
            lambda name: 4 if name == "report, augmented" else 1,
        ),
    ]


def section_choice(groups: dict) -> list[str]:
    """The candidates for the strong recipe, and how it was chosen."""
    choice, longer = groups.get("choice", {}), groups.get("choice, longer", {})
    if not choice:
        return ["Not run yet."]

    def first_seed(group: dict[str, Trained]) -> str:
        rows = [[name, one.rows[0]["epochs"], by_seed(one.figures(VALID)[:1])] for name, one in group.items()]
        return table(["", "epochs", f"validation Dice, mean of the last {LAST} epochs"], rows)

    strong = groups.get("recipes", {}).get("strong")
    spread = ""
    if strong and len(strong.rows) > 1:
        figures = strong.figures(VALID)
        spread = f" The same recipe with {len(figures)} seeds differs by {max(figures) - min(figures):.4f} in that."
    return [
        prose(f"""It started from `{START}`, which did well in earlier trials at 128 pixels; the test scores of some
        of these trials had been seen. What was added since was chosen by the validation images, with one seed each,
        before any test image was looked at. The mean of the last {LAST} epochs counts, because with so few images
        one epoch says little.{spread} What CutMix adds in the longer runs is within this spread, and color jitter was
        not compared with its absence there. Both were taken because a longer run can use more variation; these tables
        do not prove them. Lighter augmentation, the best in 20 epochs, was not tried in 40 for the same reason, and
        CBAM's run ended after the choice. Color jitter with CutMix is the recipe; its run here is the recipe's first
        seed."""),
        first_seed(choice),
        *([first_seed(longer)] if longer else []),
    ]


def section_group(
    groups: dict, name: str, base: str, title: str, images: Callable | None = None, last: int = LAST, paired=False
) -> list[str]:
    """Table and curves of any other group."""
    group = groups.get(name, {})
    if not group:
        return ["Not run yet."]
    file = f"study_{name.replace(', ', '_').replace(' ', '_')}.png"
    return [table_of(name, group, base, last=last, paired=paired), draw(group, file, title, images=images)]


def section_full() -> list[str]:
    """The command for the whole dataset, and how long it takes."""
    row = next(
        row for row in read_rows(measure.RESULTS / "training_step_resnet34_unet.csv") if row["variant"] == "train.py"
    )
    rate = float(row["images_per_second"])
    return [
        """```
python src/train.py --download --split official --image_size 256 --recipe strong --encoder_weights imagenet
python src/evaluate.py --tta
```""",
        prose(f"""3,312 training images (trainval.txt without every tenth), 40 epochs: {3312 * 40 / rate / 3600:.1f}
        hours of steps at the {rate:g} images a second that `benchmarks/training_step.py` measured ({row["machine"]}),
        and more for reading, mixing and validation. It has not been run here: the whole dataset, ImageNet weights and a
        GPU were not available, so there is no figure for it. The figure to compare with:
        segmentation_models.pytorch's example (FPN with ResNet34, ImageNet start, 10 epochs) reports a dataset IoU of
        0.9144, which is a Dice of 0.9553."""),
    ]


def section_run(groups: dict) -> list[str]:
    """Data, machine and methods."""
    rows = [row for group in groups.values() for trained in group.values() for row in trained.rows]
    data, images, side, start, machine, versions = (
        ", ".join(sorted({word for row in rows for word in row[key].split("; ")}))
        for key in ("data", "pictures", "image_size", "encoder_weights", "machine", "versions")
    )
    runs = {(row["settings"], row["seed"]): row for row in rows}
    hours = sum(float(row["seconds_per_epoch"]) * int(row["epochs"]) for row in runs.values()) / 3600
    train, valid, test = map(int, images.split(", ")[0].split())
    tp, _, fn = Trained("", rows).scored.pixels()[0].sum(axis=0)
    pets, pixels = tp + fn, test * int(side) ** 2
    start = "from scratch" if start == "none" else f"with encoder weights {start}"
    return [
        prose(f"""{len(runs)} trainings on the **{data}** of the Oxford-IIIT Pet dataset{ABOUT.get(data, "")}.
        {train} images for training, {valid} for validation, {test} for the test, by the official lists. All networks
        start {start}. The network is ResNet34-UNet unless stated otherwise; images are {side} pixels wide and high;
        the tables say how many epochs. {machine.replace("1 threads", "one for each run")}; {versions}; {hours:.0f}
        core-hours in all. study.csv has the commit of each run (`-dirty`: with changes that were committed later)."""),
        prose(f"""Test figures are of the epoch with the best validation Dice, at threshold 0.5, without test-time
        augmentation; pet and border count as pet. Dice is twice the overlap over the sum of both areas; dataset Dice
        takes the pixels of all images together; predicting pet everywhere would score
        {2 * pets / (pets + pixels):.3f}. Differences are in dataset Dice. Intervals are at 95 %. They combine the
        error from the choice of test images, from {RESAMPLES:,} bootstrap samples of them, and the error from few seeds
        (Welch's t). A difference counts as real if its interval excludes zero and there are three
        seeds; otherwise it is inconclusive. Without any real difference, one in twenty would seem real by chance, and
        dozens are compared here."""),
        prose("""To do the same with your data: `python study/runner.py --data_path dataset --data_name "my set"`,
        which takes hours or days; `--list` lists the runs, and `--experiments "recipes/*"` selects some. Then
        `python study/report.py --data "my set"`."""),
    ]


def write(groups: dict) -> None:
    """Writes the report."""
    passes = {"1 variant": 2, "3 variants": 4, "6 variants": 7}  # of the images, in an epoch
    parts = [
        "# What helps, and by how much",
        prose("""Written by `python study/report.py` from study/results/study.csv, which `python study/runner.py` fills,
        and from the tables in benchmarks/results. Figures are computed from these tables; the few that are quoted name
        their source."""),
        prose("""A and B are two students' reports on small programs for the same task, from which this project began.
        Both train UNet and ResNet34-UNet with Adam at 1e-4 and cross-entropy: A in batches of 32 for 30 epochs,
        augmented, with a rate that is halved on a plateau; B in batches of 8 for 10 to 14 epochs, with a fixed rate and
        a pre-trained encoder."""),
        "## In short",
        "Differences in dataset Dice of the test images, with 95 % intervals; ResNet34-UNet unless stated otherwise:",
        section_short(groups),
        "## What was run",
        *section_run(groups),
        "## Recipes",
        *section_recipes(groups),
        "## How the strong recipe was chosen",
        *section_choice(groups),
        "## What each ingredient brings",
        prose(f"""One thing is changed in `{START}`, in ten epochs; `as it is` has both losses, the average,
        augmentation of medium strength, and no attention."""),
        *section_group(groups, "ingredients", "as it is", "One ingredient changed"),
        "## The reports' own experiments",
        table(["claim (report)", "measured here", "verdict"], judge_claims(groups)),
        prose("""A verdict holds for these images at this size and for this length of training. Where figures are
        listed by seed, a claim is confirmed if all seeds of one side are better than all of the other; with three
        seeds each, that happens by chance in one pair of ten. Not tested here: whether augmentation helps most in the
        first epochs, whether the scheduler helps one network more, the effect of batch norm (A), stronger encoders
        (B)."""),
        "### UNet and ResNet34-UNet",
        prose(f"""{how_much_longer(groups)} The images are small: at 96 pixels the deepest features of
        ResNet34-UNet are 3x3, those of UNet 6x6. Whether UNet is ahead at 256 pixels, with ten times the images or
        with an ImageNet start has not been tried."""),
        *section_group(groups, "networks", "unet", "Two networks"),
        *two_strong_networks(groups),
        "### Augmentation",
        prose("""Each run sees the training images twenty times, with 6 variants 21 times: with 3 fixed variants
        beside each image an epoch is four passes. The best epoch is one of 20, 10, 5 or
        3. The plateau scheduler counts epochs, too: with fewer epochs it acts later."""),
        *section_group(groups, "augmentation", "off", "Augmentation", lambda name: passes.get(name, 1), last=1),
        "### Learning rate",
        prose("""With the same seed, the runs with plateau and with none are identical until the plateau first acts. So
        differences are taken within seeds; if the best epoch comes before that, the difference is zero."""),
        *section_group(groups, "scheduler", "none", "Schedulers", paired=True),
        "## How much data",
        prose(f"`{START}`: the same number of epochs, so fewer steps with fewer images."),
        *section_group(groups, "fraction", "100 %", "Parts of the training set"),
        "## On the whole dataset",
        *section_full(),
    ]
    with atomic_write(ROOT / "REPORT.md") as file:
        file.write("\n\n".join(parts) + "\n")


def how_much_longer(groups: dict) -> str:
    """How long UNet's epochs take, from runs made side by side."""
    both = groups.get("networks", {})
    if len(both) < 2:
        return ""
    slow, quick = (statistics.mean(both[name].figures("seconds_per_epoch")) for name in ("unet", "resnet34_unet"))
    return f"An epoch of UNet takes {slow / quick:.1f} times as long ({slow:.0f} and {quick:.0f} seconds)."


def two_strong_networks(groups: dict) -> list[str]:
    """Both networks with the strong recipe, if both were run."""
    name, title = "networks, strong recipe", "Two networks, strong recipe"
    return (
        ["With `--recipe strong`:", *section_group(groups, name, "unet", title)]
        if len(groups.get(name, {})) > 1
        else []
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image_size", default="96", help="of the runs")
    parser.add_argument("--data", default="partial set", help="of the runs, as named in study.csv")
    parser.add_argument("--encoder_weights", default="none", help="of the runs")
    args = parser.parse_args()
    found = load(**vars(args))
    if not found:
        sys.exit(f"{TABLE} has no runs of {args.data} at {args.image_size} from encoder weights {args.encoder_weights}")
    write(found)
    print("Wrote REPORT.md and docs/study_*.png")
