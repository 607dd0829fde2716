"""A part that fails is noticed, whatever the policy: in the simulator and in the live fleet.

Two servers: `left`, where the requests arrive, has a model that is fast and poor; `right` has one
that is slower and good, which a policy that looks at accuracy prefers.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewise.fleet.arrays import records
from edgewise.fleet.estimates import SERVICE_TIME, fade_service_time, measure_service_time
from edgewise.live.clock import Clock
from edgewise.live.node.executor import BatchItem, Executor, Result
from edgewise.live.node.node import Node
from edgewise.live.process_config import NodeConfig
from edgewise.live.wire.transport import Transport
from edgewise.policies import find
from edgewise.scenario import Scenario, loads
from edgewise.sim import layout
from edgewise.sim.build import simulation
from edgewise.sim.layout import Sim
from edgewise.sim.play import play
from edgewise.testing import run_virtual
from edgewise.testing.live_fleet import LiveFleet, make_node
from edgewise.worlds.workload import generate

TEXT = """
name: two
executor: replay
report_period: 0.1
servers:
  left: {{workers: 1, services: [{{model: small, accuracy: 0.5, latency: 0.01}}]}}
  right: {{workers: 1, services: [{{model: large, accuracy: 0.88, latency: 0.02}}]}}
network:
  links:
    left: {{rate_mbps: 20, delay: 0.005{left}}}
    right: {{rate_mbps: 20, delay: 0.005}}
workload:
  duration: {duration}
  arrivals: {{kind: poisson, rate: 10}}
  ingress: {{left: 1}}
  demands: [{{deadline: 0.4}}]
  payload: {{kind: lognormal, median_bytes: 90000}}
  lost_photos: {lost}
