"""When the learned policy does not trust itself. Compiled.

Training has seen features within limits, which stand with the weights. Where a request's features
leave them, where a score is not a number, or where no server has reported for long, the calibrated
heuristic decides, and a counter in the policy's state says so. The counters are what the balancer's
``/metrics`` shows.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array
from edgewise.fleet.table import CandidateTable

COUNTERS = {
    "decisions": "all that were made",
    "outside": "decided by the heuristic: a feature was outside the training range",
    "not_finite": "decided by the heuristic: a score was not a finite number",
    "stale": "decided by the heuristic: no server has reported for too long",
}
"""The first numbers of the policy's memory."""

SLACK = 0.02
"""By which a feature may leave the range seen in training. Features are squashed to about [−1, 1],
so this is a hundredth of what they can span: the extremes of some hundred worlds are not the
extremes of the family, and where the range is a single value rounding must not trip the guard."""


@jit_no_refcount(inline=True)
def outside(features: Array, low: Array, high: Array) -> bool:
    """Whether any feature is beyond its limits; NaN is. Counted rather than returned at the first,
    so that the loop is vectorised."""
    within = 0
    for i in range(features.size):
        within += (low[i] - SLACK <= features[i]) & (features[i] <= high[i] + SLACK)
    return within < features.size


@jit_no_refcount(inline=True)
def freshest(table: CandidateTable) -> float:
    """Age of the youngest report among the servers that are up, s; 0 if none is up, for then there
    is nothing to be decided."""
    age = math.inf
    for s in range(table.servers.shape[0]):
        if table.servers[s].up > 0.0:
            age = min(age, table.servers[s].report_age)
    return age if age < math.inf else 0.0


@jit_no_refcount(inline=True)
def finite(table: CandidateTable) -> bool:
    """Whether the score of every admissible row, and of shed, is a finite number."""
    for r in range(table.mask.size):
        if table.mask[r] != 0 and not math.isfinite(table.scores[r]):
            return False
    return True


@jit_no_refcount(inline=True)
def widen(features: Array, low: Array, high: Array, first: bool) -> None:
    """Make the limits include `features`; a survey of training worlds does this."""
    for i in range(features.size):
        if first:
            low[i] = features[i]
            high[i] = features[i]
        else:
            low[i] = min(low[i], features[i])
            high[i] = max(high[i], features[i])
