"""Simulator and live code decide and time one trace alike; controls that must be noticed."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from edgewise import scenario as sc
from edgewise.domain import PayloadForm, Report, Status
from edgewise.fleet.arrays import EJECTED
from edgewise.live.node.local_runner import LocalRunner
from edgewise.live.wire.round_trips import LeastRtt
from edgewise.network.capacity import constant
from edgewise.network.settings import LinkSettings, Outage
from edgewise.policies import find
from edgewise.scenario import Scenario, loads
from edgewise.sim import engine
from edgewise.sim.build import simulation
from edgewise.sim.layout import DONE
from edgewise.sim.play import new_rngs, play
from edgewise.tasks.services import services_of
from edgewise.testing import (
    Deadlock,
    Disturbance,
    SharedLink,
    Transcript,
    differences,
    run_live,
    run_simulated,
    run_virtual,
    sleep_until,
)
from edgewise.worlds.workload import Trace, generate

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
  access: {rate_mbps: 50, delay: 0.004}
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
LEAD = 1.5
"""s before the first request: every node has reported, in both worlds."""
CONTROLLED = "edgewise"
"""A policy that reads every column, so that an error in any of them shows."""


@functools.cache
def world(cv: float, state: str = "measured") -> tuple[Scenario, Trace]:
    scenario = loads(SCENARIO.replace("network_state: measured", f"network_state: {state}"))
    noise = msgspec.structs.replace(scenario.service_noise, cv=cv)
    scenario = msgspec.structs.replace(scenario, service_noise=noise)
    trace = generate(scenario, None)
    return scenario, msgspec.structs.replace(trace, time=trace.time + LEAD)


@functools.cache
def simulated_run(policy: str, cv: float, state: str = "measured") -> Transcript:
    return run_simulated(*world(cv, state), policy)


def report_of(one: Transcript, other: Transcript) -> str:
    return "\n".join(map(str, differences(one, other)[:20]))


@pytest.mark.parametrize("state", ["measured", "emulator"])
@pytest.mark.parametrize("cv", [0.0, 0.2])
@pytest.mark.parametrize(
    "policy", ["earliest_completion", "round_robin", "priced_greedy", "edgewise"]
)
def test_same_decisions_and_outcomes(policy: str, cv: float, state: str) -> None:
    simulated = simulated_run(policy, cv, state)
    live = run_live(*world(cv, state), policy)
    assert not report_of(simulated, live)
    assert len(live.decisions) == len(live.outcomes) == len(world(cv, state)[1]) > 50


def test_a_randomised_policy_draws_the_same_numbers() -> None:
    simulated = simulated_run("random", 0.2)
    assert not report_of(simulated, run_live(*world(0.2), "random"))
    assert len({each.row for each in simulated.decisions}) > 5


def test_scenario_is_not_trivial() -> None:
    served = [
        each
        for each in simulated_run(CONTROLLED, 0.2).outcomes.values()
        if each.status is Status.SERVED
    ]
    assert {each.server for each in served} == {"plaza", "depot", "campus"}
    assert {each.form for each in served} == {PayloadForm.ORIGINAL, PayloadForm.MODEL_READY}
    waited = [
        each
        for each in served
        if (each.stamps.started or 0.0) - (each.stamps.transferred or 0.0) > 1e-3
    ]
    assert len(waited) > 5
    spread = simulated_run("round_robin", 0.2).outcomes.values()
    assert any(each.status is Status.EXPIRED for each in spread)


def test_live_twice_is_the_same() -> None:
    first, second = (run_live(*world(0.2), CONTROLLED) for _ in range(2))
    assert first.outcomes == second.outcomes
    assert not differences(first, second, tolerance=0.0)


# -- changes while the trace is played ------------------------------------------------------


def over(scenario: Scenario, **changes: object) -> Scenario:
    """A scenario with another network."""
    network = msgspec.structs.replace(scenario.network, **changes)
    return msgspec.structs.replace(scenario, network=network)


def traces(scenario: Scenario) -> Scenario:
    plaza = sc.LinkSettings(trace=sc.CellularTrace(mean_mbps=12.0), delay=0.008)
    campus = sc.LinkSettings(trace=sc.WifiTrace(mean_mbps=8.0), delay=0.010)
    return over(scenario, links={**scenario.network.links, "plaza": plaza, "campus": campus})


def outages(scenario: Scenario) -> Scenario:
    times = (sc.Outage(at=2.0, duration=0.3), sc.Outage(at=3.0, duration=0.15))
    plaza = msgspec.structs.replace(scenario.network.links["plaza"], outages=times)
    times = (sc.Outage(at=2.5, duration=0.2),)
    depot = msgspec.structs.replace(scenario.network.access, outages=times)
    links = {**scenario.network.links, "plaza": plaza}
    return over(scenario, links=links, access_links={"depot": depot})


def rates(scenario: Scenario) -> Scenario:
    """Changes of rates only: the live least round trip is slow to notice another delay."""
    events = (
        sc.LinkEvent(at=2.0, link="plaza", set=sc.LinkChange(rate_mbps=3.0)),
        sc.LinkEvent(at=2.6, link="access:plaza", set=sc.LinkChange(rate_mbps=20.0)),
        # Here 27 kB are across before their first byte is in.
        sc.LinkEvent(at=3.2, link="plaza", set=sc.LinkChange(rate_mbps=30.0)),
    )
    return over(scenario, events=events)


def slow(scenario: Scenario) -> Scenario:
    """Without conversions: a live node expects them to take their running mean, which follows slow
    spells; a simulated one expects the time without slow spells."""
    spell = sc.Spell(rate=0.6, duration=0.6, factor=(1.5, 4.0))
    return msgspec.structs.replace(
        scenario,
        prepare=sc.Prepare(enabled=False),
        service_noise=msgspec.structs.replace(scenario.service_noise, spell=spell),
        failures=(sc.SlowFailure(at=2.2, server="depot", duration=0.8, factor=3.0),),
    )


def stuck(scenario: Scenario) -> Scenario:
    """Peers so slow that they are given up while they run a request."""
    depot = sc.SlowFailure(at=1.8, server="depot", duration=2.0, factor=12.0)
    campus = sc.SlowFailure(at=2.2, server="campus", duration=0.8, factor=8.0)
    scenario = msgspec.structs.replace(scenario, failures=(depot, campus))
    return msgspec.structs.replace(scenario, prepare=sc.Prepare(enabled=False))


def full(scenario: Scenario) -> Scenario:
    """Room for two: slow servers turn requests away."""
    depot = sc.SlowFailure(at=1.8, server="depot", duration=1.0, factor=6.0)
    campus = sc.SlowFailure(at=2.2, server="campus", duration=0.8, factor=5.0)
    servers = {
        name: msgspec.structs.replace(server, queue_limit=2)
        for name, server in scenario.servers.items()
    }
    scenario = msgspec.structs.replace(scenario, servers=servers, failures=(depot, campus))
    return msgspec.structs.replace(scenario, prepare=sc.Prepare(enabled=False))


QUICK_EJECTION = sc.EjectionSpec(timeout=4.0, slow_start=8.0)
"""Times short enough for a trace of 3 s."""


def dead(scenario: Scenario) -> Scenario:
    """An uplink that is out long enough for its paths to be ejected, and back in time for them to
    be probed and used again."""
    out = (sc.Outage(at=2.0, duration=1.0),)
    plaza = msgspec.structs.replace(scenario.network.links["plaza"], outages=out)
    scenario = over(scenario, links={**scenario.network.links, "plaza": plaza})
    return msgspec.structs.replace(scenario, ejection=QUICK_EJECTION)


def failing(scenario: Scenario) -> Scenario:
    """A server that answers errors at once, for a while."""
    errors = sc.ErrorsFailure(at=2.0, server="depot", duration=1.0)
    wrong = sc.WrongFailure(at=3.5, server="campus", duration=0.5)
    return msgspec.structs.replace(scenario, failures=(errors, wrong), ejection=QUICK_EJECTION)


CHANGES = (traces, outages, rates, slow, stuck, full, dead, failing)


async def no_check(runner: LocalRunner) -> None:
    pass


@functools.cache
def changed(change: Callable[[Scenario], Scenario], policy: str, state: str) -> Transcript:
    scenario, trace = world(0.2, state)
    return run_simulated(change(scenario), trace, policy)


@pytest.mark.parametrize(
    ("policy", "state"),
    [
        ("round_robin", "measured"),
        ("priced_greedy", "measured"),
        ("priced_greedy", "emulator"),
        ("edgewise", "measured"),
    ],
)
@pytest.mark.parametrize("change", CHANGES)
def test_same_run_when_the_world_changes(
    change: Callable[[Scenario], Scenario],
    policy: str,
    state: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A node whose executor has failed tries it with a sample; the simulated one does not.
    monkeypatch.setattr(LocalRunner, "check", no_check)
    scenario, trace = world(0.2, state)
    live = run_live(change(scenario), trace, policy)
    assert not report_of(changed(change, policy, state), live)


@pytest.mark.parametrize("change", [dead, failing])
@pytest.mark.parametrize("policy", ["round_robin", "priced_greedy", "edgewise"])
def test_servers_and_paths_are_ejected_and_come_back(
    change: Callable[[Scenario], Scenario], policy: str
) -> None:
    scenario, trace = world(0.2)
    targets = play(simulation(change(scenario), trace), find(policy), 1).beliefs.targets[0]
    kinds = targets["count"][-1] if change is failing else targets["count"][:-1]
    assert kinds.sum() >= 1
    assert not (targets["state"] == EJECTED).any()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_one_world_alone_is_noticed(change: Callable[[Scenario], Scenario]) -> None:
    scenario, trace = world(0.2)
    originals = change in (slow, stuck, full)
    if originals:
        scenario = msgspec.structs.replace(scenario, prepare=sc.Prepare(enabled=False))
    found = differences(
        changed(change, CONTROLLED, "measured"), run_live(scenario, trace, CONTROLLED)
    )
    wanted = {"finished"} if originals or change is failing else {"transferred", "uploaded"}
    assert wanted & {each.what for each in found}


def test_full_queues_turn_requests_away() -> None:
    scenario, _ = world(0.2)
    servers = [service.server for service in services_of(scenario)]
    run = changed(full, "round_robin", "measured")
    moved = 0
    for each in run.decisions:
        ended = run.outcomes[each.request]
        if each.row < 2 * len(servers) and ended.status is Status.SERVED:
            moved += ended.server != servers[each.row // 2]
    assert moved > 3


def test_peers_are_given_up_while_they_run() -> None:
    scenario, trace = world(0.2)
    sim = simulation(stuck(scenario), trace)
    spec = find("round_robin")
    kernel = engine.compiled(spec.kernel)
    memory = spec.new_memory(len(scenario.servers))[None].copy()
    numbers, draws = np.array(spec.params, float), new_rngs(scenario.seed, 1)
    seen = set()
    while engine.run(sim, kernel, numbers, memory, draws, 1) == 1:
        slots = sim.world.slots[sim.world.workers["slot"][sim.world.workers["slot"] >= 0]]
        seen |= set(slots["request"][slots["stage"] == DONE].tolist())
    assert len(seen) > 3


def test_what_is_not_supported_is_refused() -> None:
    scenario, trace = world(0.2)
    later = sc.LinkEvent(at=2.0, link="plaza", set=sc.LinkChange(delay=0.02))
    with pytest.raises(ValueError, match="rate alone"):
        run_live(over(scenario, events=(later,)), trace, CONTROLLED)
    down = sc.DownFailure(at=2.0, server="depot", duration=1.0)
    scenario = msgspec.structs.replace(scenario, failures=(down,))
    with pytest.raises(ValueError, match="slow, errors and wrong ones only"):
        run_live(scenario, trace, CONTROLLED)


# -- negative controls: each must be noticed -----------------------------------------------------


def lose(server: str, number: int) -> Callable[[Report], Report | None]:
    """Lose a server's report with this number."""
    left = number

    def report(report: Report) -> Report | None:
        nonlocal left
        left -= report.server == server
        return None if left == 0 and report.server == server else report

    return report


