"""Training the policy `edgewise` by evolution strategies: the loop around `edgewise.learn.es`.

In each generation every pair of parameter vectors plays a fresh training world, and the search
takes a step. Every so often the mean of its iterates is compared with the heuristic on validation
worlds; the best so far is kept. All that is random derives from the seed and the number of the
generation, so a search that was killed goes on from its checkpoint to the same weights.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.bench.episodes import ReplayableWorld
from edgewise.bench.statistics import Interval, interval
from edgewise.errors import BadInput
from edgewise.learn import es
from edgewise.learn.checkpoint import SearchCheckpoint, load, save
from edgewise.learn.log import Log
from edgewise.learn.space import SearchSpace
from edgewise.learn.worlds import Worlds, play_all, rule_of, utility
from edgewise.policy import learned
from edgewise.policy.base import PolicySpec

Floats = NDArray[np.float64]


class Recipe(Struct, frozen=True, kw_only=True):
    """All that decides what a search finds, but for how long it goes on."""

    worlds: Worlds = Worlds()
    groups: tuple[str, ...] = ("base", "heads")
    """Of numbers that are searched (`space.GROUPS`)."""
    seed: int = 1
    count: int = 48
    """Training worlds per generation."""
    pairs_each: int = 1
    """Antithetic pairs per world: more spare the making of worlds, fewer see more of them."""
    sigma: float = 1.0
    rate: float = 0.2
    generations: int | None = None
    """At which the step has come down to a tenth; None: at the end of the budget."""
    validation: int = 64
    """Worlds to choose by."""
    every: int = 20
    """Generations between two looks at them."""


class EsProgress(Struct, frozen=True, kw_only=True):
    """How far a search is."""

    generation: int
    done: float
    """Share of the budget."""
    decisions: int
    per_second: float
    """Training decisions, worlds made and steps taken included, while this process ran."""
    spread: float
    """Root mean square of the pairs' differences in utility."""
    signal: float
    """Squared length of the mean gradient over what pure noise would have; 1 = nothing is left."""
    gain: Interval | None
    """Over the heuristic on validation worlds; None: not looked at in this generation."""
    left: float
    """s."""


class EsResult(Struct, frozen=True, kw_only=True):
    """What a search came to."""

    params: Floats
    """Of the policy, without limits yet (`release`)."""
    generations: int
    decisions: int
    seconds: float
    gain: Interval
    """Of the best look at the validation worlds: chosen as the best, so biased up a little."""


def train(
    recipe: Recipe,
    start: Floats,
    heuristic: PolicySpec,
    out: Path,
    *,
    budget: float | None = None,
    threads: int = 2,
    progress: Callable[[EsProgress], None] = lambda _: None,
) -> EsResult:
    """Search from the params `start`, for `budget` s or `recipe.generations`; one must be given.

    Writes checkpoints and TensorBoard files to `out`, and goes on from a checkpoint there. Raises
    BadInput if that is of another search.
    """
    if (budget is None) == (recipe.generations is None):
        raise BadInput("expected either a budget or a number of generations")
    space = SearchSpace(start, recipe.groups)
    rule = rule_of(space.origin)
    pairs = recipe.count * recipe.pairs_each
    settings = es.EsSettings(seed=recipe.seed, pairs=pairs, sigma=recipe.sigma, rate=recipe.rate)
    text = msgspec.json.encode((recipe, hashlib.sha256(start.tobytes()).hexdigest())).decode()
    found = load(out, text)
    state, best, at_best = es.begin(space.size), -np.inf, start
    decisions, spent = 0, 0.0
    best_gain = Interval(0.0, np.nan)
    if found is not None:
        state, kept, extra = found
        decisions, spent, best, at_best = kept.decisions, kept.seconds, kept.best, extra["best"]
        best_gain = Interval(*extra["gain"].tolist())
    look = looks(recipe.worlds, heuristic, recipe.validation, threads)
    began = time.monotonic()
    here = 0

    def used() -> float:
        if recipe.generations is not None:
            return min(1.0, state.generation / recipe.generations)
        assert budget is not None
        return min(1.0, (spent + time.monotonic() - began) / budget)

    with Log(out) as log:
        while used() < 1.0 or state.generation == 0:
            made = generation(recipe, settings, space, rule, state, used(), threads)
            decisions += made.decisions
            here += made.decisions
            last = used() >= 1.0
            gain = None
            if last or state.generation % recipe.every == 0:
                gain = look(space.params(state.mean))
                if gain.mean > best:
                    best, best_gain, at_best = gain.mean, gain, space.params(state.mean)
                save(
                    out,
                    state,
                    SearchCheckpoint(
                        recipe=text,
                        generation=state.generation,
                        decisions=decisions,
                        seconds=spent + time.monotonic() - began,
                        best=best,
                    ),
                    {"best": at_best, "gain": np.array(best_gain)},
                )
            passed = time.monotonic() - began
            seen = EsProgress(
                generation=state.generation,
                done=used(),
                decisions=decisions,
                per_second=here / max(passed, 1e-9),
                spread=made.spread,
                signal=made.signal,
                gain=gain,
                left=(1.0 - used()) / max(used(), 1e-9) * (spent + passed),
            )
            log.write(seen)
            progress(seen)
    return EsResult(
        params=at_best,
        generations=state.generation,
        decisions=decisions,
        seconds=spent + time.monotonic() - began,
        gain=best_gain,
    )


class _Made(Struct, frozen=True):
    decisions: int
    spread: float
    signal: float


def generation(
    recipe: Recipe,
    settings: es.EsSettings,
    space: SearchSpace,
    rule: PolicySpec,
    state: es.State,
    progress: float,
    threads: int,
) -> _Made:
    """Play one generation and take its step."""
    epsilon = es.directions(settings, state.generation, space.size)
    x = state.x
    each = recipe.pairs_each
    worlds = recipe.worlds.training(recipe.seed, state.generation * recipe.count, recipe.count)

    def play(stage: ReplayableWorld, w: int, c: int) -> tuple[float, int]:
        sign = 1.0 - 2.0 * (c % 2)
        offset = sign * settings.sigma * epsilon[w * each + c // 2]
        return utility(stage, rule, space.params(x + offset))

    values, decisions = play_all(recipe.worlds, worlds, 2 * each, play, threads)
    differences = (values[0::2] - values[1::2]).T.ravel()  # by world, then by pair
    gradient = es.whiten(differences) @ epsilon / len(differences)
    noise = float(np.mean(es.whiten(differences) ** 2)) * space.size / len(differences)
    es.step(settings, state, epsilon, differences, progress)
    return _Made(
        decisions=decisions,
        spread=float(np.sqrt(np.mean(differences**2))),
        signal=float(gradient @ gradient) / max(noise, 1e-12),
    )


def looks(
    worlds: Worlds, heuristic: PolicySpec, count: int, threads: int
) -> Callable[[Floats], Interval]:
    """A function from params to their gain over the heuristic on the first `count` validation
    worlds."""
    judged = worlds.validation(count)
    plain, _ = play_all(worlds, judged, 1, lambda s, _w, _c: utility(s, heuristic), threads)

    def look(params: Floats) -> Interval:
        rule = rule_of(params)
        got, _ = play_all(worlds, judged, 1, lambda s, _w, _c: utility(s, rule), threads)
        return interval(got[0] - plain[0])

    return look


def initial(heuristic: PolicySpec, params: Floats | None = None) -> Floats:
    """What training starts from: the heuristic, or given params."""
    return learned.untrained(heuristic.params) if params is None else params.copy()
