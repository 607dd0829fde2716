"""What someone who knows the episode in advance can really get: local search in the simulator.

A *plan* is a row of the candidate table for every request. `forced` plays a plan in the engine,
with the episode's own luck, so what it scores can be had, by a policy that happened to decide so.
The search changes a plan where that makes the whole episode score more:

- It goes over the episode in order of time, a stretch of decisions after the other, again and
  again. Of a stretch it keeps the state at its beginning; every trial sets a working copy back to
  that state and plays on to the end. So a trial costs half an episode on average and one state is
  kept, whatever the episode's length.
- A trial gives one request of the stretch another row, now and then also one of the requests that
  are decided soon after it. Rows are drawn by what they are worth at the prices of the upper bound
  (`plans.row_values`): those prices know which servers and links will be short, and when.
- Simulated annealing: a trial that loses a little is accepted now and then, less and less often.

Decisions do not depend on what the balancer believes, so in the search it is told nothing. The plan
found is played once more in the untouched world, and that play's figure is the one that counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.bound.forced import blind, follow
from edgewise.sim import engine
from edgewise.sim.layout import Sim

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

TRIALS = 6000
"""Per episode."""
SWEEPS = 6
"""Times over the episode: few enough for several trials per request and sweep, enough for what a
change makes possible earlier to be found in the next one."""
STRETCH = 8
"""Decisions from one kept state to the next."""
NEAR = 12
"""Decisions within which a second request changes with the first: about those in one queue."""
PAIRS = 0.35
"""Share of trials that change two."""
HEAT = 0.02
"""Utility (of all requests together) whose loss is accepted with probability 1/e at first …"""
HEAT_END = 0.0005
"""… and at last: far below what a request is worth."""
SPREAD = 0.1
"""Utility per request by which a row may look worse than the best and be drawn 1/e times as often:
about what prices do not know of an episode (queues are not fluid)."""


class Plan(Struct, frozen=True, kw_only=True):
    """A plan and what it scores."""

    utility: float
    """Mean expected utility per request, as the engine pays it."""
    rows: Ints
    """By request; the row of a request that never came to a decision means nothing."""
    begun: float
    """The same utility of the best plan that the search was given."""
    trials: int


def worth(sim: Sim, rows: Ints) -> float:
    """Mean expected utility per request of a plan, played in a copy of `sim`."""
    play = engine.branch(sim)
    follow(play, rows, -1, np.empty_like(rows))
    return float(play.world.clock["utility"][0]) / max(1, len(play.world.requests))


def search(
    sim: Sim,
    values: Floats,
    plans: Sequence[Ints],
    *,
    seed: int = 0,
    trials: int = TRIALS,
    seconds: float = math.inf,
    progress: Callable[[int, float], None] | None = None,
) -> Plan:
    """The best plan found, beginning with the best of `plans`.

    `sim` stands at its beginning and is left as it is. `values` (R, rows): what each row of each
    request looks like, −inf for rows that cannot score; see `plans.row_values`. The plan at these
    values' maxima is tried first, besides `plans`. Deterministic for given `trials`; stopping after
    `seconds` on the wall clock is not. `progress` is told after each stretch how many trials are
    done and the mean utility so far.
    """
    count, shed = len(sim.world.requests), values.shape[1] - 1
    given = [*plans, values.argmax(axis=1)]
    scores = [worth(sim, rows) for rows in given]
    begun, rows = max(scores), given[int(np.argmax(scores))].astype(np.int64)
    if not count or trials < 1:
        return Plan(utility=begun, rows=rows, begun=begun, trials=0)

    until = time.monotonic() + seconds
    rng = np.random.default_rng([seed, 5])
    start = blind(sim, results=False)
    at, work = engine.branch(start), engine.branch(start)
    begin, back = engine.BranchCopier(at, start), engine.BranchCopier(work, at)
    choices, weights = _choices(values, shed)
    clock, order = work.world.clock, np.empty_like(rows)
    order = order[: follow(work, rows, -1, order)]
    total = float(clock["utility"][0])
    best, best_rows, unused = total, rows.copy(), np.empty_like(rows)
    done = 0
    stretches = math.ceil(len(order) / STRETCH)
    for sweep in range(SWEEPS):
        begin()
        for n in range(stretches):
            target = trials * (sweep * stretches + n + 1) // (SWEEPS * stretches)
            heat = HEAT * (HEAT_END / HEAT) ** (done / trials)
            while done < target:
                done += 1
                changed = _change(rows, order, n, choices, weights, rng)
                if not changed:
                    continue
                back()
                follow(work, rows, -1, unused)
                new = float(clock["utility"][0])
                if new >= total or rng.random() < math.exp((new - total) / heat):
                    total = new
                    if total > best:
                        best, best_rows = total, rows.copy()
                else:
                    for r, row in changed:
                        rows[r] = row
            if progress is not None:
                progress(done, best / count)
            if time.monotonic() > until:
                break
            follow(at, rows, min(STRETCH, len(order) - n * STRETCH), unused)
        if time.monotonic() > until:
            break
    utility = worth(sim, best_rows)
    if utility < begun:  # what a blind world leaves out mattered after all
        utility, best_rows = begun, given[int(np.argmax(scores))].astype(np.int64)
    return Plan(utility=utility, rows=best_rows, begun=begun, trials=done)


def _choices(values: Floats, shed: int) -> tuple[list[Ints], list[Floats]]:
    """Of each request the rows worth a trial, and the cumulative chances of drawing them."""
    choices, weights = [], []
    for mine in values:
        rows = np.flatnonzero(np.isfinite(mine) | (np.arange(len(mine)) == shed))
        chance = np.exp((mine[rows] - mine[rows].max()) / SPREAD) + 0.01
        choices.append(rows)
        weights.append(np.cumsum(chance / chance.sum()))
    return choices, weights


def _change(
    rows: Ints,
    order: Ints,
    stretch: int,
    choices: list[Ints],
    weights: list[Floats],
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Change `rows`; returns what was there, to put it back."""
    first = stretch * STRETCH
    position = first + int(rng.integers(min(STRETCH, len(order) - first)))
    positions = [position]
    if rng.random() < PAIRS and position + 1 < len(order):
        positions.append(position + 1 + int(rng.integers(min(NEAR, len(order) - position - 1))))
    changed = []
    for each in positions:
        r = int(order[each])
        drawn = int(np.searchsorted(weights[r], rng.random()))
        row = int(choices[r][min(drawn, len(choices[r]) - 1)])
        if row != rows[r]:
            changed.append((r, int(rows[r])))
            rows[r] = row
    return changed
