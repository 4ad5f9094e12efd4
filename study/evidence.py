"""Results of the study: runs by experiment, and differences with their intervals."""

import functools
import statistics
from dataclasses import dataclass

import numpy as np
import scipy.stats

from runner import TABLE
from runtime.files import read_rows

RESAMPLES = 10_000


@dataclass
class Trained:
    """All runs of an experiment, one per seed."""

    name: str
    rows: list[dict]

    def figures(self, column: str, last: bool = False) -> list[float]:
        """A column's numbers, by seed; the last of each row where it has several."""
        return [float(row[column].split()[-1] if last else row[column]) for row in self.rows if row[column]]

    def curves(self, column: str = "valid_curve") -> np.ndarray:
        """Dice, or minutes, by seed and epoch."""
        return np.array([[float(x) for x in row[column].split()] for row in self.rows])

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """True positives, false positives, false negatives: (seeds, images, 3)."""
        return np.array([[p.split() for p in row["test_pixels"].split(";")] for row in self.rows], dtype=np.float64)


Groups = dict[str, dict[str, Trained]]


def load(data: str) -> Groups:
    """The runs on these images, by group and name of the experiment."""
    rows = [row for row in read_rows(TABLE) if row["data"] == data]
    groups: Groups = {}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        group, _, name = row["experiment"].partition("/")
        groups.setdefault(group, {}).setdefault(name, Trained(name, [])).rows.append(row)
    return groups


@functools.cache
def resamples(images: int) -> np.ndarray:
    """Weights of images in bootstrap samples, (RESAMPLES, images): the same in all comparisons."""
    drawn = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    return drawn.astype(np.float64)


def dice_of_resamples(trained: Trained) -> np.ndarray:
    """Dataset Dice, mean over seeds, of bootstrap samples of the images, (RESAMPLES,)."""
    tp, fp, fn = np.moveaxis(resamples(trained.pixels.shape[1]) @ trained.pixels, -1, 0)  # each (seeds, RESAMPLES)
    return (2 * tp / (2 * tp + fp + fn)).mean(axis=0)


@dataclass
class Estimate:
    """A figure, or a difference of figures, with its 95 % interval."""

    value: float
    low: float
    high: float
    seeds: int

    def text(self, sign: str = "+", digits: int = 4) -> str:
        """The figure and its interval; `sign` is empty for a figure that is no difference."""
        numbers = (round(x, digits) + 0.0 for x in (self.value, self.low, self.high))  # no minus zero
        value, low, high = (f"{x:{sign}.{digits}f}" for x in numbers)
        return f"{value} ({low} to {high})"

    def verdict(self, better: str = "better", worse: str = "worse") -> str:
        """What the interval of a difference says; nothing is claimed with fewer than three seeds."""
        if self.seeds < 3:
            return "one seed: no claim" if self.seeds == 1 else f"{self.seeds} seeds: no claim"
        return better if self.low > 0 else worse if self.high < 0 else "inconclusive"


def estimate(terms: list[tuple[float, list[float]]], of_images: float = 0.0) -> Estimate:
    """A weighted sum of means over seeds.

    There are two sources of error: the choice of test images, whose variance is `of_images`, and of few seeds. The
    degrees of freedom are those of Welch and Satterthwaite.
    """
    value = sum(weight * statistics.mean(figures) for weight, figures in terms)
    many = [(weight, figures) for weight, figures in terms if len(figures) > 1]
    of_seeds = [weight**2 * statistics.variance(figures) / len(figures) for weight, figures in many]
    total = of_images + sum(of_seeds)
    spread = sum(one**2 / (len(figures) - 1) for one, (_, figures) in zip(of_seeds, many))
    reach = scipy.stats.t.ppf(0.975, total**2 / spread if spread else np.inf) * total**0.5
    return Estimate(value, value - reach, value + reach, min(len(figures) for _, figures in terms))


def contrast(terms: list[tuple[float, Trained]]) -> Estimate:
    """A weighted sum of experiments' dataset Dice."""
    of_images = np.var(sum(weight * dice_of_resamples(trained) for weight, trained in terms), ddof=1)
    return estimate([(weight, trained.figures("test_dataset_dice")) for weight, trained in terms], of_images)


def compare(first: Trained, second: Trained) -> Estimate:
    """First minus second experiment's dataset Dice."""
    return contrast([(1, first), (-1, second)])
