"""Writes REPORT.md and its plots from benchmarks/results: `python benchmarks/report.py`.

Nothing in the report is written by hand but its sentences: figures, intervals and verdicts are computed, here and in
claims.py, from study.csv and the tables of the other benchmarks. What has not been run is called that.
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

import measure
import utils
from claims import judge_claims
from evidence import RESAMPLES, UNTOLD, Difference, Trained, compare, load
from experiments import EXPERIMENTS, START
from plot_dice_curve import STYLES
from study import LAST, TABLE

RESULTS, ROOT = measure.RESULTS, measure.ROOT
VALID = f"valid_dice_last_{LAST}"
TITLES = {
    "report": "`--recipe report`",
    "report, augmented": "`--recipe report --augment`",
    "strong": "`--recipe strong`",
    "smp": "segmentation_models.pytorch's recipe",
}
ABOUT = {  # data that the table may be of
    "partial set": " (1,035 of its 7,349 pairs, named in benchmarks/results/partial_set.txt; six breeds are nine "
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


def by_seed(figures: list[float], missing: str = "not looked at") -> str:
    """Mean, and every seed's figure."""
    if not figures:
        return missing
    each = f" ({', '.join(f'{x:.4f}' for x in figures)})" if len(figures) > 1 else " (one seed)"
    return f"{statistics.mean(figures):.4f}{each}"


def table_of(
    name: str, group: dict[str, Trained], base: str, titles=None, last: int = LAST, paired: bool = False
) -> str:
    """A row an experiment: validation Dice of the `last` epochs and test Dice by seed, and the difference to `base`."""
    rows = []
    for member in EXPERIMENTS[name]:
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
    """Draws validation Dice over epochs, or over pictures seen: mean of the seeds and, of a few curves, their range.

    Returns:
        The Markdown that shows it.
    """
    figure, axis = plt.subplots(figsize=(8, 4.5))
    axis.set_prop_cycle(color=[*plt.colormaps["tab10"].colors, "black"])  # an eleventh curve is no second first
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
            "color": STYLES.get(name, [None] * 3)[1],
            "zorder": 9 - order,
        }
        line = axis.plot(x, mean, label=(titles or {}).get(name, name).strip("`"), **look)[0]
        if few:
            axis.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.15)
        bottom = min(bottom, mean[min(1, len(mean) - 1) :].min())
    title += ", mean and range of the seeds" if few else ", mean of the seeds"
    pictures = next(iter(group.values())).rows[0]["pictures"].split()[1]
    axis.set(
        xlabel="passes over the training pictures" if images else "epoch",
        ylabel=f"validation Dice, per picture ({pictures} pictures)",
        title=title,
    )
    axis.set_ylim(bottom=bottom - 0.02)  # what a first epoch has below says little
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
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
        lines.append(f"- Three variants beside each picture, no more pictures seen in all: {stressed(found)}.")
    group = groups.get("ingredients", {})
    verdicts: dict[str, list[str]] = {}
    for name, trained in group.items():
        found = compare(trained, group.get("as it is")) if name != "as it is" else None
        if found:
            verdicts.setdefault(found.verdict, []).append(f"{name} {round(found.value, 4) + 0.0:+.4f}")
    for verdict in sorted(verdicts):
        said = f"which {verdict}" if verdict.startswith(UNTOLD) else verdict
        lines.append(f"- One ingredient changed, ten epochs: {', '.join(verdicts[verdict])}: {said}.")
    claimed = judge_claims(groups)
    counts = collections.Counter(row[-1].split(":")[0] for row in claimed)
    counted = ", ".join(f"{counts[word]} {word}" for word in ("confirmed", "not confirmed", UNTOLD))
    lines.append(f"- Of {len(claimed)} claims of the two reports: {counted}.")
    return "\n".join(lines)


def stressed(found: Difference) -> str:
    """A difference in bold letters, and what keeps it from being one."""
    unsure = f", {found.verdict}" if found.verdict.startswith(UNTOLD) else ""
    return f"**{found}**{unsure}"


