"""One trace through the simulator and through the live code on virtual time: the same story."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable

import msgspec
import pytest

from edgewise.domain import Form, Report, Status
from edgewise.network.capacity import constant
from edgewise.network.link import LinkSettings
from edgewise.parity import live, simulated
from edgewise.parity.clock import Idle, VirtualLoop, until
from edgewise.parity.links import Fluid
from edgewise.parity.live import Meddling
from edgewise.parity.story import Story, differences
from edgewise.scenario import Scenario, loads
from edgewise.workload import Trace, generate

# The access links have no delay: a server that a client is 4 ms away from takes a request for 4 ms
# younger than it is, for it counts the budget from the arrival of the headers; the simulator knows.
SCENARIO = """
name: parity
about: Three unequal servers behind thin uplinks, the busiest place with the smallest.
executor: replay
report_period: 0.1
network_state: measured
servers:
  plaza: {workers: 1, speed: 0.4, services: [lite0-160, lite1]}
  depot: {workers: 2, speed: 1.0, services: [lite0-96, lite0-224, lite2]}
  campus: {workers: 1, speed: 0.6, services: [lite0-128, squeezenet, lite0-192, lite1]}
network:
  access: {rate_mbps: 50, delay: 0.0}
  links:
    plaza: {rate_mbps: 12, delay: 0.008}
    depot: {rate_mbps: 12, delay: 0.005}
    campus: {rate_mbps: 8, delay: 0.010}
workload:
  duration: 3
  arrivals: {kind: poisson, rate: 30}
  ingress: {plaza: 5, depot: 1, campus: 2}
  demands:
    - {share: 2, deadline: [0.2, 0.4], accuracy: 0.6}
    - {share: 4, deadline: [0.3, 0.6], accuracy: 0.70}
    - {share: 4, deadline: [0.5, 1.0], accuracy: 0.75}
  payload: {kind: lognormal, median_bytes: 90000}
"""
SETTLED = 1.5
"""s before the first request: every node has been heard, in both worlds."""
CONTROLLED = "priced_greedy"
"""Reads all there is, so that whatever is wrong anywhere can show."""


@functools.cache
def world(cv: float, state: str = "measured") -> tuple[Scenario, Trace]:
    scenario = loads(SCENARIO.replace("network_state: measured", f"network_state: {state}"))
    noise = msgspec.structs.replace(scenario.service_noise, cv=cv)
    scenario = msgspec.structs.replace(scenario, service_noise=noise)
    trace = generate(scenario, None)
    return scenario, msgspec.structs.replace(trace, time=trace.time + SETTLED)


@functools.cache
def simulation(policy: str, cv: float, state: str = "measured") -> Story:
    return simulated.play(*world(cv, state), policy)


def told(one: Story, other: Story) -> str:
    return "\n".join(map(str, differences(one, other)[:20]))


@pytest.mark.parametrize("state", ["measured", "emulator"])
@pytest.mark.parametrize("cv", [0.0, 0.2])
@pytest.mark.parametrize(
    "policy", ["earliest_completion", "round_robin", "priced_greedy", "edgewise"]
)
def test_same_story(policy: str, cv: float, state: str) -> None:
    ours = simulation(policy, cv, state)
    theirs = live.play(*world(cv, state), policy)
    assert not told(ours, theirs)
    assert len(theirs.decisions) == len(theirs.outcomes) == len(world(cv, state)[1]) > 50


def test_scenario_is_not_trivial() -> None:
    served = [
        each
        for each in simulation(CONTROLLED, 0.2).outcomes.values()
        if each.status is Status.SERVED
    ]
    assert {each.server for each in served} == {"plaza", "depot", "campus"}
    assert {each.form for each in served} == {Form.ORIGINAL, Form.MODEL_READY}
    waited = [
        each
        for each in served
        if (each.stamps.started or 0.0) - (each.stamps.transferred or 0.0) > 1e-3
    ]
    assert len(waited) > 5
    spread = simulation("round_robin", 0.2).outcomes.values()
    assert any(each.status is Status.EXPIRED for each in spread)


def test_live_twice_is_the_same() -> None:
    first, second = (live.play(*world(0.2), CONTROLLED) for _ in range(2))
    assert first.outcomes == second.outcomes
    assert not differences(first, second, tolerance=0.0)


# -- negative controls: each must be noticed -----------------------------------------------------


def lose(server: str, number: int) -> Callable[[Report], Report | None]:
    """Loses that report of a server."""
    left = number

    def report(report: Report) -> Report | None:
        nonlocal left
        left -= report.server == server
        return None if left == 0 and report.server == server else report

    return report


def in_milliseconds(report: Report) -> Report:
    """What is left of running work, in the wrong unit."""
    return msgspec.structs.replace(report, running=tuple(1e3 * left for left in report.running))


@pytest.mark.parametrize(
    ("meddling", "noticed"),
    [
        pytest.param(
            Meddling(slower={"uplink:plaza": 0.001}), "transferred", id="link-1-ms-slower"
        ),
        pytest.param(Meddling(report=lose("depot", 25)), "feature report_age", id="lost-report"),
        pytest.param(Meddling(report=in_milliseconds), "feature wait", id="feature-in-ms"),
        pytest.param(Meddling(emulate=False), "uploaded", id="emulator-off"),
    ],
)
def test_meddling_is_noticed(meddling: Meddling, noticed: str) -> None:
    theirs = live.play(*world(0.2), CONTROLLED, meddling)
    found = differences(simulation(CONTROLLED, 0.2), theirs)
    assert any(each.what.startswith(noticed) for each in found), found[:20]


def test_another_luck_is_noticed() -> None:
    found = differences(simulation(CONTROLLED, 0.2), live.play(*world(0.0), CONTROLLED))
    assert any(each.what == "finished" for each in found)


# -- the parts -----------------------------------------------------------------------------------


def run(work: Callable[[], object]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work())  # type: ignore[arg-type]


def test_time_jumps_to_exactly_the_next_timer() -> None:
    seen = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        for when in (0.1, 0.1 + 1e-10, 1e9):
            await until(when)
            seen.append(loop.time())

    begun = time.process_time()
    run(work)
    assert seen == [0.1, 0.1 + 1e-10, 1e9]
    assert time.process_time() - begun < 5.0  # of CPU: nobody waited for 32 years


def test_deadlock_is_said() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Idle):
        run(work)


def test_flows_share_equally_and_a_cancelled_one_frees_its_share() -> None:
    done: dict[str, float] = {}

    async def work() -> None:
        loop = asyncio.get_running_loop()
        link = Fluid(LinkSettings(capacity=constant(8e6)), [(3.0, 4.0)], origin=0.0)

        async def send(name: str, size: float, at: float) -> None:
            await until(at)
            await link.cross(size)
            done[name] = loop.time()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send("long", 2.5e6, 0.0))
            tasks.create_task(send("short", 0.5e6, 0.0))
            gone = tasks.create_task(send("gone", 9e6, 1.0))
            await until(2.0)
            assert link.backlog(2.0) == pytest.approx(1.5e6 + 8.5e6)
            gone.cancel()

    run(work)
    # 1 MB/s: half each until 1 s, then half with the one that goes at 2 s, the rest alone, and
    # nothing in the outage from 3 to 4 s.
    assert done == pytest.approx({"short": 1.0, "long": 4.5})
