"""What is left of means over time: forward decay. Compiled.

An EWMA of time constant τ that was updated at t weighs e^(−(now − t)/τ) by now. That is
G(t) / G(now) of a *growth* G(t) = e^((t − landmark)/τ), as in Cormode, Shkapenyuk, Srivastava and
Xu, "Forward decay", ICDE 2009: so every mean keeps the growth of its last update, and one
exponential at a moment serves all means that are looked at then, where each would take its own. A
decision looks at three of every server.

The landmark moves before the growth becomes too large for a float (`move_landmark`).
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Belief

TIME_CONSTANT = 10.0
"""s; the time constant of the growth: the decay of peak EWMA in Finagle and Linkerd. What is left
over 5 s and 1 s is a power of what is left over 10 s (`decayed`)."""
LANDMARK_LIFE = 60.0
"""Time constants after which the landmark moves."""

_LANDMARK, _NOW, _GROWTH, _FADE = range(4)


@jit_no_refcount(inline=True)
def advance_decay(belief: Belief, now: float) -> None:
    """Bring the growth to `now`: `decay_now` and `decayed` are then of this moment."""
    decay = belief.decay
    if now == decay[_NOW]:
        return
    if not (now - decay[_LANDMARK] < LANDMARK_LIFE * TIME_CONSTANT):  # or there is none yet
        move_landmark(belief, now)
    decay[_NOW] = now
    decay[_GROWTH] = math.exp((now - decay[_LANDMARK]) / TIME_CONSTANT)
    decay[_FADE] = 1.0 / decay[_GROWTH]


@jit_no_refcount
def move_landmark(belief: Belief, now: float) -> None:
    """Move the landmark to `now`; the growths kept with the means are scaled to match."""
    passed = now - belief.decay[_LANDMARK]
    left = math.exp(-passed / TIME_CONSTANT) if passed == passed else 0.0
    for s in range(belief.servers.size):
        server = belief.servers[s]
        server.demand_grown *= left
        server.offered_grown *= left
        server.answers_grown *= left
    belief.decay[_LANDMARK] = now


@jit_no_refcount(inline=True)
def decay_now(belief: Belief) -> float:
    """The growth at the time of `advance_decay`: a mean updated then keeps it."""
    now: float = belief.decay[_GROWTH]
    return now


@jit_no_refcount(inline=True)
def decayed(belief: Belief, grown: float) -> tuple[float, float, float]:
    """What is left, at the moment of `advance_decay`, of means over 1, 5 and 10 s that were
    updated when the
    growth was `grown` (0 = never): 0–1 each. e^(−t/5) is the square of e^(−t/10), e^(−t) its
    fifth power."""
    ten = min(1.0, grown * belief.decay[_FADE])
    five = ten * ten
    square = five * five
    return square * square * five, five, ten
