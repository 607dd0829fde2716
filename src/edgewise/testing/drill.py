"""The live code under a virtual clock, with random faults: a seed, a run, a verdict.

`run_drill` plays one seed: client, balancer and nodes as they are deployed, in one process, on a
network and on machines that fail (`faults`, `faulty_network`, `processes`), watched by
`invariants`. A run is the same to the bit whenever it is played again, so a seed is all that is
needed to repeat a failure. The idea is FoundationDB's and TigerBeetle's.
"""

from __future__ import annotations

import logging

import msgspec
from aiohttp.web_app import _cached_build_middleware
from msgspec import Struct

from edgewise.domain import Status
from edgewise.score import ScoreShape
from edgewise.testing.drill_fleet import DrillFleet
from edgewise.testing.faults import KINDS, NONE, REQUESTS, Plan, draw_plan, draw_trace
from edgewise.testing.invariants import Watch
from edgewise.testing.processes import ProcessLoop
from edgewise.testing.virtual_loop import run_virtual


class KindCounts(Struct, kw_only=True):
    """What happened to the requests that were under way during faults of one kind."""

    injected: int = 0
    """Faults; of those that concern single messages, the messages that met one."""
    requests: int = 0
    answered: int = 0
    """Served, once."""
    late: int = 0
    """Served after the deadline, or expired."""
    refused: int = 0
    failed: int = 0
    """Ended by an error of the fleet."""
    broken: int = 0
    """Ended by a broken connection, or without any answer."""
    second_runs: int = 0
    states: set[str] = msgspec.field(default_factory=set)
    """States of the fleet that were reached meanwhile."""

    def add(self, other: KindCounts) -> None:
        """Add the counts of another run, or of a request."""
        for field in self.__struct_fields__:
            mine, others = getattr(self, field), getattr(other, field)
            setattr(self, field, mine | others if field == "states" else mine + others)

    def figures(self) -> dict[str, int]:
        """All fields as numbers, by name."""
        return {**msgspec.structs.asdict(self), "states": len(self.states)}


class DrillResult(Struct, kw_only=True):
    """What came of one seed."""

    seed: int
    requests: int
    """As given: about so many before the last fault."""
    sent: int
    digest: str
    """Stands for the whole run; the same seed has the same one."""
    violations: list[str]
    kinds: dict[str, KindCounts]

    @property
    def command(self) -> str:
        """What repeats the run."""
        more = "" if self.requests == REQUESTS else f" --requests {self.requests}"
        return f"edgewise drill --virtual --seed {self.seed}{more}"


def run_drill(seed: int, requests: int = REQUESTS) -> DrillResult:
    """Play the plan of a seed."""
    return play(draw_plan(seed, requests), requests)


def play(plan: Plan, requests: int = REQUESTS) -> DrillResult:
    """Play a plan."""
    trace = draw_trace(plan)

    async def run() -> tuple[DrillFleet, Watch]:
        watch = Watch(ScoreShape.of(plan.scenario.score).grace)
        fleet = DrillFleet(plan, trace, watch)
        try:
            await fleet.run()
        finally:
            fleet.clean_up()
        return fleet, watch

    logging.disable(logging.CRITICAL)  # it would be full of what the faults do
    try:
        fleet, watch = run_virtual(run(), ProcessLoop)
    finally:
        logging.disable(logging.NOTSET)
        # aiohttp remembers the handlers of the last 1,024 routes, and with them whole fleets.
        _cached_build_middleware.cache_clear()
    return DrillResult(
        seed=plan.seed,
        requests=requests,
        sent=len(trace),
        digest=watch.digest(),
        violations=watch.violations,
        kinds=_by_kind(fleet, watch),
    )


def _by_kind(fleet: DrillFleet, watch: Watch) -> dict[str, KindCounts]:
    """The requests of a run by the kinds of faults during which they were under way."""
    kinds = {kind: KindCounts(injected=count) for kind, count in fleet.injected.items()}
    kinds[NONE] = KindCounts()
    for kind, count in watch.hits.items():
        kinds[kind].injected = count
    for kind, states in watch.states.items():
        kinds[kind].states = states
    for name, sent in watch.ended.items():
        met = {each.fault.kind for each in watch.effects if each.overlaps(sent.at, sent.ended)} or {
            NONE
        }
        outcome = sent.outcome
        status, latency = outcome.status, outcome.latency
        served = status is Status.SERVED
        broken = status is Status.LOST or (outcome.reason or "").startswith("connection")
        counts = KindCounts(
            requests=1,
            answered=served,
            late=(served and latency is not None and latency > sent.deadline)
            or status is Status.EXPIRED,
            refused=status is Status.SHED,
            failed=status is Status.FAILED and not broken,
            broken=broken,
            second_runs=name in watch.second_runs,
        )
        for kind in met:
            kinds[kind].add(counts)
    return kinds


class DrillTotals(Struct, kw_only=True):
    """What came of many seeds."""

    first: int
    """The first seed."""
    requests: int
    """As given: about so many in a run before the last fault."""
    seeds: int = 0
    sent: int = 0
    kinds: dict[str, KindCounts]
    failed: list[DrillResult]

    def add(self, result: DrillResult) -> None:
        self.seeds += 1
        self.sent += result.sent
        for kind, counts in result.kinds.items():
            self.kinds[kind].add(counts)
        if result.violations:
            self.failed.append(result)

    def facts(self) -> dict[str, object]:
        """Ready for JSON."""
        return {
            "first": self.first,
            "seeds": self.seeds,
            "requests_of_a_run": self.requests,
            "requests": self.sent,
            "kinds": {kind: counts.figures() for kind, counts in self.kinds.items()},
            "failed": [
                {"seed": each.seed, "repeat": each.command, "violations": each.violations}
                for each in self.failed
            ],
        }


def new_totals(first: int, requests: int) -> DrillTotals:
    """Totals of no seed yet."""
    return DrillTotals(
        first=first,
        requests=requests,
        kinds={kind: KindCounts() for kind in (*KINDS, NONE)},
        failed=[],
    )
