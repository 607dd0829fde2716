"""When a server reports, and how its utilisation is averaged. Compiled; simulator and nodes share
this.

A server reports periodically. After a report its backlog is expected to drain by one second per
second. If it differs from that by more than `JUMP_PERIODS`, the server reports early, but not
within `GAP` of the last report; a new period then starts.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount

JUMP_PERIODS = 1.0
"""Report periods of work by which the backlog may differ from the expected one. With a larger
difference, waiting for the next periodic report would cost a decision about as much."""
GAP = 0.2
"""Shortest time between two reports, as a share of the period. Jumps come in bursts."""

BUSY_MEMORY = 1.0
"""s. Time constant of the mean utilisation."""


@jit_no_refcount(inline=True)
def busy_share(share: float, busy: float, seconds: float) -> float:
    """Update the mean utilisation `share` (0–1) by `seconds` in which the share `busy` of the
    workers was busy."""
    keep = math.exp(-seconds / BUSY_MEMORY)
    return keep * share + (1.0 - keep) * busy


@jit_no_refcount(inline=True)
def jumped(backlog: float, reported: float, since: float, period: float) -> bool:
    """Whether `backlog` (s per worker) calls for an early report, `since` s after a report of
    `reported`."""
    expected = max(0.0, reported - since)
    return abs(backlog - expected) > JUMP_PERIODS * period
