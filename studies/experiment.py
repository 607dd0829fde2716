"""Paired experiments: every policy plays every world, and results are kept and never repeated.

An experiment has *arms*, each a policy under a condition, and *world conditions*, each a way to
make worlds from a seed. Every arm plays every world condition with every seed. A result is written
to a file of JSON lines as soon as it is there, and is not computed again. Seeds are the outer loop,
so that an experiment that runs out of time has about as many seeds in every world condition, and
only seeds that all arms have played in all world conditions are counted (`Experiment.complete`).
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.benchmark.episodes import BARE, ReplayableWorld
from edgewise.benchmark.statistics import Interval, interval, over_families
from edgewise.cores import for_each
from edgewise.errors import BadInput
from edgewise.policies.base import PolicySpec
from edgewise.scenario import Scenario
from edgewise.versions import versions
from edgewise.worlds import families

Floats = NDArray[np.float64]
Change = Callable[[Scenario], Scenario]


class WorldCondition(Struct, frozen=True, kw_only=True):
    """A way to make worlds."""

    name: str
    world: Callable[[int], Scenario]
    """From a seed."""


def family_condition(family: str) -> WorldCondition:
    """The worlds of a family of the suite."""
    return WorldCondition(name=family, world=lambda seed: families.scenario(family, seed))


class Arm(Struct, frozen=True, kw_only=True):
    """A policy under a condition."""

    name: str
    policy: PolicySpec
    change: Change | None = None
    """A function applied to every world first."""
    privileged: Callable[[Scenario], Floats] | None = None
    """Makes numbers about the world that are put before the parameters of the policy's kernel."""

    def policy_in(self, world: Scenario) -> PolicySpec:
        """The policy with its privileged numbers about the world."""
        if self.privileged is None:
            return self.policy
        params = (*self.privileged(world).tolist(), *self.policy.params)
        return msgspec.structs.replace(self.policy, params=params)

    @property
    def digest(self) -> str:
        """A digest of everything that decides how it plays, except the code."""
        kernel = getattr(self.policy.kernel, "__name__", "")
        text = (self.policy.params, kernel, versions("cma"))
        return hashlib.sha256(msgspec.json.encode(text)).hexdigest()[:16]


class _Line(Struct, frozen=True):
    key: str
    value: float | None
    """None: there is no such figure (JSON has no NaN)."""


