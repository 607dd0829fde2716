"""More load than the fleet can answer: who is answered, who is refused, and how soon."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgewise.domain import Decision, Outcome, ShedReason, Status
from edgewise.fleet.admission import HALF, LEAST_SPAN
from edgewise.fleet.tracker import Tracker
from edgewise.policies import Policy, PolicySpec, policy
from edgewise.policies import make as make_policy
from edgewise.scenario import Scenario, loads
from edgewise.testing import LiveFleet, run_simulated, run_virtual
from edgewise.worlds.workload import generate
from fleet_case import NOW, queue, report, request, tracker, two_servers

TWO_MODELS = """
name: two-models
executor: replay
report_period: 0.1
service_noise: {cv: 0.1}
servers:
  a: {workers: 1, services: [{model: only, accuracy: 0.8, latency: [0.06]}, {model: other, accuracy: 0.7, latency: [0.04]}]}
  b: {workers: 1, services: [{model: only, accuracy: 0.8, latency: [0.06]}]}
network:
  access: {rate_mbps: 200, delay: 0.002}
  links: {a: {rate_mbps: 100, delay: 0.002}, b: {rate_mbps: 100, delay: 0.002}}
workload:
  duration: 4
  arrivals: {kind: poisson, rate: 100}
  ingress: {a: 1, b: 1}
  demands: [{deadline: 0.4}]
  payload: {kind: lognormal, median_bytes: 10000}
"""  # noqa: E501
CAPACITY = 2 / 0.06
"""requests/s of the model ``only``."""


def overload(scenario: Scenario, named: str | None) -> dict[str, Outcome]:
    """Play a scenario's trace through the live code."""
    trace = generate(scenario, None)
    trace = msgspec.structs.replace(trace, time=trace.time + 1.5)

    async def run() -> dict[str, Outcome]:
        fleet = LiveFleet(scenario, trace, scenario.policy)
        fleet.client._load = msgspec.structs.replace(fleet.client._load, named_model=named)
        await fleet.run()
        return dict(fleet.transcript().outcomes)

    return run_virtual(run())


@pytest.mark.parametrize("named", [None, "only"], ids=["by task", "by model"])
def test_at_three_times_the_capacity_the_capacity_is_answered_in_time(named: str | None) -> None:
    outcomes = overload(loads(TWO_MODELS), named).values()
    in_time = [each for each in outcomes if each.status is Status.SERVED and each.latency < 0.4]  # type: ignore[operator]
    shed = [each for each in outcomes if each.status is Status.SHED]
    assert len(in_time) >= 0.9 * 4 * CAPACITY
    if named is not None:
        assert {each.model for each in in_time} == {named}
    assert len(in_time) + len(shed) >= 0.9 * len(outcomes)
    assert np.percentile([each.latency for each in shed], 99) <= 0.1  # type: ignore[arg-type]


# -- naming a model --------------------------------------------------------------------------------


def test_rows_of_other_models_than_the_named_one_are_masked() -> None:
    fleet = tracker()
    assert fleet.observe(request(), NOW).mask.tolist() == [1, 0, 1, 0, 1, 1, 1]
    assert fleet.observe(request(named_model="large"), NOW).mask.tolist() == [0, 0, 1, 0, 1, 1, 1]
    assert fleet.observe(request(named_model="none"), NOW).mask.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert fleet.observe(request(), NOW).mask.tolist() == [1, 0, 1, 0, 1, 1, 1]


def test_a_large_fleet_is_searched_for_the_named_model() -> None:
    """Otherwise the sample of servers may have none that runs it."""
    servers = {
        f"s{n:02}": {
            "workers": 1,
            "services": [{"model": f"m{n}", "accuracy": 0.5, "latency": [0.01]}],
        }
        for n in range(40)
    }
    text = TWO_MODELS[: TWO_MODELS.index("servers:")] + "servers: {}\n"
    scenario = loads(
        text.replace("servers: {}", f"servers: {msgspec.json.encode(servers).decode()}")
        + """
workload:
  duration: 1
  arrivals: {kind: constant, rate: 10}
  ingress: {s00: 1}
  demands: [{share: 1, deadline: [1, 1], accuracy: 0}]
"""
    )
    fleet = Tracker(scenario)
    for name in fleet.servers:
        fleet.connect(name, NOW)
    for n in range(40):
        named = request(ingress="s00", named_model=f"m{n}")
        rows = np.flatnonzero(fleet.observe(named, NOW).mask[:-1])
        assert set(rows // 2) == {n}
    assert fleet.observe(request(ingress="s00"), NOW).mask[:-1:2].sum() == 16


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"accuracy": 0.95}, ShedReason.NO_SERVICE),
        ({"accuracy": 0.8, "named_model": "small"}, ShedReason.NO_SERVICE),
        ({"named_model": "none"}, ShedReason.NO_SERVICE),
        ({"named_model": "small"}, ShedReason.NONE_UP),
        ({}, ShedReason.NONE_UP),
    ],
)
def test_why_nobody_can_answer(fields: dict[str, object], reason: ShedReason) -> None:
    fleet = tracker()
    for server in fleet.servers:
        fleet.disconnect(server)
    seen = fleet.observe(request(**fields), NOW)
    assert make_policy("edgewise").decide(seen).reason is reason