failures: [{failures}]
"""
LEFT, RIGHT = 0, 1
POLICIES = ("edgewise", "priced_greedy")


def two_servers(duration: float, left: str = "", failures: str = "", lost: float = 0.0) -> Scenario:
    return loads(TEXT.format(duration=duration, left=left, failures=failures, lost=lost))


class Run:
    """A simulated run."""

    def __init__(self, scenario: Scenario, policy: str) -> None:
        self.sim: Sim = play(simulation(scenario, generate(scenario, None)), find(policy), 1)
        self.results = self.sim.world.results
        self.sent = self.sim.world.requests["time"]

    def between(self, begin: float, end: float) -> Any:
        """The results of the requests sent in between."""
        return self.results[(self.sent >= begin) & (self.sent < end)]

    def utility(self, begin: float, end: float) -> float:
        return float(self.between(begin, end)["utility"].mean())

    def sent_to(self, server: int, begin: float, end: float) -> int:
        """Requests sent in between whose first choice was `server`."""
        return int((self.between(begin, end)["row"] // 2 == server).sum())


def served(results: Any) -> float:
    return float((results["status"] == layout.SERVED).mean())


# -- simulated -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [*POLICIES, "round_robin"])
def test_a_dead_uplink_is_avoided_and_used_again(policy: str) -> None:
    """From 5 to 65 s nothing can leave `left`."""
    run = Run(two_servers(80.0, left=", outages: [{at: 5, duration: 60}]"), policy)
    local = Run(two_servers(80.0), "local")
    # Six seconds of time-outs and signs of life that are not given; then as if there were no peer.
    assert run.utility(11.0, 65.0) >= 0.99 * local.utility(11.0, 65.0)
    assert run.sent_to(RIGHT, 11.0, 65.0) == 0
    assert served(run.between(11.0, 65.0)) == 1.0
    # Three signs of life, and a slow start of five seconds.
    before = run.sent_to(RIGHT, 0.0, 4.0) / 4.0
    assert run.sent_to(RIGHT, 75.0, 80.0) / 5.0 > 0.8 * before
    assert run.sent_to(RIGHT, 66.0, 72.0) > 0


def test_without_ejection_a_dead_uplink_keeps_the_requests() -> None:
    scenario = two_servers(25.0, left=", outages: [{at: 5, duration: 60}]")
    off = msgspec.structs.replace(scenario.ejection, enabled=False)
    run = Run(msgspec.structs.replace(scenario, ejection=off), "priced_greedy")
    assert run.sent_to(RIGHT, 11.0, 25.0) > 50


@pytest.mark.parametrize("policy", POLICIES)
def test_a_server_that_answers_errors_gets_probes_only(policy: str) -> None:
    run = Run(
        two_servers(60.0, failures="{kind: errors, at: 5, duration: 30, server: right}"), policy
    )
    failing = run.between(5.5, 35.0)
    assert served(failing) >= 0.97, "the ingress runs what the other fails at"
    # Three until it is ejected, then a probe after some 2, 4, 8 and 16 s.
    assert 3 <= run.sent_to(RIGHT, 5.0, 35.0) <= 8
    assert run.sent_to(RIGHT, 50.0, 60.0) > 80


@pytest.mark.parametrize("policy", POLICIES)
def test_a_server_that_takes_requests_and_hangs_is_avoided(policy: str) -> None:
    """All that it takes ends a thousand times later."""
    hangs = "{kind: slow, at: 5, duration: 200, server: right, factor: 1000}"
    run = Run(two_servers(40.0, failures=hangs), policy)
    assert run.sent_to(RIGHT, 5.0, 40.0) <= 20
    assert run.utility(10.0, 40.0) >= 0.93 * 0.5


@pytest.mark.parametrize("policy", POLICIES)
def test_a_slow_spell_is_forgiven(policy: str) -> None:
    """Ten times slower for 5 s: 33 s later it still got nothing."""
    slow = "{kind: slow, at: 10, duration: 5, server: right, factor: 10}"
    run = Run(two_servers(40.0, failures=slow), policy)
    assert run.utility(10.0, 15.0) >= 0.5, "no worse than `local`"
    assert run.sent_to(RIGHT, 20.0, 40.0) > 0.95 * len(run.between(20.0, 40.0))


PROFILE = 0.02


class ServiceTime:
    """A measured service time."""

    def __init__(self) -> None:
        self.record = records(1, np.dtype(SERVICE_TIME))[0]
        self.served = 0

    def measure(self, seconds: float, now: float) -> float:
        measure_service_time(self.record, PROFILE, seconds, self.served == 0, now)
        self.served += 1
        return float(self.record.service_time)

    def at(self, now: float) -> float:
        fade_service_time(self.record, PROFILE, now)
        return float(self.record.service_time)


def test_a_slow_time_fades_towards_the_profile() -> None:
    time = ServiceTime()
    assert time.measure(0.2, 100.0) == 0.2
    assert time.at(105.0) == pytest.approx(PROFILE * 10 ** math.exp(-1.0))
    assert time.at(110.0) == pytest.approx(PROFILE * 10 ** math.exp(-2.0)), "however often one asks"
    assert time.measure(0.02, 110.0) < 0.027
    assert time.measure(0.02, 110.1) == time.at(200.0), "it is not slow any more"


def test_a_time_within_noise_does_not_fade() -> None:
    time = ServiceTime()
    time.measure(2.4 * PROFILE, 100.0)
    assert time.at(1000.0) == 2.4 * PROFILE
    assert time.measure(1.4 * PROFILE, 1000.0) == pytest.approx(2.2 * PROFILE), "a plain mean"


def test_a_service_that_is_slow_for_good_fades_ever_more_slowly() -> None:
    time, now, waits = ServiceTime(), 0.0, []
    for _ in range(9):
        assert time.measure(0.2, now) == pytest.approx(0.2)
        begun = now
        while time.at(now) > 1.5 * PROFILE:
            now += 0.1
        waits.append(now - begun)
    growth = [after / before for before, after in itertools.pairwise(waits)]
    assert growth[:6] == pytest.approx([2.0] * 6, rel=0.05)
    assert growth[6:] == pytest.approx([1.0, 1.0], rel=0.05)


@pytest.mark.parametrize("policy", POLICIES)
def test_photos_that_never_come_cost_the_others_nothing(policy: str) -> None:
    """Two of twelve requests a second are announced and never sent."""
    run = Run(two_servers(30.0, lost=0.17), policy)
    lost = run.sim.world.requests["lost"] == 1
    honest, gone = run.results[~lost], run.results[lost]
    assert lost.sum() > 30
    assert (gone["status"] == layout.LOST).all()
    assert served(honest) == 1.0
    assert honest["utility"].mean() > 0.85
    assert run.sim.beliefs.servers["outstanding"].max() <= 2


def test_wrong_answers_are_worth_nothing() -> None:
    run = Run(
        two_servers(20.0, failures="{kind: wrong, at: 5, duration: 5, server: right}"), "local"
    )
    assert run.utility(0.0, 20.0) == pytest.approx(0.5, abs=0.01)
    run = Run(
        two_servers(20.0, failures="{kind: wrong, at: 5, duration: 5, server: left}"), "local"
    )
    assert run.utility(5.5, 9.5) == 0.0
    assert served(run.between(5.5, 9.5)) == 1.0


# -- live ----------------------------------------------------------------------------------------


class Hanging:
    """An executor that takes requests and never answers."""

    async def run(self, batch: Sequence[BatchItem]) -> list[Result]:
        await asyncio.Event().wait()
        raise AssertionError


class HangingNode(Node):
    def _executor_of(self, here: Any) -> Executor:
        return Hanging()


def hangs(config: NodeConfig, scenario: Scenario, clock: Clock, transport: Transport) -> Node:
    made = HangingNode if config.server == "right" else Node
    return made(config, scenario, clock, transport=transport)


def wrong_port(config: NodeConfig, scenario: Scenario, clock: Clock, transport: Transport) -> Node:
    if config.server == "left":
        config = msgspec.structs.replace(config, peers={"right": "http://nowhere:8101"})
    return make_node(config, scenario, clock, transport)


def live(scenario: Scenario, make: Callable[..., Node]) -> LiveFleet:
    """A fleet that has played the scenario's trace on virtual time."""
    trace = generate(scenario, None)
    trace = msgspec.structs.replace(trace, time=trace.time + 1.5)

    async def run() -> LiveFleet:
        fleet = LiveFleet(scenario, trace, "priced_greedy", make_node=make)
        await fleet.run()
        return fleet

    fleet: LiveFleet = run_virtual(run())
    return fleet


