"""Random worlds: families of scenarios, each a function from a seed to a `Scenario`.

What comes in: the name of a family and a seed. What goes out: a scenario that is valid, complete
(nothing of it depends on the machine) and the same to the last bit every time. `dump` writes it as
a file that `edgewise simulate` and `edgewise up` read.

The aspects of a world (fleet, network, demands, …) are drawn from streams of their own, so families
*share worlds*: seed 7 of *heavy* is seed 7 of *light* with more requests, and of *thin links* with
slower links. Differences between families are then differences of the family; the price is that
families are not independent samples, so confidence intervals over several of them must be clustered
by seed (`edgewise.bench.statistics`).

Seeds
-----
Learning, choosing among learned things and reporting must never see the same world. The three
ranges are disjoint, and everything that is random about a world, its links' traces too, derives
from its seed alone:

- `TRAINING` 0 … 999,999: tuning and training.
- `VALIDATION` 1,000,000 … 1,999,999: choosing among checkpoints, accepting or refusing one.
- `EVALUATION` 2,000,000 … 2,999,999: numbers in tables. Nothing is ever chosen by them.

Load
----
`offered_load` = rate × Σ_d share_d · c_d / Σ_s workers_s · speed_s, where c_d is the service time at
speed 1 of the cheapest model of the fleet whose accuracy meets demand d. It is the share of all
workers' time that would be busy if every request ran on its cheapest admissible model, once, and
the work were spread as if there were no network. Above 1 not everybody can be served.

What a world looks like
-----------------------
3 to 6 servers of 1, 2 or 4 workers, speeds spread about fivefold; each hosts some of one of two
ladders of four models. Photos of 107 kB in the median come in through an access link that never is
the bottleneck by itself, and leave for another server over an uplink of 4 to 40 Mbit/s. Requests
ask for anything, or for at least the accuracy of a rung, by a deadline of 0.1 to 2 s. Arrivals are
mildly bursty: a third of the time 1.5 times the mean rate, else 0.75 times. Service times have a
coefficient of variation of 0.15 and slow spells; servers report every 50 to 500 ms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from edgewise.errors import BadInput
from edgewise.roster import services_of
from edgewise.scenario import (
    CellularTrace,
    Demand,
    DownFailure,
    Failure,
    LinkEvent,
    LinkSet,
    LinkSpec,
    LognormalPayload,
    MmppArrivals,
    NetworkSpec,
    Outage,
    Scenario,
    ServerSpec,
    ServiceNoise,
    ServiceSpec,
    SlowFailure,
    Spell,
    TraceArrivals,
    WorkloadSpec,
)
from edgewise.scenario.requests import with_mean_rate
from edgewise.sim.recorded import flash_crowd, recorded_arrivals

TRAINING = range(0, 1_000_000)
VALIDATION = range(1_000_000, 2_000_000)
EVALUATION = range(2_000_000, 3_000_000)

DURATION = 20.0
"""s. A thousand reports and several bursts; what is under way at the end is about 2 % of it."""
LINKS_MAX = 64
"""Links of a world that may have a trace of their own: the seeds of traces are numbered by it."""

MEDIAN_BYTES = 107_000.0
"""Of the 1,000 photos of docs/design.md."""
SIGMA = 0.5

# The streams of random numbers. The order is part of every number ever published: only append.
_FLEET, _NETWORK, _DEMANDS, _EVENTS, _REPORTS, _MIXTURE = range(6)

_Rung = tuple[str, float, float]
"""Model, accuracy, s at speed 1. The name is a rung of the zoo: it decides the input's size, hence
the bytes of the model-ready form, and what that form saves the destination of decoding."""

# Costly accuracy: the rungs of the trial that docs/benchmark.md is compared with.
_STEEP: tuple[_Rung, ...] = (
    ("lite0-96", 0.57, 0.006),
    ("lite0-224", 0.72, 0.012),
    ("lite1", 0.76, 0.035),
    ("lite2", 0.83, 0.110),
)
# Cheap accuracy: as measured of the zoo. Given here in full, so that measuring the zoo anew on
# another machine does not change the worlds.
_FLAT: tuple[_Rung, ...] = (
    ("lite0-96", 0.511, 0.0044),
    ("lite0-160", 0.795, 0.0087),
    ("lite0-224", 0.886, 0.0149),
    ("lite2", 0.905, 0.0276),
)


class Family(Struct, frozen=True, kw_only=True):
    """A way to make worlds."""

    name: str
    about: str
    make: Callable[[int], Scenario]
    """From a seed ≥ 0."""


def scenario(family: str, seed: int) -> Scenario:
    """World `seed` of a family. Raises BadInput naming the known families, or for a seed below 0."""
    if family not in FAMILIES:
        raise BadInput(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    if seed < 0:
        raise BadInput(f"expected a seed >= 0, got {seed}")
    return FAMILIES[family].make(seed)


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
    """The same world with its arrivals' rate such that `offered_load` is `load`."""
    return world.with_overrides(rate=load * _capacity(world) / _seconds_per_request(world))