def in_milliseconds(report: Report) -> Report:
    """The remaining time of running work in the wrong unit."""
    return msgspec.structs.replace(report, running=tuple(1e3 * left for left in report.running))


@pytest.mark.parametrize(
    ("disturbance", "noticed"),
    [
        pytest.param(
            Disturbance(extra_delay={"uplink:plaza": 0.001}), "transferred", id="link-1-ms-slower"
        ),
        pytest.param(
            Disturbance(on_report=lose("depot", 25)), "feature report_age", id="lost-report"
        ),
        pytest.param(Disturbance(on_report=in_milliseconds), "feature wait", id="feature-in-ms"),
        pytest.param(Disturbance(emulate=False), "uploaded", id="emulator-off"),
    ],
)
def test_a_disturbance_is_noticed(disturbance: Disturbance, noticed: str) -> None:
    live = run_live(*world(0.2), CONTROLLED, disturbance)
    found = differences(simulated_run(CONTROLLED, 0.2), live)
    assert any(each.what.startswith(noticed) for each in found), found[:20]


def test_other_service_times_are_noticed() -> None:
    found = differences(simulated_run(CONTROLLED, 0.2), run_live(*world(0.0), CONTROLLED))
    assert any(each.what == "finished" for each in found)


def test_a_client_that_ignores_its_own_delay_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Ignorant(LeastRtt):
        def there(self, now: float) -> float:
            return now

    for module in ("client", "balancer_client"):
        monkeypatch.setattr(f"edgewise.live.client.{module}.LeastRtt", Ignorant)
    found = differences(simulated_run(CONTROLLED, 0.2), run_live(*world(0.2), CONTROLLED))
    assert any(each.what == "row" for each in found), found[:20]


