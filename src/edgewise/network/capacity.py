"""The bandwidth of a link over time, as cumulative bytes.

C(t) is non-decreasing and piecewise linear: the bytes that the link could have carried from its
time 0 until t. A constant rate is a straight line; a trace of rates is a polygon; a Mahimahi trace
is a staircase (a jump of 1,504 bytes per opportunity). A stretch without slope is an outage.

Units: seconds and bytes; bits per second only where the name says ``_bps``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgewise.errors import BadInput

FloatArray = npt.NDArray[np.float64]


class Capacity(NamedTuple):
    """The bandwidth of a link over time, as cumulative bytes.

    Attributes:
        times: shape (n,), seconds from the link's time 0, non-decreasing, ``times[0] == 0``. Two
            equal times are a jump. n = 0 means unlimited.
        cumulative: shape (n,), bytes that can have been sent by then, non-decreasing, first is 0.
        period: seconds after which it repeats, equal to ``times[-1]``; 0 = it does not, and the
            slope of the last stretch goes on for ever.
    """

    times: FloatArray
    cumulative: FloatArray
    period: float

    @property
    def unlimited(self) -> bool:
        """True if bytes take no time at all."""
        return len(self.times) == 0

    @property
    def mean_bps(self) -> float:
        """Mean rate over the period (or over the listed times) in bits/s; inf when unlimited."""
        if self.unlimited:
            return math.inf
        return 8.0 * float(self.cumulative[-1]) / float(self.times[-1])

    def scaled(self, factor: float) -> Capacity:
        """The same shape at ``factor`` times the rate."""
        return Capacity(self.times, self.cumulative * factor, self.period)

    def shifted(self, offset: float) -> Capacity:
        """The same, beginning `offset` seconds later; modulo its period if it repeats.

        >>> stepwise([0, 1, 3], [8.0, 16.0], repeat=True).shifted(2.0).cumulative
        array([0., 2., 3., 5.])
        """
        offset = math.fmod(offset, self.period) if self.period > 0.0 else offset
        if self.unlimited or offset <= 0.0:
            return self
        last = self.times[-1]
        if self.period == 0.0 and offset >= last:  # only the slope of the last stretch is left
            slope = np.diff(self.cumulative[-2:]) / np.diff(self.times[-2:])
            return Capacity(np.array([0.0, 1.0]), np.array([0.0, *slope]), 0.0)
        at = int(np.searchsorted(self.times, offset, side="right"))
        around = slice(at - 1, at + 1)
        before = float(np.interp(offset, self.times[around], self.cumulative[around]))
        times = np.concatenate(([0.0], self.times[at:] - offset))
        cumulative = np.concatenate(([0.0], self.cumulative[at:] - before))
        if self.period > 0.0:
            # What was left out follows at the end; its first point is there already.
            times = np.concatenate((times, self.times[1:at] + (last - offset), [self.period]))
            rest = np.append(self.cumulative[1:at], before) + cumulative[-1]
            cumulative = np.concatenate((cumulative, rest))
        return Capacity(times, cumulative, self.period)


class LinkArrays(NamedTuple):
    """A link for `network.transmission`: ``bytes_between(*arrays, t0, t1)`` and so on.

    Attributes:
        times, cumulative, period: as in :class:`Capacity`.
        outages: shape (k, 2), seconds [from, to), sorted and disjoint; nothing is sent in them.
    """

    times: FloatArray
    cumulative: FloatArray
    period: float
    outages: FloatArray


def constant(rate_bps: float | None) -> Capacity:
    """A constant rate in bits/s; None = unlimited, 0 = nothing passes until it is changed.

    Raises:
        BadInput: the rate is negative or not finite.
    """
    if rate_bps is None:
        return Capacity(np.empty(0), np.empty(0), 0.0)
    if not (math.isfinite(rate_bps) and rate_bps >= 0.0):
        raise BadInput(f"rate_bps: expected a finite number >= 0, got {rate_bps!r}")
    return Capacity(np.array([0.0, 1.0]), np.array([0.0, rate_bps / 8.0]), 0.0)


def stepwise(seconds: npt.ArrayLike, rates_bps: npt.ArrayLike, *, repeat: bool) -> Capacity:
    """A rate per interval: ``rates_bps[i]`` holds from ``seconds[i]`` to ``seconds[i + 1]``.

    Args:
        seconds: shape (n + 1,), strictly increasing; it is shifted to begin at 0.
        rates_bps: shape (n,), bits/s, >= 0.
        repeat: start over after the last second; otherwise the last rate stays for ever.

    Raises:
        BadInput: shapes, order or signs are wrong, or a repeating trace never sends a byte.
    """
    edges = np.asarray(seconds, dtype=np.float64)
    rates = np.asarray(rates_bps, dtype=np.float64)
    if edges.ndim != 1 or rates.shape != (edges.shape[0] - 1,) or rates.shape[0] == 0:
        raise BadInput(f"expected n + 1 times and n >= 1 rates, got {edges.shape}, {rates.shape}")
    lengths = np.diff(edges)
    if not (np.all(np.isfinite(edges)) and np.all(lengths > 0.0)):
        raise BadInput("expected strictly increasing, finite times")
    if not (np.all(np.isfinite(rates)) and np.all(rates >= 0.0)):
        raise BadInput("expected finite rates >= 0")
    if repeat and not np.any(rates > 0.0):
        raise BadInput("expected at least one rate above 0, or nothing ever passes")
    times = edges - edges[0]
    cumulative = np.concatenate(([0.0], np.cumsum(lengths * rates / 8.0)))
    return Capacity(times, cumulative, float(times[-1]) if repeat else 0.0)
