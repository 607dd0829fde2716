"""Fleets of any scale: models of milliseconds or seconds, few workers or many, thin links or none.

There are one to twelve servers of one to sixteen workers, ladders of one to six models whose
service times begin between 2 and 300 ms and reach up to sixty times that, uplinks of 1 Mbit/s to
1 Gbit/s, deadlines of some service times, and loads of 0.3 to 1.3. Service times are exact and
arrivals are Poisson: what makes these worlds hard is that no two have the same scales.
"""

from __future__ import annotations

import numpy as np

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

REQUESTS = 600
"""Mean number of requests of a world. Its duration follows from it and from the rate."""


def any_scale(seed: int) -> Scenario:
    """The world of a seed."""
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
            ServiceSpec(model=f"m{m}", accuracy=float(accuracy[m]), latency=(float(latency[m]),))
            for m in hosted
        )
        servers[f"s{i}"] = ServerSpec(workers=workers, speed=speed, services=services)
        links[f"s{i}"] = LinkSettings(
            rate_mbps=log_uniform(1, 1000), delay=float(rng.uniform(0.0005, 0.02))
        )
        capacity += workers * speed
    usual = float(np.median(latency)) * log_uniform(2, 12)
    demands, work = [], 0.0
    for _ in range(int(rng.integers(1, 4))):
        least = float(rng.choice(accuracy) * rng.uniform(0.9, 1.0)) if rng.random() < 0.7 else 0.0
        low = usual * float(np.exp(rng.uniform(-1, 0.3)))
        demand = Demand(
            share=float(rng.integers(1, 6)),
            deadline=(low, low * float(rng.uniform(1, 4))),
            accuracy=least,
        )
        demands.append(demand)
        work += demand.share * float(latency[accuracy >= least][0])
    work /= sum(demand.share for demand in demands)
    rate = float(rng.uniform(0.3, 1.3)) * capacity / work
    return Scenario(
        name=f"any_scale-{seed}",
        seed=seed,
        executor="replay",
        report_period=float(rng.choice([0.05, 0.1, 0.5])),
        servers=servers,
        network=NetworkSpec(access=LinkSettings(rate_mbps=200.0, delay=0.003), links=links),
        workload=WorkloadSpec(
            duration=REQUESTS / rate,
            arrivals=PoissonArrivals(rate=rate),
            ingress={name: float(rng.integers(1, 6)) for name in servers},
            demands=tuple(demands),
            payload=LognormalPayload(median_bytes=log_uniform(2e3, 3e5), sigma=0.5),
        ),
    )