def _capacity(world: Scenario) -> float:
    """Worker seconds at speed 1, per s."""
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


# -- the parts of a world ------------------------------------------------------------------------


def _rng(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream])


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Log-uniform."""
    return float(low * (high / low) ** rng.random())


def _ladder(seed: int) -> tuple[_Rung, ...]:
    return _STEEP if _rng(seed, _FLEET).random() < 0.5 else _FLAT


def _fleet(seed: int, low: int, high: int) -> dict[str, ServerSpec]:
    """Servers, `low` to `high` of them; every rung of the ladder stands on at least one."""
    rng = _rng(seed, _FLEET)
    steep = rng.random() < 0.5
    ladder = _STEEP if steep else _FLAT
    count = int(rng.integers(low, high + 1))
    # Single-board computers, a quarter to an eighth of a server core. On faster ones it would take
    # so many requests/s to load a fleet that its links could not carry a tenth of their photos,
    # and all that mattered would be to stay local; the cheap ladder needs the slower ones.
    middle = 0.25 if steep else 0.12
    speeds = np.clip(np.exp(rng.normal(math.log(middle), 0.45, count)), middle / 2.2, middle * 2.2)
    workers = rng.choice([1, 2, 4], size=count, p=[0.5, 0.35, 0.15])
    # Who places models puts the dearest where it runs fastest; beyond that anything goes.
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
    """Anything goes, or one of the three better rungs; the better, the more time."""
    rng = _rng(seed, _DEMANDS)
    ladder = _ladder(seed)
    shares = rng.dirichlet([6.0, 5.0, 3.0, 1.2])
    patience = _between(rng, 0.7, 1.4)
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
    """Shares of the requests; with `hot`, one server has that much of them."""
    rng = _rng(seed, _NETWORK)
    shares = rng.dirichlet([3.0] * len(names))
    if hot is not None:
        place = int(rng.integers(len(names)))
        others = np.delete(shares, place)
        shares = np.insert(others / others.sum() * (1.0 - hot), place, hot)
    return {name: round(float(share), 4) for name, share in zip(names, shares, strict=True)}


def _links(seed: int, names: Sequence[str], width: float) -> dict[str, LinkSpec]:
    """The uplinks: 4 to 40 Mbit/s times `width`."""
    rng = np.random.default_rng([seed, _NETWORK, 1])
    return {
        name: LinkSpec(
            rate_mbps=round(width * _between(rng, 4.0, 40.0), 3),
            delay=round(_between(rng, 0.002, 0.02), 4),
        )
        for name in names
    }


def _access(
    seed: int, names: Sequence[str], shares: dict[str, float], rate: float
) -> dict[str, LinkSpec]:
    """The clients' links: at least 100 Mbit/s, and four times what comes in on average, for who
    builds a site does so for its clients."""
    rng = np.random.default_rng([seed, _NETWORK, 2])
    mbit = MEDIAN_BYTES * math.exp(SIGMA**2 / 2) * 8e-6
    return {
        name: LinkSpec(
            rate_mbps=round(max(100.0, 4.0 * rate * shares[name] * mbit), 1),
            delay=round(_between(rng, 0.002, 0.01), 4),
        )
        for name in names
    }


CALM = ((0.75, 1.5), (2.0, 1.0))
"""(rates in means, sojourns in s) of everyday arrivals: slightly bursty, as any service sees."""
BURSTY = ((0.4, 2.8), (2.4, 0.8))
"""The same of the bursty family: a quarter of the time 2.8 times the mean."""


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
    """The world that the families vary. `width` scales the uplinks; `hot` is one ingress's share."""
    fleet = _fleet(seed, *servers)
    names = tuple(fleet)
    shares = _ingress(seed, names, hot)
    period = _between(_rng(seed, _REPORTS), 0.05, 0.5)
    process = MmppArrivals(rates=arrivals[0], sojourns=arrivals[1])
    world = Scenario(
        name=f"{family}-{seed}",
        about=FAMILIES[family].about,
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
    return _with_network(world, access_links=_access(seed, names, shares, rate))


def _with_network(world: Scenario, **changes: object) -> Scenario:
    network = msgspec.structs.replace(world.network, **changes)
    return msgspec.structs.replace(world, network=network)


def _with_arrivals(world: Scenario, arrivals: TraceArrivals) -> Scenario:
    workload = msgspec.structs.replace(world.workload, arrivals=arrivals)
    return msgspec.structs.replace(world, workload=workload)


# -- what the families do to it ------------------------------------------------------------------


def volatile(world: Scenario) -> Scenario:
    """Uplinks that drift (log-normally, σ 0.5) and drop to a tenth, at a new level about once a
    second, with 3 ms of jitter."""
    rng = _rng(world.seed, _EVENTS)
    events = []
    links = {}
    for name, link in world.network.links.items():
        assert link.rate_mbps is not None
        links[name] = msgspec.structs.replace(link, jitter=0.003)
        time, level = 0.0, 0.0
        while True:
            time += 0.3 + float(rng.exponential(0.7))
            if time >= world.workload.duration:
                break
            level = 0.7 * level + float(rng.normal(0.0, 0.5 * math.sqrt(1 - 0.7**2)))
            drop = 0.1 if rng.random() < 0.12 else 1.0
            rate = round(max(0.1, link.rate_mbps * math.exp(level) * drop), 3)
            events.append(
                LinkEvent(at=round(time, 3), link=f"uplink:{name}", set=LinkSet(rate_mbps=rate))
            )
    return _with_network(world, links=links, events=tuple(events))


def cellular(world: Scenario) -> Scenario:
    """Uplinks with the mean they had and a generated cellular trace each."""
    links = {}
    for index, (name, link) in enumerate(world.network.links.items()):
        assert link.rate_mbps is not None
        trace = CellularTrace(mean_mbps=link.rate_mbps, seed=world.seed * LINKS_MAX + index)
        links[name] = msgspec.structs.replace(link, rate_mbps=None, trace=trace)
    return _with_network(world, links=links)


def _victim(world: Scenario, rng: np.random.Generator) -> str:
    return world.server_names[int(rng.integers(len(world.servers)))]


def server_failure(world: Scenario) -> Scenario:
    """One server is down for 4 to 6 s."""
    rng = np.random.default_rng([world.seed, _EVENTS, 1])
    at, duration = float(rng.uniform(4.0, 8.0)), float(rng.uniform(4.0, 6.0))
    failure = DownFailure(at=round(at, 3), server=_victim(world, rng), duration=round(duration, 3))
    return msgspec.structs.replace(world, failures=(*world.failures, failure))


def link_failure(world: Scenario) -> Scenario:
    """One uplink carries nothing for 3 to 5 s."""
    rng = np.random.default_rng([world.seed, _EVENTS, 2])
    at, duration = float(rng.uniform(4.0, 8.0)), float(rng.uniform(3.0, 5.0))
    name = _victim(world, rng)
    outage = Outage(at=round(at, 3), duration=round(duration, 3))
    links = dict(world.network.links)
    links[name] = msgspec.structs.replace(links[name], outages=(outage,))
    return _with_network(world, links=links)


def slow_server(world: Scenario) -> Scenario:
    """A gray failure: one server goes on answering and reporting, 3 to 6 times slower, for 8 s."""
    rng = np.random.default_rng([world.seed, _EVENTS, 3])
    failure: Failure = SlowFailure(
        at=round(float(rng.uniform(3.0, 6.0)), 3),
        server=_victim(world, rng),
        duration=8.0,
        factor=round(float(rng.uniform(3.0, 6.0)), 2),
    )
    return msgspec.structs.replace(world, failures=(*world.failures, failure))


def _flash_crowd(seed: int) -> Scenario:
    world = base("flash_crowd", seed, load=0.6)
    rate = world.workload.arrivals.mean_rate
    assert rate is not None
    file = flash_crowd(seed, rate, world.workload.duration)
    # The clients' links were built for the quiet rate and a crowd is three times that: 75 % busy.
    return _with_arrivals(world, TraceArrivals(file=str(file), loop=False))


def _recorded(seed: int) -> Scenario:
    world = base("trace_arrivals", seed)
    rate = world.workload.arrivals.mean_rate
    assert rate is not None
    file: Path = recorded_arrivals(seed, rate, world.workload.duration)
    return _with_arrivals(world, TraceArrivals(file=str(file), rate=rate))


def _stale(seed: int, family: str, period: float) -> Scenario:
    return base(family, seed, report_period=period)


def _combined(seed: int) -> Scenario:
    return volatile(base("combined", seed, arrivals=BURSTY, report_period=0.5))


def _two_balancers(seed: int) -> Scenario:
    return msgspec.structs.replace(base("two_balancers", seed), balancers=2)


def _train(seed: int) -> Scenario:
    """A mixture: every feature of the suite by itself, drawn independently, so that what is learned
    has seen them together and apart. Not in it: larger fleets and recorded arrivals."""
    rng = _rng(seed, _MIXTURE)
    load = _between(rng, 0.4, 1.7)
    hot = float(rng.uniform(0.5, 0.8)) if rng.random() < 0.2 else None
    width = _between(rng, 0.2, 1.0) if rng.random() < 0.3 else 1.0
    kind = rng.random()
    crowd = ((0.7, 2.8), (8.0, 2.0))
    arrivals = BURSTY if kind < 0.3 else crowd if kind < 0.45 else CALM
    period = _between(rng, 0.05, 2.0) if rng.random() < 0.4 else None
    world = base(
        "train",
        seed,
        load=load,
        width=width,
        hot=hot,
        arrivals=arrivals,
        report_period=period,
    )
    network, fault = rng.random(), rng.random()
    if network < 0.3:
        world = volatile(world)
    elif network < 0.45:
        world = cellular(world)
    if fault < 0.08:
        world = server_failure(world)
    elif fault < 0.16:
        world = link_failure(world) if network >= 0.45 else world
    elif fault < 0.24:
        world = slow_server(world)
    return msgspec.structs.replace(world, balancers=2) if rng.random() < 0.1 else world


def _family(name: str, about: str, make: Callable[[int], Scenario]) -> tuple[str, Family]:
    return name, Family(name=name, about=about, make=make)


FAMILIES: dict[str, Family] = dict(
    (
        _family("light", "load 0.5", lambda seed: base("light", seed, load=0.5)),
        _family("medium", "load 0.8", lambda seed: base("medium", seed)),
        _family("heavy", "load 1.05", lambda seed: base("heavy", seed, load=1.05)),
        _family("overload", "load 1.5", lambda seed: base("overload", seed, load=1.5)),
        _family(
            "hot_spot",
            "load 0.8, 70 % of the requests at one ingress",
            lambda seed: base("hot_spot", seed, hot=0.7),
        ),
        _family(
            "bursty",
            "load 0.8, a quarter of the time at 2.8 times the mean rate",
            lambda seed: base("bursty", seed, arrivals=BURSTY),
        ),
        _family(
            "volatile",
            "load 0.8, uplinks drift and drop to a tenth about once a second",
            lambda seed: volatile(base("volatile", seed)),
        ),
        _family(
            "stale_500ms",
            "load 0.8, a report every 0.5 s",
            lambda seed: _stale(seed, "stale_500ms", 0.5),
        ),
        _family(
            "stale_2s", "load 0.8, a report every 2 s", lambda seed: _stale(seed, "stale_2s", 2.0)
        ),
        _family("flash_crowd", "load 0.6, for 4 s three times as many", _flash_crowd),
        _family(
            "server_failure",
            "load 0.8, one server down for 4 to 6 s",
            lambda seed: server_failure(base("server_failure", seed)),
        ),
        _family(
            "link_failure",
            "load 0.8, one uplink dead for 3 to 5 s",
            lambda seed: link_failure(base("link_failure", seed)),
        ),
        _family(
            "slow_server",
            "load 0.8, one server 3 to 6 times slower for 8 s (gray failure)",
            lambda seed: slow_server(base("slow_server", seed)),
        ),
        _family("combined", "bursty, volatile, and a report every 0.5 s", _combined),
        _family("two_balancers", "load 0.8, two balancers with half the requests", _two_balancers),
        _family(
            "large_fleet",
            "load 0.8, 12 to 16 servers: more than any policy was trained on",
            lambda seed: base("large_fleet", seed, servers=(12, 16)),
        ),
        _family(
            "trace_arrivals",
            "load 0.8, arrivals replayed from a self-similar record",
            _recorded,
        ),
        _family(
            "trace_bandwidth",
            "load 0.8, uplinks that replay cellular traces",
            lambda seed: cellular(base("trace_bandwidth", seed)),
        ),
        _family(
            "thin_links",
            "load 0.8, uplinks at a fifth of the bandwidth",
            lambda seed: base("thin_links", seed, width=0.2),
        ),
        _family("train", "mixture of all of these but the last ones, for training", _train),
    )
)

STANDARD: tuple[str, ...] = tuple(name for name in FAMILIES if name != "train")
"""The families of the standard suite."""
