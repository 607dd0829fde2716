"""Fleets of any scale: models of milliseconds or seconds, few workers or many, thin links or none.

Two tables. *Slower and slower*: the same random fleets with every time multiplied by k and every
rate divided by it, which is the same problem: a policy without units does equally well at each k.
*Random fleets*: one to twelve servers of one to sixteen workers, ladders of one to six models of
2 ms to seconds, uplinks of 1 Mbit/s to 1 Gbit/s, loads of .3 to 1.3. Nothing was tuned or trained
on either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from msgspec.structs import replace

from edgewise import scenario as sc
from edgewise.benchmark.episodes import ReplayableWorld
from edgewise.benchmark.report import table
from edgewise.benchmark.statistics import Floats, interval
from edgewise.cores import for_each
from edgewise.policies import POLICIES
from edgewise.sim.build import SimOptions

NAMES = (
    *("edgewise", "priced_greedy", "opportunity_cost", "earliest_completion_margin"),
    *("sed_admission", "peak_ewma_admission"),
)
SCALES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
REQUESTS = 600
"""Mean number per fleet."""


def fleet(seed: int) -> sc.Scenario:
    """The random fleet of a seed."""
    rng = np.random.default_rng(seed)

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    count, models = int(rng.integers(1, 13)), int(rng.integers(1, 7))
    accuracy = np.sort(rng.uniform(0.25, 0.985, models))
    latency = np.sort(log_uniform(0.002, 0.3) * np.exp(rng.uniform(0, np.log(60), models)))
    servers, links, capacity = {}, {}, 0.0
    for i in range(count):
        workers, speed = int(log_uniform(1, 16.9)), log_uniform(0.25, 2.0)
        size = int(rng.integers(1, models + 1))
        # The first server has every model, so that every demand can be met.
        hosted = range(models) if i == 0 else sorted(rng.choice(models, size, replace=False))
        services = tuple(
            sc.ServiceSpec(model=f"m{m}", accuracy=float(accuracy[m]), latency=(float(latency[m]),))
            for m in hosted
        )
        servers[f"s{i}"] = sc.ServerSpec(workers=workers, speed=speed, services=services)
        links[f"s{i}"] = sc.LinkSettings(
            rate_mbps=log_uniform(1, 1000), delay=float(rng.uniform(0.0005, 0.02))
        )
        capacity += workers * speed
    usual = float(np.median(latency)) * log_uniform(2, 12)
    demands, work = [], 0.0
    for _ in range(int(rng.integers(1, 4))):
        least = float(rng.choice(accuracy) * rng.uniform(0.9, 1.0)) if rng.random() < 0.7 else 0.0
        low = usual * float(np.exp(rng.uniform(-1, 0.3)))
        demand = sc.Demand(
            share=float(rng.integers(1, 6)),
            deadline=(low, low * float(rng.uniform(1, 4))),
            accuracy=least,
        )
        demands.append(demand)
        work += demand.share * float(latency[accuracy >= least][0])
    work /= sum(demand.share for demand in demands)
    rate = float(rng.uniform(0.3, 1.3)) * capacity / work
    return sc.Scenario(
        name=f"fleet-{seed}",
        seed=seed,
        executor="replay",
        report_period=float(rng.choice([0.05, 0.1, 0.5])),
        servers=servers,
        network=sc.NetworkSpec(access=sc.LinkSettings(rate_mbps=200.0, delay=0.003), links=links),
        workload=sc.WorkloadSpec(
            duration=REQUESTS / rate,
            arrivals=sc.PoissonArrivals(rate=rate),
            ingress={name: float(rng.integers(1, 6)) for name in servers},
            demands=tuple(demands),
            payload=sc.LognormalPayload(median_bytes=log_uniform(2e3, 3e5), sigma=0.5),
        ),
    )


def deadlines(demand: sc.Demand) -> tuple[float, float]:
    """The range of a demand's deadlines, s."""
    given = demand.deadline
    return given if isinstance(given, tuple) else (given, given)


def scaled(world: sc.Scenario, k: float) -> sc.Scenario:
    """The same scenario with every time multiplied by `k` and every rate divided by it."""

    def link(given: sc.LinkSettings) -> sc.LinkSettings:
        rate = None if given.rate_mbps is None else given.rate_mbps / k
        return replace(given, rate_mbps=rate, delay=given.delay * k)

    network, workload = world.network, world.workload
    assert isinstance(workload.arrivals, sc.PoissonArrivals)
    return replace(
        world,
        report_period=world.report_period * k,
        prepare=replace(world.prepare, seconds=world.prepare.seconds * k),
        servers={
            name: replace(
                server,
                services=tuple(
                    replace(each, latency=tuple(x * k for x in each.latency or ()))
                    for each in server.services
                ),
            )
            for name, server in world.servers.items()
        },
        network=replace(
            network,
            access=link(network.access),
            link=link(network.link),
            links={name: link(each) for name, each in network.links.items()},
        ),
        workload=replace(
            workload,
            duration=workload.duration * k,
            arrivals=replace(workload.arrivals, rate=workload.arrivals.rate / k),
            demands=tuple(
                replace(each, deadline=tuple(x * k for x in deadlines(each)))
                for each in workload.demands
            ),
        ),
    )


def utilities(worlds: Sequence[sc.Scenario], threads: int) -> Floats:
    """Mean expected utility of every policy in every world: (worlds, policies)."""
    found = np.zeros((len(worlds), len(NAMES)))

    def play(w: int) -> None:
        world = ReplayableWorld(worlds[w], SimOptions(store=False))
        found[w] = [world.utility(POLICIES[name]) for name in NAMES]

    for_each(range(len(worlds)), play, threads)
    return found


def markdown(fleets: int, command: str, threads: int, progress: Callable[[str], None]) -> str:
    """The section of docs/benchmark.md."""
    few = [fleet(seed) for seed in range(min(fleets, 20))]
    by_scale = []
    for k in SCALES:
        progress(f"k = {k:g}")
        by_scale.append(utilities([scaled(world, k) for world in few], threads).mean(axis=0))
    progress(f"{fleets} random fleets")
    random = utilities([fleet(seed) for seed in range(fleets)], threads)
    rules = random[:, 3:].max(axis=1)
    lines = [
        f"`{command}` played this. Expected utility of {len(few)} random fleets, every time "
        "multiplied by k and every rate divided by it. The differences that are left come from "
        "constants of the belief in seconds (averages over 1, 5 and 10 s, priors of a link).",
        "",
        table(
            ("k", *(f"`{name}`" for name in NAMES)),
            [
                (f"{k:g}", *(f"{x:.3f}" for x in row))
                for k, row in zip(SCALES, by_scale, strict=True)
            ],
        ),
        "",
        f"{fleets} random fleets; *against the best rule*: of the three rules without prices, "
        "chosen in each fleet with hindsight.",
        "",
        table(
            ("policy", "utility", "against the best rule", "over 2 % below it", "worst"),
            [
                (
                    f"`{name}`",
                    f"{random[:, p].mean():.3f}",
                    f"{interval(random[:, p] - rules):+.3f}",
                    f"{int((random[:, p] < 0.98 * rules).sum())} fleets",
                    f"{100 * (random[:, p] / rules - 1.0).min():.0f} %",
                )
                for p, name in enumerate(NAMES)
            ],
        ),
    ]
    return "\n".join(lines)
