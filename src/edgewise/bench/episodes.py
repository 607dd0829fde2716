"""One policy in one world, and what came of it.

A `ReplayableWorld` is a world made once and played many times: before each play a working copy is
set back
to the beginning, which costs less than making it, and every policy meets the same arrivals, links
and luck. A stage belongs to one thread at a time.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.policy.base import PolicySpec
from edgewise.scenario import Scenario
from edgewise.sim import engine, layout
from edgewise.sim.build import SimOptions, simulation
from edgewise.sim.layout import Sim
from edgewise.sim.play import play
from edgewise.worlds.workload import Trace, generate

Floats = NDArray[np.float64]


class EpisodeMetrics(Struct, frozen=True, kw_only=True):
    """An episode in numbers. Shares are of all requests, refused and lost ones too."""

    requests: int
    utility: float
    """Mean expected utility, in [0, 1]."""
    effective: float
    """Expected share answered right, in time, by a service that meets the demand."""
    missed: float
    """Share not answered within the deadline; a refused request is one of them."""
    shed: float
    p50: float
    """s; percentiles are of the requests served, NaN if none was."""
    p95: float
    p99: float
    moved: float
    """Share of the served that another server than their ingress answered."""
    ready: float
    """Share of those that travelled model-ready; NaN if none moved."""
    answered: float
    """Share that got any answer."""


METRICS = tuple(name for name in EpisodeMetrics.__struct_fields__ if name != "requests")


class ReplayableWorld:
    """A world, ready to be played from its beginning any number of times.

    Raises what `world.simulation` raises.
    """

    def __init__(
        self, scenario: Scenario, options: SimOptions | None = None, trace: Trace | None = None
    ) -> None:
        self.scenario = scenario
        self._start = simulation(
            scenario, generate(scenario, None) if trace is None else trace, options
        )
        self._work = engine.branch(self._start)
        self._begin_again = engine.BranchCopier(self._work, self._start)
        self._fresh = True

    def play(self, rule: PolicySpec, params: Floats | None = None) -> Sim:
        """The world after `rule` has decided all of it; overwritten by the next play.

        `params` in place of the rule's own. Raises `Crowded` if more requests are open at a time
        than the simulation has slots for.
        """
        if not self._fresh:
            self._begin_again()
        self._fresh = False
        values = None if params is None else tuple(params.tolist())
        return play(self._work, rule, self.scenario.seed, values)

    def utility(self, rule: PolicySpec, params: Floats | None = None) -> float:
        """Mean expected utility of a play."""
        return utility_of(self.play(rule, params))

    def measure(self, rule: PolicySpec, params: Floats | None = None) -> EpisodeMetrics:
        """A play in numbers; its results must be stored (`SimOptions.store`)."""
        return measured(self.play(rule, params))


def utility_of(sim: Sim) -> float:
    """Mean expected utility over all requests, in [0, 1]."""
    return float(sim.world.clock["utility"][0]) / max(1, len(sim.world.requests))


def measured(sim: Sim) -> EpisodeMetrics:
    """What came of a simulation that has ended."""
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
        utility=utility_of(sim),
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
