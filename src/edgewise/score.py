"""What an answer is worth. The only place: simulator, balancer, evaluator and tables all ask here.

With x = latency / deadline, latency measured at the client from sent to the last byte, timeliness
is g(x) = 1 for x ≤ 1, 2 − x for 1 < x < 2 and 0 beyond (soft), or 0 for any x > 1 (hard).

- expected utility  = [accuracy ≥ demanded] × accuracy^w × g(x): low variance, so it is the reward
- realised utility  = [accuracy ≥ demanded] × [prediction is right] × g(x)
- effective         = right, in time, by a service that meets the demand: the headline metric

Shed, expired, failed and lost requests score 0 and count in every denominator.
"""

from __future__ import annotations

from msgspec import Struct

from edgewise.compile import copied
from edgewise.domain import Outcome, Request, Score, Status
from edgewise.tasks import task_of

RIGHT = 0.5
"""Quality from which on an answer counts as right. ImageNet's is 0 or 1."""


class ScoreShape(Struct, frozen=True, kw_only=True):
    """The scenario's choice of score."""

    grace: float = 1.0
    """How far past the deadline, in deadlines, timeliness falls from 1 to 0; 0 is a hard
    deadline. 1 is the soft score: an answer at twice the deadline is worth nothing."""
    accuracy_weight: float = 1.0
    """Exponent w of the accuracy; 0 counts only timeliness."""


@copied
def timeliness(ratio: float, grace: float) -> float:
    """g(x) for x = `ratio` = latency / deadline; in [0, 1]. NaN gives 0."""
    if ratio <= 1.0:
        return 1.0
    if ratio < 1.0 + grace:
        return 1.0 - (ratio - 1.0) / grace
    return 0.0


@copied
def expected_utility(
    accuracy: float,
    demanded: float,
    latency: float,
    deadline: float,
    grace: float,
    accuracy_weight: float,
) -> float:
    """Expected utility of an answer after `latency` s by a service of `accuracy`; in [0, 1]."""
    if accuracy < demanded:
        return 0.0
    worth: float = accuracy**accuracy_weight if accuracy_weight != 1.0 else accuracy
    return worth * timeliness(latency / deadline, grace)


ZERO = Score(expected=0.0, realised=0.0, effective=False, timeliness=0.0, meets_demand=False)


def score(request: Request, outcome: Outcome, shape: ScoreShape) -> Score:
    """Score one outcome. An outcome that is not `served` scores 0.

    Raises ValueError if the outcome is of another request, or claims to be served without latency
    or accuracy: crediting the wrong decision is this field's commonest bug.
    """
    if outcome.request != request.id:
        raise ValueError(f"outcome of {outcome.request} scored for request {request.id}")
    if outcome.status is not Status.SERVED:
        return ZERO
    if outcome.latency is None or outcome.accuracy is None:
        raise ValueError(f"outcome of {request.id} is served but has no latency or no accuracy")
    meets = outcome.accuracy >= request.accuracy
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
        realised=timely * quality if meets else 0.0,
        effective=bool(meets and quality >= RIGHT and outcome.latency <= request.deadline),
        timeliness=timely,
        meets_demand=meets,
    )
