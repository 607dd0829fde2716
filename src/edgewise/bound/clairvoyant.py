"""A plan made with full knowledge of the episode, by local search in the simulator.

A *plan* is a row of the candidate table for every request. `plan_replay` plays a plan in the
engine, with the episode's own noise, so its score can be attained, by a policy that happened to
decide so. The search changes a plan where that raises the score of the whole episode:

- It sweeps over the episode in order of time, one stretch of decisions after the other, several
  times. It keeps the state at the beginning of the stretch; every trial sets a working copy back to
  that state and plays on to the end. So a trial costs half an episode on average, and one state is
  kept, whatever the episode's length.
- A trial gives one request of the stretch another row, and sometimes also one of the requests that
  are decided soon after it. Rows are drawn by their value at the prices of the upper bound
  (`plans.row_values`), since those prices know which servers and links will be short, and when.
- Simulated annealing: a trial that loses a little is accepted now and then, less and less often.

Decisions do not depend on what the balancer believes, so in the search it gets no reports. The plan
found is played once more in the unchanged world, and that play's score is the one that counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.bound.plan_replay import blind_copy, replay
from edgewise.sim import engine
from edgewise.sim.layout import Sim

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

TRIALS = 6000
"""Per episode."""
SWEEPS = 6
"""Sweeps over the episode: few enough for several trials per request in each, enough for one sweep
to use what a change early in the episode made possible in the sweep before."""
STRETCH = 8
"""Decisions in a stretch."""
NEAR = 12
"""Decisions within which a second request changes with the first: about those in one queue."""
PAIRS = 0.35
"""Share of trials that change two requests."""
HEAT = 0.02
"""Loss of utility (of all requests together) that is accepted with probability 1/e at first."""
HEAT_END = 0.0005
"""The same at the end: far below the utility of one request."""
SPREAD = 0.1
"""Utility per request by which a row may look worse than the best and be drawn 1/e times as often:
about what prices do not know of an episode (queues are not fluid)."""


class SearchedPlan(Struct, frozen=True, kw_only=True):
    """A plan and its score."""

    utility: float
    """Mean expected utility per request, as the engine pays it."""
    rows: Ints
    """By request; meaningless for a request that never came to a decision."""
    start_utility: float
    """The utility of the best plan that the search began with."""
    trials: int


def plan_utility(sim: Sim, rows: Ints) -> float:
    """Mean expected utility per request of a plan, played in a copy of `sim`."""
    copy = engine.branch(sim)
    replay(copy, rows, -1, np.empty_like(rows))
    return float(copy.world.clock["utility"][0]) / max(1, len(copy.world.requests))


def search(
    sim: Sim,
    values: Floats,
    plans: Sequence[Ints],
    *,
    seed: int = 0,
    trials: int = TRIALS,
    seconds: float = math.inf,
    progress: Callable[[int, float], None] = lambda _trials, _utility: None,
) -> SearchedPlan:
    """The best plan found, beginning with the best of `plans`.

    `sim` is at its beginning and is not changed. `values` (R, rows) is an estimate of what each row
    of each request is worth, −inf for rows that cannot score; see `plans.row_values`. The plan of
    the highest estimates is tried first, besides `plans`. The result is deterministic for given
    `trials`, but not if the search stops after `seconds` on the wall clock. `progress` is called
    after each stretch with the number of trials and the mean utility so far.
    """
    count = len(sim.world.requests)
    starts = [*plans, values.argmax(axis=1)]
    scores = [plan_utility(sim, rows) for rows in starts]
    start_utility, start = max(scores), starts[int(np.argmax(scores))].astype(np.int64)
    if not count or trials < 1:
        return SearchedPlan(
            utility=start_utility, rows=start, start_utility=start_utility, trials=0
        )

    until = time.monotonic() + seconds
    rng = np.random.default_rng([seed, 5])
    beginning = blind_copy(sim, results=False)
    kept, work = engine.branch(beginning), engine.branch(beginning)
    to_beginning, to_kept = engine.BranchCopier(kept, beginning), engine.BranchCopier(work, kept)
    changes = _Changes(values)
    rows, order, unused = start.copy(), np.empty_like(start), np.empty_like(start)
    clock = work.world.clock
    order = order[: replay(work, rows, -1, order)]
    total = float(clock["utility"][0])
    best, best_rows = total, rows.copy()
    done = 0
    stretches = math.ceil(len(order) / STRETCH)
    for sweep in range(SWEEPS):
        to_beginning()
        for n in range(stretches):
            target = trials * (sweep * stretches + n + 1) // (SWEEPS * stretches)
            heat = HEAT * (HEAT_END / HEAT) ** (done / trials)
            while done < target:
                done += 1
                changed = changes.make(rows, order, n, rng)
                if not changed:
                    continue
                to_kept()
                replay(work, rows, -1, unused)
                new = float(clock["utility"][0])
                if new >= total or rng.random() < math.exp((new - total) / heat):
                    total = new
                    if total > best:
                        best, best_rows = total, rows.copy()
                else:
                    for r, row in changed:
                        rows[r] = row
            progress(done, best / count)
            if time.monotonic() > until:
                break
            replay(kept, rows, min(STRETCH, len(order) - n * STRETCH), unused)
        if time.monotonic() > until:
            break
    utility = plan_utility(sim, best_rows)
    if utility < start_utility:  # what the blind copy leaves out mattered after all
        utility, best_rows = start_utility, start
    return SearchedPlan(utility=utility, rows=best_rows, start_utility=start_utility, trials=done)


class _Changes:
    """Draws changes of a plan, by the estimated values of rows."""

    def __init__(self, values: Floats) -> None:
        shed = values.shape[1] - 1
        self._rows: list[Ints] = []
        self._cumulative: list[Floats] = []
        for mine in values:
            rows = np.flatnonzero(np.isfinite(mine) | (np.arange(len(mine)) == shed))
            chance = np.exp((mine[rows] - mine[rows].max()) / SPREAD) + 0.01
            self._rows.append(rows)
            self._cumulative.append(np.cumsum(chance / chance.sum()))

    def make(
        self, rows: Ints, order: Ints, stretch: int, rng: np.random.Generator
    ) -> list[tuple[int, int]]:
        """Change `rows` within a stretch; returns (request, former row) of what was changed."""
        first = stretch * STRETCH
        position = first + int(rng.integers(min(STRETCH, len(order) - first)))
        positions = [position]
        if rng.random() < PAIRS and position + 1 < len(order):
            positions.append(position + 1 + int(rng.integers(min(NEAR, len(order) - position - 1))))
        changed = []
        for r in order[positions].tolist():
            drawn = int(np.searchsorted(self._cumulative[r], rng.random()))
            row = int(self._rows[r][min(drawn, len(self._rows[r]) - 1)])
            if row != rows[r]:
                changed.append((r, int(rows[r])))
                rows[r] = row
        return changed