# -- when to try again -----------------------------------------------------------------------------


def test_retry_after_is_the_work_that_waits_where_it_could_run() -> None:
    fleet = tracker()
    fleet.on_report(report("a", queue=queue(*[(0.5, 0.3)] * 10)), NOW)
    fleet.on_report(report("b", queue=queue(*[(0.5, 0.4)] * 10)), NOW)
    priced = make_policy("priced_greedy")
    for demand, expected in ((0.0, 2.0), (0.95, None)):
        what = request(accuracy=demand, deadline=0.1)
        seen = fleet.observe(what, NOW)
        command = fleet.commit(what, priced.decide(seen), seen)
        assert command.server is None
        assert command.retry_after == (None if expected is None else pytest.approx(expected))


def test_a_scenario_of_two_servers_has_the_models_named_here() -> None:
    assert {each.model for s in two_servers().servers.values() for each in s.services} == {  # type: ignore[union-attr]
        "small",
        "large",
    }


# -- nothing is shed that an otherwise idle fleet can answer in time -------------------------------


@policy(compiled=False)
def refuses(table, params, memory, rng):  # type: ignore[no-untyped-def]
    """Prefers to shed everything; of the rows it likes the accurate ones best."""
    table.scores[:-1] = table.rows.accuracy[:-1] - 2.0
    table.scores[-1] = 0.0


def decided(fleet: Tracker, spec: PolicySpec = refuses, **fields: object) -> Decision:
    what = request(**{"deadline": 0.5, **fields})
    seen = fleet.observe(what, NOW, NOW)
    made = Policy("test", spec).decide(seen, fleet.keep_if_idle)
    if made.ranked:
        fleet.commit(what, made, seen)
    return made


def idle_fleet() -> Tracker:
    fleet = tracker()
    for server in "ab":
        fleet.on_report(report(server), NOW)
    return fleet


def test_an_idle_fleet_takes_what_a_policy_would_shed() -> None:
    """By the row that the policy likes best among those in time."""
    fleet = idle_fleet()
    made = decided(fleet)
    assert (made.ranked[0].server, made.ranked[0].model) == ("a", "large")
    assert made.overruled
    assert made.reason is None
    made = decided(idle_fleet(), deadline=0.04)
    assert [each.model for each in made.ranked] == ["small"], "the only one in time"
    assert decided(idle_fleet(), deadline=0.01).reason is ShedReason.PRICE, "none is in time"


def test_a_decision_that_sheds_nothing_is_not_touched() -> None:
    fleet = idle_fleet()
    for name in ("edgewise", "earliest_completion"):
        seen = fleet.observe(request(), NOW, NOW)
        chosen = make_policy(name)
        made = chosen.decide(seen, fleet.keep_if_idle)
        assert not made.overruled
        assert made == make_policy(name).decide(seen)


def test_rows_that_a_policy_never_chooses_stay_excluded() -> None:
    @policy(compiled=False)
    def small_or_nothing(table, params, memory, rng):  # type: ignore[no-untyped-def]
        table.scores[:-1] = -np.inf
        table.scores[0] = -1.0
        table.scores[-1] = 0.0

    assert [each.model for each in decided(idle_fleet(), small_or_nothing).ranked] == ["small"]

    @policy(compiled=False)
    def nothing(table, params, memory, rng):  # type: ignore[no-untyped-def]
        table.scores[:-1] = -np.inf
        table.scores[-1] = 0.0

    assert decided(idle_fleet(), nothing).reason is ShedReason.PRICE


def test_a_burst_is_let_in_and_a_load_above_half_is_not() -> None:
    """``large`` takes 50 ms on `a`; the mean of the fleet's services is 110 / 3 ms."""
    fleet = idle_fleet()
    fleet.disconnect("b")
    taken = 0
    for n in range(100):
        what = request(f"r{n}", deadline=60.0, accuracy=0.8)
        seen = fleet.observe(what, NOW, NOW)
        made = Policy("test", refuses).decide(seen, fleet.keep_if_idle)
        if not made.ranked:
            break
        fleet.commit(what, made, seen)
        taken += 1
    assert taken == int(LEAST_SPAN * 0.11 / 3 / 0.05) == 23
    for later in (NOW + 0.05, NOW + 0.05 / HALF):  # half of the capacity drains away
        seen = fleet.observe(
            request("later", sent_at=later, deadline=60.0, accuracy=0.8), later, later
        )
        kept = Policy("test", refuses).decide(seen, fleet.keep_if_idle)
        assert bool(kept.ranked) is (later > NOW + 0.06)


