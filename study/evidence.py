"""Results of the study: runs by experiment, and differences with their intervals."""

import functools
import statistics
from dataclasses import dataclass

import numpy as np
import scipy.stats

from runner import TABLE
from runtime.files import read_rows

RESAMPLES = 10_000
LAST = 5  # epochs at the end that are averaged: a single one says little


@dataclass
class Trained:
    """All runs of an experiment, one per seed."""

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
        """The runs that were scored on the test images."""
        return Trained(self.name, [row for row in self.rows if row["test_pixels"]])

    def pixels(self) -> np.ndarray:
        """True positives, false positives, false negatives: (seeds, images, 3)."""
        return np.array([[p.split() for p in row["test_pixels"].split(";")] for row in self.rows], dtype=np.float64)


def load(data: str) -> dict[str, dict[str, Trained]]:
    """The runs on these images, by group and name of the experiment."""
    rows = [row for row in read_rows(TABLE) if row["data"] == data]
    if len({row["images"] for row in rows}) > 1:
        raise SystemExit(f"{TABLE} has runs on different images that are all called {data}; remove all but one kind")
    groups: dict[str, dict[str, Trained]] = {}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        group, _, name = row["experiment"].partition("/")
        groups.setdefault(group, {}).setdefault(name, Trained(name, [])).rows.append(row)
    return groups


# ------------------------------------------------------------------------------------------------------------ intervals


@functools.cache
def resamples(images: int) -> np.ndarray:
    """Weights of images in bootstrap samples, (RESAMPLES, images): the same in all comparisons."""
    drawn = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    return drawn.astype(np.float64)


def dice_of_resamples(trained: Trained) -> np.ndarray:
    """Dataset Dice, mean over seeds, of bootstrap samples of the images, (RESAMPLES,)."""
    pixels = trained.pixels()
    tp, fp, fn = np.moveaxis(resamples(pixels.shape[1]) @ pixels, -1, 0)  # each (seeds, RESAMPLES)
    return (2 * tp / (2 * tp + fp + fn)).mean(axis=0)


UNTOLD = "inconclusive"


def too_few(seeds: int) -> str:
    """The verdict with fewer than three seeds."""
    return f"{UNTOLD}: {seeds} seed{'s' * (seeds > 1)}"


@dataclass
class Difference:
    """First minus second experiment's dataset Dice, with its 95 % interval over seeds and images."""

    value: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        only = ", images only" if self.seeds < 2 else ""
        value, low, high = (f"{round(x, 4) + 0.0:+.4f}" for x in (self.value, self.low, self.high))  # no minus zero
        return f"{value} ({low} to {high}{only})"

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.seeds < 3:
            return too_few(self.seeds)
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else UNTOLD


def compare(first: Trained | None, second: Trained | None, paired: bool = False) -> Difference | None:
    """The difference of two experiments; see `contrast`. None if one has not been scored."""
    return contrast([(1, first), (-1, second)], paired)


def contrast(terms: list[tuple[float, Trained | None]], paired: bool = False) -> Difference | None:
    """A weighted sum of experiments' dataset Dice.

    There are two sources of error: the choice of test images, of which there are many, and of seeds, of which there are
    few. The degrees of freedom are those of Welch and Satterthwaite.

    Args:
        terms: weights and experiments; None for one that was not run.
        paired: compare within seeds, where runs of a seed begin as the same run.

    Returns:
        None if an experiment has not been scored.
    """
    terms = [(weight, trained and trained.scored) for weight, trained in terms]
    if not all(trained and trained.rows for _, trained in terms):
        return None
    if paired:
        common = set.intersection(*({row["seed"] for row in trained.rows} for _, trained in terms))
        terms = [(w, Trained(one.name, [row for row in one.rows if row["seed"] in common])) for w, one in terms]
        if not common:
            return None
    weights = [weight for weight, _ in terms]
    figures = [trained.figures("test_dataset_dice") for _, trained in terms]
    value = sum(weight * statistics.mean(some) for weight, some in zip(weights, figures))
    if paired:
        weights, figures = [1], [[sum(w * x for w, x in zip(weights, seed)) for seed in zip(*figures)]]
    of_images = np.var(sum(weight * dice_of_resamples(trained) for weight, trained in terms), ddof=1)
    of_seeds = [
        weight**2 * statistics.variance(some) / len(some) if len(some) > 1 else 0.0
        for weight, some in zip(weights, figures)
    ]
    total = of_images + sum(of_seeds)
    spread = sum(one**2 / (len(some) - 1) for one, some in zip(of_seeds, figures) if one)
    freedom = total**2 / spread if spread else np.inf
    reach = scipy.stats.t.ppf(0.975, freedom) * total**0.5
    return Difference(value, value - reach, value + reach, min(map(len, figures)))


def over_seeds(differences: list[float]) -> Difference:
    """The mean of differences within runs, with its interval over seeds alone."""
    value, seeds = statistics.mean(differences), len(differences)
    if seeds < 2:
        return Difference(value, float("nan"), float("nan"), seeds)
    reach = scipy.stats.t.ppf(0.975, seeds - 1) * statistics.stdev(differences) / seeds**0.5
    return Difference(value, value - reach, value + reach, seeds)
