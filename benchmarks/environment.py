"""Environment steps per second and core: the vector environment under a random policy.

    python benchmarks/environment.py [--envs 28] [--seconds 5] [--threads 1] [--json FILE]

Fleets of S servers × K models with links and a report every 0.2 s, at a load that a random policy
can carry (every model equally often, and shedding as often as any other row). Observations are
whole: *table* is a wide row per candidate, *parts* the same figures without repetition, written by
`step` into buffers that it reuses (``copy=False``). Rows are drawn in compiled code, and that is
counted. Every environment plays its world over and over, so what is timed is stepping, beginning
anew included; making a world is timed apart. 28 environments are what the second cache of a core
holds (1 MB).

`engine` is the same world under the policy `random` in the engine's own loop, one world at a time,
no environment around it: what the rest of a step costs is the difference. Times are of this process
(CPU), of rounds of a whole world in each environment: the best, so that neighbours on a shared
machine count as little as possible, and the mean.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.cli.failures import in_one_line
from edgewise.compile import jit
from edgewise.fleet.arrays import Array
from edgewise.fleet.rng import new_rng, uniform
from edgewise.policies import POLICIES
from edgewise.scenario import (
    Demand,
    LinkSettings,
    LognormalPayload,
    NetworkSpec,
    PoissonArrivals,
    Scenario,
    ServerSpec,
    ServiceSpec,
    WorkloadSpec,
)
from edgewise.sim import engine
from edgewise.sim.play import play
from edgewise.sim.source import WorldSource

with in_one_line():
    from edgewise.sim.env.vector import BalanceVectorEnv

LADDER = ((0.57, 0.006), (0.72, 0.012), (0.76, 0.035), (0.83, 0.110))
SECONDS = 60.0
"""Of a world, as in `benchmarks/simulator.py`."""


def fleet(servers: int, services: int) -> Scenario:
    """S × K, a third busy when all rows are taken equally often."""
    names = [f"s{s + 1}" for s in range(servers)]
    ladder = LADDER[:services]
    mean = sum(latency for _, latency in ladder) / services
    rate = 0.33 * 2 * servers / mean
    return Scenario(
        name=f"{servers}x{services}",
        report_period=0.2,
        executor="replay",
        servers={
            name: ServerSpec(
                workers=2,
                speed=0.8 + 0.4 * s / max(1, servers - 1),
                services=tuple(
                    ServiceSpec(model=f"m{k}", accuracy=accuracy, latency=(latency,))
                    for k, (accuracy, latency) in enumerate(ladder)
                ),
            )
            for s, name in enumerate(names)
        },
        network=NetworkSpec(
            links={name: LinkSettings(rate_mbps=100.0, delay=0.005) for name in names},
            access_links={name: LinkSettings(rate_mbps=1000.0, delay=0.005) for name in names},
        ),
        workload=WorkloadSpec(
            duration=SECONDS,
            arrivals=PoissonArrivals(rate=rate),
            ingress=dict.fromkeys(names, 1.0 / servers),
            demands=(Demand(share=1.0, deadline=(0.2, 1.0), accuracy=0.0),),
            payload=LognormalPayload(median_bytes=20_000.0, sigma=0.5),
        ),
    )


@jit
def draw_rows(mask: Array, draws: Array, out: Array) -> None:
    """An admissible row of each, uniformly: any row, until it is one. The last one always is."""
    for i in range(mask.shape[0]):
        row = int(uniform(draws) * mask.shape[1])
        while mask[i, row] == 0:
            row = int(uniform(draws) * mask.shape[1])
        out[i] = row


def of_environment(
    scenario: Scenario, observation: str, envs: int, threads: int, seconds: float
) -> tuple[float, float, float]:
    """Steps/s: of CPU time in the best round, and on average; of wall time."""
    env = BalanceVectorEnv(
        envs, scenario, observation=observation, plays=10**9, threads=threads, copy=False
    )
    _, info = env.reset(seed=0)
    rows, draws = np.zeros(envs, np.int64), new_rng(0)
    draw_rows(info["action_mask"], draws, rows)
    steps = round(scenario.workload.arrivals.rate * SECONDS)  # of a world, about
    for _ in range(steps + 500):  # past the first ends: compiled, or loaded, and warm
        draw_rows(info["action_mask"], draws, rows)
        _, _, _, _, info = env.step(rows)
    spent: list[float] = []
    wall = time.perf_counter()
    while sum(spent) < seconds:
        began = time.process_time()
        for _ in range(steps):
            draw_rows(info["action_mask"], draws, rows)
            _, _, _, _, info = env.step(rows)
        spent.append(time.process_time() - began)
    wall = time.perf_counter() - wall
    env.close()
    steps *= envs
    return steps / min(spent), steps * len(spent) / sum(spent), steps * len(spent) / wall


def of_engine(scenario: Scenario, seconds: float) -> tuple[float, float, float, float]:
    """(decisions/s of the best round and on average, events per decision, s to make a world), one
    core."""
    supply = WorldSource(scenario)
    began = time.process_time()
    start = supply.world(0)
    made = time.process_time() - began
    play(engine.branch(start), POLICIES["random"], 0)
    decisions, events = 0, 0
    spent: list[float] = []
    while sum(spent) < seconds:
        sim = engine.branch(start)
        began = time.process_time()
        play(sim, POLICIES["random"], 0)
        spent.append(time.process_time() - began)
        decisions = int(sim.world.clock["decisions"][0])
        events = int(sim.world.clock["processed"][0])
    mean = decisions * len(spent) / sum(spent)
    return decisions / min(spent), mean, events / decisions, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--envs", type=int, default=28)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="CPU time of each measurement")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: list[dict[str, Any]] = []
    print(f"{'':>21} {'steps/s of CPU time':>24}")
    print(f"{'fleet':>6} {'rows':>5} {'':>8} {'best':>12} {'mean':>11} {'of wall':>11} {'µs':>7}")
    for servers, services in ((3, 3), (8, 4)):
        scenario = fleet(servers, services)
        rows = 2 * servers * services + 1
        alone, mean, events, made = of_engine(scenario, given.seconds)
        print(
            f"{scenario.name:>6} {rows:>5} {'engine':>8} {alone:>12,.0f} {mean:>11,.0f} {'':>11}"
            f" {1e6 / alone:>7.2f}   {events:.1f} events a decision"
            f"; a world of {SECONDS:.0f} s made in {1e3 * made:.1f} ms"
        )
        entry: dict[str, Any] = {"fleet": scenario.name, "rows": rows, "engine": alone}
        for observation in ("table", "parts"):
            best, mean, wall = of_environment(
                scenario, observation, given.envs, given.threads, given.seconds
            )
            entry[observation] = best
            print(
                f"{scenario.name:>6} {rows:>5} {observation:>8} {best:>12,.0f} {mean:>11,.0f}"
                f" {wall:>11,.0f} {1e6 / best:>7.2f}   {best / alone:.2f} × engine"
            )
        found.append(entry)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    with in_one_line():
        main()
