"""Advantages by generalised advantage estimation, discounted by time. Compiled.

Schulman et al., High-dimensional continuous control using generalized advantage estimation, 2016,
but with a separate discount for every step, since decisions come at uneven times:

    δ_t = r_t + γ_t V_{t+1} − V_t            A_t = δ_t + γ_t λ_t A_{t+1}

where γ_t = exp(−dt_t / τ) and λ_t = exp(−dt_t / τ_λ), and dt_t is the time in s from decision t to
the next. Discounting by decision would make the horizon of a busy fleet a hundred times shorter
than that of a quiet one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.compile import jit
from edgewise.fleet.arrays import Array

Floats = NDArray[np.float64]


@jit
def gae(rewards: Array, values: Array, discounts: Array, decays: Array) -> Array:
    """Advantages (n,) of one episode.

    `rewards` (n,) are the decisions' own, whenever they became known. `values` (n + 1,) are those
    of the states in which the decisions were made, and of the state after the last: its value if
    the episode was truncated there, 0 if it terminated. `discounts` γ and `decays` λ (n,) belong to
    the step from each decision to the next.
    """
    n = rewards.size
    out = np.empty(n)
    after = 0.0
    for t in range(n - 1, -1, -1):
        delta = rewards[t] + discounts[t] * values[t + 1] - values[t]
        after = delta + discounts[t] * decays[t] * after
        out[t] = after
    return out


def by_time(waits: Floats, tau: float) -> Floats:
    """exp(−wait / tau) of each wait in s; 1 if `tau` is infinite, 0 if it is 0."""
    if tau <= 0.0:
        return np.zeros_like(waits)
    found: Floats = np.exp(-waits / tau)
    return found
