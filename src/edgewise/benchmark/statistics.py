"""Means and their confidence intervals, over seeds.

The unit of independence is the *seed*. Requests of one episode share queues and bursts, and
families share worlds, so neither counts as independent: every seed gives one number, and the
interval is Student's over those numbers. A mean over families is first taken within each seed. (An
earlier trial pooled families and seeds and got intervals half as wide as they should have been.)

Two policies are compared by their differences within each seed. Both met the same world, so the
world's own effect cancels (common random numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import MissingExtra

Floats = NDArray[np.float64]

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean with its confidence interval, mean ± half.

    It formats as such: ``f"{Interval(0.6123, 0.0042):.3f}"`` is ``0.612 ± 0.004``. Without an
    interval the second part is left out; without a mean the text is a dash.
    """

    mean: float
    half: float
    """Half the width of the interval; NaN with fewer than two numbers."""

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def sign(self) -> int:
        """1 if the interval lies above 0, −1 if below, else 0."""
        return 1 if self.low > 0.0 else -1 if self.high < 0.0 else 0

    def scaled(self, factor: float) -> Interval:
        """The interval of `factor` times the quantity."""
        return Interval(self.mean * factor, self.half * factor)

    def __format__(self, spec: str) -> str:
        if math.isnan(self.mean):
            return "–"
        half = "" if math.isnan(self.half) else f" ± {self.half:{spec.lstrip('+')}}"
        return f"{self.mean:{spec}}{half}"


def interval(per_seed: Floats) -> Interval:
    """The interval of one number per seed; seeds whose number is NaN (none was served) are left
    out."""
    values = np.asarray(per_seed, np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return Interval(math.nan, math.nan)
    mean = float(values.mean())
    if values.size < 2:
        return Interval(mean, math.nan)
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    quantile = student_quantile()(values.size - 1, 0.5 + CONFIDENCE / 2.0)
    return Interval(mean, float(quantile) * error)


def over_families(by_family: Floats) -> Interval:
    """The mean over families of an array (families, seeds), clustered by seed."""
    return interval(np.asarray(by_family, np.float64).mean(axis=0))


def student_quantile() -> Callable[[int, float], float]:
    """The quantile function of Student's distribution: (degrees of freedom, probability).

    Long jobs call it before they begin. Raises MissingExtra without scipy.
    """
    try:
        from scipy.special import stdtrit
    except ImportError:
        raise MissingExtra("bench", "scipy") from None
    quantile: Callable[[int, float], float] = stdtrit
    return quantile
