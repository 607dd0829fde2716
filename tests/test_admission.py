"""More load than the fleet can answer: who is answered, who is refused, and how soon."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgewise.domain import Outcome, ShedReason, Status
from edgewise.fleet.tracker import Tracker
from edgewise.live.node.node import Node
from edgewise.policies import make as make_policy
from edgewise.scenario import Scenario, loads
from edgewise.testing import LiveFleet, run_virtual
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


def overload(scenario: Scenario, named: str | None, alone: bool) -> dict[str, Outcome]:
    """Play a scenario's trace through the live code; `alone`: no balancer is there."""
    trace = generate(scenario, None)
    trace = msgspec.structs.replace(trace, time=trace.time + 1.5)

    def make_node(config, scenario, clock, transport):  # type: ignore[no-untyped-def]
        config = msgspec.structs.replace(config, balancer=None) if alone else config
        return Node(config, scenario, clock, transport=transport)

    async def run() -> dict[str, Outcome]:
        fleet = LiveFleet(scenario, trace, scenario.policy, make_node=make_node)
        fleet.client._load = msgspec.structs.replace(fleet.client._load, named_model=named)
        await fleet.run()
        return dict(fleet.transcript().outcomes)

    return run_virtual(run())


@pytest.mark.parametrize(
    ("policy", "named", "alone"),
    [
        ("edgewise", None, False),
        ("edgewise", "only", False),
        ("priced_greedy", "only", True),
    ],
    ids=["by task", "by model", "local deciders"],
)
def test_at_three_times_the_capacity_the_capacity_is_answered_in_time(
    policy: str, named: str | None, alone: bool
) -> None:
    scenario = msgspec.structs.replace(loads(TWO_MODELS), policy=policy)
    outcomes = overload(scenario, named, alone).values()
    in_time = [each for each in outcomes if each.status is Status.SERVED and each.latency < 0.4]  # type: ignore[operator]
    shed = [each for each in outcomes if each.status is Status.SHED]
    assert len(in_time) >= 0.9 * 4 * CAPACITY
    if named is not None:
        assert {each.model for each in in_time} == {named}
    assert len(in_time) + len(shed) >= 0.97 * len(outcomes)
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
    policy = make_policy("priced_greedy")
    for demand, expected in ((0.0, 2.0), (0.95, None)):
        what = request(accuracy=demand, deadline=0.1)
        seen = fleet.observe(what, NOW)
        command = fleet.commit(what, policy.decide(seen), seen)
        assert command.server is None
        assert command.retry_after == (None if expected is None else pytest.approx(expected))


def test_a_scenario_of_two_servers_has_the_models_named_here() -> None:
    assert {each.model for s in two_servers().servers.values() for each in s.services} == {  # type: ignore[union-attr]
        "small",
        "large",
    }
