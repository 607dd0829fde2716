"""How fast the simulator decides, on one core, beside SimPy on cases that SimPy can play.

    .venv/bin/python benchmarks/simulator.py [--compile] [--quick]

Times are CPU seconds of this process, the best of several, so that neighbours on a shared machine
count as little as possible (they still take caches and half of a hyperthread). ``--compile`` also
compiles everything anew, into an empty cache.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import msgspec
import numpy as np

from edgewise import scenario as sc
from edgewise.cli.failures import in_one_line
from edgewise.fleet.table import SAMPLED, SAMPLED_ABOVE
from edgewise.policies import POLICIES
from edgewise.sim import engine
from edgewise.sim.build import SimOptions, simulation
from edgewise.sim.layout import SERVED, Sim
from edgewise.sim.play import play
from edgewise.worlds.workload import generate

with in_one_line():
    import simpy

LATENCIES = (0.006, 0.012, 0.035, 0.110)  # the trial's models (LEARNING)
EARLIEST = "earliest_completion"
ACCURACIES = (0.57, 0.72, 0.76, 0.83)


def fleet(servers: int, services: int = 4, seconds: float = 60.0) -> sc.Scenario:
    """Unequal servers with 1–2 workers, 50 Mbit/s uplinks, reports every 0.1 s, 55 requests/s
    each."""
    rng = np.random.default_rng(5)
    offered = tuple(
        sc.ServiceSpec(model=f"m{k}", accuracy=ACCURACIES[k % 4], latency=(LATENCIES[k % 4],))
        for k in range(services)
    )
    names = [f"s{i}" for i in range(servers)]
    return sc.Scenario(
        name="benchmark",
        executor="replay",
        servers={
            name: sc.ServerSpec(
                services=offered, workers=1 + i % 2, speed=float(rng.uniform(0.5, 2.0))
            )
            for i, name in enumerate(names)
        },
        network=sc.NetworkSpec(link=sc.LinkSettings(rate_mbps=50.0, delay=0.005)),
        workload=sc.WorkloadSpec(
            duration=seconds,
            arrivals=sc.PoissonArrivals(rate=55.0 * servers),
            ingress=dict.fromkeys(names, 1.0),
            demands=(
                sc.Demand(deadline=(0.1, 0.3), accuracy=0.5),
                sc.Demand(deadline=(0.2, 1.0), accuracy=0.7),
            ),
            payload=sc.LognormalPayload(median_bytes=60_000),
        ),
    )


def best_of(repeat: int, prepare: Callable[[], Sim], run: Callable[[Sim], object]) -> float:
    """CPU seconds."""
    times = []
    for _ in range(repeat):
        sim = prepare()
        began = time.process_time()
        run(sim)
        times.append(time.process_time() - began)
    return min(times)


def speed(
    scenario: sc.Scenario, policy: str, repeat: int = 15, sampled: bool = True
) -> tuple[float, float, int, float]:
    """Decisions/s, events per decision, decisions, mean utility. Without `sampled` all servers of a
    large fleet are looked at (`fleet.table.SAMPLED`)."""
    spec = POLICIES[policy]
    start = simulation(scenario, generate(scenario, None), SimOptions(store=False))
    if not sampled:
        start.table.settings.sampled = 0
    play(engine.branch(start), spec, 1)  # compiles, and warms the caches
    last: list[Sim] = []

    def run(sim: Sim) -> None:
        last.append(play(sim, spec, 1))

    seconds = best_of(repeat, lambda: engine.branch(start), run)
    clock = last[-1].world.clock[0]
    count = int(clock["decisions"])
    return (
        count / seconds,
        float(clock["processed"]) / count,
        count,
        float(clock["utility"]) / len(start.world.requests),
    )


# -- SimPy ---------------------------------------------------------------------------------------


def simpy_queues(rate: float, mean: float, servers: int, count: int, joint: bool) -> float:
    """M/M/c with one queue (`joint`), or the shortest of several; returns the mean wait."""
    rng = random.Random(1)
    env = simpy.Environment()
    queues = [simpy.Resource(env, servers if joint else 1) for _ in range(1 if joint else servers)]
    waits = []

    def job() -> object:
        came = env.now
        queue = min(queues, key=lambda each: len(each.queue) + each.count)
        with queue.request() as turn:
            yield turn
            waits.append(env.now - came)
            yield env.timeout(rng.expovariate(1.0 / mean))

    def source() -> object:
        for _ in range(count):
            yield env.timeout(rng.expovariate(rate))
            env.process(job())

    env.process(source())
    env.run()
    return statistics.fmean(waits)


def ours(rate: float, mean: float, servers: int, seconds: float, joint: bool) -> sc.Scenario:
    """The same: one server of c workers, or c servers of one; ideal links, no deadlines."""
    service = (sc.ServiceSpec(model="m", accuracy=0.5, latency=(mean,)),)
    count = 1 if joint else servers
    return sc.Scenario(
        name="queues",
        executor="replay",
        report_period=0.02 if not joint else 1.0,
        servers={
            f"s{i}": sc.ServerSpec(
                services=service, workers=servers if joint else 1, queue_limit=100_000
            )
            for i in range(count)
        },
        service_noise=sc.ServiceNoise(cv=1.0),
        prepare=sc.Prepare(enabled=False),
        network=sc.NetworkSpec(access=sc.LinkSettings(), link=sc.LinkSettings()),
        workload=sc.WorkloadSpec(
            duration=seconds,
            arrivals=sc.PoissonArrivals(rate=rate),
            ingress={"s0": 1.0},
            demands=(sc.Demand(deadline=3600.0),),
            payload=sc.LognormalPayload(median_bytes=1.0, sigma=0.0),
        ),
    )


def beside_simpy(quick: bool) -> None:
    print("\nThe same queues in SimPy and here (4 servers, load 0.7), requests/s:")
    print(f"{'case':<8}{'SimPy':>10}{'edgewise':>12}{'ratio':>8}{'wait SimPy':>14}{'here':>10}")
    count = 5_000 if quick else 20_000
    for name, joint, policy in (("M/M/4", True, "local"), ("JSQ", False, "jsq")):
        times, wait = [], 0.0
        for _ in range(3):
            began = time.process_time()
            wait = simpy_queues(280.0, 0.01, 4, count, joint)
            times.append(time.process_time() - began)
        scenario = ours(280.0, 0.01, 4, 10 * count / 280.0, joint)
        spec = POLICIES[policy]
        options = SimOptions(control_delay=0.0, noise=exponential())
        start = simulation(scenario, generate(scenario, None), options)
        play(engine.branch(start), spec, 1)
        last: list[Sim] = []

        def run(sim: Sim, spec=spec, last=last) -> None:  # type: ignore[no-untyped-def]
            last.append(play(sim, spec, 1))

        seconds = best_of(3, lambda start=start: engine.branch(start), run)  # type: ignore[misc]
        results = last[-1].world.results
        mine = float((results["started"] - results["transferred"]).mean())
        assert (results["status"] == SERVED).all()
        a, b = count / min(times), len(results) / seconds
        print(f"{name:<8}{a:>10,.0f}{b:>12,.0f}{b / a:>8.0f}{wait:>14.5f}{mine:>10.5f}")
    print("(JSQ here sees reports every 20 ms and reckons in between; SimPy's sees the queues.)")


def exponential() -> np.ndarray:
    """Equally likely factors of an exponential time, each the mean of its share."""
    n = 1 << 12
    edges = -np.log1p(-np.arange(n) / n)
    below = 1.0 - (1.0 + edges) * np.exp(-edges)
    return np.diff(np.append(below, 1.0)) * n


def compile_anew() -> None:
    """In a process of its own with an empty cache, then again with the full one."""
    code = (
        "import time; t = time.perf_counter(); c = time.process_time();"
        "from edgewise.cli.simulate import compile_engine; from rich.console import Console;"
        "compile_engine(['earliest_completion'], Console(quiet=True));"
        "print(f'{time.perf_counter() - t:.1f} s, {time.process_time() - c:.1f} s of CPU')"
    )
    with tempfile.TemporaryDirectory() as cache:
        for what in ("first compile of everything", "from the cache"):
            done = subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "NUMBA_CACHE_DIR": cache},
                capture_output=True,
                text=True,
                check=True,
            )
            print(f"{what}: {done.stdout.strip()}, imports included")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--quick", action="store_true")
    wishes = parser.parse_args()
    if wishes.compile:
        compile_anew()
    seconds = 20.0 if wishes.quick else 100.0
    print("8 servers × 4 services, two forms, shared uplinks, stale reports, one core:")
    print(f"{'policy':<24}{'decisions/s':>12}{'µs each':>9}{'events each':>13}")
    for policy in ("earliest_completion", "random", "priced_greedy"):
        if policy in POLICIES:
            rate, events, _, _ = speed(fleet(8, seconds=seconds), policy)
            print(f"{policy:<24}{rate:>12,.0f}{1e6 / rate:>9.2f}{events:>13.1f}")
    given = msgspec.structs.replace(fleet(8, seconds=seconds), balancers=2)
    rate, events, _, _ = speed(given, "earliest_completion")
    print(f"{'… two balancers':<24}{rate:>12,.0f}{1e6 / rate:>9.2f}{events:>13.1f}")

    print("\nearliest_completion over the size of the fleet (4 services each); above")
    print(f"{SAMPLED_ABOVE} servers of the ingress and {SAMPLED} drawn others, beside all of them:")
    print(
        f"{'servers':<9}{'looked at':>10}{'rows':>6}{'decisions/s':>13}{'µs each':>9}{'utility':>9}"
    )
    for servers in (3, 8, 32, 128, 512):
        run = min(seconds, 2e3 / servers if not wishes.quick else 4e2 / servers)
        for sampled in (True, False) if servers > SAMPLED_ABOVE else (False,):
            rate, _, _, utility = speed(fleet(servers, seconds=run), EARLIEST, 2, sampled)
            seen = 1 + SAMPLED if sampled else servers
            print(
                f"{servers:<9}{seen:>10}{seen * 8 + 1:>6}{rate:>13,.0f}{1e6 / rate:>9.2f}"
                f"{utility:>9.3f}"
            )
    beside_simpy(wishes.quick)


if __name__ == "__main__":
    with in_one_line():
        main()
