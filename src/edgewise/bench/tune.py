"""Finding a rule's parameters: CMA-ES on training worlds, under common random numbers.

Theory of operation
-------------------
The parameters are searched in the unit cube (each between its bounds, on a logarithmic scale where
it says so), from the rule's defaults. In each generation all candidates play the *same* fresh
training worlds, so they differ by what they decide and not by luck; fresh ones each time, so that
nothing is fitted to a handful of worlds. What is kept is the mean of the final distribution, for
the best candidate ever seen is best by luck (Hansen, The CMA evolution strategy: a tutorial, 2016,
§B.3; the population's ranks need no utility scale, and the mean averages the noise out).

A single parameter needs no CMA-ES: it is scanned over its range, then around the best.

The result is then compared with the defaults on validation worlds, which neither search nor suite
ever sees. Time budgets end between generations, and the command that is recorded names the number
of generations done, not the time, so that it gives the same values on any machine.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.bench.episodes import ReplayableWorld
from edgewise.bench.statistics import Interval, interval
from edgewise.bench.suite import SUITES, each
from edgewise.errors import BadInput, MissingExtra
from edgewise.policy.base import Parameter, PolicySpec
from edgewise.policy.tuning import Tuned
from edgewise.scenario import Scenario
from edgewise.sim.build import SimOptions
from edgewise.worlds import families

Floats = NDArray[np.float64]

WORLDS = 24
"""Per generation. Fewer and generations get noisier than the distribution can average out."""
VALIDATION_WORLDS = 64
STEP = 0.2
"""Initial standard deviation in the unit cube: most first candidates lie within a fifth of the
range from the defaults."""
SCAN = 13
"""Values of a lone parameter in each of the two scans."""
DIGITS = 4
"""Significant digits kept; the last one of them changes no decision that the noise would not."""


class Generation(Struct, frozen=True, kw_only=True):
    """Progress: one generation, or one scan."""

    number: int
    utility: float
    """Mean over the population."""
    best: float
    spread: float
    """Largest standard deviation of the search distribution, in the unit cube."""
    seconds: float
    """Since the search began."""


class SearchResult(Struct, frozen=True, kw_only=True):
    """What a search came to."""

    policy: str
    command: str
    params: dict[str, float]
    generations: int
    worlds: int
    """Of validation, of which the rest is."""
    utility: float
    """Mean."""
    over_defaults: Interval
    """Paired difference there."""
    over_standing: Interval
    """The same to the values that the rule has now."""

    @property
    def better(self) -> bool:
        """Than the values the rule has now."""
        return self.over_standing.mean > 0.0

    def tuned(self) -> Tuned:
        mean, half = self.over_defaults
        worlds = f"{self.worlds} validation worlds"
        return Tuned(
            command=self.command,
            gain=f"{mean:+.4f} ± {half:.4f} utility over the defaults, {worlds}",
            params=self.params,
        )


def to_unit(parameters: Sequence[Parameter], values: Sequence[float]) -> Floats:
    """Values as coordinates of the unit cube."""
    return np.array([_forward(p, value) for p, value in zip(parameters, values, strict=True)])


def from_unit(parameters: Sequence[Parameter], unit: Floats) -> Floats:
    """The reverse, rounded to `DIGITS` and kept between the bounds."""
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


class Setting(Struct, frozen=True, kw_only=True):
    """Under what the worlds are played: a change of every scenario, and the engine's options."""

    change: Callable[[Scenario], Scenario] | None = None
    options: SimOptions = SimOptions()

    def stage(self, family: str, seed: int) -> ReplayableWorld:
        world = families.scenario(family, seed)
        world = world if self.change is None else self.change(world)
        return ReplayableWorld(world, msgspec.structs.replace(self.options, store=False))


AS_IT_IS = Setting()


