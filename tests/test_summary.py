"""The summary: denominators, the keys that other tools read, the tables."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from rich.console import Console

from edgewise.domain import Outcome, PayloadForm, Request, Status
from edgewise.score import ScoreShape
from edgewise.summary import LatencyMs, Summary, percentiles_ms, summarise
from edgewise.summary_tables import comparison_tables, server_table

SHAPE = ScoreShape()


def request(name: str, ingress: str = "a", accuracy: float = 0.5) -> Request:
    return Request(
        id=name, ingress=ingress, payload_bytes=1, sent_at=0.0, deadline=1.0, accuracy=accuracy
    )


def served(name: str, latency: float = 0.5, **fields: object) -> Outcome:
    base = {"server": "a", "model": "m", "form": PayloadForm.ORIGINAL, "predicted": 7, "label": 7}
    base |= {"accuracy": 0.8, "latency": latency, "status": Status.SERVED}
    return msgspec.convert({"request": name, **base, **fields}, Outcome)


def ended(name: str, status: Status, reason: str | None = None) -> Outcome:
    return Outcome(request=name, status=status, reason=reason, label=7)


REQUESTS = [request(f"r{i}") for i in range(8)]
OUTCOMES = [
    served("r0"),  # right, in time: 0.8
    served("r1", latency=1.5),  # right, half a deadline late: 0.4
    served("r2", predicted=8),  # wrong, in time: 0.8 expected, 0 realised
    served("r3", accuracy=0.4),  # does not meet the demand: 0
    served("r4", server="b", form=PayloadForm.MODEL_READY),  # transferred: 0.8
    ended("r5", Status.SHED, "price"),
    ended("r6", Status.LOST),
    ended("r7", Status.FAILED, "price"),
]


def test_every_figure_of_a_small_run() -> None:
    got = summarise(
        "p", REQUESTS, OUTCOMES, SHAPE, servers=("a", "b", "c"), utilisation={"a": 0.25}
    )
    assert got.outcomes == {"served": 5, "shed": 1, "expired": 0, "failed": 1, "lost": 1}
    assert sum(got.outcomes.values()) == got.requests == 8
    assert got.utility.expected == pytest.approx((0.8 + 0.4 + 0.8 + 0.0 + 0.8) / 8)
    assert got.utility.realised == pytest.approx((1.0 + 0.5 + 0.0 + 0.0 + 1.0) / 8)
    assert got.effective_accuracy == pytest.approx(2 / 8)
    assert got.deadline_met == pytest.approx(4 / 8)
    assert got.accuracy == pytest.approx(4 / 5)
    assert got.latency_ms == percentiles_ms([0.5, 1.5, 0.5, 0.5, 0.5])
    assert got.transferred == pytest.approx(1 / 5)
    assert got.model_ready == 1.0
    assert {name: each.served for name, each in got.per_server.items()} == {"a": 4, "b": 1, "c": 0}
    assert got.per_server["a"].share == pytest.approx(0.8)
    assert got.per_server["a"].utilisation == 0.25
    assert got.per_server["c"].utilisation is None
    assert got.reasons == {"shed: price": 1, "failed: price": 1, "lost: no reason given": 1}


def test_a_hard_deadline_counts_no_late_answer() -> None:
    soft = summarise("p", REQUESTS, OUTCOMES, SHAPE)
    hard = summarise("p", REQUESTS, OUTCOMES, ScoreShape(grace=0.0))
    assert soft.utility.expected - hard.utility.expected == pytest.approx(0.4 / 8)


@pytest.mark.parametrize(
    ("outcomes", "problem"),
    [
        (OUTCOMES[:-1], "1 requests have no outcome, r7"),
        ([*OUTCOMES, OUTCOMES[0]], "r0 stands twice"),
        ([*OUTCOMES, served("stranger")], "stranger belongs to no request"),
    ],
)
def test_a_missing_or_extra_outcome_is_refused(outcomes: list[Outcome], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        summarise("p", REQUESTS, outcomes, SHAPE)


def test_nothing_served_gives_nulls_not_zeros() -> None:
    got = summarise("p", [request("x")], [ended("x", Status.EXPIRED)], SHAPE, servers=("a",))
    assert (got.accuracy, got.model_ready) == (None, None)
    assert got.latency_ms == LatencyMs(p50=None, p95=None, p99=None)
    assert got.utility.expected == 0.0
    assert summarise("p", [], [], SHAPE).requests == 0


def test_the_json_contract() -> None:
    got = summarise("p", REQUESTS, OUTCOMES, SHAPE, servers=("a", "b"))
    plain = json.loads(Summary(scenario="s", seed=3, policies=(got,)).to_json())
    assert {"scenario", "seed", "policies"} <= set(plain)
    (policy,) = plain["policies"]
    assert {
        "policy", "requests", "outcomes", "utility", "effective_accuracy", "deadline_met",
        "accuracy", "latency_ms", "per_server", "transferred",
    } <= set(policy)  # fmt: skip
    assert list(policy["outcomes"]) == ["served", "shed", "expired", "failed", "lost"]
    assert set(policy["utility"]) == {"expected", "realised"}
    assert set(policy["latency_ms"]) == {"p50", "p95", "p99"}
    assert {"served", "share", "utilisation"} <= set(policy["per_server"]["a"])


def text(*tables: object) -> str:
    shown = io.StringIO()
    console = Console(width=160, file=shown)
    for table in tables:
        console.print(table)
    return shown.getvalue()


def test_the_table_ranks_and_shows_the_difference_to_the_best_other() -> None:
    good = summarise("good", REQUESTS[:1], OUTCOMES[:1], SHAPE)
    poor = summarise("poor", REQUESTS[1:2], OUTCOMES[1:2], SHAPE)
    summary = Summary(scenario="s", seed=3, policies=(poor, good))
    lines = text(comparison_tables(summary)).splitlines()
    first = next(line for line in lines if "good" in line)
    second = next(line for line in lines if "poor" in line)
    assert lines.index(first) < lines.index(second)
    assert "+0.400 (+100 %)" in first
    assert "-0.400 (-50 %)" in second


def test_a_single_policy_has_no_comparison_tables() -> None:
    one = summarise("only", REQUESTS, OUTCOMES, SHAPE, servers=("a", "b"))
    shown = text(comparison_tables(Summary(scenario="s", seed=3, policies=(one,))))
    assert "vs other" not in shown
    assert "1 shed" in shown
    assert "80 % / -" in text(server_table(Summary(scenario="s", seed=3, policies=(one,))))
