"""Mean, spread and paired differences over seeds, with Student's interval. Numbers only."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student

LEVEL = 0.95
ENOUGH = 3
"""Seeds in common from which on an interval of a difference is asked for."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes
    ----------
    deviation
        The standard deviation between seeds; 0 of a single one.
    half
        Half the width of the mean's confidence interval; infinite of a single seed, NaN where a
        value is.
    """

    mean: float
    deviation: float
    half: float
    count: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half

    @property
    def is_certain(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of ``values`` with its interval at ``LEVEL``.

    Raises
    ------
    ValueError
        There are none.
    """
    n = len(values)
    if not n:
        raise ValueError("an estimate needs at least 1 value, got 0; run a seed first")
    if any(math.isnan(v) for v in values):
        return Estimate(math.nan, math.nan, math.nan, n)
    mean = statistics.fmean(values)
    if n == 1:
        return Estimate(mean, 0.0, math.inf, n)
    deviation = statistics.stdev(values)
    quantile = float(student.ppf((1 + LEVEL) / 2, n - 1))
    return Estimate(mean, deviation, quantile * deviation / math.sqrt(n), n)


def paired(ours: Mapping[int, float], other: Mapping[int, float]) -> Estimate | None:
    """Return the mean of ours minus the other's by seed; None without a common seed."""
    seeds = sorted(ours.keys() & other.keys())
    return estimate([ours[s] - other[s] for s in seeds]) if seeds else None


def winner(column: Mapping[str, Mapping[int, float]]) -> str:
    """Return which row's mean is highest, and surely so against each other row; "" for none.

    Of fewer than ``ENOUGH`` seeds in common with a row an interval says next to nothing: it must
    be behind on these, and one row at least must be surely so.

    Parameters
    ----------
    column
        Row -> seed -> value. A row that has NaN, a diverged run, wins nothing and stops nobody.
    """
    means = {row: estimate(list(by_seed.values())).mean for row, by_seed in column.items()}
    sound = {row: mean for row, mean in means.items() if not math.isnan(mean)}
    if len(sound) < 2:
        return ""
    best = max(sound, key=lambda row: sound[row])
    leads = [paired(column[best], column[row]) for row in sound if row != best]
    if any(lead is None or lead.mean <= 0 for lead in leads):
        return ""
    judged = [lead for lead in leads if lead is not None and lead.count >= ENOUGH]
    return best if judged and all(lead.low > 0 for lead in judged) else ""