def utilities(
    rule: PolicySpec,
    candidates: Sequence[Floats],
    worlds: Sequence[tuple[str, int]],
    threads: int,
    setting: Setting = AS_IT_IS,
) -> Floats:
    """Mean utility of every candidate in every world (family, seed): (candidates, worlds)."""
    values = np.zeros((len(candidates), len(worlds)))

    def play(w: int, _: int) -> None:
        stage = setting.stage(*worlds[w])
        for c, params in enumerate(candidates):
            values[c, w] = stage.utility(rule, params)

    each([(w, 0) for w in range(len(worlds))], play, threads)
    return values


class _Worlds:
    """Training worlds, each taken once; `seed` says where in their range to begin."""

    def __init__(self, names: Sequence[str], seed: int) -> None:
        self._names = names
        self._at = seed * 50_000  # twenty searches before the range is through

    def take(self, count: int) -> list[tuple[str, int]]:
        taken = []
        for _ in range(count):
            number = families.TRAINING[self._at % len(families.TRAINING)]
            taken.append((self._names[self._at % len(self._names)], number))
            self._at += 1
        return taken


def search(
    name: str,
    rule: PolicySpec,
    *,
    suite: str = "train",
    seed: int = 1,
    budget: float | None = None,
    generations: int | None = None,
    worlds: int = WORLDS,
    threads: int = 2,
    standing: Sequence[float] | None = None,
    start: Sequence[float] | None = None,
    step: float = STEP,
    setting: Setting = AS_IT_IS,
    validation: int = VALIDATION_WORLDS,
    progress: Callable[[Generation], None] = lambda _: None,
) -> SearchResult:
    """Tune the parameters of `rule` on training worlds of a suite's families.

    It ends after `generations`, or at the first end of a generation after `budget` s; one of them
    must be given. `standing` are the values to beat, the rule's own by default; `start` is where to
    begin, its defaults by default, `step` how wide. Raises BadInput for a rule without parameters
    or an unknown suite, MissingExtra without `cma`.
    """
    if not rule.parameters:
        raise BadInput(f"{name} has no parameters to tune")
    if suite not in SUITES:
        raise BadInput(f"unknown suite {suite!r}; known: {', '.join(SUITES)}")
    if (budget is None) == (generations is None):
        raise BadInput("expected either a budget or a number of generations")
    if generations is not None and generations < 1:
        raise BadInput(f"expected at least 1 generation, got {generations}")
    source = _Worlds(SUITES[suite], seed)
    began = time.monotonic()

    def more(done: int) -> bool:
        if generations is not None:
            return done < generations
        assert budget is not None
        return done == 0 or time.monotonic() - began < budget

    def evaluate(number: int, units: Sequence[Floats], spread: float) -> Floats:
        candidates = [from_unit(rule.parameters, unit) for unit in units]
        taken = source.take(worlds)
        found: Floats = utilities(rule, candidates, taken, threads, setting).mean(axis=1)
        progress(
            Generation(
                number=number,
                utility=float(found.mean()),
                best=float(found.max()),
                spread=spread,
                seconds=time.monotonic() - began,
            )
        )
        return found

    defaults = np.array([p.default for p in rule.parameters])
    if len(rule.parameters) == 1:
        unit, done = _scan(more, evaluate)
    else:
        begin = to_unit(rule.parameters, defaults.tolist() if start is None else start)
        unit, done = _evolve(begin, step, seed, more, evaluate)
    params = from_unit(rule.parameters, unit)
    held = np.array(rule.params if standing is None else standing, np.float64)
    seeds = families.VALIDATION[:validation]
    judged = [(SUITES[suite][s % len(SUITES[suite])], s) for s in seeds]
    tuned, plain, before = utilities(rule, [params, defaults, held], judged, threads, setting)
    return SearchResult(
        policy=name,
        command=f"edgewise tune {name} --suite {suite} --seed {seed} --generations {done} "
        f"--worlds {worlds}",
        params=dict(zip(rule.names, params.tolist(), strict=True)),
        generations=done,
        worlds=validation,
        utility=float(tuned.mean()),
        over_defaults=interval(tuned - plain),
        over_standing=interval(tuned - before),
    )


