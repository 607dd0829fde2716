"""The suite: every policy in every world, in parallel.

A task is one world (family, seed): it is made once and all policies play it in turn. Tasks share
nothing, their results have fixed places in the arrays, and the engine runs without the
interpreter's lock. So threads are enough, and neither their number nor their order matters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.benchmark.episodes import METRICS, ReplayableWorld
from edgewise.cores import for_each
from edgewise.errors import BadInput
from edgewise.policies.base import PolicySpec
from edgewise.scenario import Scenario
from edgewise.sim.build import SimOptions
from edgewise.sim.source import WorldSource
from edgewise.versions import versions
from edgewise.worlds import families

Floats = NDArray[np.float64]

SUITES: dict[str, tuple[str, ...]] = {
    "standard": families.STANDARD,
    # For a first impression before a long run: the loads, and the families that differ most.
    "quick": ("light", "medium", "heavy", "overload", "combined", "thin_links", "slow_server"),
    "failing": families.FAILING,
    "train": ("train",),
    "wide": families.TRAINED_IN,
}
"""Families by suite."""

Progress = Callable[[int, int, str], None]
"""(episodes done, episodes in all, what is being done)."""


def no_progress(done: int, total: int, what: str) -> None:
    """Show no progress."""


class Result(Struct, frozen=True, kw_only=True):
    """The result of a suite: ``metrics[name][family][policy][seed]``."""

    suite: str
    command: str = ""
    """The command that makes it again."""
    families: tuple[str, ...]
    policies: tuple[str, ...]
    tuned: dict[str, str] = {}
    """By policy: the command that found its parameters; "" = defaults."""
    seeds: tuple[int, ...]
    requests: list[list[int]]
    """How many: [family][seed]."""
    metrics: dict[str, list[list[list[float | None]]]]
    """None where there was nothing to measure, such as the latency of no answers."""
    versions: dict[str, str] = {}
    seconds: float = 0.0
    """Wall time, compilation included."""

    def array(self, metric: str) -> Floats:
        """(families, policies, seeds); NaN where nothing was measured."""
        return np.array(self.metrics[metric], np.float64)

    def to_json(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Result:
        """The result that `to_json` wrote. Raises BadInput for anything else."""
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise BadInput(f"not a result of edgewise bench: {error}") from None


def run(
    names: Sequence[str],
    specs: Mapping[str, PolicySpec],
    seeds: Sequence[int],
    *,
    suite: str = "",
    threads: int = 2,
    options: SimOptions | None = None,
    change: Callable[[Scenario], Scenario] | None = None,
    progress: Progress = no_progress,
) -> Result:
    """Play all policies in the worlds of the families `names` with `seeds`.

    `change` is a function applied to every scenario first. Raises BadInput for an unknown family,
    or if there is nothing to play.
    """
    if not names or not specs or not seeds:
        raise BadInput("expected at least one family, one policy and one seed")
    began = time.monotonic()
    policies = tuple(specs)
    total = len(names) * len(seeds) * len(policies)
    compile_all(specs, lambda at, of, what: progress(0, total, f"compiling {what} ({at + 1}/{of})"))
    values = np.full((len(METRICS), len(names), len(policies), len(seeds)), np.nan)
    requests = np.zeros((len(names), len(seeds)), np.int64)
    sources = [WorldSource(family=name, change=change) for name in names]
    done = 0

    def play_world(cell: tuple[int, int]) -> None:
        nonlocal done
        f, s = cell
        world = ReplayableWorld(sources[f].scenario(seeds[s]), options)
        for p, policy in enumerate(specs.values()):
            measured = world.measure(policy)
            requests[f, s] = measured.requests
            values[:, f, p, s] = [getattr(measured, name) for name in METRICS]
            done += 1  # two threads may lose a count; it is only shown
        progress(done, total, names[f])

    for_each([(f, s) for s in range(len(seeds)) for f in range(len(names))], play_world, threads)
    progress(total, total, "done")
    return Result(
        suite=suite,
        families=tuple(names),
        policies=policies,
        tuned={name: spec.tuned for name, spec in specs.items() if spec.parameters},
        seeds=tuple(seeds),
        requests=requests.tolist(),
        metrics={name: _nullable(values[m]) for m, name in enumerate(METRICS)},
        versions=versions("cma"),
        seconds=time.monotonic() - began,
    )


def compile_all(specs: Mapping[str, PolicySpec], progress: Progress = no_progress) -> None:
    """Compile every kernel, one after the other: the compiler has one lock anyway, and so progress
    can tell which kernel is being compiled."""
    world = ReplayableWorld(families.scenario("light", 0).with_overrides(duration=0.05))
    for done, (name, policy) in enumerate(specs.items()):
        progress(done, len(specs), name)
        world.play(policy)


def _nullable(values: Floats) -> list[list[list[float | None]]]:
    return [
        [[None if math.isnan(x) else x for x in seeds] for seeds in policies]
        for policies in values.tolist()
    ]
