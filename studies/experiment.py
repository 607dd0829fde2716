"""Worlds that policies have played for a study: kept, resumable, paired.

A study is a list of *arms*, each a policy under a condition, and of *places*, each a way to make
worlds from a seed. Every arm plays every place with every seed; a figure is written to a file of
JSON lines as soon as it is there, and what stands there is not played again. Seeds are the outer
loop: when the time is up, what has been played has as many seeds in every place, and only seeds
that all arms played in all places are counted (`Experiment.complete`).
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.bench import suite
from edgewise.bench.episodes import ReplayableWorld
from edgewise.bench.statistics import Interval, interval, over_families
from edgewise.errors import BadInput
from edgewise.policy.base import PolicySpec
from edgewise.scenario import Scenario
from edgewise.sim.build import SimOptions

Floats = NDArray[np.float64]
Change = Callable[[Scenario], Scenario]

BARE = SimOptions(store=False)


class WorldCondition(Struct, frozen=True, kw_only=True):
    """A way to make worlds."""

    name: str
    world: Callable[[int], Scenario]
    """From a seed."""


class Arm(Struct, frozen=True, kw_only=True):
    """A policy under a condition."""

    name: str
    rule: PolicySpec
    change: Change | None = None
    """What is done to every world first."""
    told: Callable[[Scenario], Floats] | None = None
    """What stands before the rule's params: what its kernel is told of the world."""

    @property
    def digest(self) -> str:
        """Of all that decides what it plays but for the code."""
        what = (self.rule.params, getattr(self.rule.kernel, "__name__", ""), suite.versions())
        return hashlib.sha256(msgspec.json.encode(what)).hexdigest()[:16]


class _Line(Struct, frozen=True):
    key: str
    value: float | None
    """None: there is no such figure (JSON has no NaN)."""


