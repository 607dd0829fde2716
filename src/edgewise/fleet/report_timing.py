"""How busy a server says it is, and when it reports: on its period, and at once when its backlog
jumps. Compiled; simulator and nodes both call this.

A report lets expect that the backlog drains by a second a second. What differs from that by more
than `JUMP_PERIODS` is told at once, but no sooner than `GAP` after the report before; the period
then begins anew.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount

JUMP_PERIODS = 1.0
"""A backlog that differs by so many report periods' work from what the last report let expect is
news: waiting for the next one would cost a decision about as much."""
GAP = 0.2
"""Of the period between two reports at least: jumps come in bursts."""

BUSY_MEMORY = 1.0
"""s. Utilisation is a mean over about so long, as the vocabulary says."""


@jit_no_refcount(inline=True)
def busy_share(share: float, busy: float, seconds: float) -> float:
    """Utilisation, 0–1, after `seconds` in which a share `busy` of the workers was; it was `share`
    before."""
    keep = math.exp(-seconds / BUSY_MEMORY)
    return keep * share + (1.0 - keep) * busy


@jit_no_refcount(inline=True)
def jumped(backlog: float, reported: float, since: float, period: float) -> bool:
    """Whether `backlog` (s of each worker) is news, `since` s after `reported` was told."""
    expected = max(0.0, reported - since)
    return abs(backlog - expected) > JUMP_PERIODS * period
