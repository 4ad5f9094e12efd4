"""The claims of both reports, and what the study found: confirmed, not confirmed, or inconclusive."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import measure
from evidence import LAST, UNTOLD, Difference, Trained, compare, contrast, over_seeds, too_few
from runtime.files import read_rows

UNKNOWN = ["", "not run"]


def judge_claims(groups: dict[str, dict[str, Trained]]) -> list[list[str]]:
    """For each claim: the claim and its report, what was measured here, the verdict."""
    recipes, changed, networks, augmentation, scheduler = (
        groups.get(name, {}) for name in ("recipes", "ingredients", "networks", "augmentation", "scheduler")
    )
    resnet, unet = networks.get("resnet34_unet"), networks.get("unet")
    off, three, six = (augmentation.get(name) for name in ("off", "3 variants", "6 variants"))
    augmented, report = recipes.get("report, augmented"), recipes.get("report")
    start, bce = changed.get("as it is"), changed.get("BCE alone")
    return [
        [
            "ResNet34-UNet scores higher than UNet (A, and B with a pre-trained encoder; here both start from scratch)",
            *judged(compare(resnet, unet)),
        ],
        ["ResNet34-UNet starts higher (B, pre-trained; here from scratch)", *judged_apart(START, resnet, unet)],
        ["ResNet34-UNet converges faster (A; here from scratch)", *judged_apart(SPEED, resnet, unet)],
        ["ResNet34-UNet trains more smoothly (B, pre-trained; here from scratch)", *judged_apart(UNREST, resnet, unet)],
        ["ResNet34-UNet generalises better (A)", *judged_apart(GAP, resnet, unet)],
        ["Augmentation, 3 variants a image, improves Dice (A)", *judged(compare(three, off))],
        [
            "Variants bring less and less (A): what 3 bring, minus what 3 more bring",
            *judged(contrast([(2, three), (-1, off), (-1, six)])),
        ],
        [
            "Augmentation lessens overfitting (A): forty passes, 3 variants against none",
            *judged_apart(GAP, augmented, report),
        ],
        ["With it validation Dice falls less (A); likewise", *judged_apart(FALL, augmented, report)],
        [
            "The plateau scheduler improves Dice (A); a fixed rate does as well (B)",
            *judged(compare(scheduler.get("plateau"), scheduler.get("none"), paired=True)),
        ],
        [
            "Dice loss instead of cross-entropy would improve Dice (B)",
            *judged(compare(changed.get("Dice loss alone"), bce)),
        ],
        ["Both losses together would (B)", *judged(compare(start, bce))],
        ["Attention would (B): squeeze-and-excitation", *judged(compare(changed.get("SE"), start))],
        ["Attention would (B): CBAM", *judged(compare(changed.get("CBAM"), start))],
        ["Color jitter would (B)", *judged(compare(changed.get("color jitter"), start))],
        *(
            [f"Test-time augmentation would (B): `--recipe {name}`, interval over seeds", *judged(of_tta(one))]
            for name, one in (("report", report), ("strong", recipes.get("strong")))
        ),
        ["ResNet34-UNet needs half of UNet's memory (A: 7 and 14.5 GB at batch 32)", *memory()],
        [
            "Test Dice 0.9114 and 0.9710 (B)",
            "",
            f"{UNTOLD}: other images, and as far as we know a split that let test images into the training",
        ],
    ]


def judged(found: Difference | None) -> list[str]:
    """A claimed improvement: the difference in dataset Dice, and whether it is confirmed."""
    if found is None:
        return UNKNOWN
    words = {"better": "confirmed", "worse": "not confirmed: here it is the reverse"}
    return [str(found), words.get(found.verdict, found.verdict)]


def judged_apart(figure: "OfCurve", better: Trained | None, worse: Trained | None) -> list[str]:
    """A claim that one experiment has the better figure: confirmed if all its seeds are better than all the other's."""
    if not (better and worse):
        return UNKNOWN
    each = [list(map(figure.of, one.curves(), one.curves("train_curve"))) for one in (better, worse)]
    measured = " against ".join(", ".join(f"{x:.{figure.digits}f}" for x in some) for some in each)
    if min(map(len, each)) < 3:
        return [f"{figure.name}: {measured}", too_few(min(map(len, each)))]
    first, second = ([-x for x in some] if figure.less_is_better else some for some in each)
    if min(first) > max(second):
        verdict = "confirmed"
    else:
        reverse = max(first) < min(second)
        verdict = "not confirmed: here it is the reverse" if reverse else f"{UNTOLD}: the seeds overlap"
    return [f"{figure.name}: {measured}", verdict]


class OfCurve(NamedTuple):
    """A figure of one run, computed from its validation and training Dice by epoch."""

    name: str
    of: Callable[[np.ndarray, np.ndarray], float]
    less_is_better: bool = False
    digits: int = 3


START = OfCurve("validation Dice after the first epoch", lambda valid, train: valid[0])
SPEED = OfCurve(
    "epochs to 98 % of its own best validation Dice",
    lambda valid, train: int(np.argmax(valid >= 0.98 * valid.max())) + 1,
    less_is_better=True,
    digits=0,
)
UNREST = OfCurve(
    "mean change of validation Dice between epochs, up or down",
    lambda valid, train: np.abs(np.diff(valid)).mean(),
    less_is_better=True,
)
GAP = OfCurve(
    f"training Dice above validation Dice, last {LAST} epochs",
    lambda valid, train: (train - valid)[-LAST:].mean(),
    less_is_better=True,
)
FALL = OfCurve(
    "fall of validation Dice from the best epoch to the last",
    lambda valid, train: valid.max() - valid[-1],
    less_is_better=True,
)


def of_tta(recipe: Trained | None) -> Difference | None:
    """What test-time augmentation adds to the dataset Dice of the same weights."""
    if recipe is None or not recipe.figures("test_dataset_dice_tta"):
        return None
    both = [(row["test_dataset_dice_tta"], row["test_dataset_dice"]) for row in recipe.rows]
    return over_seeds([float(after) - float(before) for after, before in both if after and before])


def memory() -> list[str]:
    """The memory of both networks, measured by benchmarks/memory.py."""
    rows = {row["model"]: row for row in read_rows(measure.RESULTS / "memory.csv") if row["mode"] == "fp32"}
    small, large = (float(rows[name]["peak_gigabytes"]) for name in ("resnet34_unet", "unet"))
    measured = f"{small} and {large} GB in float32 on the CPU, {small / large:.0%}"
    return [measured, "confirmed" if small <= large / 2 else "not confirmed"]