class ResultStore:
    """Figures by key, in a file of JSON lines; None: in memory only.

    Raises BadInput for a file that is not one.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.values: dict[str, float] = {}
        if path is None or not path.exists():
            return
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            try:
                found = msgspec.json.decode(line, type=_Line)
            except msgspec.MsgspecError as error:
                if not line.endswith(b"\n"):  # killed while it wrote
                    path.write_bytes(path.read_bytes()[: -len(line)])
                    continue
                raise BadInput(f"{path}:{number}: not a figure of a study: {error}") from None
            self.values[found.key] = math.nan if found.value is None else found.value

    def put(self, key: str, value: float) -> None:
        """Keep one; may be called from several threads."""
        with self._lock:
            self.values[key] = value
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab") as file:
                    file.write(msgspec.json.encode(_Line(key, value)) + b"\n")


class Experiment:
    """How studies play: on so many threads, until a time, with what was played before."""

    def __init__(
        self,
        kept: ResultStore,
        seeds: Sequence[int],
        *,
        threads: int = 2,
        until: float = math.inf,
        progress: Callable[[int, int, str], None] = lambda _done, _of, _what: None,
    ) -> None:
        self.kept = kept
        self.seeds = tuple(seeds)
        self.threads = threads
        self.until = until
        """On the monotonic clock: no episode begins after it."""
        self.progress = progress

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.until

    def utilities(
        self, study: str, places: Sequence[WorldCondition], arms: Sequence[Arm]
    ) -> tuple[Floats, tuple[int, ...]]:
        """Mean expected utility, (places, arms, seeds), and the seeds that all of them played."""
        stems = {arm.name: f"{study}|{arm.name}|{arm.digest}" for arm in arms}

        def key(place: WorldCondition, arm: Arm, seed: int) -> str:
            return f"{stems[arm.name]}|{place.name}|{seed}"

        def task(s: int, p: int) -> None:
            place, seed = places[p], self.seeds[s]
            stages: dict[Change | None, ReplayableWorld] = {}
            for arm in arms:
                if self.over or key(place, arm, seed) in self.kept.values:
                    continue
                world = place.world(seed)
                if arm.change not in stages:
                    changed = world if arm.change is None else arm.change(world)
                    stages[arm.change] = ReplayableWorld(changed, BARE)
                params = None
                if arm.told is not None:
                    params = np.concatenate([arm.told(world), arm.rule.params])
                value = stages[arm.change].utility(arm.rule, params)
                self.kept.put(key(place, arm, seed), value)

        tasks = [(s, p) for s in range(len(self.seeds)) for p in range(len(places))]
        done = 0

        def shown(s: int, p: int) -> None:
            nonlocal done
            task(s, p)
            done += 1  # two threads may lose a count; it is only shown
            self.progress(done, len(tasks), f"{study}: {places[p].name}")

        suite.each(tasks, shown, self.threads)
        return self.complete(
            len(places), len(arms), lambda p, a, s: self.kept.values.get(key(places[p], arms[a], s))
        )

    def complete(
        self, places: int, arms: int, value: Callable[[int, int, int], float | None]
    ) -> tuple[Floats, tuple[int, ...]]:
        """(places, arms, seeds) of the seeds for which every `value(p, a, seed)` is there.

        Raises BadInput if there is no such seed.
        """
        rows, seeds = [], []
        for seed in self.seeds:
            row = [[value(p, a, seed) for a in range(arms)] for p in range(places)]
            if all(each is not None for line in row for each in line):
                rows.append(row)
                seeds.append(seed)
        if not seeds:
            raise BadInput("not one seed was played by all; give it more time and run it again")
        return np.array(rows, np.float64).transpose(1, 2, 0), tuple(seeds)


# -- how figures are written -----------------------------------------------------------------------


class Section(Struct, frozen=True, kw_only=True):
    """What a study says."""

    lines: list[str]
    """Markdown."""
    figures: dict[str, object]
    """The same as data."""


def pm(found: Interval, digits: int = 4) -> str:
    """Mean ± half an interval."""
    return f"{found.mean:+.{digits}f} ± {found.half:.{digits}f}"


def percent(found: Interval, base: float) -> str:
    """The same in per cent of `base`."""
    return f"{100 * found.mean / base:+.2f} ± {100 * found.half / base:.2f} %"


def held_out(seeds: Sequence[int]) -> str:
    """Which seeds, in words."""
    return f"{len(seeds)} held-out seeds ({seeds[0]:,} … {seeds[-1]:,})"


def ratio(part: Floats, whole: Floats, draws: int = 2000) -> tuple[float, float, float]:
    """(ratio of means, low, high) of two arrays (seeds,): Σ part / Σ whole, with a 95 % interval of
    the bootstrap over seeds (Efron, Bootstrap methods, 1979).

    NaN where the whole is not above 0; where that is so in a resampled set, the interval says it.
    """
    if whole.mean() <= 0.0:
        return math.nan, math.nan, math.nan
    rng = np.random.default_rng(0)
    at = rng.integers(len(whole), size=(draws, len(whole)))
    below = whole[at].mean(axis=1)
    values = np.where(
        below > 0.0, part[at].mean(axis=1) / np.where(below > 0.0, below, 1.0), np.nan
    )
    if np.isnan(values).mean() > 0.025:
        return float(part.mean() / whole.mean()), math.nan, math.nan
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(part.mean() / whole.mean()), float(low), float(high)


def share(found: tuple[float, float, float]) -> str:
    """A ratio in per cent with its interval."""
    if math.isnan(found[0]):
        return "nothing to recover"
    if math.isnan(found[1]):
        return f"{100 * found[0]:.0f} % (the whole is not clearly above 0)"
    return f"{100 * found[0]:.0f} % ({100 * found[1]:.0f} … {100 * found[2]:.0f} %)"


def grid(
    places: Sequence[WorldCondition], heads: Sequence[str], differences: Floats
) -> tuple[list[str], list[Interval]]:
    """A table of differences (places, columns, seeds), a line for each place and their mean; and
    those means, clustered by seed."""
    lines = ["| family | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for p, place in enumerate(places):
        cells = " | ".join(pm(interval(differences[p, c])) for c in range(len(heads)))
        lines.append(f"| {place.name} | {cells} |")
    means = [over_families(differences[:, c]) for c in range(len(heads))]
    lines.append("| **mean** | " + " | ".join(pm(each) for each in means) + " |")
    return lines, means
