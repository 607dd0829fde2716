"""From what a search found to weights that may be used: limits, acceptance, card.

*Limits*: the policy plays training worlds once more, and the range of every feature it meets is
what the guard lets it decide in.

*Acceptance*: on validation worlds of every family the policy, guard included, is compared with the
heuristic that ships. If the paired confidence interval of any family lies below 0, the
weights are written all the same, but marked as not accepted, and nothing is shipped that is not.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.bench.statistics import Interval, interval, over_families
from edgewise.learn.checkpoint import write_atomically
from edgewise.learn.worlds import Worlds, limits, play_all, rule_of, utility
from edgewise.policy import weight_files
from edgewise.policy.base import PolicySpec
from edgewise.policy.weight_files import Effect, WeightsCard
from edgewise.worlds import families

Floats = NDArray[np.float64]

SURVEYED = 300
"""Training worlds whose features make the limits."""
JUDGED = 24
"""Validation worlds of each family."""
SKIP = 1000
"""Validation worlds before these are the ones that checkpoints are chosen by."""
OLDEST = 5.0
"""s without any report before the heuristic decides: training has periods up to 2 s, and a server
counts as down after a few of them."""


class Judgement(Struct, frozen=True):
    """The policy against the heuristic."""

    families: dict[str, Interval]
    mean: Interval
    """Over the families, clustered by seed."""

    @property
    def accepted(self) -> bool:
        """Whether no family's interval lies below 0. What has no interval (one world, or none that
        could be played) is not accepted."""
        return bool(self.families) and all(found.high >= 0.0 for found in self.families.values())


def judge(
    params: Floats,
    heuristic: PolicySpec,
    worlds: Worlds,
    *,
    count: int = JUDGED,
    skip: int = SKIP,
    threads: int = 2,
    names: Sequence[str] = families.STANDARD,
    progress: Callable[[str, Interval], None] = lambda _, __: None,
) -> Judgement:
    """Play both in `count` validation worlds, after the first `skip`, of every family, or of the
    scenario."""
    rule = rule_of(params)
    places = [worlds] if worlds.scenario is not None else [Worlds(names=(n,)) for n in names]
    found: dict[str, Interval] = {}
    differences = []
    for place in places:
        judged = place.validation(count, skip)
        got, _ = play_all(
            place,
            judged,
            2,
            lambda stage, _w, c: utility(stage, rule if c == 0 else heuristic),
            threads,
        )
        differences.append(got[0] - got[1])
        found[place.about] = interval(differences[-1])
        progress(place.about, found[place.about])
    return Judgement(found, over_families(np.array(differences)))


def release(
    params: Floats,
    heuristic: PolicySpec,
    worlds: Worlds,
    path: Path,
    card: WeightsCard,
    *,
    seed: int,
    surveyed: int = SURVEYED,
    count: int = JUDGED,
    threads: int = 2,
    progress: Callable[[str, Interval], None] = lambda _, __: None,
) -> tuple[WeightsCard, Judgement]:
    """Set the limits, judge, and write weights and card to `path`."""
    # From the far end of the seed's own worlds, which the search has not come to.
    seen = worlds.training(seed, 40_000, surveyed)
    low, high, _ = limits(worlds, rule_of(params), params, seen, threads)
    final = weight_files.release(params, low, high, OLDEST)
    judgement = judge(final, heuristic, worlds, count=count, threads=threads, progress=progress)
    results = {
        name: Effect(mean=each.mean, half=each.half) for name, each in judgement.families.items()
    }
    card = msgspec.structs.replace(card, results=results, accepted=judgement.accepted)
    return weight_files.save(path, final, card, write_atomically), judgement


def commit() -> str:
    """Of the source this runs from; "" if it is not a git work tree."""
    try:
        ran = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return ran.stdout.strip()
