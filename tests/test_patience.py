"""How long a peer is waited for, when a run at the ingress pays, and what backlog is news."""

from __future__ import annotations

import math

import pytest

from edgewise.fleet.report_timing import jumped
from edgewise.fleet.timeouts import PEER_PATIENCE, give_up_at, worth_running


@pytest.mark.parametrize(
    ("deadline", "grace", "work", "expected"),
    [
        (0.4, 1.0, 0.010, 10.0 + 0.4 - 0.1),  # the last quarter of the grace
        (0.1, 1.0, 0.020, 10.0 + 0.1 - 0.06),  # time to run it here
        (0.4, 0.0, 0.010, 10.0 - 0.04),  # nothing counts past a hard deadline
        (0.4, 1.0, math.nan, 10.0 + 0.4),  # nobody here could run it
        (4.0, 1.0, math.nan, 10.0 + PEER_PATIENCE),
    ],
)
def test_when_a_peer_is_given_up(
    deadline: float, grace: float, work: float, expected: float
) -> None:
    assert give_up_at(10.0, deadline, grace, work) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("done", "grace", "idle", "pays"),
    [
        (9.9, 1.0, False, True),
        (10.19, 1.0, False, True),  # late, and worth more than half
        (10.21, 1.0, False, False),
        (10.21, 1.0, True, True),
        (10.41, 1.0, True, False),  # worth nothing
        (10.0, 0.0, False, True),  # a hard deadline, just met
        (10.01, 0.0, True, False),
    ],
)
def test_whether_a_run_at_the_ingress_pays(
    done: float, grace: float, idle: bool, pays: bool
) -> None:
    assert worth_running(done, 10.0, 0.4, grace, idle) == pays


@pytest.mark.parametrize(
    ("backlog", "reported", "since", "news"),
    [
        (0.15, 0.1, 0.0, False),
        (0.21, 0.1, 0.0, True),
        (0.0, 0.3, 0.25, False),  # it has drained, as expected
        (0.0, 0.3, 0.1, True),  # faster than expected: a failure, or given up
        (0.11, 0.1, 5.0, True),  # it was through long ago
    ],
)
def test_a_jump_is_what_the_last_report_did_not_let_expect(
    backlog: float, reported: float, since: float, news: bool
) -> None:
    assert jumped(backlog, reported, since, 0.1) == news