class ResultStore:
    """Results by key, in a file of JSON lines, or in memory only without a path.

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
                stored = msgspec.json.decode(line, type=_Line)
            except msgspec.MsgspecError as error:
                if not line.endswith(b"\n"):  # killed while it was being written
                    path.write_bytes(path.read_bytes()[: -len(line)])
                    continue
                raise BadInput(f"{path}:{number}: not a figure of a study: {error}") from None
            self.values[stored.key] = math.nan if stored.value is None else stored.value

    def put(self, key: str, value: float) -> None:
        """Keep a result. Several threads may call it."""
        with self._lock:
            self.values[key] = value
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab") as file:
                    file.write(msgspec.json.encode(_Line(key, value)) + b"\n")


class Experiment:
    """How studies play: which seeds, on how many threads, until when, and what is known already."""

    def __init__(
        self,
        store: ResultStore,
        seeds: Sequence[int],
        *,
        threads: int = 2,
        until: float = math.inf,
        progress: Callable[[int, int, str], None] = lambda _done, _total, _what: None,
    ) -> None:
        self.store = store
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
        self, study: str, conditions: Sequence[WorldCondition], arms: Sequence[Arm]
    ) -> tuple[Floats, tuple[int, ...]]:
        """Mean expected utility, (conditions, arms, seeds), and the seeds that all arms played."""
        stems = {arm.name: f"{study}|{arm.name}|{arm.digest}" for arm in arms}

        def key(condition: WorldCondition, arm: Arm, seed: int) -> str:
            return f"{stems[arm.name]}|{condition.name}|{seed}"

        def play(seed: int, c: int) -> None:
            condition = conditions[c]
            worlds: dict[Change | None, ReplayableWorld] = {}
            for arm in arms:
                if self.over or key(condition, arm, seed) in self.store.values:
                    continue
                scenario = condition.world(seed)
                if arm.change not in worlds:
                    changed = scenario if arm.change is None else arm.change(scenario)
                    worlds[arm.change] = ReplayableWorld(changed, BARE)
                value = worlds[arm.change].utility(arm.policy_in(scenario))
                self.store.put(key(condition, arm, seed), value)

        self.run(study, [condition.name for condition in conditions], play)
        return self.complete(
            len(conditions),
            len(arms),
            lambda c, a, seed: self.store.values.get(key(conditions[c], arms[a], seed)),
        )

    def run(self, study: str, conditions: Sequence[str], play: Callable[[int, int], None]) -> None:
        """Call `play` with every seed and the number of every condition, and show progress."""
        tasks = list(product(self.seeds, range(len(conditions))))
        done = 0

        def task(one: tuple[int, int]) -> None:
            nonlocal done
            play(*one)
            done += 1  # two threads may lose a count; it is only shown
            self.progress(done, len(tasks), f"{study}: {conditions[one[1]]}")

        for_each(tasks, task, self.threads)

    def complete(
        self, conditions: int, arms: int, value: Callable[[int, int, int], float | None]
    ) -> tuple[Floats, tuple[int, ...]]:
        """Results (conditions, arms, seeds) of the seeds for which every `value(c, a, seed)` is
        there, and those seeds.

        Raises BadInput if there is no such seed.
        """
        rows, seeds = [], []
        for seed in self.seeds:
            row = [[value(c, a, seed) for a in range(arms)] for c in range(conditions)]
            if all(result is not None for line in row for result in line):
                rows.append(row)
                seeds.append(seed)
        if not seeds:
            raise BadInput(
                "no seed was played by every arm yet; run it again, with a larger budget"
            )
        return np.array(rows, np.float64).transpose(1, 2, 0), tuple(seeds)


# -- how figures are written ---------------------------------------------------------------------


class Section(Struct, frozen=True, kw_only=True):
    """The findings of a study."""

    lines: list[str]
    """Markdown."""
    figures: dict[str, object]
    """The same as data."""


def pm(found: Interval) -> str:
    """A difference with its interval."""
    return f"{found:+.4f}"


def percent(found: Interval, base: float) -> str:
    """A difference with its interval, in percent of `base`."""
    return f"{found.scaled(100.0 / base):+.2f} %"


def held_out(seeds: Sequence[int]) -> str:
    """Which seeds, in words."""
    return f"{len(seeds)} held-out seeds ({seeds[0]:,} … {seeds[-1]:,})"


def ratio(part: Floats, whole: Floats, samples: int = 2000) -> tuple[float, float, float]:
    """The ratio of means of two arrays (seeds,), Σ part / Σ whole, and the ends of its 95 %
    bootstrap interval over seeds (Efron, Bootstrap methods, 1979).

    All are NaN where the whole is not above 0; the ends are NaN where that is so in more than
    2.5 % of the resampled sets.
    """
    if whole.mean() <= 0.0:
        return math.nan, math.nan, math.nan
    rng = np.random.default_rng(0)
    at = rng.integers(len(whole), size=(samples, len(whole)))
    below = whole[at].mean(axis=1)
    values = np.where(
        below > 0.0, part[at].mean(axis=1) / np.where(below > 0.0, below, 1.0), np.nan
    )
    if np.isnan(values).mean() > 0.025:
        return float(part.mean() / whole.mean()), math.nan, math.nan
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(part.mean() / whole.mean()), float(low), float(high)


def share(found: tuple[float, float, float]) -> str:
    """A ratio in percent with its interval."""
    if math.isnan(found[0]):
        return "nothing to recover"
    if math.isnan(found[1]):
        return f"{100 * found[0]:.0f} % (the whole is not clearly above 0)"
    return f"{100 * found[0]:.0f} % ({100 * found[1]:.0f} … {100 * found[2]:.0f} %)"


def grid(
    conditions: Sequence[WorldCondition], heads: Sequence[str], differences: Floats
) -> tuple[list[str], list[Interval]]:
    """A table of differences (conditions, columns, seeds), with a line for each condition and one
    for their mean; and those means, clustered by seed."""
    lines = ["| family | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for c, condition in enumerate(conditions):
        cells = " | ".join(pm(interval(differences[c, h])) for h in range(len(heads)))
        lines.append(f"| {condition.name} | {cells} |")
    means = [over_families(differences[:, h]) for h in range(len(heads))]
    lines.append("| **mean** | " + " | ".join(pm(mean) for mean in means) + " |")
    return lines, means
