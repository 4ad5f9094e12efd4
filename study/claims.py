"""The claims of both reports, each judged on the whole set, or else on the part of it where three seeds were run."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from evidence import Estimate, Groups, Trained, compare, estimate
from experiments import ROOT
from runtime.files import read_rows

WHOLE, PART = "whole set", "partial set"


class Judged(NamedTuple):
    """What was measured of a claim; the claim holds if the difference is above zero."""

    measured: str
    difference: Estimate


class OfCurve(NamedTuple):
    """A figure of one run, computed from its validation and training Dice by epoch."""

    name: str
    of: Callable[[np.ndarray, np.ndarray], float]
    less_is_better: bool = False
    digits: int = 3

    def by_seed(self, trained: Trained) -> list[float]:
        """The figure of each run."""
        return [float(self.of(*both)) for both in zip(trained.curves(), trained.curves("train_curve"))]

    def __call__(self, first: Trained, second: Trained) -> Judged:
        """Whether the first experiment has the better figure; the interval is over seeds (Welch's t)."""
        figures = [self.by_seed(first), self.by_seed(second)]
        means = " against ".join(
            f"{statistics.mean(values):.{self.digits}f} ({one.name})" for one, values in zip((first, second), figures)
        )
        sign = -1 if self.less_is_better else 1
        difference = estimate([(sign, figures[0]), (-sign, figures[1])])
        return Judged(f"{self.name}: {means}; better by {difference.text(digits=self.digits)}", difference)


START = OfCurve("validation Dice after the first epoch", lambda valid, train: valid[0])
SPEED = OfCurve(
    "epochs to 98 % of its own best validation Dice",
    lambda valid, train: np.argmax(valid >= 0.98 * max(valid)) + 1,
    less_is_better=True,
    digits=1,
)
UNREST = OfCurve("mean change of validation Dice between epochs", lambda valid, _: np.abs(np.diff(valid)).mean(), True)
GAP = OfCurve(
    "training Dice above validation Dice, last quarter of the epochs",
    lambda valid, train: (train - valid)[-max(1, len(valid) // 4) :].mean(),
    less_is_better=True,
)
FALL = OfCurve("fall of validation Dice from the best epoch to the last", lambda valid, _: max(valid) - valid[-1], True)


def dice(first: Trained, second: Trained) -> Judged:
    """Whether the first experiment has the higher dataset Dice."""
    difference = compare(first, second)
    return Judged(f"dataset Dice {difference.text()}", difference)


def of_tta(trained: Trained) -> Judged:
    """What test-time augmentation adds to the same weights; the interval is over seeds."""
    both = zip(trained.figures("test_dataset_dice_tta"), trained.figures("test_dataset_dice"))
    difference = estimate([(1, [after - before for after, before in both])])
    return Judged(f"dataset Dice {difference.text()}", difference)


MEASURES = {"dice": dice, "start": START, "speed": SPEED, "unrest": UNREST, "gap": GAP, "fall": FALL, "tta": of_tta}


def judge_claims(groups: dict[str, Groups]) -> list[list]:
    """For each claim of claims.csv that can be judged: claim, what was measured, verdict, set, test images, seeds."""
    rows = []
    for claim in read_rows(ROOT / "study/claims.csv"):
        for data in (WHOLE, PART):
            group, *names = claim[data].split(" | ")
            arms = [groups[data].get(group, {}).get(name) for name in names]
            if not arms or not all(arm and len(arm.rows) > 2 for arm in arms):
                continue
            judged = MEASURES[claim["measure"]](*arms)
            verdict = judged.difference.verdict("confirmed", "the reverse holds")
            images = int(arms[0].rows[0]["images"].split()[-1])
            rows.append([claim["claim"], judged.measured, verdict, data.split()[0], f"{images:,}", len(arms[0].rows)])
            break
    return rows
