"""When have bytes left a link? The inverse of its cumulative capacity. Compiled.

Bytes sent from `start` on have left at the first t with C(t) − C(start) ≥ size, C being the link's
cumulative capacity (`network.capacity`). So rate changes, outages and the repetition of a trace in
the middle of a transfer all are one inverse, `capacity_time`. The functions take plain arrays, so
that the simulator's compiled code can call them.

Units: seconds and bytes.
"""

from __future__ import annotations

import math

import numpy as np

from edgewise.compile import jit
from edgewise.network.capacity import FloatArray

# A time that differs by less is the same time: doubles near 1e6 s (a monotonic clock after twelve
# days) are 1e-10 apart, so a nanosecond is ten times the rounding, and far below any measurement.
_SAME_TIME = 1e-9
# A byte count that differs by less is the same: without it, a rounding error of 1e-10 bytes at the
# brink of an outage would cost the whole outage.
_SAME_BYTES = 1e-6


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