def rows_of(fleet: LiveFleet) -> list[int]:
    return [entry.decision.rows[0] // 2 for entry in fleet.dispatcher.entries]


def test_a_live_peer_that_accepts_and_hangs_is_ejected() -> None:
    fleet = live(two_servers(6.0), hangs)
    entries = fleet.dispatcher.entries
    assert rows_of(fleet)[:3] == [RIGHT] * 3
    # A missing answer is known 0.8 s after its request was sent, and three of them eject.
    known = entries[2].decision.at + 1.0
    later = [
        row for row, each in zip(rows_of(fleet), entries, strict=True) if each.decision.at > known
    ]
    assert later.count(RIGHT) <= 3, "probes"
    assert fleet.dispatcher.tracker.ejections.totals["server", "failures in a row"] == 1


def test_a_live_peer_at_a_wrong_port_is_ejected_and_named() -> None:
    fleet = live(two_servers(6.0), wrong_port)
    rows = rows_of(fleet)
    assert rows[10:].count(RIGHT) == 0, "no sign of life, no probe"
    served = [each for each in fleet.transcript().outcomes.values() if each.server == "left"]
    assert len(served) == len(rows), "nothing was lost"
    state = fleet.dispatcher.tracker.state(fleet.clock.now())
    assert state["ejected_paths"]["left>right"]["state"] == "ejected"
    assert np.all([state["servers"][name]["ejection"] is None for name in ("left", "right")])


def test_a_live_server_whose_models_fail_is_ejected() -> None:
    scenario = two_servers(8.0, failures="{kind: errors, at: 0, duration: 100, server: right}")
    fleet = live(scenario, make_node)
    rows = rows_of(fleet)
    assert 3 <= rows.count(RIGHT) <= 6
    served = [each for each in fleet.transcript().outcomes.values() if each.server == "left"]
    assert len(served) == len(rows)
