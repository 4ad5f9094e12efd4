"""What the study found: its runs by experiment, and differences with their intervals."""

import functools
import statistics
from dataclasses import dataclass

import numpy as np
import scipy.stats

import utils
from experiments import EXPERIMENTS
from study import TABLE, settings_of

RESAMPLES = 10_000


@dataclass
class Trained:
    """All runs of an experiment, one a seed."""

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
        """The runs whose test pictures were looked at."""
        return Trained(self.name, [row for row in self.rows if row["test_pixels"]])

    def pixels(self) -> np.ndarray:
        """True positives, false positives, false negatives: (seeds, pictures, 3)."""
        return np.array([[p.split() for p in row["test_pixels"].split(";")] for row in self.rows], dtype=np.float64)


def load(image_size="96", data="partial set", encoder_weights="none") -> dict[str, dict[str, Trained]]:
    """What the table has of each experiment under these conditions: group, name, runs."""
    here = {"image_size": image_size, "data": data, "split": "official", "encoder_weights": encoder_weights}
    rows = [row for row in utils.read_rows(TABLE) if here.items() <= row.items()]
    if len({row["pictures"] for row in rows}) > 1:
        raise SystemExit(f"{TABLE} has runs on different pictures that are all called {data}; take one kind out")
    groups: dict[str, dict[str, Trained]] = {}
    for group, members in EXPERIMENTS.items():
        for name, flags in members.items():
            found = [row for row in rows if row["settings"] == settings_of(flags)]
            if found:
                found.sort(key=lambda row: int(row["seed"]))
                groups.setdefault(group, {})[name] = Trained(name, found)
    return groups


# ------------------------------------------------------------------------------------------------------------ intervals


@functools.cache
def resamples(pictures: int) -> np.ndarray:
    """Weights of pictures in bootstrap samples, (RESAMPLES, pictures): the same for all that is compared."""
    drawn = np.random.default_rng(0).multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLES)
    return drawn.astype(np.float64)


def dice_of_resamples(trained: Trained) -> np.ndarray:
    """Dataset Dice, mean over seeds, of bootstrap samples of the pictures, (RESAMPLES,)."""
    pixels = trained.pixels()
    tp, fp, fn = np.moveaxis(resamples(pixels.shape[1]) @ pixels, -1, 0)  # each (seeds, RESAMPLES)
    return (2 * tp / (2 * tp + fp + fn)).mean(axis=0)


UNTOLD = "can't be told from this data"


def too_few(seeds: int) -> str:
    """The verdict where there are less than three."""
    return f"{UNTOLD}: {seeds} seed{'s' * (seeds > 1)}"


@dataclass
class Difference:
    """Of two experiments' dataset Dice, first minus second, with its 95 % interval over seeds and pictures."""

    value: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        only = ", pictures only" if self.seeds < 2 else ""
        value, low, high = (f"{round(x, 4) + 0.0:+.4f}" for x in (self.value, self.low, self.high))  # no minus zero
        return f"{value} ({low} to {high}{only})"

    @property
    def verdict(self) -> str:
        """What may be said of it."""
        if self.seeds < 3:
            return too_few(self.seeds)
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else UNTOLD


def compare(first: Trained | None, second: Trained | None, paired: bool = False) -> Difference | None:
    """The difference of two experiments; see `contrast`. None where one has not been scored."""
    return contrast([(1, first), (-1, second)], paired)


def contrast(terms: list[tuple[float, Trained | None]], paired: bool = False) -> Difference | None:
    """A weighted sum of experiments' dataset Dice.

    There are two sources of error: which pictures the test has, of which there are many, and which seeds were drawn, of
    which there are few. Degrees of freedom as Welch and Satterthwaite have them.

    Args:
        terms: weights and experiments; None for one that was not run.
        paired: runs of a seed belong together, having been one and the same run for a while.

    Returns:
        None where an experiment has not been scored.
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
    of_pictures = np.var(sum(weight * dice_of_resamples(trained) for weight, trained in terms), ddof=1)
    of_seeds = [
        weight**2 * statistics.variance(some) / len(some) if len(some) > 1 else 0.0
        for weight, some in zip(weights, figures)
    ]
    total = of_pictures + sum(of_seeds)
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