def section_recipes(groups: dict) -> list[str]:
    """The recipes against each other."""
    group = groups.get("recipes", {})
    if not group:
        return ["Not run yet."]
    otherwise = {
        "dice": "Dice per picture",
        "dataset_dice_last_epoch": "dataset Dice after the last epoch",
        "dataset_dice_tta": "dataset Dice, `--tta`",
    }
    last = [
        [TITLES[name], *(by_seed(one.figures(f"test_{kind}"), "not measured") for kind in otherwise)]
        for name, one in group.items()
    ]
    return [
        prose("""Each starts from scratch with a ResNet34 encoder and sees the same number of pictures.
        `--recipe report` is what the reports describe: Adam at 1e-4 and cross-entropy, as both have it, with B's
        batches of 8 and A's scheduler and clipping. A trains with `--augment`, which has its own row: its best epoch is
        one of 10, and the scheduler, which counts epochs, acts later.
        segmentation_models.pytorch's recipe is that of its binary example: Dice loss, Adam at 2e-4, cosine, batches of
        16 and so half the steps, no augmentation; here with its Unet and from scratch, and not tuned for either."""),
        table_of("recipes", group, "report", TITLES),
        "The same, otherwise scored:",
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
    """What the strong recipe was chosen among, and by what."""
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
        prose(f"""It grew from `{START}`, which was known from earlier trials to do well; they were of 128
        pixels, and of some the test scores had been seen. What was added since was chosen by the validation
        pictures, one seed each, before any test picture was looked at. The mean of the last {LAST} epochs counts, since
        one epoch says little with so few pictures.{spread} What CutMix adds in the longer runs lies within such a
        spread, and colour jitter was not tried against its absence there: both were taken because a longer run can bear
        more variation, not because these tables prove them. Lighter augmentation, the best in 20 epochs, was not
        tried in 40 for the same reason, and CBAM's run ended after the choice. Colour jitter with CutMix is the
        recipe, and its run that of the recipe's first seed."""),
        first_seed(choice),
        *([first_seed(longer)] if longer else []),
    ]


def section_group(
    groups: dict, name: str, base: str, title: str, images: Callable | None = None, last: int = LAST, paired=False
) -> list[str]:
    """Any other group: table and curves."""
    group = groups.get(name, {})
    if not group:
        return ["Not run yet."]
    file = f"study_{name.replace(', ', '_').replace(' ', '_')}.png"
    return [table_of(name, group, base, last=last, paired=paired), draw(group, file, title, images=images)]


def section_full() -> list[str]:
    """The command for the whole dataset, and how long it takes."""
    row = next(
        row for row in utils.read_rows(RESULTS / "training_step_resnet34_unet.csv") if row["variant"] == "train.py"
    )
    rate = float(row["images_per_second"])
    return [
        """```
python src/train.py --download --split official --image_size 256 --recipe strong --encoder_weights imagenet
python src/evaluate.py --tta
```""",
        prose(f"""3,312 training pictures (trainval.txt without every tenth), 40 epochs: {3312 * 40 / rate / 3600:.1f}
        hours of steps at the {rate:g} pictures a second that `benchmarks/training_step.py` measured ({row["machine"]}),
        and some for reading, mixing and validation. It has not been run here: neither the whole dataset nor ImageNet's
        weights nor a GPU could be had, so there is no figure for it. What it would have to beat:
        segmentation_models.pytorch's example (FPN with ResNet34, ImageNet start, 10 epochs) reports a dataset IoU of
        0.9144, which is a Dice of 0.9553."""),
    ]


def section_run(groups: dict) -> list[str]:
    """What was run on what."""
    rows = [row for group in groups.values() for trained in group.values() for row in trained.rows]
    data, pictures, side, start, machine, versions = (
        ", ".join(sorted({word for row in rows for word in row[key].split("; ")}))
        for key in ("data", "pictures", "image_size", "encoder_weights", "machine", "versions")
    )
    runs = {(row["settings"], row["seed"]): row for row in rows}
    hours = sum(float(row["seconds_per_epoch"]) * int(row["epochs"]) for row in runs.values()) / 3600
    train, valid, test = map(int, pictures.split(", ")[0].split())
    tp, _, fn = Trained("", rows).scored.pixels()[0].sum(axis=0)
    pets, pixels = tp + fn, test * int(side) ** 2
    start = "from scratch" if start == "none" else f"with encoder weights {start}"
    return [
        prose(f"""{len(runs)} trainings on the **{data}** of the Oxford-IIIT Pet dataset{ABOUT.get(data, "")}.
        {train} pictures
        for training, {valid} for validation, {test} for the test, by the official lists. All networks start
        {start}; the
        network is ResNet34-UNet unless it says otherwise; pictures have {side} pixels a side; each experiment says how
        many epochs it had. {machine.replace("1 threads", "one for each run")}; {versions}; {hours:.0f} core-hours in
        all. The code of each run is named in study.csv (`-dirty`: with changes that were committed later)."""),
        prose(f"""Test figures are of the epoch with the best validation Dice, at threshold 0.5, without test-time
        augmentation; pet and border count as pet. Dice is twice the overlap over the sum of both areas; dataset Dice
        takes all pictures' pixels together, and whoever called every pixel pet would have
        {2 * pets / (pets + pixels):.3f}. Differences are in dataset Dice. Intervals are at
        95 %: the error that the choice of test pictures brings, from {RESAMPLES:,} bootstrap samples of them, and the
        error of few seeds, together (Welch's t). A difference counts as real where its interval excludes zero and there
        are three seeds. One in twenty that are none would seem real by chance, and dozens are looked at here."""),
        prose("""To do the same with your data: `python benchmarks/study.py --data_path dataset --data_name "my set"`,
        which takes hours or days; `--list` says what there is, and `--experiments "recipes/*"` takes a part. Then
        `python benchmarks/report.py --data "my set"`."""),
    ]


