"""The worlds that training, validation and acceptance play in.

Of families: seeds from their own ranges (`edgewise.worlds.families`), so that what is learned,
what it
is chosen by and what is reported never share a world. Of a scenario file: the same fleet, network
and workload with other luck, by the same split of seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.bench.episodes import ReplayableWorld
from edgewise.bench.suite import each
from edgewise.fleet.rng import new_rng
from edgewise.policy import learned
from edgewise.policy.base import PolicySpec
from edgewise.policy.guard import COUNTERS
from edgewise.scenario import Scenario
from edgewise.sim import engine
from edgewise.sim.build import SimOptions, simulation
from edgewise.worlds import families
from edgewise.worlds.workload import Trace, generate

Floats = NDArray[np.float64]

BARE = SimOptions(store=False)
PER_SEED = 50_000
"""Training worlds set apart for each training seed; twenty before the range is through. The first
of a seed are the ones that `edgewise tune` sees with it."""


def fresh(world: Scenario) -> Scenario:
    """A report every 10 ms."""
    return msgspec.structs.replace(world, report_period=0.01)


def bandwidth(world: Scenario) -> Scenario:
    """The balancer is told the links' true rates and what is on them."""
    return msgspec.structs.replace(world, network_state="emulator")


def informed(world: Scenario) -> Scenario:
    """Both."""
    return bandwidth(fresh(world))


class Worlds(Struct, frozen=True, kw_only=True):
    """Where to learn: families, or one scenario."""

    names: tuple[str, ...] = ("train",)
    scenario: Scenario | None = None
    sizes: tuple[int, ...] = ()
    """Bytes of the scenario's photos; () = its payload needs none."""
    informed: bool = False
    """Whether worlds are `informed`: for a heuristic tuned with what nobody knows."""

    @property
    def about(self) -> str:
        return ", ".join(self.names) if self.scenario is None else self.scenario.name

    def world(self, at: int, number: int) -> Scenario:
        """The `at`-th of a list, with seed `number`."""
        if self.scenario is not None:
            found = self.scenario.with_overrides(seed=number)
        else:
            found = families.scenario(self.names[at % len(self.names)], number)
        return informed(found) if self.informed else found

    def trace(self, world: Scenario) -> Trace:
        """The requests of one of them."""
        return generate(world, self.sizes or None)

    def training(self, seed: int, first: int, count: int) -> list[Scenario]:
        """Worlds `first` … of training seed `seed`, each used once."""
        start = seed * PER_SEED + first
        numbers = [
            families.TRAINING[i % len(families.TRAINING)] for i in range(start, start + count)
        ]
        return [self.world(first + i, number) for i, number in enumerate(numbers)]

    def validation(self, count: int, skip: int = 0) -> list[Scenario]:
        """Worlds to choose by."""
        return [
            self.world(i, number)
            for i, number in enumerate(families.VALIDATION[skip : skip + count])
        ]


def rule_of(params: Floats) -> PolicySpec:
    """The learned policy with these params."""
    return PolicySpec(
        kernel=learned.edgewise,
        params=tuple(params.tolist()),
        memory=learned.MEMORY,
        per_server=learned.PER_SERVER,
        about="the learned policy",
    )


def play_all(
    place: Worlds,
    worlds: Sequence[Scenario],
    count: int,
    play: Callable[[ReplayableWorld, int, int], tuple[float, int]],
    threads: int,
) -> tuple[Floats, int]:
    """`play(stage, w, c)` for c < `count` in every world w, one of `place`: utilities
    (count, worlds), and the number of decisions in all."""
    values = np.zeros((count, len(worlds)))
    decisions = np.zeros(len(worlds), np.int64)

    def task(w: int, _: int) -> None:
        stage = ReplayableWorld(worlds[w], BARE, place.trace(worlds[w]))
        for c in range(count):
            values[c, w], made = play(stage, w, c)
            decisions[w] += made

    each([(w, 0) for w in range(len(worlds))], task, threads)
    return values, int(decisions.sum())


def utility(
    stage: ReplayableWorld, rule: PolicySpec, params: Floats | None = None
) -> tuple[float, int]:
    """(mean expected utility, decisions) of a play."""
    sim = stage.play(rule, params)
    clock = sim.world.clock[0]
    return float(clock["utility"]) / max(1, len(sim.world.requests)), int(clock["decisions"])


def limits(
    place: Worlds, rule: PolicySpec, params: Floats, worlds: Sequence[Scenario], threads: int
) -> tuple[Floats, Floats, Floats]:
    """What features a policy meets in these worlds: (lowest, highest), each (FEATURES,), and the
    guard's counters, summed."""
    wanted = params.copy()
    wanted[learned.O_SURVEY] = 1.0
    at = len(COUNTERS)
    n = learned.FEATURES
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    counters = np.zeros(at)
    kernel = engine.compiled(rule.kernel)
    states: list[Floats] = [np.zeros(0)] * len(worlds)

    def task(w: int, _: int) -> None:
        scenario = worlds[w]
        sim = simulation(scenario, place.trace(scenario), BARE)
        sim.table.wanted[0] = 1
        deciders = len(sim.beliefs.servers)  # nodes too, where the balancer falls silent
        state = np.repeat(rule.new_state(len(scenario.servers))[None], deciders, axis=0)
        draws = np.stack([new_rng(scenario.seed * 64 + b) for b in range(deciders)])
        engine.run(sim, kernel, wanted, state, draws, -1)
        states[w] = state

    each([(w, 0) for w in range(len(worlds))], task, threads)
    for state in states:
        for own in state:
            counters += own[:at]
            if own[at + learned.P] != 0.0 or own[at + n + learned.P] != 0.0:
                low = np.minimum(low, own[at : at + n])
                high = np.maximum(high, own[at + n : at + 2 * n])
    return low, high, counters