def test_what_is_shed_counts_as_load() -> None:
    """With the least work that it would have taken: 20 ms."""
    fleet = idle_fleet()
    sheds = make_policy("local")
    for n in range(100):
        what = request(f"r{n}", ingress="b", accuracy=0.0)
        seen = fleet.observe(what, NOW, NOW)
        made = msgspec.structs.replace(
            sheds.decide(seen), ranked=(), rows=(6,), reason=ShedReason.PRICE
        )
        fleet.commit(what, made, seen)
    assert fleet.belief.lately[0] == pytest.approx(100 * 0.02)
    assert decided(fleet).reason is ShedReason.PRICE


@pytest.mark.parametrize(
    ("due", "work", "taken"), [(1.0, 0.08, True), (1.0, 0.1, False), (0.5, 0.08, False)]
)
def test_a_fleet_on_which_somebody_waits_is_not_idle(due: float, work: float, taken: bool) -> None:
    """It will be done within a tenth of the time that it has left, or not; on another server."""
    fleet = idle_fleet()
    fleet.on_report(report("b", running=(0.01, 1.0), queue=queue((due, work))), NOW)
    assert bool(decided(fleet).ranked) is taken


def test_a_link_that_carries_something_is_not_idle() -> None:
    fleet = idle_fleet()
    fleet.on_report(report("a", running=(1.0,)), NOW)  # nothing runs here in time
    assert decided(fleet).ranked[0].server == "b"
    assert decided(fleet, id="r2").reason is ShedReason.PRICE, "the first is on the link"


ONE_NODE = """
name: one-node
executor: replay
report_period: 0.1
service_noise: {cv: 0.05}
servers:
  a: {workers: 1, services: [{model: only, accuracy: 0.8, latency: [0.06]}]}
network: {access: {rate_mbps: 200, delay: 0.002}}
workload:
  duration: 8
  arrivals: {kind: poisson, rate: 2}
  ingress: {a: 1}
  demands: [{deadline: 10}]
  payload: {kind: lognormal, median_bytes: 10000}
"""


@pytest.mark.parametrize("name", ["edgewise", "priced_greedy"])
def test_sixteen_at_once_with_ten_seconds_each_are_all_answered(name: str) -> None:
    """One node of 60 ms a request, otherwise idle; in both worlds."""
    scenario = msgspec.structs.replace(loads(ONE_NODE), policy=name)
    trace = generate(scenario, None)
    trace = msgspec.structs.replace(
        trace, **{each: getattr(trace, each)[:16] for each in trace.__struct_fields__}
    )
    trace = msgspec.structs.replace(trace, time=np.full(16, 1.5))

    async def run() -> dict[str, Outcome]:
        fleet = LiveFleet(scenario, trace, name)
        await fleet.run()
        return dict(fleet.transcript().outcomes)

    for outcomes in (run_virtual(run()), run_simulated(scenario, trace, name).outcomes):
        assert len(outcomes) == 16
        for outcome in outcomes.values():
            assert outcome.status is Status.SERVED
            assert outcome.latency is not None
            assert outcome.latency < 10.0


@pytest.mark.parametrize("name", ["edgewise", "priced_greedy"])
@pytest.mark.parametrize("k", [0.1, 1.0, 30.0])
def test_requests_that_are_alone_are_never_shed_whatever_the_times(name: str, k: float) -> None:
    """A deadline of 2.5 service times, one request at a time; every time multiplied by k."""
    text = ONE_NODE.replace("deadline: 10", f"deadline: {0.15 * k}")
    text = text.replace("[0.06]", f"[{0.06 * k}]").replace("delay: 0.002", f"delay: {0.002 * k}")
    text = text.replace("rate_mbps: 200", f"rate_mbps: {200 / k}")
    text = text.replace("report_period: 0.1", f"report_period: {0.1 * k}")
    text = text.replace("duration: 8", f"duration: {12 * k}").replace("rate: 2", f"rate: {5 / k}")
    text = text.replace("kind: poisson", "kind: constant")
    scenario = loads(text)
    outcomes = run_simulated(scenario, generate(scenario, None), name).outcomes.values()
    assert len(outcomes) >= 60
    assert {each.status for each in outcomes} == {Status.SERVED}
