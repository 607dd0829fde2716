"""Tables: an observation, and the decision that a rule must make of it.

Rows of the fleet (`fleet_case`): 0 a/small, 2 a/large, 4 b/large, 5 the same model-ready, 6 shed.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from edgewise import policies
from edgewise.domain import Candidate, Observation, PayloadForm, ShedReason
from edgewise.errors import BadInput
from edgewise.fleet import table as t
from edgewise.fleet.tracker import Tracker
from edgewise.policies.base import RANKED_MAX, decision
from fleet_case import NOW, queue, report, request, tracker

SIX = (
    "random",
    "round_robin",
    "local",
    "least_outstanding",
    "earliest_completion",
    "most_accurate_feasible",
)


def fleet(busy: float = 0.0) -> Tracker:
    """Both idle, or `a` with so many seconds of urgent work."""
    made = tracker()
    made.on_report(report("a", queue=queue((0.0, busy)) if busy else ()), NOW)
    made.on_report(report("b"), NOW)
    return made


def seen(made: Tracker, **more: object) -> Observation:
    return made.observe(request(**more), NOW, NOW)  # type: ignore[arg-type]


# On the idle fleet: a/small 25 ms, a/large 55, b/large 155, b/large model-ready 82.
@pytest.mark.parametrize(
    ("rule", "busy", "demands", "first"),
    [
        ("local", 0.0, {}, ("a", "small", PayloadForm.ORIGINAL)),
        ("local", 5.0, {}, ("a", "small", PayloadForm.ORIGINAL)),
        ("local", 0.0, {"accuracy": 0.8}, ("a", "large", PayloadForm.ORIGINAL)),
        ("earliest_completion", 0.0, {}, ("a", "small", PayloadForm.ORIGINAL)),
        ("earliest_completion", 0.0, {"accuracy": 0.8}, ("a", "large", PayloadForm.ORIGINAL)),
        # a's workers are busy for 0.1 s, so a conversion there would have to wait too.
        ("earliest_completion", 0.1, {"accuracy": 0.8}, ("a", "large", PayloadForm.ORIGINAL)),
        ("earliest_completion", 0.5, {}, ("b", "large", PayloadForm.ORIGINAL)),
        ("most_accurate_feasible", 0.0, {}, ("a", "large", PayloadForm.ORIGINAL)),
        ("most_accurate_feasible", 0.0, {"deadline": 0.05}, ("a", "small", PayloadForm.ORIGINAL)),
        # Nothing is feasible: the earliest.
        ("most_accurate_feasible", 0.0, {"deadline": 0.01}, ("a", "small", PayloadForm.ORIGINAL)),
        ("most_accurate_feasible", 0.5, {"deadline": 0.3}, ("b", "large", PayloadForm.ORIGINAL)),
    ],
)
def test_what_a_certain_rule_decides(
    rule: str, busy: float, demands: dict[str, float], first: tuple[str, str, PayloadForm]
) -> None:
    made = policies.make(rule).decide(seen(fleet(busy), **demands))
    head = made.ranked[0]
    assert (head.server, head.model, head.form) == first
    assert made.probability == 1.0
    assert made.reason is None
    assert made.policy == rule


def test_earliest_completion_names_the_others_in_order() -> None:
    made = policies.make("earliest_completion").decide(seen(fleet()))
    assert made.rows == (0, 2, 5, 4)


@pytest.mark.parametrize("rule", SIX)
@pytest.mark.parametrize(
    ("demands", "up", "reason"),
    [
        ({"accuracy": 0.95}, True, ShedReason.NO_SERVICE),
        ({"accuracy": 0.8}, False, ShedReason.NONE_UP),
        ({}, False, ShedReason.NONE_UP),
    ],
)
def test_why_it_sheds(rule: str, demands: dict[str, float], up: bool, reason: ShedReason) -> None:
    made = fleet()
    if not up:
        for server in ("a", "b"):
            made.disconnect(server)
    verdict = policies.make(rule).decide(seen(made, **demands))
    assert verdict.reason is reason
    assert verdict.ranked == ()
    assert verdict.rows == (6,)
    assert verdict.probability == 1.0


def test_local_sheds_what_only_others_could_serve() -> None:
    """There is capacity elsewhere that the rule will not use: its price is infinite."""
    made = fleet()
    made.disconnect("a")
    verdict = policies.make("local").decide(seen(made))
    assert verdict.reason is ShedReason.PRICE


def test_round_robin_takes_turns_and_skips_who_cannot() -> None:
    made = fleet()
    policy = policies.make("round_robin")

    def server(**demands: float) -> str:
        return policy.decide(seen(made, **demands)).ranked[0].server

    assert [server() for _ in range(4)] == ["a", "b", "a", "b"]
    made.disconnect("b")
    assert [server(), server()] == ["a", "a"]
    made.connect("b", NOW)
    assert server() == "b"


def test_a_server_only_rule_runs_the_best_model_it_has_time_for() -> None:
    """0.4 of the deadline: 50 ms is under 0.4 × 0.2 s, not under 0.4 × 0.1."""
    made = fleet()
    for deadline, model in ((0.2, "large"), (0.1, "small"), (0.01, "small")):
        policy = policies.Policy("round_robin", policies.POLICIES["round_robin"], params=(0.4,))
        verdict = policy.decide(seen(made, deadline=deadline))
        assert (verdict.ranked[0].server, verdict.ranked[0].model) == ("a", model)


def test_random_draws_servers_evenly_and_says_how_likely() -> None:
    made, policy = fleet(), policies.make("random", seed=3)
    verdicts = [policy.decide(seen(made)) for _ in range(400)]
    drawn = Counter(verdict.ranked[0].server for verdict in verdicts)
    assert {verdict.probability for verdict in verdicts} == {0.5}
    assert abs(drawn["a"] - 200) < 60  # six standard deviations
    made.disconnect("b")
    assert policy.decide(seen(made)).probability == 1.0


def test_the_same_seed_draws_the_same() -> None:
    made = fleet()

    def draws(seed: int) -> list[str]:
        policy = policies.make("random", seed)
        return [policy.decide(seen(made)).ranked[0].server for _ in range(30)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def outstanding(*counts: float) -> Observation:
    """One server-only choice per server, with so many of ours outstanding on each."""
    n = len(counts)
    table = t.blank_table(n, n)
    table.mask[::2] = 1
    for k, count in enumerate(counts):
        table.rows.server[2 * k] = table.rows.service[2 * k] = k
        table.rows.service_time[2 * k] = 0.01
        table.servers[k].outstanding = count
    table.context.deadline = 1.0
    candidates: list[Candidate | None] = [
        Candidate(f"s{k}", "m", form) for k in range(n) for form in PayloadForm
    ]
    return Observation(
        request=request(),
        at=NOW,
        rows=table.arrays.rows,
        mask=table.mask,
        servers=table.arrays.servers,
        context=table.arrays.context,
        candidates=(*candidates, None),
    )


@pytest.mark.parametrize(
    ("counts", "propensities"),
    [
        ((3.0, 1.0), {"s1": 1.0}),  # both are drawn: the lesser wins
        ((2.0, 2.0), {"s0": 0.5, "s1": 0.5}),
        ((0.0, 1.0, 2.0), {"s0": 2 / 3, "s1": 1 / 3}),  # the most loaded one never
        ((1.0, 1.0, 5.0), {"s0": 0.5, "s1": 0.5}),
        ((4.0,), {"s0": 1.0}),
    ],
)
def test_the_propensity_of_two_choices_is_how_often_it_happens(
    counts: tuple[float, ...], propensities: dict[str, float]
) -> None:
    policy = policies.make("least_outstanding", seed=11)
    table = outstanding(*counts)
    verdicts = [policy.decide(table) for _ in range(1500)]
    drawn = Counter(verdict.ranked[0].server for verdict in verdicts)
    for verdict in verdicts:
        assert verdict.probability == pytest.approx(propensities[verdict.ranked[0].server])
    for server, share in propensities.items():
        deviation = math.sqrt(share * (1 - share) / 1500)
        assert abs(drawn[server] / 1500 - share) <= 5 * deviation


# -- what the scores make of it --------------------------------------------------------------------


def test_equal_scores_go_to_the_first_row() -> None:
    table = outstanding(0.0, 0.0, 0.0)
    made = decision(table, np.zeros(7), 1.0, "test")
    assert made.rows == (0, 2, 4)


def test_a_row_that_is_worth_less_than_shedding_is_no_fallback() -> None:
    table = outstanding(0.0, 0.0, 0.0)
    scores = np.array([0.5, 9.0, 0.1, 9.0, 0.9, 9.0, 0.3])  # shed: 0.3; odd rows are masked
    made = decision(table, scores, 0.7, "test")
    assert made.rows == (4, 0)
    assert made.probability == 0.7


def test_shedding_for_its_price_keeps_its_probability() -> None:
    table = outstanding(0.0)
    made = decision(table, np.array([0.1, 0.0, 0.5]), 0.25, "test")
    assert (made.ranked, made.rows, made.reason) == ((), (2,), ShedReason.PRICE)
    assert made.probability == 0.25


def test_no_more_than_eight_are_named() -> None:
    table = outstanding(*[0.0] * 12)
    made = decision(table, np.arange(25, dtype=float)[::-1].copy(), 1.0, "test")
    assert len(made.ranked) == len(made.rows) == RANKED_MAX


@pytest.mark.parametrize("rule", SIX)
def test_the_first_row_named_is_the_best_row_of_the_compiled_loop(rule: str) -> None:
    """Live and simulated serve the same kernel: both must read its scores alike."""
    made = fleet(busy=0.2)
    for accuracy in (0.0, 0.8, 0.95):
        observation = seen(made, accuracy=accuracy)
        live = policies.make(rule, 5).decide(observation)
        twin = policies.make(rule, 5)
        twin.decide(observation)
        assert live.rows[0] == t.best_row(twin._table)


def test_an_unknown_policy_is_refused_with_a_hint() -> None:
    with pytest.raises(BadInput, match=r"unknown policy 'round_robbin' \(did you mean round_robin"):
        policies.make("round_robbin")


def test_parameters_of_the_wrong_number_are_refused() -> None:
    with pytest.raises(ValueError, match="takes"):
        policies.Policy("random", policies.POLICIES["random"], params=(0.1, 0.2))
