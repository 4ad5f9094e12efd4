"""What the study found: its runs by experiment, and differences with their intervals."""

import functools
import statistics
from dataclasses import dataclass
from typing import Optional

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


@dataclass
class Difference:
    """Of two experiments' dataset Dice, first minus second, with its 95 % interval over seeds and pictures."""

    value: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.value:+.4f} ({self.low:+.4f} to {self.high:+.4f})"

    @property
    def verdict(self) -> str:
        """What may be said of it."""
        if self.seeds < 3:
            return f"can't be told: {self.seeds} seed{'s' * (self.seeds > 1)}"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "can't be told from this data"


def compare(first: Optional[Trained], second: Optional[Trained]) -> Optional[Difference]:
    """The difference of two experiments; None where one has not been scored."""
    if not (first and second and first.scored.rows and second.scored.rows):
        return None
    first, second = first.scored, second.scored
    figures = [one.figures("test_dataset_dice") for one in (first, second)]
    value = statistics.mean(figures[0]) - statistics.mean(figures[1])
    # Two sources of error: which pictures the test has, of which there are many, and which seeds were drawn, of which
    # there are few. Degrees of freedom as Welch and Satterthwaite have them.
    of_pictures = np.var(dice_of_resamples(first) - dice_of_resamples(second), ddof=1)
    of_seeds = [statistics.variance(some) / len(some) if len(some) > 1 else 0.0 for some in figures]
    total = of_pictures + sum(of_seeds)
    spread = sum(one**2 / (len(some) - 1) for one, some in zip(of_seeds, figures) if one)
    freedom = total**2 / spread if spread else np.inf
    reach = scipy.stats.t.ppf(0.975, freedom) * total**0.5
    return Difference(value, value - reach, value + reach, min(map(len, figures)))
