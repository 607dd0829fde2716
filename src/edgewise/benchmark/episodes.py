"""Play one policy in one world and measure what happened; or many policies in many worlds.

A `ReplayableWorld` is made once and played many times. Before each play a working copy is set back
to the beginning, which costs less than making it again, and every policy meets the same arrivals,
links and noise. It belongs to one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.cores import for_each
from edgewise.policies.base import PolicySpec
from edgewise.scenario import Scenario
from edgewise.sim import engine, layout
from edgewise.sim.build import SimOptions, simulation
from edgewise.sim.layout import Sim
from edgewise.sim.play import play
from edgewise.sim.source import WorldSource
from edgewise.worlds.workload import Trace, generate

Floats = NDArray[np.float64]

BARE = SimOptions(store=False)
"""Keeps sums, not a result per request: all that a mean utility needs."""

Candidate = tuple[PolicySpec, Floats | None]
"""A policy, and parameters to play it with in place of its own."""


class EpisodeMetrics(Struct, frozen=True, kw_only=True):
    """Measurements of one episode. Shares are of all requests, shed and lost ones too."""

    requests: int
    utility: float
    """Mean expected utility, in [0, 1]."""
    effective: float
    """Expected share answered correctly, in time, by a service that meets the demand."""
    missed: float
    """Share not answered within the deadline, shed requests included."""
    shed: float
    p50: float
    """[s] Percentile of the latency of the served requests; NaN if none was."""
    p95: float
    p99: float
    moved: float
    """Share of the served requests that a server other than their ingress answered."""
    ready: float
    """Share of the moved requests that travelled model-ready; NaN if none moved."""
    answered: float
    """Share that got any answer."""


METRICS = tuple(name for name in EpisodeMetrics.__struct_fields__ if name != "requests")


class ReplayableWorld:
    """A world that can be played from its beginning any number of times.

    `trace` replaces a generated one. Raises what `sim.build.simulation` raises.
    """

    def __init__(
        self, scenario: Scenario, options: SimOptions | None = None, trace: Trace | None = None
    ) -> None:
        self.scenario = scenario
        self._start = simulation(
            scenario, generate(scenario, None) if trace is None else trace, options
        )
        self._copy = engine.branch(self._start)
        self._reset = engine.BranchCopier(self._copy, self._start)
        self._fresh = True

    def play(self, policy: PolicySpec, params: Floats | None = None) -> Sim:
        """The simulation after `policy` has made every decision; the next play overwrites it.

        `params` replace the policy's own. Raises TooManyOpenRequests if more requests are open at a
        time than the simulation has slots for.
        """
        if not self._fresh:
            self._reset()
        self._fresh = False
        values = None if params is None else tuple(params.tolist())
        return play(self._copy, policy, self.scenario.seed, values)

    def utility(self, policy: PolicySpec, params: Floats | None = None) -> float:
        """Play, and return the mean expected utility."""
        return mean_utility(self.play(policy, params))

    def measure(self, policy: PolicySpec, params: Floats | None = None) -> EpisodeMetrics:
        """Play, and return the metrics; results must be stored (`SimOptions.store`)."""
        return metrics_of(self.play(policy, params))


def play_all(
    source: WorldSource,
    seeds: Sequence[int],
    candidate: Callable[[int, int], Candidate],
    count: int,
    threads: int,
    options: SimOptions = BARE,
) -> tuple[Floats, int]:
    """Play `candidate(w, c)`, for c < `count`, in every world `seeds[w]` of `source`.

    Returns mean expected utilities (count, worlds), and the number of decisions in all.
    """
    values = np.zeros((count, len(seeds)))
    decisions = np.zeros(len(seeds), np.int64)

    def play_world(w: int) -> None:
        scenario = source.scenario(seeds[w])
        world = ReplayableWorld(scenario, options, source.trace(scenario))
        for c in range(count):
            sim = world.play(*candidate(w, c))
            values[c, w] = mean_utility(sim)
            decisions[w] += int(sim.world.clock["decisions"][0])

    for_each(range(len(seeds)), play_world, threads)
    return values, int(decisions.sum())


def mean_utility(sim: Sim) -> float:
    """Mean expected utility over all requests of a simulation that has ended, in [0, 1]."""
    return float(sim.world.clock["utility"][0]) / max(1, len(sim.world.requests))


def metrics_of(sim: Sim) -> EpisodeMetrics:
    """The metrics of a simulation that has ended."""
    results, requests = sim.world.results, sim.world.requests
    count = max(1, len(requests))
    served = results["status"] == layout.SERVED
    service = sim.world.services[results["service"][served]]
    form = results["form"][served]
    accuracy = np.where(form == 1, service["ready_accuracy"], service["accuracy"])
    latency = results["latency"][served]
    in_time = latency <= requests["deadline"][served]
    meets = accuracy >= requests["accuracy"][served]
    moved = results["server"][served] != requests["ingress"][served]
    p50, p95, p99 = (
        np.percentile(latency, (50, 95, 99)) if latency.size else (np.nan, np.nan, np.nan)
    )
    return EpisodeMetrics(
        requests=len(requests),
        utility=mean_utility(sim),
        effective=float(accuracy[in_time & meets].sum()) / count,
        missed=1.0 - float(in_time.sum()) / count,
        shed=float((results["status"] == layout.SHED).sum()) / count,
        p50=float(p50),
        p95=float(p95),
        p99=float(p99),
        moved=float(moved.mean()) if latency.size else 0.0,
        ready=float((form[moved] == 1).mean()) if moved.any() else np.nan,
        answered=float(served.sum()) / count,
    )
