"""Fleets of any scale, and the same fleets at different scales.

Two tables, from held-out worlds of the family `any_scale`. *Slower and slower*: the same fleets
with every time multiplied by k and every rate divided by it, which is the same problem: a policy
without units does equally well at each k. *Random fleets*: more of them, by policy.
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
from edgewise.worlds import families

NAMES = (
    *("edgewise", "priced_greedy", "earliest_completion_margin"),
    *("sed_admission", "peak_ewma_admission"),
)
SCALES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


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
    seeds = families.evaluation_seeds(fleets)
    few = [families.scenario("any_scale", seed) for seed in seeds[:20]]
    by_scale = []
    for k in SCALES:
        progress(f"k = {k:g}")
        by_scale.append(utilities([scaled(world, k) for world in few], threads).mean(axis=0))
    progress(f"{fleets} random fleets")
    random = utilities([families.scenario("any_scale", seed) for seed in seeds], threads)
    rules = random[:, 2:].max(axis=1)
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
