"""The random world that families vary: its fleet, network, demands and arrivals; and its load.

Every aspect is drawn from a random stream of its own, so worlds with the same seed differ only in
what a family changes.

Load
----
`offered_load` = rate × Σ_d share_d · c_d / Σ_s workers_s · speed_s, where c_d is the service time
at speed 1 of the cheapest model of the fleet whose accuracy meets demand d. It is the share of all
workers' time that would be busy if every request ran on its cheapest admissible model, once, and
the work were spread as if there were no network. Above 1, not every request can be served.

The base world
--------------
There are 3 to 6 servers of 1, 2 or 4 workers, with speeds spread about fivefold. Each hosts some
models of one of two ladders of four. Photos of 107 kB in the median come in through an access link
that is never the bottleneck by itself, and leave for another server over an uplink of 4 to
40 Mbit/s. Requests accept any accuracy, or need at least that of a rung, by a deadline of 0.1 to
2 s. Arrivals are mildly bursty: a third of the time at 1.5 times the mean rate, otherwise at 0.75
times. Service times have a coefficient of variation of 0.15 and slow spells. Servers report every
50 to 500 ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from edgewise.scenario import (
    Demand,
    LinkSettings,
    LognormalPayload,
    MmppArrivals,
    NetworkSpec,
    Scenario,
    ServerSpec,
    ServiceNoise,
    ServiceSpec,
    Spell,
    TraceArrivals,
    WorkloadSpec,
)
from edgewise.scenario.workload_schema import with_mean_rate
from edgewise.tasks.services import services_of

DURATION = 20.0
"""[s] Long enough for a thousand reports and several bursts; about 2 % of the requests are still
under way at the end."""
MEDIAN_BYTES = 107_000.0
"""Median size of a photo, from a sample of 1,000."""
SIGMA = 0.5
"""Standard deviation of the logarithm of the size."""

# The random streams. Every number ever published depends on their order: only append.
FLEET, NETWORK, DEMANDS, EVENTS, REPORTS, MIXTURE = range(6)

_Rung = tuple[str, float, float]
"""Model, accuracy, s at speed 1. The name is a model of the zoo: it decides the size of the input,
and so the bytes of the model-ready form and the decoding that this form saves the destination."""

# Accuracy is expensive: the rungs of the trial that docs/benchmark.md compares with.
_STEEP: tuple[_Rung, ...] = (
    ("lite0-96", 0.57, 0.006),
    ("lite0-224", 0.72, 0.012),
    ("lite1", 0.76, 0.035),
    ("lite2", 0.83, 0.110),
)
# Accuracy is cheap: as measured for the models of the zoo. They are fixed here so that measuring
# the models again on another machine does not change the worlds.
_FLAT: tuple[_Rung, ...] = (
    ("lite0-96", 0.511, 0.0044),
    ("lite0-160", 0.795, 0.0087),
    ("lite0-224", 0.886, 0.0149),
    ("lite2", 0.905, 0.0276),
)


def offered_load(world: Scenario) -> float:
    """Work offered over capacity, as defined above; a demand that no service meets offers none.

    Raises ModelError for a model that the zoo does not know and the scenario does not describe;
    ValueError for arrivals whose rate only their file knows.
    """
    rate = world.workload.arrivals.mean_rate
    if rate is None:
        raise ValueError(f"{world.name}: give the arrivals a rate, or count the file's")
    return rate * _seconds_per_request(world) / _capacity(world)


def at_load(world: Scenario, load: float) -> Scenario:
    """The same world with a mean rate of arrivals such that `offered_load` is `load`."""
    return world.with_overrides(rate=load * _capacity(world) / _seconds_per_request(world))


def _capacity(world: Scenario) -> float:
    """Worker seconds at speed 1 per second."""
    return math.fsum(server.workers * server.speed for server in world.servers.values())


def _seconds_per_request(world: Scenario) -> float:
    speed = {name: server.speed for name, server in world.servers.items()}
    costs = [(s.accuracy, s.latency[0] * speed[s.server]) for s in services_of(world)]
    demands = world.workload.demands
    total = math.fsum(demand.share for demand in demands)
    return math.fsum(
        demand.share
        / total
        * min((cost for accuracy, cost in costs if accuracy >= demand.accuracy), default=0.0)
        for demand in demands
    )


def stream(seed: int, *aspect: int) -> np.random.Generator:
    """The random stream of one aspect of a world."""
    return np.random.default_rng([seed, *aspect])


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A log-uniform number from `low` to `high`."""
    return float(low * (high / low) ** rng.random())


def _ladder(seed: int) -> tuple[_Rung, ...]:
    return _STEEP if stream(seed, FLEET).random() < 0.5 else _FLAT


