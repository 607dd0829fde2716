"""Published results reproduced: Peak EWMA's slow server and Prequal's unequal replicas.

Both are scenarios that run through the same engine, belief and policies as the suite, so they check
those. If a rule does not show its authors' result here, the rule is wrong or the world differs, and
then the text beside the table must say how.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from msgspec import Struct

from edgewise.benchmark.episodes import ReplayableWorld
from edgewise.benchmark.report import table
from edgewise.benchmark.statistics import Interval, interval
from edgewise.cores import for_each
from edgewise.policies import POLICIES
from edgewise.policies.base import PolicySpec
from edgewise.scenario import (
    Demand,
    EjectionSpec,
    LinkSettings,
    LognormalPayload,
    NetworkSpec,
    PoissonArrivals,
    Prepare,
    Scenario,
    ScoreSpec,
    ServerSpec,
    ServiceNoise,
    ServiceSpec,
    SlowFailure,
    Spell,
    WorkloadSpec,
)
from edgewise.sim import layout
from edgewise.sim.build import SimOptions

_TINY = LognormalPayload(median_bytes=200.0, sigma=0.0)
_LAN = LinkSettings(delay=0.00025)
"""One data centre: a quarter of a millisecond each way, with unlimited rate."""
_WIRE = NetworkSpec(access=_LAN, link=_LAN)

PATIENT = 60.0
"""[s] A deadline that no request misses, where latency itself is measured."""


def with_defaults(names: Sequence[str], **changes: float) -> dict[str, PolicySpec]:
    """Rules with their published parameters instead of the tuned ones, except for `changes`."""
    found = {}
    for name in names:
        spec = POLICIES[name]
        params = tuple(changes.get(p.name, p.default) for p in spec.parameters)
        found[name] = msgspec.structs.replace(spec, params=params) if params else spec
    return found


# -- Peak EWMA -----------------------------------------------------------------------------------

EWMA_POLICIES = ("round_robin", "least_outstanding", "peak_ewma")
EWMA_PUBLISHED = {"round_robin": "95 %", "least_outstanding": "99 %", "peak_ewma": "99.9 %"}
EWMA_SERVERS = 11
EWMA_RATE = 1000.0
EWMA_TIMEOUT = 1.0
EWMA_SLOW = 2.0


def slow_server(seed: int, usual: float, duration: float = 60.0) -> Scenario:
    """Jenson & Oanta, *Beyond round robin* (Linkerd, 2016): 11 servers, 1,000 requests/s, one of
    them answers after 2 s for 30 s of the minute. A request that takes over 1 s has failed.

    `usual` s is the healthy servers' mean latency, which is a guess, since the article gives none.
    The servers have enough workers to queue nothing.
    """
    names = [f"s{n:02d}" for n in range(1, EWMA_SERVERS + 1)]
    service = ServiceSpec(model="echo", accuracy=1.0, latency=(usual,))
    slow = SlowFailure(at=15.0, server=names[3], duration=30.0, factor=EWMA_SLOW / usual)
    return Scenario(
        name=f"peak-ewma-{seed}",
        seed=seed,
        report_period=0.25,
        prepare=Prepare(enabled=False),
        servers={
            # An ingress without services: the load balancer itself.
            "client": ServerSpec(services=()),
            **{name: ServerSpec(services=(service,), workers=256) for name in names},
        },
        # Little noise: with a long tail, a third of the slow answers would take under 1 s.
        service_noise=ServiceNoise(cv=0.15),
        executor="replay",
        network=_WIRE,
        workload=WorkloadSpec(
            duration=duration,
            arrivals=PoissonArrivals(rate=EWMA_RATE),
            ingress={"client": 1.0},
            demands=(Demand(deadline=EWMA_TIMEOUT),),
            payload=_TINY,
        ),
        failures=(slow,),
        ejection=EjectionSpec(enabled=False),  # the article has none
        score=ScoreSpec(lateness="hard"),
    )


def peak_ewma(
    seeds: Sequence[int], usual: float, threads: int = 2
) -> dict[str, tuple[Interval, Interval]]:
    """Share of successes by policy: among all requests, and among those of the 30 s."""
    rules = with_defaults(EWMA_POLICIES)
    whole = np.zeros((len(rules), len(seeds)))
    during = np.zeros_like(whole)

    def play(s: int) -> None:
        replayable = ReplayableWorld(slow_server(seeds[s], usual))
        for p, spec in enumerate(rules.values()):
            world = replayable.play(spec).world
            served = world.results["status"] == layout.SERVED
            good = served & (world.results["latency"] <= EWMA_TIMEOUT)
            then = (world.requests["time"] >= 15.0) & (world.requests["time"] < 45.0)
            whole[p, s], during[p, s] = good.mean(), good[then].mean()

    for_each(range(len(seeds)), play, threads)
    return {name: (interval(whole[p]), interval(during[p])) for p, name in enumerate(rules)}


# -- Prequal -------------------------------------------------------------------------------------

PREQUAL_POLICIES = (
    "random",
    "weighted_round_robin",
    "least_outstanding",
    "c3",
    "prequal",
)
PREQUAL_LOADS = (0.7, 0.9)
PREQUAL_CLIENTS = 8
WARM = 20.0
"""[s] Weighted round robin takes the servers in turn for its first 10 s (gRPC A58's blackout), and
the backlog from that takes as long again to clear."""


class Prequal(Struct, frozen=True, kw_only=True):
    """Latencies in s by policy, at one load."""

    load: float
    period: float
    p50: dict[str, Interval]
    p99: dict[str, Interval]
    lost: dict[str, Interval]
    """Share not answered within `PATIENT`."""


def unequal(seed: int, load: float, period: float, duration: float = 45.0) -> Scenario:
    """Wydrowski et al., NSDI'24, §5, made small: replicas of two generations, the old ones half as
    fast, with noisy neighbours, and many clients that do not see each other's requests.

    20 servers of 4 workers, requests of 30 ms at full speed with a coefficient of variation of 1,
    `load` of all workers' time at their usual speed; every server is slowed down 1.3 to 2 times for
    2 s at a time, a seventh of the time. Reports every `period` s serve as probes.
    """
    service = ServiceSpec(model="query", accuracy=1.0, latency=(0.030,))
    servers = {
        f"s{n:02d}": ServerSpec(
            services=(service,), workers=4, speed=1.0 if n % 2 else 0.5, queue_limit=100_000
        )
        for n in range(1, 21)
    }
    capacity = sum(server.workers * server.speed for server in servers.values())
    return Scenario(
        name=f"prequal-{seed}",
        seed=seed,
        report_period=period,
        discipline="fifo",
        prepare=Prepare(enabled=False),
        servers={"client": ServerSpec(services=()), **servers},
        service_noise=ServiceNoise(cv=1.0, spell=Spell(rate=0.08, duration=2.0)),
        executor="replay",
        network=_WIRE,
        workload=WorkloadSpec(
            duration=duration,
            arrivals=PoissonArrivals(rate=load * capacity / 0.030),
            ingress={"client": 1.0},
            demands=(Demand(deadline=PATIENT),),
            payload=_TINY,
        ),
        balancers=PREQUAL_CLIENTS,
        score=ScoreSpec(lateness="hard"),
    )


def prequal(seeds: Sequence[int], load: float, period: float, threads: int = 2) -> Prequal:
    """Latencies by policy, without the first `WARM` s."""
    # A client sees an eighth of the outstanding requests, so C3 multiplies by the clients.
    rules = with_defaults(PREQUAL_POLICIES, clients=float(PREQUAL_CLIENTS), quantile=0.84)
    values = np.zeros((3, len(rules), len(seeds)))

    def play(s: int) -> None:
        replayable = ReplayableWorld(unequal(seeds[s], load, period), SimOptions(slots=1 << 16))
        for p, spec in enumerate(rules.values()):
            world = replayable.play(spec).world
            warm = world.requests["time"] >= WARM
            served = world.results["status"] == layout.SERVED
            latency = world.results["latency"][warm & served]
            values[:2, p, s] = np.percentile(latency, (50, 99))
            values[2, p, s] = 1.0 - (warm & served).sum() / warm.sum()

    for_each(range(len(seeds)), play, threads)
    by = [{name: interval(values[m, p]) for p, name in enumerate(rules)} for m in range(3)]
    return Prequal(load=load, period=period, p50=by[0], p99=by[1], lost=by[2])


# -- the section ---------------------------------------------------------------------------------


def markdown(
    seeds: Sequence[int],
    command: str,
    threads: int = 2,
    progress: Callable[[str], None] = lambda _: None,
) -> str:
    """Play both; returns the section of docs/benchmark.md."""
    ewma = {}
    for usual in (0.02, 0.1, 0.3):
        progress(f"peak EWMA, {1e3 * usual:.0f} ms")
        ewma[usual] = peak_ewma(seeds, usual, threads)
    headings = ["policy", "published"]
    for usual in ewma:
        headings += [f"{1e3 * usual:.0f} ms: whole minute", "while it is slow"]
    rows = []
    for name in EWMA_POLICIES:
        cells = [name, EWMA_PUBLISHED[name]]
        cells += [f"{_percent(value)}" for found in ewma.values() for value in found[name]]
        rows.append(cells)
    parts = [
        f"`{command}`: {len(seeds)} seeds, rules with their published parameters; ± half a 95 % "
        "confidence interval over seeds.",
        "**Peak EWMA's slow server** (Jenson & Oanta, Linkerd, 2016): "
        f"{EWMA_SERVERS} servers, {EWMA_RATE:,.0f} requests/s, one takes {EWMA_SLOW:g} s for 30 s "
        f"of a minute, time-out {EWMA_TIMEOUT:g} s. Success by the healthy servers' mean latency, "
        "which is a guess:",
        table(headings, rows),
        EWMA_TEXT,
    ]
    headings = ["policy"]
    found = []
    for period in (0.05, 1.0):
        for load in PREQUAL_LOADS:
            progress(f"Prequal, load {load:g}, reports every {period:g} s")
            found.append(prequal(seeds, load, period, threads))
            headings += [f"load {load:g}, report {1e3 * period:.0f} ms: p50", "p99"]
    rows = []
    for name in PREQUAL_POLICIES:
        cells = [name]
        for one in found:
            cells += [_ms(one.p50[name]), _ms(one.p99[name])]
        rows.append(cells)
    parts += [
        "**Prequal's unequal replicas** (NSDI'24 §5, made small): 20 servers, half of them half as "
        f"fast, slow spells, {PREQUAL_CLIENTS} clients that do not see each other. Latency in ms:",
        table(headings, rows),
        PREQUAL_TEXT,
    ]
    return "\n\n".join(parts)


EWMA_TEXT = (
    "Round robin loses one request in eleven while the server is slow, whatever the latency. Least "
    "outstanding sends requests to the slow server until as many hang there as a healthy one "
    "usually has open, so it loses more the longer the usual latency is. Peak EWMA includes the "
    "latency in its load, so after the first slow answers it returns to the server only when the "
    "memory has faded. Our rule learns of a slow answer when it arrives, after 2 s; Finagle's "
    "client gives up after 1 s and learns then."
)
PREQUAL_TEXT = (
    "Prequal has its advantage over both while its probes are fresh. A probe here is a server's "
    "last report (`edgewise.policies.rules.prequal`); in the paper it is a message of its own that "
    "returns within a millisecond. With a report a second the pool is out of date, eight clients "
    "herd to the same cold servers, and the advantage is gone. P2C, which uses each client's own "
    "count, is not affected. Weighted round robin balances utilisation: its weights lag behind "
    "slow spells, and a full server reports the same utilisation however long its queue is, which "
    "is the paper's point. C3 multiplies its own count by the number of clients, which it is given "
    "exactly here."
)


def _percent(value: Interval) -> str:
    return f"{value.scaled(100.0):.2f} %"


def _ms(value: Interval) -> str:
    return f"{value.scaled(1e3):.0f}"
