"""Tune a policy's parameters: CMA-ES on training worlds, under common random numbers.

Theory of operation
-------------------
The parameters are searched in the unit cube (each between its bounds, on a logarithmic scale where
it says so), from the policy's defaults. In each generation all candidates play the *same* fresh
training worlds, so they differ by their decisions and not by chance; the worlds are fresh each
time, so nothing is fitted to a handful of them. The result is the mean of the final distribution.
The best candidate ever seen is best by chance (Hansen, The CMA evolution strategy: a tutorial,
2016, §B.3), while the population's ranks need no scale of utility and the mean averages the noise
out.

A single parameter needs no CMA-ES: it is scanned over its range, then around the best value.

The result is then compared with the defaults on validation worlds, which neither search nor suite
ever sees. Time budgets end between generations, and the command that is recorded names the number
of generations done, not the time, so that it gives the same values on every machine.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.benchmark.episodes import Candidate, play_all
from edgewise.benchmark.statistics import Interval, interval, student_quantile
from edgewise.benchmark.suite import SUITES
from edgewise.errors import BadInput, MissingExtra
from edgewise.learn.search import Arrays, Budget, Progress, Step, search
from edgewise.policies.base import Parameter, PolicySpec
from edgewise.policies.tuning import Tuned
from edgewise.scenario import Scenario
from edgewise.sim.build import SimOptions
from edgewise.sim.source import WorldSource
from edgewise.worlds import families

Floats = NDArray[np.float64]

SCAN = 13
"""Values of a lone parameter in each scan."""
SCAN_END = 0.002
"""Half the width, as a share of the parameter's range, below which there is no further scan."""
DIGITS = 4
"""Significant digits kept. A change of the last one changes fewer decisions than the noise does."""


class TuneSettings(Struct, frozen=True, kw_only=True):
    """Settings of a tuning run."""

    suite: str = "wide"
    """The suite whose families' training worlds are played."""
    seed: int = 1
    worlds: int = 24
    """Per generation. With fewer, generations get noisier than the distribution can average out."""
    validation: int = 64
    """Validation worlds."""
    step: float = 0.2
    """Initial standard deviation in the unit cube: most of the first candidates lie within a fifth
    of the range from the start."""
    start: tuple[float, ...] = ()
    """Values to begin from; () = the policy's defaults."""
    change: Callable[[Scenario], Scenario] | None = None
    """A function applied to every scenario."""
    options: SimOptions = SimOptions()
    threads: int = 2


class TuneResult(Struct, frozen=True, kw_only=True):
    """The result of a tuning run."""

    policy: str
    command: str
    """The command that finds the same values again."""
    params: dict[str, float]
    generations: int
    worlds: int
    """Validation worlds, on which the following was measured."""
    utility: float
    """Mean, with the values found."""
    over_defaults: Interval
    """Paired difference to the defaults."""
    over_current: Interval
    """Paired difference to the values that the policy has now."""

    @property
    def better(self) -> bool:
        """Whether the values found beat the ones that the policy has now."""
        return self.over_current.mean > 0.0

    def tuned(self) -> Tuned:
        """The values found, as they are stored."""
        return Tuned(
            command=self.command,
            gain=f"{self.over_defaults:+.4f} utility over the defaults, "
            f"{self.worlds} validation worlds",
            params=self.params,
        )


