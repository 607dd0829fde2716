"""The optimality gap of policies in an episode: heuristic ≤ clairvoyant ≤ bound."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from msgspec import Struct

from edgewise.bound import clairvoyant, dual
from edgewise.bound.plans import row_values
from edgewise.bound.relaxation import relax
from edgewise.policies.base import PolicySpec
from edgewise.scenario import Scenario
from edgewise.sim import engine
from edgewise.sim.build import simulation
from edgewise.sim.play import play
from edgewise.worlds.workload import Trace, generate

TRIALS_PER_REQUEST = 25
"""Trials of the search, a few ms each. Eight times as many moved two heavy worlds by −0.013 and
+0.024. The randomness of the annealing is as large, so more worlds are the better use of the
time."""
DURATION = 4.0
"""[s] Of arrivals: several deadlines and busy periods of queues, and a search that takes seconds
(its time grows with the square of an episode's length)."""


class Effort(Struct, frozen=True, kw_only=True):
    """How hard to look for bound and plan."""

    steps: int = dual.STEPS
    """Steps of the bound's descent."""
    trials: int | None = None
    """Trials of the clairvoyant search; None: `TRIALS_PER_REQUEST` for each request."""
    seconds: float = math.inf
    """[s] The search stops then; its result depends on the machine."""


class Gap(Struct, frozen=True, kw_only=True):
    """An episode's mean expected utilities per request, in [0, 1]."""

    seed: int
    requests: int
    policies: dict[str, float]
    clairvoyant: float
    """Utility of the plan that the search found; it can be attained."""
    bound: float
    """Utility that no policy exceeds."""
    trials: int

    @property
    def best(self) -> str:
        """The policy of highest utility here, the first of equals."""
        return max(self.policies, key=lambda name: self.policies[name])


def measure_gap(
    scenario: Scenario,
    policies: Mapping[str, PolicySpec],
    *,
    trace: Trace | None = None,
    effort: Effort | None = None,
    progress: Callable[[float, str], None] = lambda _share, _what: None,
) -> Gap:
    """Play `policies` (at least one) in the world of `scenario`, then look for bound and plan.

    `trace` replaces a generated one. `progress` is called with the share that is done and what is
    being done. Raises what `sim.build.simulation` raises, and TooManyOpenRequests.
    """
    effort = effort or Effort()
    trace = generate(scenario, None) if trace is None else trace
    sim = simulation(scenario, trace)
    utilities, plans = {}, []
    for n, (name, policy) in enumerate(policies.items()):
        progress(0.05 * n / len(policies), name)
        seed = scenario.seed * 2**32 + zlib.crc32(name.encode())
        world = play(engine.branch(sim), policy, seed).world
        utilities[name] = float(world.clock["utility"][0]) / max(1, len(trace))
        plans.append(world.results["row"].astype(np.int64))

    episode = relax(sim)
    bound = dual.upper_bound(
        episode,
        effort.steps,
        lambda done, value: progress(0.05 + 0.2 * done / effort.steps, f"bound {value:.4f}"),
    )
    trials = TRIALS_PER_REQUEST * len(trace) if effort.trials is None else effort.trials
    found = clairvoyant.search(
        sim,
        row_values(episode, bound.prices, sim.table.mask.size),
        plans,
        seed=scenario.seed,
        trials=trials,
        seconds=effort.seconds,
        progress=lambda done, value: progress(
            0.25 + 0.75 * done / max(1, trials), f"clairvoyant {value:.4f}"
        ),
    )
    return Gap(
        seed=scenario.seed,
        requests=len(trace),
        policies=utilities,
        # A policy's alternatives after a failure are no part of a plan, so it may have got more.
        clairvoyant=max(found.utility, *utilities.values()),
        bound=bound.utility,
        trials=found.trials,
    )


def mean_gap(gaps: Sequence[Gap]) -> Gap:
    """The mean over episodes of equal weight. `seed` is the first one's; counts are sums."""
    n = len(gaps)
    return Gap(
        seed=gaps[0].seed,
        requests=sum(gap.requests for gap in gaps),
        policies={
            name: math.fsum(gap.policies[name] for gap in gaps) / n for name in gaps[0].policies
        },
        clairvoyant=math.fsum(gap.clairvoyant for gap in gaps) / n,
        bound=math.fsum(gap.bound for gap in gaps) / n,
        trials=sum(gap.trials for gap in gaps),
    )


def closed_share(utility: float, heuristic: float, clairvoyant_utility: float) -> float:
    """The share of the gap from the heuristic (0) to the clairvoyant (1) that a policy of this
    utility closes; NaN if there is no gap."""
    gap = clairvoyant_utility - heuristic
    return (utility - heuristic) / gap if gap > 1e-9 else math.nan
