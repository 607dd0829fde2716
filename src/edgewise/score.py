"""How much an answer is worth: the only definition. To change the reward, edit this module.

Let x = latency / deadline, with the latency measured at the client, from sending the request to the
last byte of the answer. *Timeliness* g(x) is 1 for x ≤ 1. With a soft deadline (the default) it
then falls linearly to 0 at x = 2; with a hard deadline it is 0 for every x > 1.

========================  ==========================================================================
expected utility          [accuracy ≥ demanded] × accuracy^w × g(x)
realised utility          [accuracy ≥ demanded] × quality of the answer × g(x)
effective                 right, in time, and from a service that meets the demand
========================  ==========================================================================

The expected utility uses the known accuracy of the service, not the answer itself: it has less
variance, so it is the reward that policies learn from. *Effective* is the headline metric. Shed,
expired, failed and lost requests score 0 and count in every denominator.

Other modules rely on three properties of g: it is 1 up to the deadline, it never rises, and it is
convex after the deadline (`edgewise.bound.dual` proves its bound with that). Whoever changes g
changes `timeliness`, its twin for arrays `timeliness_of`, and `worthless_after`.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from edgewise.compile import jit_no_refcount
from edgewise.domain import Outcome, Request, Score, Status
from edgewise.scenario.schema import ScoreSpec
from edgewise.tasks import task_of

RIGHT = 0.5
"""An answer of at least this quality counts as right. For ImageNet the quality is 0 or 1."""


class ScoreShape(Struct, frozen=True, kw_only=True):
    """The numbers behind a scenario's `score`."""

    grace: float = 1.0
    """How far beyond the deadline an answer still has some worth, in deadlines; 0: a hard one."""
    accuracy_weight: float = 1.0
    """The exponent w; 0: only timeliness counts."""

    @classmethod
    def of(cls, spec: ScoreSpec) -> ScoreShape:
        grace = 1.0 if spec.lateness == "soft" else 0.0
        return cls(grace=grace, accuracy_weight=spec.accuracy_weight)


@jit_no_refcount(inline=True)
def timeliness(ratio: float, grace: float) -> float:
    """g(x) for x = `ratio` = latency / deadline; in [0, 1]. NaN gives 0."""
    if ratio <= 1.0:
        return 1.0
    if ratio < 1.0 + grace:
        return 1.0 - (ratio - 1.0) / grace
    return 0.0


def timeliness_of(ratios: Any, graces: Any) -> Any:
    """`timeliness` for NumPy arrays or torch tensors, differentiable; a grace of 0 is allowed."""
    return (1.0 - (ratios - 1.0) / graces.clip(1e-9)).clip(0.0, 1.0)


@jit_no_refcount(inline=True)
def worthless_after(deadline: float, grace: float) -> float:
    """The latency in s from which on g is 0: nobody need wait or work for such an answer."""
    return deadline * (1.0 + grace)


@jit_no_refcount(inline=True)
def expected_utility(
    accuracy: float,
    demanded: float,
    latency: float,
    deadline: float,
    grace: float,
    accuracy_weight: float,
) -> float:
    """Expected utility of an answer after `latency` s from a service of `accuracy`; in [0, 1]."""
    if accuracy < demanded:
        return 0.0
    value: float = accuracy**accuracy_weight if accuracy_weight != 1.0 else accuracy
    return value * timeliness(latency / deadline, grace)


ZERO = Score(expected=0.0, realised=0.0, effective=False, timeliness=0.0, meets_demand=False)


def score(request: Request, outcome: Outcome, shape: ScoreShape) -> Score:
    """Score one outcome; 0 unless it is `served`.

    Raises ValueError if the outcome belongs to another request (crediting the wrong decision is the
    commonest bug of this field), or is served but has no latency or no accuracy.
    """
    if outcome.request != request.id:
        raise ValueError(f"outcome of {outcome.request} scored for request {request.id}")
    if outcome.status is not Status.SERVED:
        return ZERO
    if outcome.latency is None or outcome.accuracy is None:
        raise ValueError(f"outcome of {request.id} is served but has no latency or no accuracy")
    meets_demand = outcome.accuracy >= request.accuracy
    timely = timeliness(outcome.latency / request.deadline, shape.grace)
    quality = 0.0
    if outcome.predicted is not None and outcome.label is not None:
        quality = task_of(request.task).quality(outcome.predicted, outcome.label)
    return Score(
        expected=expected_utility(
            outcome.accuracy,
            request.accuracy,
            outcome.latency,
            request.deadline,
            shape.grace,
            shape.accuracy_weight,
        ),
        realised=timely * quality if meets_demand else 0.0,
        effective=bool(meets_demand and quality >= RIGHT and outcome.latency <= request.deadline),
        timeliness=timely,
        meets_demand=meets_demand,
    )
