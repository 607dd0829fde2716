"""Where policies stand in an episode: heuristic ≤ clairvoyant ≤ bound."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct

from edgewise.bound import clairvoyant, dual
from edgewise.bound.known import BIN, known
from edgewise.bound.plans import row_values
from edgewise.policy.base import PolicySpec
from edgewise.scenario import Scenario
from edgewise.sim import engine
from edgewise.sim.build import SimOptions, simulation
from edgewise.sim.play import play
from edgewise.worlds.workload import Trace, generate

TRIALS_PER_REQUEST = 25
"""Of the search, a few ms each. Eight times as many moved two heavy worlds by −0.013 and +0.024:
the luck of the annealing is as large, so more worlds are the better use of the time."""

DURATION = 4.0
"""s of arrivals: several deadlines and queues' lives, and a search that takes seconds (its time
grows with the square of an episode's length)."""


class Standing(Struct, frozen=True, kw_only=True):
    """An episode's figures: mean expected utility per request, in [0, 1]."""

    seed: int
    requests: int
    policies: dict[str, float]
    clairvoyant: float
    """What the search found; can be had."""
    bound: float
    """What no policy exceeds."""
    trials: int

    @property
    def best(self) -> str:
        """The policy of highest utility here, the first of equals."""
        return max(self.policies, key=lambda name: self.policies[name])


def standing(
    scenario: Scenario,
    rules: dict[str, PolicySpec],
    *,
    trace: Trace | None = None,
    options: SimOptions | None = None,
    steps: int = dual.STEPS,
    trials: int | None = None,
    seconds: float = math.inf,
    width: float = BIN,
    progress: Callable[[float, str], None] | None = None,
) -> Standing:
    """Play `rules` (at least one) in the world of `scenario`, then look for what was possible.

    `trials` of the clairvoyant search; None: `TRIALS_PER_REQUEST` times the requests. It stops
    after `seconds` on the wall clock, and then its figure depends on the machine; otherwise all is
    deterministic. `trace` in place of a generated one. `progress` is told the share that is done
    and what is going on. Raises what `world.simulation` raises, and Crowded.
    """
    trace = generate(scenario, None) if trace is None else trace
    sim = simulation(scenario, trace, options)
    tell = progress or (lambda share, what: None)
    policies, plans = {}, []
    for n, (name, rule) in enumerate(rules.items()):
        tell(0.05 * n / len(rules), name)
        draws = scenario.seed * 2**32 + zlib.crc32(name.encode())
        over = play(engine.branch(sim), rule, draws)
        policies[name] = float(over.world.clock["utility"][0]) / max(1, len(trace))
        plans.append(over.world.results["row"].astype(np.int64))

    episode = known(sim, width)
    bound = dual.upper_bound(
        episode, steps, lambda done, value: tell(0.05 + 0.2 * done / steps, f"bound {value:.4f}")
    )
    values = row_values(episode, bound.prices, sim.table.mask.size)
    trials = TRIALS_PER_REQUEST * len(trace) if trials is None else trials
    found = clairvoyant.search(
        sim,
        values,
        plans,
        seed=scenario.seed,
        trials=trials,
        seconds=seconds,
        progress=lambda done, value: tell(
            0.25 + 0.75 * done / max(1, trials), f"clairvoyant {value:.4f}"
        ),
    )
    return Standing(
        seed=scenario.seed,
        requests=len(trace),
        policies=policies,
        # A policy's alternatives after a failure are no part of a plan, so it may have got more.
        clairvoyant=max(found.utility, *policies.values()),
        bound=bound.utility,
        trials=found.trials,
    )


def mean(standings: Sequence[Standing]) -> Standing:
    """Over episodes, each counting the same; `seed` is the first one's, counts are sums."""
    n = len(standings)
    return Standing(
        seed=standings[0].seed,
        requests=sum(each.requests for each in standings),
        policies={
            name: math.fsum(each.policies[name] for each in standings) / n
            for name in standings[0].policies
        },
        clairvoyant=math.fsum(each.clairvoyant for each in standings) / n,
        bound=math.fsum(each.bound for each in standings) / n,
        trials=sum(each.trials for each in standings),
    )


def way(utility: float, best: float, clairvoyant_utility: float) -> float:
    """The share of the way from the best heuristic (0) to the clairvoyant (1) that a utility is;
    NaN if there is no way to go."""
    distance = clairvoyant_utility - best
    return (utility - best) / distance if distance > 1e-9 else math.nan
