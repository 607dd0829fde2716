"""Families of random worlds, each a function from a seed to a `Scenario`.

A scenario is valid, complete (it does not depend on the machine) and the same to the last bit every
time. `scenario.dump` writes it to a file that `edgewise simulate` and `edgewise up` read.

The aspects of a world (fleet, network, demands, …) are drawn from streams of their own, so families
*share worlds*: seed 7 of *heavy* is seed 7 of *light* with more requests, and of *thin_links* with
slower links. Differences between families are then differences of the family. The price is that
families are not independent samples, so confidence intervals over several of them must be clustered
by seed (`edgewise.benchmark.statistics`).

Seeds
-----
Learning, choosing among learned policies and reporting must never use the same world. The three
ranges are disjoint, and everything random about a world, its links' traces too, derives from its
seed alone:

- `TRAINING` 0 … 999,999: tuning and training.
- `VALIDATION` 1,000,000 … 1,999,999: choosing among checkpoints, accepting or refusing one.
- `EVALUATION` 2,000,000 … 2,999,999: numbers in tables. Nothing is ever chosen by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from edgewise.errors import BadInput
from edgewise.scenario import (
    CellularTrace,
    DownFailure,
    ErrorsFailure,
    Failure,
    LinkChange,
    LinkEvent,
    MuteFailure,
    Outage,
    Scenario,
    SlowFailure,
    TraceArrivals,
    WrongFailure,
)
from edgewise.worlds.any_scale import any_scale
from edgewise.worlds.random_world import (
    BURSTY,
    CALM,
    EVENTS,
    MIXTURE,
    base,
    between,
    stream,
    with_arrivals,
    with_network,
)
from edgewise.worlds.recorded import flash_crowd, recorded_arrivals

TRAINING = range(1_000_000)
VALIDATION = range(1_000_000, 2_000_000)
EVALUATION = range(2_000_000, 3_000_000)
TRAINING_WORLDS = 50_000
"""Training worlds set aside for each training run; 20 runs use the whole range."""

LINKS_MAX = 64
"""Links of a world that may have a trace of their own. Seeds of traces are numbered by it."""


class Family(Struct, frozen=True, kw_only=True):
    """A family of worlds."""

    name: str
    about: str
    make: Callable[[int], Scenario]
    """From a seed ≥ 0 to a world."""
    failing: bool = False
    """Parts of it fail in the ways that ejection is for. It is no part of the standard suite, and
    has worlds for evaluation only, so that nothing can be tuned or trained on it."""


def find(family: str) -> Family:
    """The family of that name. Raises BadInput for an unknown one."""
    if family not in FAMILIES:
        raise BadInput(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[family]


def scenario(family: str, seed: int) -> Scenario:
    """World `seed` of a family. Raises BadInput for an unknown family, for a seed below 0, and for
    a seed of training or validation if the family is for evaluation only."""
    found = find(family)
    if seed < 0:
        raise BadInput(f"expected a seed >= 0, got {seed}")
    if found.failing and seed not in EVALUATION:
        raise BadInput(
            f"{family} is for evaluation only: expected a seed from {EVALUATION.start:,} to "
            f"{EVALUATION.stop - 1:,}, got {seed:,}"
        )
    return msgspec.structs.replace(found.make(seed), about=found.about)


def training_seeds(run: int, first: int, count: int) -> list[int]:
    """Worlds `first` … `first` + `count` − 1 of the training run with seed `run`.

    Runs with different seeds share no world, up to a seed of 19.
    """
    start = run * TRAINING_WORLDS + first
    return [TRAINING[i % len(TRAINING)] for i in range(start, start + count)]


def validation_seeds(count: int, skip: int = 0) -> list[int]:
    """The first `count` validation worlds after `skip`: for choosing among what was trained."""
    return list(VALIDATION[skip : skip + count])


def evaluation_seeds(count: int, skip: int = 0) -> tuple[int, ...]:
    """The first `count` held-out worlds after `skip`: for reporting, never for choosing.

    Raises BadInput for a count below 1 or beyond the range.
    """
    most = len(EVALUATION) - skip
    if not 1 <= count <= most:
        raise BadInput(f"expected 1 to {most:,} seeds, got {count}")
    return tuple(EVALUATION[skip : skip + count])


# -- what families change in a world -------------------------------------------------------------


def volatile(world: Scenario) -> Scenario:
    """Let uplinks drift (log-normally, σ 0.5) and drop to a tenth, with a new level about once a
    second and 3 ms of jitter."""
    rng = stream(world.seed, EVENTS)
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
                LinkEvent(at=round(time, 3), link=f"uplink:{name}", set=LinkChange(rate_mbps=rate))
            )
    return with_network(world, links=links, events=tuple(events))


def cellular(world: Scenario) -> Scenario:
    """Give each uplink a generated cellular trace with the mean rate it had."""
    links = {}
    for index, (name, link) in enumerate(world.network.links.items()):
        assert link.rate_mbps is not None
        trace = CellularTrace(mean_mbps=link.rate_mbps, seed=world.seed * LINKS_MAX + index)
        links[name] = msgspec.structs.replace(link, rate_mbps=None, trace=trace)
    return with_network(world, links=links)


def _victim(world: Scenario, rng: np.random.Generator) -> str:
    return world.server_names[int(rng.integers(len(world.servers)))]


def server_failure(world: Scenario) -> Scenario:
    """Stop one server for 4 to 6 s."""
    rng = stream(world.seed, EVENTS, 1)
    at, duration = float(rng.uniform(4.0, 8.0)), float(rng.uniform(4.0, 6.0))
    failure = DownFailure(at=round(at, 3), server=_victim(world, rng), duration=round(duration, 3))
    return msgspec.structs.replace(world, failures=(*world.failures, failure))


def balancer_failure(world: Scenario) -> Scenario:
    """Silence the balancer for 7 to 9 s; nodes wait for it at first, then decide themselves."""
    rng = stream(world.seed, EVENTS, 4)
    at, duration = float(rng.uniform(3.0, 5.0)), float(rng.uniform(7.0, 9.0))
    failure = MuteFailure(at=round(at, 3), duration=round(duration, 3))
    return msgspec.structs.replace(world, failures=(*world.failures, failure))


def link_failure(world: Scenario) -> Scenario:
    """Let one uplink carry nothing for 3 to 5 s."""
    rng = stream(world.seed, EVENTS, 2)
    at, duration = float(rng.uniform(4.0, 8.0)), float(rng.uniform(3.0, 5.0))
    name = _victim(world, rng)
    outage = Outage(at=round(at, 3), duration=round(duration, 3))
    links = dict(world.network.links)
    links[name] = msgspec.structs.replace(links[name], outages=(outage,))
    return with_network(world, links=links)


def slow_server(world: Scenario) -> Scenario:
    """Slow one server down 3 to 6 times for 8 s; it still answers and reports (gray failure)."""
    rng = stream(world.seed, EVENTS, 3)
    failure: Failure = SlowFailure(
        at=round(float(rng.uniform(3.0, 6.0)), 3),
        server=_victim(world, rng),
        duration=8.0,
        factor=round(float(rng.uniform(3.0, 6.0)), 2),
    )
    return msgspec.structs.replace(world, failures=(*world.failures, failure))


def failing_fast(world: Scenario) -> Scenario:
    """Let one server answer errors at once for 6 to 10 s."""
    rng = stream(world.seed, EVENTS, 5)
    at, duration = float(rng.uniform(3.0, 5.0)), float(rng.uniform(6.0, 10.0))
    failure = ErrorsFailure(
        at=round(at, 3), server=_victim(world, rng), duration=round(duration, 3)
    )
    return msgspec.structs.replace(world, failures=(*world.failures, failure))


def dead_path(world: Scenario) -> Scenario:
    """Give every pair of servers a link of its own, and let one carry nothing for 8 to 11 s."""
    rng = stream(world.seed, EVENTS, 6)
    at, duration = float(rng.uniform(3.0, 5.0)), float(rng.uniform(8.0, 11.0))
    names = world.server_names
    busiest = max(names, key=lambda name: world.workload.ingress[name])
    other = [name for name in names if name != busiest][int(rng.integers(len(names) - 1))]
    links = {f"{a}>{b}": world.network.links[a] for a in names for b in names if a != b}
    outage = Outage(at=round(at, 3), duration=round(duration, 3))
    dead = f"{busiest}>{other}"
    links[dead] = msgspec.structs.replace(links[dead], outages=(outage,))
    return with_network(world, topology="pair", links=links)


def wrong_answers(world: Scenario) -> Scenario:
    """Let one server answer wrongly for 6 to 10 s."""
    rng = stream(world.seed, EVENTS, 7)
    at, duration = float(rng.uniform(3.0, 5.0)), float(rng.uniform(6.0, 10.0))
    failure = WrongFailure(at=round(at, 3), server=_victim(world, rng), duration=round(duration, 3))
    return msgspec.structs.replace(world, failures=(*world.failures, failure))


def forgotten_spell(world: Scenario) -> Scenario:
    """Slow one server down 10 times for 3 s; what was measured then must not last."""
    rng = stream(world.seed, EVENTS, 8)
    at = round(float(rng.uniform(3.0, 5.0)), 3)
    failure = SlowFailure(at=at, server=_victim(world, rng), duration=3.0, factor=10.0)
    return msgspec.structs.replace(world, failures=(*world.failures, failure))


def lost_photos(world: Scenario) -> Scenario:
    """Let every tenth photo never come, though its metadata does."""
    workload = msgspec.structs.replace(world.workload, lost_photos=0.1)
    return msgspec.structs.replace(world, workload=workload)


def crowded(world: Scenario) -> Scenario:
    """Replay arrivals with a flash crowd of three times the rate.

    The clients' links were built for the usual rate; the crowd keeps them 75 % busy.
    """
    rate = world.workload.arrivals.mean_rate
    assert rate is not None
    file = flash_crowd(world.seed, rate, world.workload.duration)
    return with_arrivals(world, TraceArrivals(file=str(file), loop=False))


def replayed(world: Scenario) -> Scenario:
    """Replay recorded arrivals at the same mean rate."""
    rate = world.workload.arrivals.mean_rate
    assert rate is not None
    file = recorded_arrivals(world.seed, rate, world.workload.duration)
    return with_arrivals(world, TraceArrivals(file=str(file), rate=rate))


def with_two_balancers(world: Scenario) -> Scenario:
    """Share the requests among two balancers."""
    return msgspec.structs.replace(world, balancers=2)


def _train(seed: int) -> Scenario:
    """A mixture for training. Every feature of the suite is drawn independently, so that they occur
    together and apart. It has no larger fleets and no recorded arrivals."""
    rng = stream(seed, MIXTURE)
    load = between(rng, 0.4, 1.7)
    hot = float(rng.uniform(0.5, 0.8)) if rng.random() < 0.2 else None
    width = between(rng, 0.2, 1.0) if rng.random() < 0.3 else 1.0
    kind = rng.random()
    crowd = ((0.7, 2.8), (8.0, 2.0))
    arrivals = BURSTY if kind < 0.3 else crowd if kind < 0.45 else CALM
    period = between(rng, 0.05, 2.0) if rng.random() < 0.4 else None
    world = base(
        "train", seed, load=load, width=width, hot=hot, arrivals=arrivals, report_period=period
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
    return with_two_balancers(world) if rng.random() < 0.1 else world


def _family(
    name: str,
    about: str,
    change: Callable[[Scenario], Scenario] = lambda world: world,
    **variation: Any,
) -> Family:
    """A family of base worlds with a variation of their parameters, changed afterwards."""
    return Family(name=name, about=about, make=lambda seed: change(base(name, seed, **variation)))


def _changed(change: Callable[[Scenario], Scenario]) -> Callable[[int], Scenario]:
    return lambda seed: change(base(change.__name__, seed, load=0.5))


_FAMILIES = (
    _family("light", "load 0.5", load=0.5),
    _family("medium", "load 0.8"),
    _family("heavy", "load 1.05", load=1.05),
    _family("overload", "load 1.5", load=1.5),
    _family("hot_spot", "load 0.8, 70 % of the requests at one ingress", hot=0.7),
    _family(
        "bursty", "load 0.8, a quarter of the time at 2.8 times the mean rate", arrivals=BURSTY
    ),
    _family(
        "volatile", "load 0.8, uplinks drift and drop to a tenth about once a second", volatile
    ),
    _family("stale_500ms", "load 0.8, a report every 0.5 s", report_period=0.5),
    _family("stale_2s", "load 0.8, a report every 2 s", report_period=2.0),
    _family("flash_crowd", "load 0.6, for 4 s three times as many", crowded, load=0.6),
    _family("server_failure", "load 0.8, one server down for 4 to 6 s", server_failure),
    _family(
        "balancer_failure",
        "load 0.8, the balancer silent for 7 to 9 s, the nodes decide themselves",
        balancer_failure,
    ),
    _family("link_failure", "load 0.8, one uplink dead for 3 to 5 s", link_failure),
    _family(
        "slow_server",
        "load 0.8, one server 3 to 6 times slower for 8 s (gray failure)",
        slow_server,
    ),
    _family(
        "combined",
        "bursty, volatile, and a report every 0.5 s",
        volatile,
        arrivals=BURSTY,
        report_period=0.5,
    ),
    _family(
        "two_balancers", "load 0.8, two balancers with half the requests each", with_two_balancers
    ),
    _family(
        "large_fleet",
        "load 0.8, 12 to 16 servers: more than any policy was trained on",
        servers=(12, 16),
    ),
    _family("trace_arrivals", "load 0.8, arrivals replayed from a self-similar record", replayed),
    _family("trace_bandwidth", "load 0.8, uplinks that replay cellular traces", cellular),
    _family("thin_links", "load 0.8, uplinks at a fifth of the bandwidth", width=0.2),
    *(
        Family(name=change.__name__, about=about, make=_changed(change), failing=True)
        for change, about in (
            (failing_fast, "load 0.5, one server answers errors at once for 6 to 10 s"),
            (dead_path, "load 0.5, a link per pair, one of them dead for 8 to 11 s"),
            (wrong_answers, "load 0.5, one server answers wrongly for 6 to 10 s"),
            (forgotten_spell, "load 0.5, one server 10 times slower for 3 s"),
            (lost_photos, "load 0.5, every tenth photo never comes"),
        )
    ),
    Family(
        name="train", about="mixture of all of these but the last ones, for training", make=_train
    ),
    Family(
        name="any_scale",
        about="fleets of any size and speed, models of 2 ms to 18 s, any links, load 0.3 to 1.3",
        make=any_scale,
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _FAMILIES}

FAILING: tuple[str, ...] = tuple(family.name for family in _FAMILIES if family.failing)
"""The families in which parts fail in ways that ejection is for."""

TRAINED_IN: tuple[str, ...] = ("train", "any_scale")
"""The families in which policies are tuned and trained."""

STANDARD: tuple[str, ...] = tuple(name for name in FAMILIES if name not in (*FAILING, *TRAINED_IN))
"""The families of the standard suite."""