def _fleet(seed: int, low: int, high: int) -> dict[str, ServerSpec]:
    """`low` to `high` servers; at least one hosts each rung of the ladder."""
    rng = stream(seed, FLEET)
    steep = rng.random() < 0.5
    ladder = _STEEP if steep else _FLAT
    count = int(rng.integers(low, high + 1))
    # Single-board computers, with a quarter to an eighth of a server core's speed. It would take so
    # many requests/s to load faster ones that the links could not carry a tenth of the photos, and
    # running everything locally would be best. The cheap ladder needs the slower ones.
    middle = 0.25 if steep else 0.12
    speeds = np.clip(np.exp(rng.normal(math.log(middle), 0.45, count)), middle / 2.2, middle * 2.2)
    workers = rng.choice([1, 2, 4], size=count, p=[0.5, 0.35, 0.15])
    # The most expensive model is placed on the fastest server; the rest is random.
    order = np.argsort(-speeds)
    fleet = {}
    for s in range(count):
        hosted = rng.random(len(ladder)) < 0.6
        for rung in range(len(ladder)):
            hosted[rung] |= int(order[(len(ladder) - 1 - rung) % count]) == s
        if not hosted.any():
            hosted[int(rng.integers(len(ladder)))] = True
        fleet[f"s{s + 1:02d}"] = ServerSpec(
            services=tuple(
                ServiceSpec(model=model, accuracy=accuracy, latency=(latency,))
                for (model, accuracy, latency), here in zip(ladder, hosted, strict=True)
                if here
            ),
            workers=int(workers[s]),
            speed=round(float(speeds[s]), 3),
        )
    return fleet


def _demands(seed: int) -> tuple[Demand, ...]:
    """Any accuracy, or that of one of the three better rungs; the better, the more time."""
    rng = stream(seed, DEMANDS)
    ladder = _ladder(seed)
    shares = rng.dirichlet([6.0, 5.0, 3.0, 1.2])
    patience = between(rng, 0.7, 1.4)
    floors = [0.0, *(round(accuracy - 0.01, 3) for _, accuracy, _ in ladder[1:])]
    spans = [(0.1, 0.5), (0.15, 0.7), (0.25, 1.0), (0.5, 1.5)]
    return tuple(
        Demand(
            share=round(float(share), 3),
            deadline=(round(low * patience, 3), round(high * patience, 3)),
            accuracy=floor,
        )
        for share, floor, (low, high) in zip(shares, floors, spans, strict=True)
    )


def _ingress(seed: int, names: Sequence[str], hot: float | None) -> dict[str, float]:
    """Each server's share of the requests; with `hot`, one server has that share."""
    rng = stream(seed, NETWORK)
    shares = rng.dirichlet([3.0] * len(names))
    if hot is not None:
        server = int(rng.integers(len(names)))
        others = np.delete(shares, server)
        shares = np.insert(others / others.sum() * (1.0 - hot), server, hot)
    return {name: round(float(share), 4) for name, share in zip(names, shares, strict=True)}


def _links(seed: int, names: Sequence[str], width: float) -> dict[str, LinkSettings]:
    """Uplinks of 4 to 40 Mbit/s times `width`."""
    rng = stream(seed, NETWORK, 1)
    return {
        name: LinkSettings(
            rate_mbps=round(width * between(rng, 4.0, 40.0), 3),
            delay=round(between(rng, 0.002, 0.02), 4),
        )
        for name in names
    }


def _access(
    seed: int, names: Sequence[str], shares: dict[str, float], rate: float
) -> dict[str, LinkSettings]:
    """Access links of at least 100 Mbit/s and four times the mean traffic, since a site is built
    for its clients."""
    rng = stream(seed, NETWORK, 2)
    mbit = MEDIAN_BYTES * math.exp(SIGMA**2 / 2) * 8e-6
    return {
        name: LinkSettings(
            rate_mbps=round(max(100.0, 4.0 * rate * shares[name] * mbit), 1),
            delay=round(between(rng, 0.002, 0.01), 4),
        )
        for name in names
    }


CALM = ((0.75, 1.5), (2.0, 1.0))
"""(rates in means, sojourns in s) of ordinary arrivals, which are slightly bursty."""
BURSTY = ((0.4, 2.8), (2.4, 0.8))
"""The same for the bursty family: a quarter of the time 2.8 times the mean."""


def base(
    family: str,
    seed: int,
    *,
    load: float = 0.8,
    servers: tuple[int, int] = (3, 6),
    width: float = 1.0,
    hot: float | None = None,
    arrivals: tuple[tuple[float, ...], tuple[float, ...]] = CALM,
    report_period: float | None = None,
) -> Scenario:
    """The base world. `width` scales the uplinks' rates; `hot` is the share of one ingress."""
    fleet = _fleet(seed, *servers)
    names = tuple(fleet)
    shares = _ingress(seed, names, hot)
    period = between(stream(seed, REPORTS), 0.05, 0.5)
    process = MmppArrivals(rates=arrivals[0], sojourns=arrivals[1])
    world = Scenario(
        name=f"{family}-{seed}",
        seed=seed,
        report_period=round(period if report_period is None else report_period, 3),
        servers=fleet,
        service_noise=ServiceNoise(cv=0.15, spell=Spell(rate=0.05, duration=2.0)),
        executor="replay",
        network=NetworkSpec(links=_links(seed, names, width)),
        workload=WorkloadSpec(
            duration=DURATION,
            arrivals=with_mean_rate(process, 1.0),
            ingress=shares,
            demands=_demands(seed),
            payload=LognormalPayload(median_bytes=MEDIAN_BYTES, sigma=SIGMA),
        ),
    )
    world = at_load(world, load)
    rate = world.workload.arrivals.mean_rate
    assert rate is not None
    return with_network(world, access_links=_access(seed, names, shares, rate))


def with_network(world: Scenario, **changes: object) -> Scenario:
    """The world with some fields of its network replaced."""
    network = msgspec.structs.replace(world.network, **changes)
    return msgspec.structs.replace(world, network=network)


def with_arrivals(world: Scenario, arrivals: TraceArrivals) -> Scenario:
    """The world with other arrivals."""
    workload = msgspec.structs.replace(world.workload, arrivals=arrivals)
    return msgspec.structs.replace(world, workload=workload)
