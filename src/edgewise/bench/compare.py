"""From a suite's episodes to what is said of them: means, intervals, paired differences.

The *reference* of a family is its best heuristic there: the policy of highest mean utility among
those that are not learned. So a policy is held against another rival in each family, the strongest
one, chosen with the very seeds it is judged on, which can only make the rival look better.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from msgspec import Struct

from edgewise.bench.statistics import Floats, Interval, interval, over_families
from edgewise.bench.suite import Result
from edgewise.errors import BadInput

LEARNED: frozenset[str] = frozenset({"edgewise"})
"""Policies that are no heuristics and so never a reference."""


class Line(Struct, frozen=True, kw_only=True):
    """One policy, in one family or over all of them."""

    policy: str
    utility: Interval
    difference: Interval
    """Of utility to the reference, paired by seed; NaN for the reference itself."""
    effective: Interval
    missed: Interval
    shed: Interval
    p95: Interval
    """s."""
    p99: Interval


class SuiteComparison(Struct, frozen=True, kw_only=True):
    """A suite compared."""

    result: Result
    reference: tuple[str, ...]
    """By family."""
    overall: tuple[Line, ...]
    """By falling utility."""
    families: tuple[tuple[Line, ...], ...]
    """The same in each family."""


def compare(
    result: Result, reference: str | None = None, learned: Collection[str] = LEARNED
) -> SuiteComparison:
    """Compare the policies of a result.

    `reference` holds all of them against one policy; None: against each family's best heuristic.
    Raises BadInput if that policy did not run, or if no heuristic did.
    """
    utility = result.array("utility")
    rivals = [p for p, name in enumerate(result.policies) if name not in learned]
    if reference is not None:
        if reference not in result.policies:
            raise BadInput(f"no policy {reference!r} in this result: {', '.join(result.policies)}")
        best = [result.policies.index(reference)] * len(result.families)
    elif not rivals:
        raise BadInput("expected at least one heuristic to compare with")
    else:
        means = utility.mean(axis=2)
        best = [rivals[int(np.argmax(means[f, rivals]))] for f in range(len(result.families))]
    against = np.stack([utility[f, b] for f, b in enumerate(best)])  # (families, seeds)
    metrics = {name: result.array(name) for name in ("effective", "missed", "shed", "p95", "p99")}

    def line(p: int, f: int | None) -> Line:
        def of(values: Floats) -> Interval:
            return over_families(values) if f is None else interval(values[f])

        itself = all(b == p for b in (best if f is None else [best[f]]))
        return Line(
            policy=result.policies[p],
            utility=of(utility[:, p]),
            difference=Interval(np.nan, np.nan) if itself else of(utility[:, p] - against),
            **{name: of(values[:, p]) for name, values in metrics.items()},
        )

    def lines(f: int | None) -> tuple[Line, ...]:
        found = [line(p, f) for p in range(len(result.policies))]
        return tuple(sorted(found, key=lambda each: -each.utility.mean))

    return SuiteComparison(
        result=result,
        reference=tuple(result.policies[b] for b in best),
        overall=lines(None),
        families=tuple(lines(f) for f in range(len(result.families))),
    )
