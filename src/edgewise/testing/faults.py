"""Faults of a drill, and the plan of one: a random fleet, its load, and what happens to them.

A plan is drawn from its seed alone. Each seed has a random subset of the kinds of faults, and as
many of each as chance has it: a run with few kinds gets deeper into each of them than one that has
a bit of everything (Groce et al., *Swarm Testing*, ISSTA 2012).

The fleet is calm at both ends of a run: before the first fault everything starts, and after the
last one there is some light traffic, by which the fleet has to be as it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import numpy as np
from msgspec import Struct

from edgewise.scenario import LinkSettings, NetworkSpec, Scenario, ScoreSpec, ServiceNoise
from edgewise.worlds.random_world import base
from edgewise.worlds.workload import Trace, generate

BALANCER, CLIENT, ANYBODY = "balancer", "client", "*"

KINDS = {
    "crash": "a node or the balancer is killed, or its whole machine vanishes; later it is started",
    "restart": "a node drains, ends and is started again, or the balancer stops and is",
    "pause": "a process is stopped for a while, and goes on",
    "partition": "two parties, or one and all others, do not reach each other, perhaps one way",
    "drop": "messages are lost: their connection is reset, or stays silent for ever",
    "delay": "messages are late by up to some seconds",
    "duplicate": "requests arrive twice",
    "reorder": "messages overtake each other",
    "outage": "a link carries a hundredth of what it did, or nothing",
    "slow": "a server takes 3 to 20 times as long for everything",
    "lie": "a node's reports are wrong: idle, busy, fast, old, or acknowledging what never came",
    "fail": "a server answers every transfer with an error at once",
    "hang": "a server accepts transfers (202) and never answers",
    "broken": "the models of a server fail at once, or answer wrongly",
    "version": "a node is restarted with the protocol version before this one",
    "clock": "the wall clock of a machine jumps by up to an hour",
    "disk": "the balancer's disk is full, or slow",
    "burst": "3 to 8 times as many requests for a while",
}
"""Kinds of faults and what they are."""

NONE = "none"
"""In place of a kind: there is no fault."""

START = 3.0
"""s from the start of the processes to the first request."""
RECOVERY = 15.0
"""s after the last fault by which the fleet must be as it was: a node has noticed a broken channel
(6 s) and is connected again (3 s), and every dispatch that has vanished is written off (5 s after
its answer would be worthless)."""
CALM = 4.0
"""s of light traffic after that, in which no request may fail."""
CALM_LOAD, CALM_RATE = 0.25, 15.0
"""Load of that traffic, and requests/s at most."""
REQUESTS = 500
"""Requests of a run, about."""
POLICIES = (
    "edgewise",
    "edgewise",
    "priced_greedy",
    "priced_greedy",
    "earliest_completion",
    "earliest_completion_margin",
    "round_robin",
    "ray_p2c",
    "prequal",
    "sed_admission",
    "local",
)
"""What may decide; the first are drawn more often."""


class Fault(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that goes wrong, from `at` for `duration` s."""

    kind: str
    at: float
    """s from the start of the processes."""
    duration: float = 0.0
    party: str = ANYBODY
    """The process, or one end of the paths that it concerns; `ANYBODY`: all."""
    other: str = ANYBODY
    """The other end."""
    amount: float = 0.0
    """A probability, a factor, or s."""
    way: str = ""
    """A variant of the kind."""

    @property
    def until(self) -> float:
        return self.at + self.duration

    def concerns(self, source: str, target: str) -> bool:
        """Whether it is on the path from `source` to `target`."""
        ends = (source, target)
        if self.way == "one way":
            return self.party in (source, ANYBODY) and self.other in (target, ANYBODY)
        return self.party in (*ends, ANYBODY) and (
            self.other == ANYBODY or (self.other in ends and self.party != self.other)
        )


class Plan(Struct, frozen=True, kw_only=True):
    """A run: its fleet, its requests and its faults."""

    seed: int
    scenario: Scenario
    load: float
    duration: float
    """s from the first request to the last fault."""
    faults: tuple[Fault, ...]

    @property
    def faults_end(self) -> float:
        """When the last fault is over, s from the start of the processes."""
        return max((each.until for each in self.faults), default=START)

    def facts(self) -> dict[str, object]:
        """Ready for JSON; the scenario follows from the seed."""
        return {
            "seed": self.seed,
            "policy": self.scenario.policy,
            "servers": len(self.scenario.servers),
            "load": self.load,
            "duration": self.duration,
            "faults": self.faults,
        }


