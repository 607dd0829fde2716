"""The score: tables by hand, and what must hold of every outcome."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.domain import Outcome, Request, Status
from edgewise.scenario import ScoreSpec
from edgewise.score import (
    ZERO,
    ScoreShape,
    expected_utility,
    score,
    timeliness,
    timeliness_of,
    worthless_after,
)

QUICK = settings(max_examples=40, deadline=None)
"""No deadline: compiling, or a busy machine, is no failure."""

SOFT = ScoreShape()
HARD = ScoreShape(grace=0.0)


def request(accuracy: float = 0.7, deadline: float = 2.0) -> Request:
    return Request(
        id="r",
        ingress="a",
        payload_bytes=1,
        sent_at=100.0,
        deadline=deadline,
        accuracy=accuracy,
    )


def served(latency: float = 1.0, accuracy: float = 0.8, **more: int) -> Outcome:
    return Outcome(
        request="r",
        status=Status.SERVED,
        latency=latency,
        accuracy=accuracy,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("ratio", "grace", "expected"),
    [
        (0.0, 1.0, 1.0),
        (1.0, 1.0, 1.0),
        (1.25, 1.0, 0.75),
        (1.999, 1.0, 0.001),
        (2.0, 1.0, 0.0),
        (9.0, 1.0, 0.0),
        (1.0, 0.0, 1.0),
        (1.0001, 0.0, 0.0),
        (1.25, 0.5, 0.5),
        (float("inf"), 1.0, 0.0),
        (float("nan"), 1.0, 0.0),
    ],
)
def test_timeliness(ratio: float, grace: float, expected: float) -> None:
    assert timeliness(ratio, grace) == pytest.approx(expected)


def test_a_scenario_says_soft_or_hard() -> None:
    assert ScoreShape.of(ScoreSpec()) == SOFT
    assert ScoreShape.of(ScoreSpec(lateness="hard", accuracy_weight=2.0)) == ScoreShape(
        grace=0.0, accuracy_weight=2.0
    )


@QUICK
@given(st.floats(0, 5), st.sampled_from([0.0, 0.3, 1.0]))
def test_timeliness_of_arrays_is_the_same(ratio: float, grace: float) -> None:
    (got,) = timeliness_of(np.array([ratio]), np.array([grace]))
    assert got == pytest.approx(timeliness(ratio, grace), abs=1e-6) or 0 < ratio - 1.0 < 1e-9


@QUICK
@given(st.floats(0.01, 100), st.sampled_from([0.0, 0.3, 1.0]))
def test_nothing_is_worth_anything_after_that(deadline: float, grace: float) -> None:
    last = worthless_after(deadline, grace)
    assert last >= deadline
    assert timeliness(last * (1.0 + 1e-9) / deadline, grace) == 0.0
    assert timeliness(last * (1.0 - 1e-9) / deadline, grace) > 0.0


@pytest.mark.parametrize(
    ("latency", "accuracy", "shape", "expected"),
    [
        (1.0, 0.8, SOFT, 0.8),
        (2.0, 0.8, SOFT, 0.8),  # exactly on time
        (3.0, 0.8, SOFT, 0.4),
        (4.0, 0.8, SOFT, 0.0),
        (3.0, 0.8, HARD, 0.0),
        (1.0, 0.7, SOFT, 0.7),  # exactly what was demanded
        (1.0, 0.69, SOFT, 0.0),
        (1.0, 0.8, ScoreShape(accuracy_weight=0.0), 1.0),
        (1.0, 0.8, ScoreShape(accuracy_weight=2.0), 0.64),
    ],
)
def test_expected_utility(
    latency: float, accuracy: float, shape: ScoreShape, expected: float
) -> None:
    made = score(request(), served(latency, accuracy), shape)
    assert made.expected == pytest.approx(expected)


@pytest.mark.parametrize(
    ("latency", "accuracy", "predicted", "label", "realised", "effective"),
    [
        (1.0, 0.8, 3, 3, 1.0, True),
        (1.0, 0.8, 3, 4, 0.0, False),
        (1.0, 0.8, None, 3, 0.0, False),
        (1.0, 0.8, None, None, 0.0, False),  # nobody said what is right: it does not count as right
        (3.0, 0.8, 3, 3, 0.5, False),  # right, but late
        (2.0, 0.8, 3, 3, 1.0, True),
        (1.0, 0.6, 3, 3, 0.0, False),  # right by luck: the service does not meet the demand
    ],
)
def test_realised_utility_and_effective_accuracy(
    latency: float,
    accuracy: float,
    predicted: int | None,
    label: int | None,
    realised: float,
    effective: bool,
) -> None:
    made = score(request(), served(latency, accuracy, predicted=predicted, label=label), SOFT)  # type: ignore[arg-type]
    assert made.realised == pytest.approx(realised)
    assert made.effective is effective


@pytest.mark.parametrize("status", [each for each in Status if each is not Status.SERVED])
def test_whatever_was_not_served_is_worth_nothing(status: Status) -> None:
    """Whatever else the outcome claims."""
    claims = Outcome(request="r", status=status, latency=0.1, accuracy=1.0, predicted=3, label=3)
    assert score(request(), claims, SOFT) == ZERO


def test_another_requests_outcome_is_refused() -> None:
    with pytest.raises(ValueError, match="scored for request r"):
        score(request(), Outcome(request="other", status=Status.SHED), SOFT)


@pytest.mark.parametrize("lacking", ["latency", "accuracy"])
def test_an_outcome_without_its_numbers_is_refused(lacking: str) -> None:
    numbers = {"latency": 1.0, "accuracy": 0.8}
    del numbers[lacking]
    with pytest.raises(ValueError, match=lacking):
        score(request(), Outcome(request="r", status=Status.SERVED, **numbers), SOFT)


@QUICK
@given(
    st.floats(0, 20),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.01, 10),
    st.booleans(),
    st.sampled_from([SOFT, HARD, ScoreShape(grace=0.3, accuracy_weight=3.0)]),
)
def test_what_holds_of_every_score(
    latency: float,
    accuracy: float,
    demanded: float,
    deadline: float,
    right: bool,
    shape: ScoreShape,
) -> None:
    asked = request(demanded, deadline)
    outcome = served(latency, accuracy, predicted=1, label=1 if right else 2)
    made = score(asked, outcome, shape)
    assert 0.0 <= made.expected <= made.timeliness <= 1.0
    assert 0.0 <= made.realised <= made.timeliness
    assert made.meets_demand == (accuracy >= demanded)
    if made.effective:
        assert made.realised == 1.0
    if not made.meets_demand:
        assert made.expected == made.realised == 0.0
    later = score(asked, served(latency * 1.5, accuracy, predicted=1, label=1), shape)
    assert later.expected <= made.expected, "waiting never pays"
    assert made.expected == expected_utility(
        accuracy, demanded, latency, deadline, shape.grace, shape.accuracy_weight
    )
