"""Why the priced policies chose what they chose: each candidate's score, part by part."""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.fleet.arrays import Record
from edgewise.fleet.table import CandidateTable
from edgewise.policies import learned, priced
from edgewise.policies.base import PolicySpec
from edgewise.policies.features import remember
from edgewise.policies.guard import finite, freshest

Floats = NDArray[np.float64]


class Why(Struct, frozen=True, kw_only=True):
    """One admissible row. All but the latencies in units of utility."""

    row: int
    latency: float
    """s predicted, from sent_at to the answer at the client."""
    margined: float
    """s, with the policy's margins: what its utility is computed of."""
    utility: float
    """accuracy^w × trust × E[timeliness]."""
    server_price: float
    link_price: float
    prepare_price: float
    score: float
    heuristic: float
    """The score that the calibrated heuristic gives."""

    @property
    def price(self) -> float:
        """Of all resources."""
        return self.server_price + self.link_price + self.prepare_price

    @property
    def correction(self) -> float:
        """What was learned: the score less the heuristic's."""
        return self.score - self.heuristic


class Explained(Struct, frozen=True, kw_only=True):
    """A decision."""

    rows: tuple[Why, ...]
    """The candidates, best first."""
    shed: float
    """Score of shedding."""
    shed_heuristic: float
    guard: str
    """Why the heuristic decided: ``outside``, ``not_finite`` or ``stale``; "" = it did not."""


def params_of(rule: PolicySpec) -> Floats | None:
    """The rule as params of the learned policy; None if it has no prices."""
    if rule.kernel is learned.edgewise.kernel:
        return np.array(rule.params)
    if rule.kernel is priced.priced_greedy.kernel:
        return learned.untrained(rule.params)
    return None


def explain(
    tables: list[CandidateTable], params: Floats, memory: Floats | None = None
) -> Explained:
    """The decision on the last of `tables`; those before it are the decisions before, in order, of
    which the policy remembers the links' rates. Writes its `scores`.

    `memory` is the policy's at that decision. None, or that of another policy: it has nothing to
    remember.
    """
    table = tables[-1]
    spec = learned.edgewise
    fresh = spec.new_memory(len(table.servers))
    memory = fresh if memory is None or memory.size != fresh.size else memory.copy()
    remembered, weights = spec.named_memory(memory), learned.named(params)
    for before in tables[:-1]:
        remember(before, remembered)
    seen = np.zeros(table.mask.size, learned.ROW)
    learned.describe_all(table, remembered, seen)
    if weights.options.network > 0.0:
        learned.network(table, weights, remembered, seen)
    learned.score(table, weights, remembered, seen)
    guard = ""
    if weights.options.guarded > 0.0:
        if freshest(table) > weights.options.oldest:
            guard = "stale"
        elif learned.strange(table, weights, remembered, seen):
            guard = "outside"
    if not guard and not finite(table):
        guard = "not_finite"
    scores = table.scores.copy()
    priced.priced_scores(table, weights.calibrated)
    plain = table.scores.copy()
    if guard:
        scores = plain
    table.scores[:] = scores
    shed = table.mask.size - 1
    rows = [r for r in np.argsort(-scores, kind="stable").tolist() if r != shed and table.mask[r]]
    return Explained(
        rows=tuple(
            _why(table, r, seen[r], weights.priced.spread, float(scores[r]), float(plain[r]))
            for r in rows
        ),
        shed=float(scores[shed]),
        shed_heuristic=float(plain[shed]),
        guard=guard,
    )


def _why(
    table: CandidateTable, r: int, row: Record, spread: float, score: float, heuristic: float
) -> Why:
    """What the score of a row is made of; `row` as `learned.score` left it."""
    terms = priced.RowTerms(*row.terms[0].tolist())
    factors = priced.Factors(*row.factors[0].tolist())
    context = table.context
    margined = float(priced.margined_latency(terms, factors, float(context.elapsed)))
    timely = priced.expected_timeliness(
        margined, priced.deviation(terms, factors, spread), context.deadline, context.grace
    )
    return Why(
        row=r,
        latency=float(table.rows.latency[r]),
        margined=margined,
        utility=float(terms.worth * timely * (1.0 + factors.value)),
        server_price=terms.cost * factors.cost,
        link_price=terms.link * factors.link,
        prepare_price=terms.prepare * factors.prepare,
        score=score,
        heuristic=heuristic,
    )