def draw_plan(seed: int, requests: int = REQUESTS) -> Plan:
    """The plan of a seed, with about so many requests before the last fault."""
    rng = random.Random(f"drill {seed}")
    load = round(0.3 * (2.0 / 0.3) ** rng.random(), 2)
    scenario = _fleet(rng, seed, load)
    rate = scenario.workload.arrivals.mean_rate or 1.0
    duration = round(min(40.0, max(6.0, requests / rate)), 1)
    names = scenario.server_names
    kinds = [kind for kind in KINDS if rng.random() < 0.4] or [rng.choice(list(KINDS))]
    faults = []
    for kind in kinds:
        count = max(1, round(rng.expovariate(1.0 / (0.15 * duration))))
        for _ in range(min(count, 10)):
            at = START + rng.random() * duration
            faults.append(_FAULTS[kind](rng, names, round(at, 3)))
    ended = [
        msgspec.structs.replace(each, duration=min(each.duration, START + duration - each.at))
        for each in faults
    ]
    return Plan(
        seed=seed,
        scenario=scenario,
        load=load,
        duration=duration,
        faults=tuple(sorted(ended, key=lambda each: each.at)),
    )


def _fleet(rng: random.Random, seed: int, load: float) -> Scenario:
    world = base("drill", seed, load=load, servers=(2, 4))
    servers = {
        name: msgspec.structs.replace(each, queue_limit=rng.choice((4, 16, 64, 256)))
        for name, each in world.servers.items()
    }
    network = world.network
    if rng.random() < 0.3:
        link = LinkSettings(rate_mbps=round(rng.uniform(4.0, 40.0), 1), delay=0.008)
        network = NetworkSpec(
            topology="pair", link=link, access=LinkSettings(rate_mbps=200.0, delay=0.004)
        )
    return msgspec.structs.replace(
        world,
        servers=servers,
        network=network,
        policy=rng.choice(POLICIES),
        discipline=rng.choice(("edf", "edf", "fifo")),
        score=ScoreSpec(lateness=rng.choice(("soft", "soft", "hard"))),
        prepare=msgspec.structs.replace(world.prepare, on=rng.choice(("workers", "own"))),
        service_noise=ServiceNoise(cv=0.15),
    )


def draw_trace(plan: Plan) -> Trace:
    """The requests of a plan: its load, its bursts, and light traffic until the end."""
    scenario = plan.scenario
    parts = []

    def add(seed: int, load: float, start: float, duration: float, most: float = 1e9) -> None:
        rate = min(most, (scenario.workload.arrivals.mean_rate or 1.0) * load / plan.load)
        drawn = scenario.with_overrides(seed=seed, duration=duration, rate=rate)
        trace = generate(drawn, None)
        parts.append(msgspec.structs.replace(trace, time=trace.time + start))

    add(plan.seed, plan.load, 0.0, plan.duration)
    calm = plan.faults_end - START
    add(plan.seed + 1, CALM_LOAD, max(calm, plan.duration), RECOVERY + CALM, CALM_RATE)
    for number, each in enumerate(each for each in plan.faults if each.kind == "burst"):
        extra = (each.amount - 1.0) * plan.load
        if each.duration > 0.0:
            add(plan.seed + 2 + number, extra, each.at - START, each.duration)
    order = np.argsort(np.concatenate([each.time for each in parts]), kind="stable")
    columns = {
        name: np.concatenate([getattr(each, name) for each in parts])[order]
        for name in Trace.__struct_fields__
    }
    return Trace(**columns)


# -- drawing each kind ---------------------------------------------------------------------------


def _log(rng: random.Random, low: float, high: float) -> float:
    return round(float(low * (high / low) ** rng.random()), 3)


def _process(rng: random.Random, names: tuple[str, ...]) -> str:
    return BALANCER if rng.random() < 0.25 else rng.choice(names)


