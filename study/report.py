"""Writes REPORT.md, docs/study.md and their plots from study/results and benchmarks/results: `make report`.

Only the sentences are written by hand: figures, intervals and verdicts are computed, here and in claims.py, from
study.csv and the tables of the benchmarks. Experiments without runs are listed as not run.
"""

import collections
import statistics
import textwrap

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

import experiments
import measure
from claims import judge_claims
from data.names import planned_sizes
from evidence import LAST, RESAMPLES, Difference, Trained, compare, load
from experiments import ROOT
from runtime.files import atomic_write, read_rows
from train import build_parser
from training.config import TrainConfig
from training.resolve import with_size_plan
from visual.curves import COLORS

TITLES = {
    "strong": "`--recipe strong`",
    "smp": "segmentation_models.pytorch's recipe",
    "report": "`--recipe report`",
}
LONGER = "recipes, 20 epochs"
BF16 = "smp, channels last, bf16"  # as benchmarks/epoch.py calls it
TRIALS = ROOT / "study/results/trials.csv"
Groups = dict[str, dict[str, Trained]]


# --------------------------------------------------------------------------------------------------------------- tables


def prose(text: str) -> str:
    """A paragraph, in lines of 120 characters."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def table(header: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def seeds_of(figures) -> str:
    """How many seeds."""
    return f"{len(figures)} seed{'s' * (len(figures) > 1)}"


def mean_of(figures: list[float]) -> str:
    """The mean and the number of seeds."""
    return f"{statistics.mean(figures):.4f} ({seeds_of(figures)})" if figures else "not scored"


def table_of(groups: Groups, name: str, base: str) -> str:
    """A row per experiment of a group: Dice, and the difference to `base` in dataset Dice."""
    group, rows = groups.get(name, {}), []
    for member, flags in experiments.EXPERIMENTS[name].items():
        title, trained = TITLES.get(member, member), group.get(member)
        if trained is None:
            rows.append([title, flags.split("--epochs ")[1].split()[0], "not run", "", "", ""])
            continue
        found = compare(trained, group.get(base)) if member != base else None
        scores = [mean_of(trained.figures(f"test_{kind}")) for kind in ("dice", "dataset_dice")]
        best = mean_of(np.nanmax(trained.curves(), axis=1).tolist())
        rows.append([title, trained.rows[0]["epochs"], best, *scores, f"{found}: {found.verdict}" if found else ""])
    header = ["", "epochs", "best validation Dice", "test Dice", "dataset Dice", f"minus {TITLES.get(base, base)}"]
    return table(header, rows)


# -------------------------------------------------------------------------------------------------------- time to Dice


def epoch_seconds(name: str) -> dict[int, float]:
    """Seconds of an epoch by side of the images, as measured by benchmarks/epoch.py."""
    file = measure.RESULTS / "epoch.csv"
    rows = read_rows(file) if file.is_file() else []
    return {int(row["image_size"]): float(row["seconds_per_epoch"]) for row in rows if row["variant"] == name}


def minutes_of(group: str, name: str) -> np.ndarray:
    """Minutes until the end of each epoch, validation not counted."""
    seconds, flags = epoch_seconds(name), experiments.EXPERIMENTS[group][name]
    words = flags.removeprefix(experiments.SMP).split()
    config = with_size_plan(TrainConfig.from_flags(build_parser().parse_overrides(words)))
    first = planned_sizes(config.progressive)
    sizes = [*first, *[config.image_size] * (config.epochs - len(first))]
    return np.cumsum([seconds[size] for size in sizes]) / 60


def minutes_until(dice: float, curve: np.ndarray, minutes: np.ndarray) -> float | None:
    """When a curve first reaches a Dice, interpolated between epochs; None if it never does."""
    above = np.flatnonzero(curve >= dice)
    if not len(above):
        return None
    if not above[0]:
        return float(minutes[0])
    before, after = above[0] - 1, above[0]
    share = (dice - curve[before]) / (curve[after] - curve[before])
    return float(minutes[before] + share * (minutes[after] - minutes[before]))


def section_time(groups: Groups) -> list[str]:
    """Minutes until validation Dice."""
    group = groups.get(LONGER, {})
    if not ({"strong", "smp"} <= group.keys() and epoch_seconds("smp")):
        return ["Not run."]
    curves = {name: group[name].curves().mean(axis=0) for name in ("strong", "smp")}
    minutes = {name: minutes_of(LONGER, name) for name in curves}
    faster = minutes["smp"] * epoch_seconds(BF16)[128] / epoch_seconds("smp")[128]
    best, rows = curves["smp"].max(), []
    for dice in (0.80, 0.85, best, 0.90):
        ours = minutes_until(dice, curves["strong"], minutes["strong"])
        theirs = [minutes_until(dice, curves["smp"], some) for some in (minutes["smp"], faster)]
        ratios = [f"{x:.1f} ({x / ours:.1f} times)" if x and ours else "not reached" for x in theirs]
        title = f"{dice:.4f}, the best of {TITLES['smp']}" if dice == best else f"{dice:.2f}"
        rows.append([title, f"{ours:.1f}" if ours else "not reached", *ratios])
    figure, axis = plt.subplots(figsize=(8, 4))
    for name, curve in curves.items():
        axis.plot(minutes[name], curve, marker="o", markersize=3, label=TITLES[name].strip("`"))
    axis.plot(faster, curves["smp"], ":", label=f"{TITLES['smp']}, bf16 and channels last")
    axis.set(xlabel="minutes of training", ylabel="validation Dice (368 images)")
    axis.grid(alpha=0.3)
    axis.legend()
    setting = read_rows(measure.RESULTS / "epoch.csv")[0]
    return [
        prose(f"""Minutes of training from scratch until a validation Dice: ResNet34-UNet at 128 pixels against
        segmentation_models.pytorch's Unet(resnet34) with the recipe of its example, images decoded beforehand,
        validation not counted on either side. Curves are of 20 planned epochs ({seeds_of(group["smp"].rows)}), both
        computed in bf16. Seconds of an epoch were measured in one run of benchmarks/epoch.py, one program at a time in
        turns ({setting["machine"]}; {setting["versions"]}): theirs in float32, as the example computes, and in bf16
        with channels last, which their users can turn on. The moment is interpolated between epochs."""),
        table(["validation Dice", TITLES["strong"], f"{TITLES['smp']}, float32", "the same, bf16"], rows),
        save(figure, "study_time.png", "Time to Dice"),
    ]


# ---------------------------------------------------------------------------------------------------------------- plots


def save(figure, file: str, title: str) -> str:
    """Writes a plot into docs/; returns Markdown that shows it."""
    figure.tight_layout()
    with atomic_write(ROOT / "docs" / file, "wb") as stream:
        figure.savefig(stream, dpi=100, format="png", metadata={"Software": None})
    plt.close(figure)
    return f"![{title}](docs/{file})"


def draw(group: dict[str, Trained], file: str, title: str) -> str:
    """Draws validation Dice over epochs: the mean and the range of the seeds."""
    figure, axis = plt.subplots(figsize=(8, 4))
    for name, trained in group.items():
        curves = trained.curves()
        epochs = np.arange(1, curves.shape[1] + 1)
        (line,) = axis.plot(epochs, curves.mean(axis=0), marker="o", markersize=3, label=name, color=COLORS.get(name))
        axis.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.15)
    axis.set(xlabel="epoch", ylabel="validation Dice (368 images)", title=title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend()
    return save(figure, file, title)


# --------------------------------------------------------------------------------------------------------------- report


def in_short(groups: Groups, claims: list[list[str]], before: list[list[str]]) -> str:
    """The main results, a row each."""

    def counted(judged: list[list[str]]) -> str:
        verdicts = collections.Counter(row[-1].split(":")[0] for row in judged)
        return ", ".join(f"{count} {word}" for word, count in sorted(verdicts.items()))

    smp = TITLES["smp"]
    rest = "--unlabeled rest"
    few = [
        ("5 % of the masks", rest),
        ("5 % of the masks, twice the steps", rest),
        ("1 % of the masks", rest),
        ("10 % of the masks", rest),
        ("5 % of the masks", "pre-trained"),
    ]
    rows = [
        [f"ResNet34-UNet, 128 px, 10 epochs: `--recipe strong` minus {smp}", difference(groups, "recipes")],
        ["the same, 20 epochs", difference(groups, LONGER)],
        [f"UNet, 96 px, 10 epochs: `--recipe strong` minus {smp}", difference(groups, "recipes, UNet")],
        [
            "`--recipe strong` minus `--recipe report`, 128 px, 10 epochs",
            difference(groups, "recipes", "strong", "report"),
        ],
        *([f"{group}: {name} minus alone", difference(groups, group, name, "alone")] for group, name in few),
        [f"{len(claims)} claims of the two reports", f"{counted(claims)}; on a part of the set: {counted(before)}"],
    ]
    return table(["dataset Dice of the 3,419 test images", "difference, 95 % interval"], rows)


def difference(groups: Groups, group: str, first: str = "strong", second: str = "smp") -> str:
    """The difference of two experiments of a group, and what it says."""
    found: Difference | None = compare(*(groups.get(group, {}).get(name) for name in (first, second)))
    return f"**{found}**: {found.verdict}" if found else "not run"


def section_run(groups: Groups) -> list[str]:
    """Data, machines and methods."""
    rows = [row for group in groups.values() for trained in group.values() for row in trained.rows]
    machines, versions = ("; ".join(sorted({row[key] for row in rows})) for key in ("machine", "versions"))
    hours = sum(float(row["seconds_per_epoch"]) * int(row["epochs"]) for row in rows) / 3600
    return [
        prose(f"""{len(rows)} trainings on the whole Oxford-IIIT Pet dataset, official split: 3,312 images for training,
        368 for validation, 3,419 of the 3,669 test images (250 are not at hand). Most of the images were at hand as
        squares of 256 pixels. All networks start from scratch, but for those called pre-trained: they start from ten
        epochs of src/pretrain.py, which are not counted. {machines}; {versions}; {hours:.1f} hours in all.
        study.csv has the commit of each run."""),
        prose(f"""Test figures are of the epoch with the best validation Dice, at threshold 0.5, without test-time
        augmentation; pet and border count as pet. Dice is averaged over images; dataset Dice takes the pixels of all
        images together. Intervals are at 95 %: they combine the error from the choice of test images, from
        {RESAMPLES:,} bootstrap samples, and that from few seeds (Welch's t). A difference counts as real if its
        interval excludes zero and there are three seeds; otherwise it is inconclusive."""),
    ]


def section_choice(groups: Groups) -> list[str]:
    """What was tried for the strong recipe."""
    group = groups.get("choice", {})
    rows = [
        [f"`{name}`" if name.startswith("--") else name, *figures(group.get(name))]
        for name in experiments.EXPERIMENTS["choice"]
    ]
    tried = read_rows(TRIALS)
    return [
        prose("""No test image was looked at. Decoder, initialisation and optimizer were tried in short runs (second
        table); augmentation, rate and average follow the study on a part of the set, where lighter augmentation was
        best in short runs and CutMix brought nothing certain. What one change does to the recipe (128 pixels, 10
        epochs, best Dice on the 368 validation images; one seed, so differences below 0.005 say nothing):"""),
        table(["", "best validation Dice", f"mean of the last {LAST} epochs", "seconds an epoch"], rows),
        prose("Trials at 64 pixels, one seed and one core each, validation Dice of the last epoch:"),
        table(list(tried[0]), [list(row.values()) for row in tried]),
    ]


def figures(trained: Trained | None) -> list[str]:
    """Validation figures of an experiment's first seed."""
    if trained is None:
        return ["not run", "", ""]
    curve = trained.curves()[0]
    return [f"{curve.max():.4f}", f"{curve[-LAST:].mean():.4f}", trained.rows[0]["seconds_per_epoch"]]


def section_published() -> str:
    """Published figures, and what differs."""
    return table(
        ["", "Dice", "what differs"],
        [
            ["UNet / ResNet34-UNet, coursework report, from scratch, 100 epochs", "0.9286 / 0.9336", "256 px"],
            ["segmentation_models.pytorch's example", "0.9553 (dataset)", "FPN, ImageNet start, 256 px"],
            ["report B", "0.9114 / 0.9710", "four fifths of the test images were trained on"],
            ["ISNet, general background remover", "0.8458", "own sizes, 250 test images, measured by us"],
        ],
    )


def details(groups: dict[str, Groups]) -> str:
    """docs/study.md: every run."""
    parts = ["# Every run of the study", "Written by `make report`; REPORT.md says what was run and how."]
    for data, of_data in groups.items():
        rows = [
            [f"{group}/{name}", row["seed"], row["epochs"], row["best_epoch"], row["valid_curve"].split()[-1]]
            + [row[f"test_{kind}"] for kind in ("dice", "dataset_dice", "dataset_dice_last_epoch", "dataset_dice_tta")]
            for group, members in of_data.items()
            for name, trained in members.items()
            for row in trained.rows
        ]
        header = ["experiment", "seed", "epochs", "best epoch", "validation Dice, last", "test Dice", "dataset Dice"]
        parts += [f"## {data.capitalize()}", table([*header, "last epoch", "`--tta`"], rows)]
    return "\n\n".join(parts) + "\n"


def write() -> None:
    """Writes the report, the details, and the plots."""
    groups = {data: load(data) for data in ("whole set", "partial set")}
    whole = groups["whole set"]
    claims, before = judge_claims(whole), judge_claims(groups["partial set"])
    both = [
        [claim, *(f"{measured} {verdict}".strip() for measured, verdict in found)]
        for (claim, *now), (_, *then) in zip(claims, before)
        for found in [(now, then)]
    ]
    longer = {TITLES[name].strip("`"): one for name, one in whole.get(LONGER, {}).items()}
    parts = [
        "# What helps, and by how much",
        prose("""Written by `make report` from study/results/study.csv, which `python study/runner.py` fills, and from
        benchmarks/results. A and B are two students' reports on small programs for the same task, from which this
        project began. Figures by seed: [docs/study.md](docs/study.md)."""),
        in_short(whole, claims, before),
        "## What was run",
        *section_run(whole),
        "## Recipes",
        prose("""`--recipe report` is what the reports describe: Adam at 1e-4, cross-entropy, batches of 8.
        segmentation_models.pytorch's recipe is that of its binary example: Dice loss, Adam at 2e-4, cosine, batches of
        16, no augmentation, here from scratch. ResNet34-UNet at 128 pixels, 33,120 images seen by each:"""),
        table_of(whole, "recipes", "smp"),
        "Twenty epochs:",
        table_of(whole, LONGER, "smp"),
        *([draw(longer, "study_recipes.png", "Recipes, 128 pixels, 20 epochs")] if longer else []),
        "UNet at 96 pixels, both recipes with our network:",
        table_of(whole, "recipes, UNet", "smp"),
        "## Time to Dice",
        *section_time(whole),
        "## How the strong recipe was chosen",
        *section_choice(whole),
        "## Claims of the reports",
        prose("""Judged on the whole set, and before that on 1,035 of its pairs (96 pixels, three seeds), with the
        difference in dataset Dice where no other figure is named. Claims of single ingredients were tried on the part
        alone."""),
        table(["claim", "whole set", "partial set"], both),
        "## Published figures",
        section_published(),
        "## To do the same",
        "```\npython study/runner.py --data_path dataset --list\npython study/runner.py --data_path dataset\n"
        "make report\n```",
    ]
    for file, text in (("REPORT.md", "\n\n".join(parts) + "\n"), ("docs/study.md", details(groups))):
        with atomic_write(ROOT / file) as stream:
            stream.write(text)


if __name__ == "__main__":
    write()
