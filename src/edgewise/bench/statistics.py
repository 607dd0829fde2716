"""Means and their confidence intervals, over seeds.

The unit of independence is the *seed*. Requests of one episode share queues and bursts, families
share worlds, so neither counts: every seed gives one number, and the interval is Student's over
those numbers. A mean over families is first taken within each seed (the trial of docs/benchmark.md
found pooled intervals half as wide as they should have been).

Two policies are compared by the differences within each seed: both met the same world, so what the
world did to both cancels (common random numbers).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import MissingExtra

Floats = NDArray[np.float64]

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean, and half the width of its confidence interval."""

    mean: float
    half: float
    """NaN with fewer than two numbers."""

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def sign(self) -> int:
        """1 or −1 if the interval lies above or below 0, else 0."""
        return 1 if self.low > 0.0 else -1 if self.high < 0.0 else 0


def interval(per_seed: Floats) -> Interval:
    """Of one number per seed; seeds whose number is NaN have none (no request was served)."""
    values = np.asarray(per_seed, np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return Interval(math.nan, math.nan)
    mean = float(values.mean())
    if values.size < 2:
        return Interval(mean, math.nan)
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    return Interval(mean, _student(values.size - 1) * error)


def over_families(by_family: Floats) -> Interval:
    """Of an array (families, seeds): the mean over families, clustered by seed."""
    return interval(np.asarray(by_family, np.float64).mean(axis=0))


def _student(freedom: int) -> float:
    try:
        from scipy.special import stdtrit
    except ImportError:
        raise MissingExtra("bench", "scipy") from None
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2.0))