def _path(rng: random.Random, names: tuple[str, ...]) -> tuple[str, str]:
    """Two ends, of which one may be anybody."""
    party = _process(rng, names)
    others = [each for each in (*names, BALANCER, CLIENT) if each != party]
    return party, ANYBODY if rng.random() < 0.3 else rng.choice(others)


def _crash(rng: random.Random, names: tuple[str, ...], at: float) -> Fault:
    way = "machine" if rng.random() < 0.4 else "process"
    return Fault(
        kind="crash", at=at, duration=_log(rng, 0.05, 6.0), party=_process(rng, names), way=way
    )


def _restart(rng: random.Random, names: tuple[str, ...], at: float) -> Fault:
    return Fault(kind="restart", at=at, duration=_log(rng, 0.05, 2.0), party=_process(rng, names))


def _pause(rng: random.Random, names: tuple[str, ...], at: float) -> Fault:
    return Fault(kind="pause", at=at, duration=_log(rng, 0.02, 9.0), party=_process(rng, names))


def _on_path(
    kind: str,
    durations: tuple[float, float],
    amounts: tuple[float, float],
    ways: tuple[str, ...] = ("",),
) -> Callable[[random.Random, tuple[str, ...], float], Fault]:
    def draw(rng: random.Random, names: tuple[str, ...], at: float) -> Fault:
        party, other = _path(rng, names)
        return Fault(
            kind=kind,
            at=at,
            duration=_log(rng, *durations),
            party=party,
            other=other,
            amount=_log(rng, *amounts),
            way=rng.choice(ways),
        )

    return draw


def _at_node(
    kind: str,
    durations: tuple[float, float],
    amounts: tuple[float, float],
    ways: tuple[str, ...] = ("",),
) -> Callable[[random.Random, tuple[str, ...], float], Fault]:
    def draw(rng: random.Random, names: tuple[str, ...], at: float) -> Fault:
        return Fault(
            kind=kind,
            at=at,
            duration=_log(rng, *durations),
            party=rng.choice(names),
            amount=_log(rng, *amounts),
            way=rng.choice(ways),
        )

    return draw


def _clock(rng: random.Random, names: tuple[str, ...], at: float) -> Fault:
    sign = rng.choice((-1.0, 1.0))
    return Fault(
        kind="clock", at=at, party=_process(rng, names), amount=sign * _log(rng, 0.1, 3600)
    )


def _disk(rng: random.Random, names: tuple[str, ...], at: float) -> Fault:
    way = rng.choice(("full", "slow"))
    return Fault(kind="disk", at=at, duration=_log(rng, 0.5, 20.0), party=BALANCER, way=way)


def _burst(rng: random.Random, names: tuple[str, ...], at: float) -> Fault:
    return Fault(kind="burst", at=at, duration=_log(rng, 0.2, 1.5), amount=_log(rng, 3.0, 8.0))


_FAULTS: dict[str, Callable[[random.Random, tuple[str, ...], float], Fault]] = {
    "crash": _crash,
    "restart": _restart,
    "pause": _pause,
    "partition": _on_path("partition", (0.05, 9.0), (1.0, 1.0), ("", "", "one way")),
    "drop": _on_path("drop", (0.5, 5.0), (0.02, 0.5), ("reset", "silent")),
    "delay": _on_path("delay", (0.5, 5.0), (0.02, 3.0)),
    "duplicate": _on_path("duplicate", (0.5, 8.0), (0.05, 1.0)),
    "reorder": _on_path("reorder", (0.5, 8.0), (0.01, 0.5)),
    "outage": _at_node("outage", (0.3, 8.0), (1.0, 1.0), ("thin", "none")),
    "slow": _at_node("slow", (0.5, 8.0), (3.0, 20.0)),
    "lie": _at_node("lie", (0.5, 5.0), (1.0, 1.0), ("idle", "busy", "fast", "old", "acks")),
    "fail": _at_node("fail", (0.5, 8.0), (1.0, 1.0), ("500", "400", "422", "429", "503")),
    "hang": _at_node("hang", (0.5, 8.0), (1.0, 1.0)),
    "broken": _at_node("broken", (0.5, 8.0), (1.0, 1.0), ("errors", "wrong")),
    "version": _at_node("version", (0.05, 2.0), (1.0, 1.0)),
    "clock": _clock,
    "disk": _disk,
    "burst": _burst,
}
