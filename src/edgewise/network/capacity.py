"""What a link can carry, as cumulative bytes over time, and the inverse: when is it sent?

C(t) is non-decreasing and piecewise linear: the bytes that the link could have carried from its
time 0 until t. A constant rate is a straight line; a trace of rates is a polygon; a Mahimahi trace
is a staircase (a jump of 1,504 bytes per opportunity). A stretch without slope is an outage. What
is sent from ``start`` on is finished at the first t with C(t) - C(start) >= size. So rate changes,
outages and the wrap of a trace in mid-transfer all are one inverse, :func:`capacity_time`.

The functions are compiled and take plain arrays, so that the simulator's compiled code can call
them. Units: seconds and bytes; bits per second only where the name says ``_bps``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgewise.compile import jit
from edgewise.errors import BadInput

FloatArray = npt.NDArray[np.float64]

# A time that differs by less is the same time: doubles near 1e6 s (a monotonic clock after twelve
# days) are 1e-10 apart, so a nanosecond is ten times the rounding, and far below any measurement.
_SAME_TIME = 1e-9
# A byte count that differs by less is the same: without it, a rounding error of 1e-10 bytes at the
# brink of an outage would cost the whole outage.
_SAME_BYTES = 1e-6


class Capacity(NamedTuple):
    """What a link can carry, as cumulative bytes.

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


class LinkArrays(NamedTuple):
    """A link for compiled code: ``bytes_between(*arrays, t0, t1)`` and so on.

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


@jit
def _capacity_at(times: FloatArray, cumulative: FloatArray, period: float, t: float) -> float:
    """C(t), right-continuous: a jump at t is counted."""
    n = times.shape[0]
    base: float = 0.0
    if t < 0.0:
        return base
    if period > 0.0:
        turns = math.floor(t / period + _SAME_TIME / period)
        base = turns * cumulative[n - 1]
        t = max(t - turns * period, 0.0)
    i = np.searchsorted(times, t + _SAME_TIME, side="right") - 1
    if i >= n - 1:
        if period > 0.0:
            base += cumulative[n - 1]
            return base
        i = n - 2
    length = times[i + 1] - times[i]
    if length <= 0.0:
        # Only a staircase that does not repeat gets here; its last jump has no slope to go on with.
        base += cumulative[i + 1]
        return base
    slope = (cumulative[i + 1] - cumulative[i]) / length
    base += cumulative[i] + slope * max(t - times[i], 0.0)
    return base


@jit
def _inverse(
    times: FloatArray, cumulative: FloatArray, period: float, target: float
) -> tuple[float, float]:
    """First t with C(t) >= target, and what a jump at t offers beyond the target (else 0)."""
    n = times.shape[0]
    total = cumulative[n - 1]
    base = 0.0
    if period > 0.0:
        if total <= 0.0:
            return math.inf, 0.0
        turns = max(math.ceil((target - _SAME_BYTES) / total) - 1.0, 0.0)
        base = turns * period
        target -= turns * total
    elif target > total + _SAME_BYTES:
        length = times[n - 1] - times[n - 2]
        if length <= 0.0 or total <= cumulative[n - 2]:
            return math.inf, 0.0
        slope = (total - cumulative[n - 2]) / length
        return times[n - 1] + (target - total) / slope, 0.0
    i = np.searchsorted(cumulative, target - _SAME_BYTES, side="left")
    if i == 0:
        return base + times[0], 0.0
    if i > n - 1:
        i = n - 1
    rise = cumulative[i] - cumulative[i - 1]
    length = times[i] - times[i - 1]
    if length <= 0.0:
        return base + times[i], max(cumulative[i] - target, 0.0)
    share = min(max((target - cumulative[i - 1]) / rise, 0.0), 1.0)
    return base + times[i - 1] + share * length, 0.0


@jit
def capacity_time(
    times: FloatArray, cumulative: FloatArray, period: float, start: float, size: float
) -> float:
    """When ``size`` bytes, sent alone from ``start`` on, have left: the inverse of the capacity.

    Args:
        times, cumulative, period: a :class:`Capacity`; n = 0 (unlimited) returns ``start``.
        start: seconds from the link's time 0; what lies before 0 carries nothing.
        size: bytes; <= 0 returns ``start``.

    Returns:
        Seconds from the link's time 0; inf if the link stops for good before.
    """
    if times.shape[0] == 0 or size <= 0.0:
        return start
    target = _capacity_at(times, cumulative, period, start) + size
    return max(start, _inverse(times, cumulative, period, target)[0])


@jit
def send(
    times: FloatArray,
    cumulative: FloatArray,
    period: float,
    outages: FloatArray,
    start: float,
    size: float,
) -> tuple[float, float]:
    """As :func:`time_to_send`, and what a staircase's last opportunity still offers, bytes.

    The spare is for the chunk that waited behind this one; for any other it is lost.
    """
    k, n_outages = 0, outages.shape[0]
    while k < n_outages and outages[k, 1] <= start + _SAME_TIME:
        k += 1
    t = start
    if k < n_outages and outages[k, 0] <= t + _SAME_TIME:
        t = outages[k, 1]
        k += 1
    if times.shape[0] == 0:
        return t, 0.0
    left = size
    while left > 0.0:
        sent = _capacity_at(times, cumulative, period, t)
        finish, spare = _inverse(times, cumulative, period, sent + left)
        finish = max(finish, t)
        if k == n_outages or finish <= outages[k, 0] + _SAME_TIME:
            return finish, spare
        left -= _capacity_at(times, cumulative, period, outages[k, 0]) - sent
        t = outages[k, 1]
        k += 1
    return t, 0.0


@jit
def time_to_send(
    times: FloatArray,
    cumulative: FloatArray,
    period: float,
    outages: FloatArray,
    t0: float,
    size: float,
) -> float:
    """When ``size`` bytes sent alone from ``t0`` on have left: :func:`capacity_time` with outages.

    Returns the *moment* (seconds from the link's time 0), not the duration; inf = never. Nothing
    leaves in an outage, not even 0 bytes.
    """
    return send(times, cumulative, period, outages, t0, size)[0]


@jit
def bytes_between(
    times: FloatArray,
    cumulative: FloatArray,
    period: float,
    outages: FloatArray,
    t0: float,
    t1: float,
) -> float:
    """Bytes that the link can carry in (t0, t1], outages taken out; inf when unlimited."""
    if t1 <= t0:
        return 0.0
    if times.shape[0] == 0:
        return math.inf
    total = _capacity_at(times, cumulative, period, t1) - _capacity_at(
        times, cumulative, period, t0
    )
    for k in range(outages.shape[0]):
        a, b = max(outages[k, 0], t0), min(outages[k, 1], t1)
        if b > a:
            total -= _capacity_at(times, cumulative, period, b) - _capacity_at(
                times, cumulative, period, a
            )
    return max(total, 0.0)
