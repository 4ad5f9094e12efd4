"""Writes REPORT.md and its plot from study/results and benchmarks/results: `make report`.

The sentences stand in report.md: figures, intervals and verdicts are computed. A section without runs is left out.
"""

import collections
import re
import textwrap

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from claims import PART, WHOLE, judge_claims
from evidence import Groups, Trained, compare, contrast, load
from experiments import RESULTS, ROOT
from runtime.files import atomic_write, read_rows

OUT = ROOT  # where the files go
SMP = "segmentation_models.pytorch's recipe"
SCRATCH, WEIGHTS = "from scratch, ResNet34 encoder, 2 threads", "ImageNet weights, Lite0, float32, 1 thread"


def table(header: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def table_of(group: dict[str, Trained], base: str) -> str:
    """A row per experiment of a group, and its difference to `base`."""
    rows = []
    for name, trained in sorted(group.items(), key=lambda item: item[0] != base):
        difference = compare(trained, group[base]) if name != base else None
        images, minutes = int(trained.rows[0]["images"].split()[-1]), trained.figures("minutes", last=True)
        scores = [f"{np.mean(trained.figures('test_dice')):.4f}", contrast([(1, trained)]).text(sign="")]
        verdict = [difference.text(), difference.verdict()] if difference else ["", ""]
        rows.append([name, f"{images:,}", len(trained.rows), *scores, *verdict])
        rows[-1].insert(1, f"{np.median(minutes):.0f}" if minutes else "")
    header = ["", "minutes", "test images", "seeds", "Dice", "dataset Dice", f"minus {base}", "verdict"]
    timed = 1 if any(row[1] for row in rows) else 2  # the second column is left out where nothing stands in it
    return table([header[0], *header[timed:]], [[row[0], *row[timed:]] for row in rows])


def minutes_to_theirs(curves: list[tuple[str, np.ndarray, np.ndarray]]) -> tuple[str, ...]:
    """The best Dice of the second program, and the minutes until each reaches it, interpolated between epochs."""
    dice, texts = curves[1][2].max(), []
    for _, minutes, curve in curves:
        first = np.flatnonzero(curve >= dice)[0]
        between = slice(max(0, first - 1), first + 1)
        texts.append(f"{np.interp(dice, curve[between], minutes[between]):.0f}")
    return f"{dice:.4f}", *texts


def time_curves(groups: Groups) -> dict[str, list[tuple[str, np.ndarray, np.ndarray]]]:
    """By start: name, minutes and validation Dice of each program."""
    curves = collections.defaultdict(list)
    for row in read_rows(RESULTS / "time_from_scratch.csv"):
        group, _, name = row["experiment"].partition("/")
        minutes = np.array(row["minutes by epoch"].split(), float)
        curves[SCRATCH].append((row["title"], minutes, groups[group][name].curves().mean(axis=0)))
    for name, trained in groups.get("time to Dice", {}).items():
        curves[WEIGHTS].append((name, trained.curves("minutes").mean(axis=0), trained.curves().mean(axis=0)))
    return curves


def draw_time(groups: Groups) -> None:
    """Draws validation Dice over minutes of training, a panel for each start."""
    panels = time_curves(groups)
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 4), sharey=True, squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items()):
        for name, minutes, curve in curves:
            axis.plot(minutes, curve, marker="o", markersize=3, label=name.strip("`"))
        axis.set(xlabel="minutes of training", ylabel="validation Dice (368 images)", title=title)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    with atomic_write(OUT / "docs/study_time.png", "wb") as stream:
        figure.savefig(stream, dpi=100, format="png", metadata={"Software": None})
    plt.close(figure)


def changes(group: dict[str, Trained], base: str) -> str:
    """Which arms of a group differ from its base, in words; those with three seeds alone."""
    said = collections.defaultdict(list)
    for name, trained in group.items():
        difference = compare(trained, group[base])
        if name != base and difference.seeds >= 3:
            verdict = difference.verdict()
            said[verdict].append(name if verdict == "inconclusive" else f"{name} {difference.text()}")
    words = {"better": "better", "worse": "worse", "inconclusive": "no certain difference"}
    return "; ".join(f"{word}: {', '.join(said[verdict])}" for verdict, word in words.items() if said[verdict])