_Evaluate = Callable[[int, Sequence[Floats], float], Floats]


def _evolve(
    begin: Floats, step: float, seed: int, more: Callable[[int], bool], evaluate: _Evaluate
) -> tuple[Floats, int]:
    cma = _cma()
    options = {"bounds": [0.0, 1.0], "seed": seed, "verbose": -9}
    strategy = cma.CMAEvolutionStrategy(np.clip(begin, 0.02, 0.98), step, options)
    done = 0
    while more(done):
        units = strategy.ask()
        spread = float(np.max(strategy.stds))
        strategy.tell(units, (-evaluate(done, units, spread)).tolist())
        done += 1
    return np.clip(np.asarray(strategy.result.xfavorite, np.float64), 0.0, 1.0), done


def _scan(more: Callable[[int], bool], evaluate: _Evaluate) -> tuple[Floats, int]:
    grid = np.linspace(0.0, 1.0, SCAN)
    best, width, done = 0.5, 0.5, 0
    while more(done) and width > 0.002:
        points = np.clip(best + width * (2.0 * grid - 1.0), 0.0, 1.0)
        found = evaluate(done, [points[i : i + 1] for i in range(SCAN)], width)
        # Neighbours say the same with other luck: a parabola over five of them averages it out.
        near = int(np.argmax(found))
        low, high = max(0, near - 2), min(SCAN, near + 3)
        best = _vertex(points[low:high], found[low:high], float(points[near]))
        width *= 0.4
        done += 1
    return np.array([best]), done


def _vertex(x: Floats, y: Floats, fallback: float) -> float:
    """Where a parabola through the points is highest; `fallback` if it has no top among them."""
    if len(np.unique(x)) < 3:
        return fallback
    a, b, _ = np.polyfit(x, y, 2)
    top = -b / (2.0 * a) if a < 0.0 else fallback
    return float(min(max(top, x.min()), x.max()))


def _cma() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it misses matplotlib, and says so
            import cma
    except ImportError:
        raise MissingExtra("bench", "cma") from None
    return cma


# -- where the values are kept -------------------------------------------------------------------

_HEAD = '''# ruff: noqa: E501 (a command is one line)
"""Parameters found by ``edgewise tune``, which writes this file; values by name."""

from __future__ import annotations

from edgewise.policy.tuning import Tuned

TUNED: dict[str, Tuned] = {
'''


def default_file() -> Path:
    """The module that the rules read."""
    from edgewise.policy import tuned

    assert tuned.__file__ is not None
    return Path(tuned.__file__)


def write(path: Path, tuned: dict[str, Tuned]) -> None:
    """Write the module with these values, sorted by policy."""
    path.write_text(render(tuned), encoding="utf-8")


def render(tuned: dict[str, Tuned]) -> str:
    """The module's source, as ``ruff format`` leaves it."""
    if not tuned:
        return _HEAD.replace("{\n", "{}\n")
    parts = [_HEAD]
    for name in sorted(tuned):
        found = tuned[name]
        parts.append(f"    {_quoted(name)}: Tuned(\n")
        parts.append(f"        command={_quoted(found.command)},\n")
        parts.append(f"        gain={_quoted(found.gain)},\n")
        parts.append("        params={\n")
        parts += [f"            {_quoted(k)}: {v!r},\n" for k, v in found.params.items()]
        parts.append("        },\n    ),\n")
    return "".join(parts) + "}\n"


def _quoted(text: str) -> str:
    assert not set(text) & {'"', "\\"}
    return f'"{text}"'


_SPAN = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h)?$")


def seconds(text: str) -> float:
    """``90``, ``90s``, ``2m`` or ``0.5h`` in s. Raises BadInput."""
    found = _SPAN.match(text.strip())
    if found is None:
        raise BadInput(f"expected a time such as 90s, 2m or 0.5h, got {text!r}")
    return float(found[1]) * {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}[found[2]]
