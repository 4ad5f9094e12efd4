"""What both reports claim, and what the study found: confirmed, not confirmed, or can't be told from this data."""

import statistics
from collections.abc import Callable
from typing import NamedTuple, Optional

import numpy as np

import measure
import utils
from evidence import Difference, Trained, compare, contrast, over_seeds, too_few

UNKNOWN = ["not run yet", "can't be told"]
SAME_DICE = 0.01  # a fall of validation Dice by less is none


def judge_claims(groups: dict[str, dict[str, Trained]]) -> list[list[str]]:
    """For each claim: the claim and the report that makes it, what was measured here, the verdict."""
    recipes, changed, networks, augmentation, scheduler = (
        groups.get(name, {}) for name in ("recipes", "ingredients", "networks", "augmentation", "scheduler")
    )
    resnet, unet = networks.get("resnet34_unet"), networks.get("unet")
    off, three, six = (augmentation.get(name) for name in ("off", "3 variants", "6 variants"))
    start, bce = changed.get("as it is"), changed.get("BCE alone")
    return [
        [
            "ResNet34-UNet scores higher than UNet (A, B; B's encoder was pre-trained, here both start from scratch)",
            *judged(compare(resnet, unet)),
        ],
        ["ResNet34-UNet starts higher (B); likewise", *judged_apart(START, resnet, unet)],
        ["ResNet34-UNet converges faster (A); likewise", *judged_apart(SPEED, resnet, unet)],
        ["ResNet34-UNet trains more smoothly (B)", *judged_apart(UNREST, resnet, unet)],
        ["ResNet34-UNet generalises better (A)", *judged_apart(GAP, resnet, unet)],
        ["Augmentation, 3 variants a picture, improves Dice (A)", *judged(compare(three, off))],
        [
            "Variants bring less and less (A): what 3 bring, minus what 3 more bring",
            *judged(contrast([(2, three), (-1, off), (-1, six)])),
        ],
        ["Overfitting is no major issue, thanks to augmentation (A)", *overfitting(recipes)],
        [
            "The plateau scheduler improves Dice (A); a fixed rate needs no adjustment (B)",
            *judged(compare(scheduler.get("plateau"), scheduler.get("none"), paired=True)),
        ],
        [
            "Dice loss instead of cross-entropy would improve Dice (B)",
            *judged(compare(changed.get("Dice loss alone"), bce)),
        ],
        ["Both losses together would (B)", *judged(compare(start, bce))],
        ["Attention would (B): squeeze-and-excitation", *judged(compare(changed.get("SE"), start))],
        ["Attention would (B): CBAM", *judged(compare(changed.get("CBAM"), start))],
        ["Colour jitter would (B)", *judged(compare(changed.get("colour jitter"), start))],
        [
            "Test-time augmentation would (B): `--recipe report`, interval over seeds",
            *judged(of_tta(recipes.get("report"))),
        ],
        [
            "Test-time augmentation would (B): `--recipe strong`, interval over seeds",
            *judged(of_tta(recipes.get("strong"))),
        ],
        ["ResNet34-UNet needs half of UNet's memory (A: 7 and 14.5 GB at batch 32)", *memory()],
        [
            "Test Dice 0.9114 and 0.9710 (B)",
            "its split was drawn anew for each part, so most test pictures had been trained on",
            "can't be told: nothing here is comparable with it",
        ],
    ]


def judged(found: Optional[Difference]) -> list[str]:
    """A claimed improvement: the difference in dataset Dice, and whether it is confirmed."""
    if found is None:
        return UNKNOWN
    words = {"better": "confirmed", "worse": "not confirmed: here it is the reverse"}
    return [str(found), words.get(found.verdict, found.verdict)]


def judged_apart(figure: "OfCurve", better: Optional[Trained], worse: Optional[Trained]) -> list[str]:
    """A claim that one experiment has the better figure: confirmed where every seed of it beats every other's."""
    if not (better and worse):
        return UNKNOWN
    each = [list(map(figure.of, one.curves(), one.curves("train_curve"))) for one in (better, worse)]
    said = " against ".join(", ".join(f"{x:.{figure.digits}f}" for x in some) for some in each)
    if min(map(len, each)) < 3:
        return [f"{figure.name}: {said}", too_few(min(map(len, each)))]
    first, second = ([-x for x in some] if figure.less_is_better else some for some in each)
    if min(first) > max(second):
        verdict = "confirmed"
    else:
        reverse = max(first) < min(second)
        verdict = "not confirmed: here it is the reverse" if reverse else "can't be told: the seeds overlap"
    return [f"{figure.name}: {said}", verdict]


class OfCurve(NamedTuple):
    """A figure of one run, made of its validation and training Dice by epoch."""

    name: str
    of: Callable[[np.ndarray, np.ndarray], float]
    less_is_better: bool = False
    digits: int = 3


START = OfCurve("validation Dice after the first epoch", lambda valid, train: valid[0])
SPEED = OfCurve(
    "epochs to 95 % of its own best validation Dice",
    lambda valid, train: int(np.argmax(valid >= 0.95 * valid.max())) + 1,
    less_is_better=True,
    digits=0,
)
UNREST = OfCurve(
    "mean change of validation Dice between epochs, up or down",
    lambda valid, train: np.abs(np.diff(valid)).mean(),
    less_is_better=True,
)
GAP = OfCurve(
    "training Dice above validation Dice in the last epoch",
    lambda valid, train: train[-1] - valid[-1],
    less_is_better=True,
)


def overfitting(recipes: dict[str, Trained]) -> list[str]:
    """Whether validation Dice falls again with augmentation, and how far training is above validation."""
    augmented = recipes.get("report, augmented")
    if not (augmented and "report" in recipes):
        return UNKNOWN
    valid = augmented.curves().mean(axis=0)
    fall = valid.max() - valid[-1]
    gaps = [
        statistics.mean(map(GAP.of, one.curves(), one.curves("train_curve"))) for one in (augmented, recipes["report"])
    ]
    measured = (
        f"forty passes with 3 variants: validation Dice ends {fall:.3f} below its best, "
        f"training Dice {gaps[0]:.2f} above validation Dice (without augmentation {gaps[1]:.2f})"
    )
    if len(augmented.rows) < 3:
        return [measured, too_few(len(augmented.rows))]
    return [measured, "confirmed: it does not fall" if fall < SAME_DICE else "not confirmed: it falls"]


def of_tta(recipe: Optional[Trained]) -> Optional[Difference]:
    """What test-time augmentation adds to the dataset Dice of the same weights."""
    if recipe is None or not recipe.figures("test_dataset_dice_tta"):
        return None
    both = [(row["test_dataset_dice_tta"], row["test_dataset_dice"]) for row in recipe.rows]
    return over_seeds([float(after) - float(before) for after, before in both if after and before])


def memory() -> list[str]:
    """What both networks need, as benchmarks/memory.py measured."""
    rows = {row["model"]: row for row in utils.read_rows(measure.RESULTS / "memory.csv") if row["mode"] == "fp32"}
    small, large = (float(rows[name]["peak_gigabytes"]) for name in ("resnet34_unet", "unet"))
    measured = f"{small} and {large} GB in float32 on the CPU, {small / large:.0%}"
    return [measured, "confirmed" if small < 0.6 * large else "not confirmed"]
