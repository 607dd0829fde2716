"""Write trace files, in the two formats that `trace_reader` reads.

``rates`` has a line ``seconds<TAB>Mbit/s`` per interval. ``mahimahi`` has a line per opportunity of
1,504 bytes, at the millisecond in which the capacity has grown by that much. Its last line is the
period, so a trace that ends with an outage gets one opportunity there.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from edgewise.errors import BadInput
from edgewise.network.capacity import Capacity
from edgewise.network.trace_reader import OPPORTUNITY_BYTES

FileFormat = Literal["rates", "mahimahi"]


def trace_text(capacity: Capacity, format: FileFormat, comment: str = "") -> str:
    """The text of a trace file for a repeating capacity; `trace_reader.read_trace` reads it back.

    Args:
        capacity: its period is at least a millisecond. ``rates`` needs a polygon: a staircase has
            no rates.
        format: see the module. ``mahimahi`` rounds to whole opportunities and milliseconds, so up
            to 1,504 bytes move by up to a millisecond.
        comment: first line of ``rates``. Mahimahi's own reader allows no comments.

    Raises:
        BadInput: it does not repeat, or cannot be written in this format.
    """
    if capacity.unlimited or capacity.period <= 0.0:
        raise BadInput("trace: expected one that repeats")
    if format == "mahimahi":
        return _mahimahi(capacity)
    lengths = np.diff(capacity.times)
    if np.any(lengths <= 0.0):
        raise BadInput("trace: a staircase (Mahimahi's) has no rates to write")
    rates = 8e-6 * np.diff(capacity.cumulative) / lengths
    lines = [f"{t:.6g}\t{rate:.6g}" for t, rate in zip(capacity.times[:-1], rates, strict=True)]
    if comment:
        lines.insert(0, f"# {comment}")
    return "\n".join(lines) + "\n"


def _mahimahi(capacity: Capacity) -> str:
    period = round(1000.0 * capacity.period)
    if period < 1:
        raise BadInput(f"trace: expected a period of at least 1 ms, got {capacity.period:g} s")
    # The last stamp of a jump counts: interp needs strictly increasing times.
    stamps = np.arange(1, period + 1) / 1000.0
    at = np.searchsorted(capacity.times, stamps + 1e-9, side="right") - 1
    after = np.minimum(at + 1, len(capacity.times) - 1)
    span = capacity.times[after] - capacity.times[at]
    share = np.divide(stamps - capacity.times[at], span, out=np.zeros_like(span), where=span > 0)
    share = np.clip(share, 0.0, 1.0)
    rise = capacity.cumulative[after] - capacity.cumulative[at]
    sent = capacity.cumulative[at] + share * rise
    opportunities = np.floor(sent / OPPORTUNITY_BYTES + 1e-9).astype(np.int64)
    new = np.diff(opportunities, prepend=0)
    if new[-1] == 0:
        new[-1] = 1  # the last line is the period
    moments = np.repeat(np.arange(1, period + 1), new)
    return "\n".join(map(str, moments.tolist())) + "\n"
