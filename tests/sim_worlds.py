"""Small worlds for tests of the simulator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgewise import scenario as sc
from edgewise.policies import POLICIES
from edgewise.sim.build import SimOptions, simulation
from edgewise.sim.layout import Sim
from edgewise.sim.play import play
from edgewise.worlds.workload import Trace, generate

IDEAL = sc.LinkSettings()
AT_ONCE = SimOptions(control_delay=0.0)


def exponential(bits: int = 16) -> np.ndarray:
    """Equally likely factors of an exponential time of mean 1, each the mean of its share."""
    edges = -np.log1p(-np.arange((1 << bits) + 1)[:-1] / (1 << bits))
    below = 1.0 - (1.0 + edges) * np.exp(-edges)  # E[X; X ≤ x]
    return np.diff(np.append(below, 1.0)) * (1 << bits)


def one_server(
    rate: float,
    duration: float,
    *,
    workers: int = 1,
    seconds: Sequence[float] = (0.01,),
    access: sc.LinkSettings = IDEAL,
    payload: sc.LognormalPayload | None = None,
    seed: int = 1,
) -> sc.Scenario:
    """A server on its own, whose requests never expire."""
    service = sc.ServiceSpec(model="m", accuracy=0.5, latency=tuple(seconds))
    return sc.Scenario(
        name="one",
        seed=seed,
        report_period=10.0,
        servers={"a": sc.ServerSpec(services=(service,), workers=workers, queue_limit=1_000_000)},
        service_noise=sc.ServiceNoise(cv=0.0),
        network=sc.NetworkSpec(access=access),
        workload=sc.WorkloadSpec(
            duration=duration,
            arrivals=sc.PoissonArrivals(rate=rate),
            ingress={"a": 1.0},
            demands=(sc.Demand(deadline=3600.0),),
            payload=payload or sc.LognormalPayload(median_bytes=1.0, sigma=0.0),
        ),
    )


def run_local(scenario: sc.Scenario, options: SimOptions, trace: Trace | None = None) -> Sim:
    trace = generate(scenario, None) if trace is None else trace
    return play(simulation(scenario, trace, options), POLICIES["local"], 1)


def trace_of(
    times: Sequence[float],
    sizes: Sequence[int],
    *,
    deadline: float = 100.0,
    ingress: Sequence[int] | None = None,
) -> Trace:
    n = len(times)
    return Trace(
        time=np.array(times, float),
        ingress=np.zeros(n, np.int64) if ingress is None else np.array(ingress, np.int64),
        image=np.zeros(n, np.int64),
        payload_bytes=np.array(sizes, np.int64),
        deadline=np.full(n, deadline),
        accuracy=np.zeros(n),
        lost=np.zeros(n, bool),
    )


def erlang_c_wait(rate: float, mean: float, workers: int) -> float:
    """Mean wait of M/M/c."""
    load = rate * mean
    terms = [load**k / math.factorial(k) for k in range(workers)]
    last = load**workers / math.factorial(workers) * workers / (workers - load)
    return last / (sum(terms) + last) * mean / (workers - load)
