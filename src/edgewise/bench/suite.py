"""The suite: every policy in every world, in parallel, the same numbers on any number of threads.

A task is one world (family, seed): it is made once and all policies play it in turn. Tasks share
nothing, their results have fixed places in the arrays, and the engine holds no lock while it plays,
so threads are enough and order does not matter.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from importlib.metadata import PackageNotFoundError, version

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.bench.episodes import METRICS, EpisodeMetrics, ReplayableWorld
from edgewise.errors import BadInput
from edgewise.policy.base import PolicySpec
from edgewise.scenario import Scenario
from edgewise.sim.build import SimOptions
from edgewise.worlds import families

Floats = NDArray[np.float64]

SUITES: dict[str, tuple[str, ...]] = {
    "standard": families.STANDARD,
    # A look before a long run: the loads, and the three that differ most from them.
    "quick": ("light", "medium", "heavy", "overload", "combined", "thin_links", "slow_server"),
    "train": ("train",),
}
"""Families by suite."""

Progress = Callable[[int, int, str], None]
"""(episodes done, of how many, what is going on)."""


def nothing(done: int, total: int, what: str) -> None:
    """Shows no progress."""


class Result(Struct, frozen=True, kw_only=True):
    """A suite that has run: ``metrics[name][family][policy][seed]``."""

    suite: str
    command: str = ""
    """That made it."""
    families: tuple[str, ...]
    policies: tuple[str, ...]
    tuned: dict[str, str] = {}
    """By policy: the command that found its parameters; "" = defaults."""
    seeds: tuple[int, ...]
    requests: list[list[int]]
    """[family][seed]."""
    metrics: dict[str, list[list[list[float | None]]]]
    """None: there was nothing to measure, such as the latency of no answers."""
    versions: dict[str, str] = {}
    seconds: float = 0.0
    """Wall time, compiling included."""

    def array(self, metric: str) -> Floats:
        """(families, policies, seeds); NaN where nothing was measured."""
        return np.array(self.metrics[metric], np.float64)

    def to_json(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Result:
        """Raises BadInput if it is not what `to_json` wrote."""
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise BadInput(f"not a result of edgewise bench: {error}") from None


def evaluation_seeds(count: int) -> tuple[int, ...]:
    """The first `count` held-out seeds. Raises BadInput below 1 or beyond their range."""
    if not 1 <= count <= len(families.EVALUATION):
        raise BadInput(f"expected 1 to {len(families.EVALUATION):,} seeds, got {count}")
    return tuple(families.EVALUATION[:count])


def run(
    names: Sequence[str],
    rules: Mapping[str, PolicySpec],
    seeds: Sequence[int],
    *,
    suite: str = "",
    threads: int = 2,
    options: SimOptions | None = None,
    change: Callable[[Scenario], Scenario] | None = None,
    progress: Progress = nothing,
) -> Result:
    """Play all `rules` in the worlds of families `names` with `seeds`.

    `change` is applied to every scenario first. Raises BadInput for an unknown family, or if there
    is nothing to play.
    """
    if not names or not rules or not seeds:
        raise BadInput("expected at least one family, one policy and one seed")
    began = time.monotonic()
    policies = tuple(rules)
    total = len(names) * len(seeds) * len(policies)
    compile_all(rules, lambda at, of, what: progress(0, total, f"compiling {what} ({at + 1}/{of})"))
    values = np.full((len(METRICS), len(names), len(policies), len(seeds)), np.nan)
    requests = np.zeros((len(names), len(seeds)), np.int64)
    done = 0

    def task(f: int, s: int) -> None:
        nonlocal done
        scenario = families.scenario(names[f], seeds[s])
        stage = ReplayableWorld(scenario if change is None else change(scenario), options)
        for p, rule in enumerate(rules.values()):
            got = stage.measure(rule)
            requests[f, s] = got.requests
            values[:, f, p, s] = [getattr(got, name) for name in METRICS]
            done += 1  # two threads may lose a count; it is only shown
        progress(done, total, names[f])

    each([(f, s) for s in range(len(seeds)) for f in range(len(names))], task, threads)
    progress(total, total, "done")
    return Result(
        suite=suite,
        families=tuple(names),
        policies=policies,
        tuned={name: rule.tuned for name, rule in rules.items() if rule.parameters},
        seeds=tuple(seeds),
        requests=requests.tolist(),
        metrics={name: _nullable(values[m]) for m, name in enumerate(METRICS)},
        versions=versions(),
        seconds=time.monotonic() - began,
    )


def each(tasks: Sequence[tuple[int, int]], do: Callable[[int, int], None], threads: int) -> None:
    """Do all tasks; the first exception stops what has not begun and is raised."""
    if threads <= 1:
        for task in tasks:
            do(*task)
        return
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(do, *task) for task in tasks]
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:  # Ctrl-C too: a suite should stop within a world or two
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        if len(finished) < len(futures):
            pool.shutdown(wait=True, cancel_futures=True)
        for future in finished:
            future.result()


def compile_all(rules: Mapping[str, PolicySpec], progress: Progress = nothing) -> None:
    """Compile every kernel, one after the other: the compiler has one lock anyway, and progress can
    then say what it is that takes its time."""
    tiny = families.scenario("light", 0).with_overrides(duration=0.05)
    stage = ReplayableWorld(tiny)
    for at, (name, rule) in enumerate(rules.items()):
        progress(at, len(rules), name)
        stage.play(rule)


def versions() -> dict[str, str]:
    """Of what can change the numbers."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("edgewise", "numpy", "numba", "cma"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _nullable(values: Floats) -> list[list[list[float | None]]]:
    return [
        [[None if math.isnan(x) else x for x in seeds] for seeds in policies]
        for policies in values.tolist()
    ]


def mean_measured(many: Iterable[EpisodeMetrics]) -> dict[str, float]:
    """The means of episodes' metrics, for a quick look."""
    rows = np.array([[getattr(one, name) for name in METRICS] for one in many])
    return dict(zip(METRICS, np.nanmean(rows, axis=0).tolist(), strict=True))