# -- the parts -----------------------------------------------------------------------------------


def test_time_jumps_exactly_to_the_next_timer() -> None:
    seen = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        for when in (0.1, 0.1 + 1e-10, 1e9):
            await sleep_until(when)
            seen.append(loop.time())

    begun = time.process_time()
    run_virtual(work())
    assert seen == [0.1, 0.1 + 1e-10, 1e9]
    assert time.process_time() - begun < 5.0  # of CPU: nobody waited for 32 years


def test_timers_due_at_the_same_time_fire_in_the_order_set() -> None:
    seen: list[int] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        for number in range(50):
            loop.call_at(2.0 if number % 3 else 1.0, seen.append, number)
        await sleep_until(3.0)

    run_virtual(work())
    assert seen == sorted(range(50), key=lambda number: (number % 3 > 0, number))


def test_a_deadlock_is_raised() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run_virtual(work())


def test_flows_share_equally_and_a_cancelled_one_frees_its_share() -> None:
    done: dict[str, float] = {}

    async def work() -> None:
        loop = asyncio.get_running_loop()
        link = SharedLink(
            LinkSettings(rate_mbps=8, outages=(Outage(at=3.0, duration=1.0),)), origin=0.0
        )

        async def send(name: str, size: float, at: float) -> None:
            await sleep_until(at)
            await link.transmit(size)
            done[name] = loop.time()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send("long", 2.5e6, 0.0))
            tasks.create_task(send("short", 0.5e6, 0.0))
            gone = tasks.create_task(send("gone", 9e6, 1.0))
            await sleep_until(2.0)
            assert link.backlog(2.0) == pytest.approx(1.5e6 + 8.5e6)
            gone.cancel()

    run_virtual(work())
    # 1 MB/s: half each until 1 s, then half with the one that goes at 2 s, the rest alone, and
    # nothing in the outage from 3 to 4 s.
    assert done == pytest.approx({"short": 1.0, "long": 4.5})


def test_a_change_of_rate_affects_the_bytes_left() -> None:
    done: dict[str, float] = {}

    async def work() -> None:
        link = SharedLink(LinkSettings(rate_mbps=8), origin=0.0)

        async def send(name: str, size: float) -> None:
            done[name] = await link.transmit(size)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send("long", 2e6))
            tasks.create_task(send("short", 1e6))
            await sleep_until(1.0)
            link.change(constant(2e6))
            await sleep_until(2.0)
            link.change(constant(None))

    run_virtual(work())
    # By 1 s each has sent 0.5 MB, by 2 s 0.625 MB; then nothing takes any time.
    assert done == pytest.approx({"short": 2.0, "long": 2.0})
