"""The guard of the learned policy: when the heuristic decides in its place. Compiled.

The weights come with limits: the range of each feature seen in training. The calibrated heuristic
decides if a feature lies outside its limits, if a score is not a finite number, or if no server has
reported for too long. The policy counts these decisions, and the balancer's ``/metrics`` shows the
counters.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array
from edgewise.fleet.table import CandidateTable

COUNTERS = {
    "decisions": "all decisions",
    "outside": "decided by the heuristic: a feature was outside the training range",
    "not_finite": "decided by the heuristic: a score was not a finite number",
    "stale": "decided by the heuristic: no server has reported for too long",
}
"""The counters, which are the first numbers of the policy's memory."""

SLACK = 0.02
"""A feature may exceed its limits by this much. Features lie in about [−1, 1], so this is a
hundredth of their span. It allows for worlds a little more extreme than the hundreds seen in
training, and for rounding where the range is a single value."""


@jit_no_refcount(inline=True)
def outside(features: Array, low: Array, high: Array) -> bool:
    """Whether any feature lies beyond its limits or is NaN. The loop counts them all, without an
    early return, so that it is vectorised."""
    within = 0
    for i in range(features.size):
        within += (low[i] - SLACK <= features[i]) & (features[i] <= high[i] + SLACK)
    return within < features.size


@jit_no_refcount(inline=True)
def freshest(table: CandidateTable) -> float:
    """Age of the newest report of all servers that are up, s; 0 if none is up, as then there is
    nothing to decide."""
    age = math.inf
    for s in range(table.servers.shape[0]):
        if table.servers[s].up > 0.0:
            age = min(age, table.servers[s].report_age)
    return age if age < math.inf else 0.0


@jit_no_refcount(inline=True)
def finite(table: CandidateTable) -> bool:
    """Whether the scores of all admissible rows and of shed are finite numbers."""
    for r in range(table.mask.size):
        if table.mask[r] != 0 and not math.isfinite(table.scores[r]):
            return False
    return True


@jit_no_refcount(inline=True)
def widen(features: Array, low: Array, high: Array, first: bool) -> None:
    """Widen the limits to include `features`; the first ones set them. Used for surveys."""
    for i in range(features.size):
        if first:
            low[i] = features[i]
            high[i] = features[i]
        else:
            low[i] = min(low[i], features[i])
            high[i] = max(high[i], features[i])
