"""Policies compared with a reference on validation worlds: choosing among what was trained.

Three sets of validation worlds never overlap: those by which a search chooses its best parameters
(the first ones), those by which weights are accepted (after `ACCEPTANCE`), and those by which a
specialist is compared with the policy it began from (after `SPECIALISTS`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.benchmark.episodes import Candidate, play_all
from edgewise.benchmark.statistics import Interval, interval, over_families
from edgewise.policies import weight_files
from edgewise.policies.base import PolicySpec
from edgewise.sim.source import WorldSource
from edgewise.worlds import families

Floats = NDArray[np.float64]

ACCEPTANCE = 1000
"""Validation worlds before the ones that decide on acceptance."""
SPECIALISTS = 1500
"""Validation worlds before the ones that compare a specialist with what it began from."""
JUDGED = 24
"""Validation worlds of each family for a judgement."""


def differences(
    source: WorldSource, seeds: Sequence[int], candidates: Sequence[Candidate], threads: int
) -> Floats:
    """Utility of each candidate except the last, minus that of the last: (candidates − 1,
    worlds)."""
    utilities, _ = play_all(source, seeds, lambda _, c: candidates[c], len(candidates), threads)
    gains: Floats = utilities[:-1] - utilities[-1]
    return gains


class Validator:
    """Measures the gain of parameters over the heuristic on the first `count` validation worlds."""

    def __init__(
        self, source: WorldSource, heuristic: PolicySpec, count: int = 64, threads: int = 2
    ) -> None:
        self._source, self._heuristic, self._threads = source, heuristic, threads
        self._seeds = families.validation_seeds(count)
        self._reference: Floats | None = None

    def __call__(self, params: Floats) -> Interval:
        """The mean difference in utility. `params` are the learned policy's."""
        if self._reference is None:
            self._reference = self._utilities((self._heuristic, None))
        candidate = weight_files.learned_spec(params, "being validated"), params
        return interval(self._utilities(candidate) - self._reference)

    def _utilities(self, candidate: Candidate) -> Floats:
        found, _ = play_all(self._source, self._seeds, lambda *_: candidate, 1, self._threads)
        utilities: Floats = found[0]
        return utilities


class Judgement(Struct, frozen=True):
    """A policy against a reference, by family."""

    families: dict[str, Interval]
    mean: Interval
    """Over the families, clustered by seed."""

    @property
    def accepted(self) -> bool:
        """Whether no family's interval lies below 0. A family without an interval (one world, or
        none that could be played) is not accepted."""
        return bool(self.families) and all(gain.high >= 0.0 for gain in self.families.values())


def judge(
    params: Floats,
    reference: PolicySpec,
    source: WorldSource,
    *,
    names: Sequence[str] = (*families.STANDARD, "any_scale"),
    count: int = JUDGED,
    skip: int = ACCEPTANCE,
    threads: int = 2,
) -> Judgement:
    """Compare the learned policy with these `params` with `reference`.

    Both play `count` validation worlds, after the first `skip`, of each family in `names`; or of
    the source, if that is one scenario.
    """
    candidates: list[Candidate] = [
        (weight_files.learned_spec(params, "being judged"), params),
        (reference, None),
    ]
    sources = [WorldSource(family=name) for name in names] if source.families else [source]
    seeds = families.validation_seeds(count, skip)
    gains = [differences(one, seeds, candidates, threads)[0] for one in sources]
    by_family = {one.name: interval(gain) for one, gain in zip(sources, gains, strict=True)}
    return Judgement(by_family, over_families(np.array(gains)))
