"""Compare the policies of a suite: means, intervals, paired differences.

The *reference* of a family is its best heuristic: the policy of highest mean utility there among
those that are not learned. So a policy is compared with another rival in each family, the strongest
one, chosen with the very seeds it is judged on, which can only make the rival look better.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
from msgspec import Struct

from edgewise.benchmark.statistics import Floats, Interval, interval, over_families
from edgewise.benchmark.suite import Result
from edgewise.errors import BadInput

LEARNED: frozenset[str] = frozenset({"edgewise"})
"""Policies that are not heuristics, so never a reference."""


class Line(Struct, frozen=True, kw_only=True):
    """One policy, in one family or over all of them."""

    policy: str
    utility: Interval
    difference: Interval
    """Difference of utility to the reference, paired by seed; NaN for the reference itself."""
    effective: Interval
    missed: Interval
    shed: Interval
    p95: Interval
    """[s]"""
    p99: Interval


class SuiteComparison(Struct, frozen=True, kw_only=True):
    """The policies of a suite, compared."""

    result: Result
    reference: tuple[str, ...]
    """By family."""
    overall: tuple[Line, ...]
    """A line per policy, by falling utility."""
    families: tuple[tuple[Line, ...], ...]
    """The same in each family."""

    def line(self, f: int, policy: str) -> Line:
        """A policy's line in family number `f`."""
        return next(line for line in self.families[f] if line.policy == policy)

    def reference_utility(self, f: int) -> float:
        """The mean utility of the reference in family number `f`."""
        return self.line(f, self.reference[f]).utility.mean

    @property
    def mean_reference(self) -> float:
        """The mean of that over families."""
        count = len(self.reference)
        return math.fsum(self.reference_utility(f) for f in range(count)) / count


def compare(
    result: Result, reference: str | None = None, learned: Collection[str] = LEARNED
) -> SuiteComparison:
    """Compare the policies of a result with `reference`, or with each family's best heuristic.

    Raises BadInput if the reference did not run, or if no heuristic did.
    """
    utility = result.array("utility")
    heuristics = [p for p, name in enumerate(result.policies) if name not in learned]
    if reference is not None:
        if reference not in result.policies:
            raise BadInput(f"no policy {reference!r} in this result: {', '.join(result.policies)}")
        best = [result.policies.index(reference)] * len(result.families)
    elif not heuristics:
        raise BadInput("expected at least one heuristic to compare with")
    else:
        means = utility.mean(axis=2)[:, heuristics]
        best = [heuristics[int(row.argmax())] for row in means]
    against = np.stack([utility[f, b] for f, b in enumerate(best)])  # (families, seeds)
    metrics = {name: result.array(name) for name in ("effective", "missed", "shed", "p95", "p99")}

    def line(p: int, f: int | None) -> Line:
        def over_seeds(values: Floats) -> Interval:
            return over_families(values) if f is None else interval(values[f])

        itself = all(b == p for b in (best if f is None else [best[f]]))
        difference = Interval(math.nan, math.nan)
        return Line(
            policy=result.policies[p],
            utility=over_seeds(utility[:, p]),
            difference=difference if itself else over_seeds(utility[:, p] - against),
            **{name: over_seeds(values[:, p]) for name, values in metrics.items()},
        )

    def lines(f: int | None) -> tuple[Line, ...]:
        unsorted = [line(p, f) for p in range(len(result.policies))]
        return tuple(sorted(unsorted, key=lambda one: -one.utility.mean))

    return SuiteComparison(
        result=result,
        reference=tuple(result.policies[b] for b in best),
        overall=lines(None),
        families=tuple(lines(f) for f in range(len(result.families))),
    )