def tune(
    name: str,
    policy: PolicySpec,
    budget: Budget,
    settings: TuneSettings | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> TuneResult:
    """Tune the parameters of `policy` on training worlds.

    Raises BadInput for a policy without parameters or an unknown suite, MissingExtra without
    `cma`, and SearchStopped for Ctrl-C.
    """
    student_quantile()  # a missing package should show before the search, not after it
    settings = settings or TuneSettings()
    if not policy.parameters:
        raise BadInput(f"{name} has no parameters to tune")
    if settings.suite not in SUITES:
        raise BadInput(f"unknown suite {settings.suite!r}; known: {', '.join(SUITES)}")
    tuner = Tuner(policy, settings)
    found = search(tuner, budget, progress=progress)
    defaults = np.array([p.default for p in policy.parameters])
    candidates = [(policy, found.params), (policy, defaults), (policy, np.array(policy.params))]
    tuned, plain, current = tuner.utilities(
        families.validation_seeds(settings.validation), candidates
    )
    return TuneResult(
        policy=name,
        command=f"edgewise tune {name} --suite {settings.suite} --seed {settings.seed} "
        f"--generations {found.steps} --worlds {settings.worlds}",
        params=dict(zip(policy.names, found.params.tolist(), strict=True)),
        generations=found.steps,
        worlds=settings.validation,
        utility=float(tuned.mean()),
        over_defaults=interval(tuned - plain),
        over_current=interval(tuned - current),
    )


class Tuner:
    """CMA-ES, or a scan of a lone parameter, as a `search.Algorithm` without checkpoints."""

    def __init__(self, policy: PolicySpec, settings: TuneSettings) -> None:
        self._policy, self._settings = policy, settings
        self._source = WorldSource(family=SUITES[settings.suite], change=settings.change)
        self._options = msgspec.structs.replace(settings.options, store=False)
        self._played = 0
        start = settings.start or tuple(p.default for p in policy.parameters)
        self._strategy: CmaEs | Scan = (
            Scan()
            if len(policy.parameters) == 1
            else CmaEs(to_unit(policy.parameters, start), settings.step, settings.seed)
        )
        self.fingerprint = ""

    def step(self, used: float) -> Step:
        """Play one generation of candidates in fresh worlds."""
        settings, strategy = self._settings, self._strategy
        units = strategy.ask()
        spread = strategy.spread
        candidates = [(self._policy, from_unit(self._policy.parameters, unit)) for unit in units]
        seeds = families.training_seeds(settings.seed, self._played, settings.worlds)
        self._played += settings.worlds
        utilities = self.utilities(seeds, candidates).mean(axis=1)
        strategy.tell(units, utilities)
        return Step(
            figures={
                "utility": float(utilities.mean()),
                "best": float(utilities.max()),
                # Largest standard deviation of the search distribution, in the unit cube.
                "spread": spread,
            },
            last=strategy.converged,
        )

    def utilities(self, seeds: Sequence[int], candidates: Sequence[Candidate]) -> Floats:
        """Mean utility of every candidate in every world: (candidates, worlds)."""
        values, _ = play_all(
            self._source,
            seeds,
            lambda _, c: candidates[c],
            len(candidates),
            self._settings.threads,
            self._options,
        )
        return values

    def params(self) -> Floats:
        """The values found so far."""
        return from_unit(self._policy.parameters, self._strategy.best)

    def state(self) -> dict[str, NDArray[Any]]:
        """Nothing: CMA-ES can only be stored as a pickle, which this project does not read."""
        return {}

    def restore(self, steps: int, state: Arrays) -> None:
        """Never called, since no state is stored."""
        raise NotImplementedError


class CmaEs:
    """CMA-ES in the unit cube, by the package `cma`. Raises MissingExtra without it."""

    converged = False

    def __init__(self, start: Floats, step: float, seed: int) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns that matplotlib is missing
                import cma
        except ImportError:
            raise MissingExtra("bench", "cma") from None
        options = {"bounds": [0.0, 1.0], "seed": seed, "verbose": -9}
        self._cma: Any = cma.CMAEvolutionStrategy(np.clip(start, 0.02, 0.98), step, options)

    def ask(self) -> list[Floats]:
        """The candidates of a generation."""
        candidates: list[Floats] = self._cma.ask()
        return candidates

    def tell(self, units: Sequence[Floats], utilities: Floats) -> None:
        """Take in how the candidates did."""
        self._cma.tell(units, (-utilities).tolist())

    @property
    def spread(self) -> float:
        return float(np.max(self._cma.stds))

    @property
    def best(self) -> Floats:
        """The mean of the distribution."""
        return np.clip(np.asarray(self._cma.result.xfavorite, np.float64), 0.0, 1.0)


class Scan:
    """A scan of one parameter over its range, then again and again around the best value."""

    def __init__(self) -> None:
        self._best = 0.5
        self.spread = 0.5
        """Half the width of the next scan."""

    @property
    def converged(self) -> bool:
        return self.spread <= SCAN_END

    def ask(self) -> list[Floats]:
        """The values of a scan."""
        grid = np.linspace(0.0, 1.0, SCAN)
        points = np.clip(self._best + self.spread * (2.0 * grid - 1.0), 0.0, 1.0)
        return [points[i : i + 1] for i in range(SCAN)]

    def tell(self, units: Sequence[Floats], utilities: Floats) -> None:
        """Take in how the values did, and narrow the scan."""
        # Neighbouring values decide nearly alike, so a parabola over five of them averages noise.
        points = np.concatenate(units)
        nearest = int(np.argmax(utilities))
        low, high = max(0, nearest - 2), min(SCAN, nearest + 3)
        self._best = _vertex(points[low:high], utilities[low:high], float(points[nearest]))
        self.spread *= 0.4

    @property
    def best(self) -> Floats:
        return np.array([self._best])


def _vertex(x: Floats, y: Floats, fallback: float) -> float:
    """Where a parabola through the points is highest; `fallback` if it has no top among them."""
    if len(np.unique(x)) < 3:
        return fallback
    a, b, _ = np.polyfit(x, y, 2)
    top = -b / (2.0 * a) if a < 0.0 else fallback
    return float(min(max(top, x.min()), x.max()))


# -- the unit cube -------------------------------------------------------------------------------


def to_unit(parameters: Sequence[Parameter], values: Sequence[float]) -> Floats:
    """Values as coordinates of the unit cube."""
    return np.array([_forward(p, value) for p, value in zip(parameters, values, strict=True)])


def from_unit(parameters: Sequence[Parameter], unit: Floats) -> Floats:
    """The inverse, rounded to `DIGITS` and kept between the bounds."""
    values = [_backward(p, float(u)) for p, u in zip(parameters, unit, strict=True)]
    return np.array(
        [
            min(max(float(f"{value:.{DIGITS}g}"), p.low), p.high)
            for p, value in zip(parameters, values, strict=True)
        ]
    )


def _forward(p: Parameter, value: float) -> float:
    if p.log:
        return math.log(value / p.low) / math.log(p.high / p.low)
    return (value - p.low) / (p.high - p.low)


def _backward(p: Parameter, unit: float) -> float:
    unit = min(max(unit, 0.0), 1.0)
    if p.log:
        return float(p.low * (p.high / p.low) ** unit)
    return p.low + unit * (p.high - p.low)