def findings(groups: dict[str, Groups], judged: list[list]) -> str:
    """Five, in order of worth."""
    whole, (best, *_) = groups[WHOLE], read_rows(RESULTS / "networks.csv")
    few, part, nets = whole["5 % of the masks"], groups[PART]["ingredients"], groups[PART]["networks"]
    rest, ahead = (compare(few[name], few["alone"]).text() for name in ("--unlabeled rest", "pre-trained"))
    (dice, ours, float32, bf16), (best_dice, quick, slow) = map(minutes_to_theirs, time_curves(whole).values())
    verdicts = collections.Counter(row[2] for row in judged).most_common()
    lines = [
        f"""Best so far: {best["network"]} ({best["start and size"]}, one seed): Dice {best["Dice"]} on
        {best["test images"]} test images, after {best["minutes of one core"]} minutes of training on one core.""",
        f"""In five epochs of a Lite0 network from ImageNet weights, three seeds, dataset Dice minus that of `plain`:
        {changes(whole["choice, Lite0"], "plain")}. From scratch it pays to augment (607 images, 361 test images, three
        seeds): without it {compare(part["no augmentation"], part["as it is"]).text()}.""",
        f"""One seed, no claim: from ImageNet weights `--recipe strong` took {quick} minutes to a validation Dice
        of {best_dice}, the best of {SMP}, which took {slow} (Lite0, 128 px, float32, 1 thread). From scratch it
        took {ours} to {dice}; theirs took {float32} in float32, {bf16} in bf16 (ResNet34, 128 px, 2 threads).""",
        f"""With 5 % of the masks `--unlabeled rest` brings {rest} in dataset Dice, and pre-training without masks
        {ahead} (`unet_small`, three seeds, 3,419 test images).""",
        f"""Of the reports' claims, {len(judged)} are judged below: {", ".join(f"{n} {word}" for word, n in verdicts)}.
        From scratch UNet is ahead of ResNet34-UNet by {compare(nets["unet"], nets["resnet34_unet"]).text()} in dataset
        Dice (607 images, 361 test images, three seeds).""",
    ]
    flat = enumerate((" ".join(line.split()) for line in lines), start=1)
    return "\n".join(textwrap.fill(line, 120, initial_indent=f"{i}. ") for i, line in flat)


def write() -> None:
    """Writes the report and the plot."""
    groups = {data: load(data) for data in (WHOLE, PART)}
    whole, judged = groups[WHOLE], judge_claims(groups)
    runs = {
        data: [row for group in of_data.values() for trained in group.values() for row in trained.rows]
        for data, of_data in groups.items()
    }
    networks = read_rows(RESULTS / "networks.csv")
    memory = [row for row in read_rows(ROOT / "benchmarks/results/memory.csv") if row["mode"] == "fp32"]
    values = {
        "findings": findings(groups, judged),
        "networks": table(list(networks[0]), [list(row.values()) for row in networks]),
        "count": str(len(runs[WHOLE])),
        "part": str(len(runs[PART])),
        "hardware": "; ".join(
            "; ".join(sorted({row[key] for rows in runs.values() for row in rows})) for key in ("machine", "versions")
        ),
        "claims": table(["claim", "measured, 95 % interval", "verdict", "set", "test images", "seeds"], judged),
        "memory": " and ".join(row["peak_gigabytes"] for row in memory),
    }

    def filled(section: str) -> str:
        for text in re.findall(r"\{table: (.*)\}", section):
            data, group, base = text.split(" | ")
            if group not in groups[data]:
                return ""
            section = section.replace(f"{{table: {text}}}", table_of(groups[data][group], base))
        return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], section)

    draw_time(whole)
    template = (ROOT / "study/report.md").read_text()
    report = "".join(map(filled, re.split(r"(?m)^(?=## )", template)))
    with atomic_write(OUT / "REPORT.md") as stream:
        stream.write(report)


if __name__ == "__main__":
    write()
