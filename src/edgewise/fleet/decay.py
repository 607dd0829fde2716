"""Exponential decay of many running means for the price of one exponential. Compiled.

An EWMA with time constant τ that was last updated at time t has decayed to a share
e^(−(now − t)/τ). This module uses forward decay (Cormode, Shkapenyuk, Srivastava and Xu, "Forward
decay", ICDE 2009): with the *growth* G(t) = e^((t − landmark)/τ), that share is G(t) / G(now).
Every mean stores the growth of its last update. Then one exponential, G(now), serves all means that
are read at the same time; otherwise each would need its own. A decision reads three means per
server.

The landmark moves before the growth becomes too large for a float (`move_landmark`).
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Belief

TIME_CONSTANT = 10.0
"""s; the time constant of the growth: the decay of peak EWMA in Finagle and Linkerd. The shares for
5 s and 1 s are powers of the share for 10 s (`decayed`)."""
LANDMARK_LIFE = 60.0
"""Time constants after which the landmark moves."""

_LANDMARK, _NOW, _GROWTH, _INVERSE = range(4)


@jit_no_refcount(inline=True)
def advance_decay(belief: Belief, now: float) -> None:
    """Compute the growth at `now`; `decay_now` and `decayed` refer to it until the next call."""
    decay = belief.decay
    if now == decay[_NOW]:
        return
    if not (now - decay[_LANDMARK] < LANDMARK_LIFE * TIME_CONSTANT):  # or there is none yet
        move_landmark(belief, now)
    decay[_NOW] = now
    decay[_GROWTH] = math.exp((now - decay[_LANDMARK]) / TIME_CONSTANT)
    decay[_INVERSE] = 1.0 / decay[_GROWTH]


@jit_no_refcount
def move_landmark(belief: Belief, now: float) -> None:
    """Move the landmark to `now` and scale the growths stored with the means to match."""
    passed = now - belief.decay[_LANDMARK]
    left = math.exp(-passed / TIME_CONSTANT) if passed == passed else 0.0
    for s in range(belief.servers.size):
        server = belief.servers[s]
        server.demand_growth *= left
        server.offered_growth *= left
        server.answers_growth *= left
    belief.decay[_LANDMARK] = now


@jit_no_refcount(inline=True)
def decay_now(belief: Belief) -> float:
    """The growth at the time of the last `advance_decay`; a mean updated then stores it."""
    now: float = belief.decay[_GROWTH]
    return now


@jit_no_refcount(inline=True)
def decayed(belief: Belief, growth: float) -> tuple[float, float, float]:
    """The shares (0–1) left of means over 1, 5 and 10 s whose last update stored `growth`.

    The shares hold at the time of the last `advance_decay`; `growth` 0 = never updated. With
    x = e^(−t/10) over 10 s, the share over 5 s is x², and over 1 s it is x¹⁰.
    """
    ten = min(1.0, growth * belief.decay[_INVERSE])
    five = ten * ten
    square = five * five
    return square * square * five, five, ten