def write(groups: dict) -> None:
    """Puts the report together."""
    passes = {"1 variant": 2, "3 variants": 4, "6 variants": 7}  # of the pictures, in an epoch
    parts = [
        "# What helps, and by how much",
        prose("""Written by `python benchmarks/report.py` from the tables in benchmarks/results; `python
        benchmarks/study.py` fills study.csv there. Figures are computed from these tables; the few that are quoted name
        their source."""),
        prose("""A and B are two students' reports on small programs for the same task, from which this project began.
        Both train UNet and ResNet34-UNet with Adam at 1e-4 and cross-entropy: A in batches of 32 for 30 epochs,
        augmented, with a rate that is halved on a plateau; B in batches of 8 for 10 to 14 epochs, with a fixed rate and
        a pre-trained encoder."""),
        "## In short",
        "Differences in dataset Dice of the test pictures, with 95 % intervals; ResNet34-UNet unless told otherwise:",
        section_short(groups),
        "## What was run",
        *section_run(groups),
        "## Recipes",
        *section_recipes(groups),
        "## How the strong recipe was chosen",
        *section_choice(groups),
        "## What each ingredient brings",
        prose(f"""One thing changed in `{START}`, in ten epochs; `as it is` has both losses, the average,
        augmentation of
        medium strength, and no attention."""),
        *section_group(groups, "ingredients", "as it is", "One ingredient changed"),
        "## The reports' own experiments",
        table(["claim (report)", "measured here", "verdict"], judge_claims(groups)),
        prose("""A verdict is about these pictures at this size, for as long as was trained here. Figures by
        seed confirm a claim where all of one side's seeds are beyond all of the other's; of three and three, one pair
        in ten is that by chance. Not asked here: whether augmentation helps most in the first epochs, whether the
        scheduler helps one network more, how much is batch norm's (A), stronger encoders (B)."""),
        "### UNet and ResNet34-UNet",
        prose(f"""{how_much_longer(groups)} The pictures are small: at 96 pixels the deepest features of
        ResNet34-UNet are 3x3, those of UNet 6x6. Whether UNet is ahead at 256 pixels, with ten times the pictures or
        beside an ImageNet start has not been tried."""),
        *section_group(groups, "networks", "unet", "Two networks"),
        *two_strong_networks(groups),
        "### Augmentation",
        prose("""Each run sees the training pictures twenty times, with 6 variants 21 times: with 3 fixed variants
        beside each picture an epoch is four passes. The best epoch is one of 20, 10, 5 or 3, and the plateau counts
        epochs, too: with fewer it acts later."""),
        *section_group(groups, "augmentation", "off", "Augmentation", lambda name: passes.get(name, 1), last=1),
        "### Learning rate",
        prose("""Runs of a seed with plateau and none are one and the same until the plateau first acts, so differences
        are taken within seeds; where the best epoch comes before that, they are none."""),
        *section_group(groups, "scheduler", "none", "Schedulers", paired=True),
        "## How much data",
        prose(f"`{START}`: as many epochs, and so fewer steps, with fewer pictures."),
        *section_group(groups, "fraction", "100 %", "Parts of the training set"),
        "## On the whole dataset",
        *section_full(),
    ]
    with utils.atomic_write(ROOT / "REPORT.md") as file:
        file.write("\n\n".join(parts) + "\n")


def how_much_longer(groups: dict) -> str:
    """What UNet's epochs take, from runs that were made side by side."""
    both = groups.get("networks", {})
    if len(both) < 2:
        return ""
    slow, quick = (statistics.mean(both[name].figures("seconds_per_epoch")) for name in ("unet", "resnet34_unet"))
    return f"An epoch of UNet takes {slow / quick:.1f} times as long ({slow:.0f} and {quick:.0f} seconds)."


def two_strong_networks(groups: dict) -> list[str]:
    """Both networks with the strong recipe, where both were run."""
    name, title = "networks, strong recipe", "Two networks, strong recipe"
    return (
        ["With `--recipe strong`:", *section_group(groups, name, "unet", title)]
        if len(groups.get(name, {})) > 1
        else []
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image_size", default="96", help="of the runs to report")
    parser.add_argument("--data", default="partial set", help="what the table calls theirs")
    parser.add_argument("--encoder_weights", default="none", help="what they started from")
    args = parser.parse_args()
    found = load(**vars(args))
    if not found:
        sys.exit(f"{TABLE} has no runs of {args.data} at {args.image_size} from encoder weights {args.encoder_weights}")
    write(found)
    print("Wrote REPORT.md and docs/study_*.png")
