"""Explanations of priced decisions: the parts of each candidate's score."""

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
    """The parts of an admissible row's score, in units of utility; the two latencies are in s."""

    row: int
    latency: float
    """Predicted, from the sending of the request to the answer at the client, s."""
    margined: float
    """The same with the policy's margins, s; the utility is computed from it."""
    utility: float
    """accuracy^w × trust × E[timeliness]."""
    server_price: float
    link_price: float
    prepare_price: float
    score: float
    heuristic: float
    """The score that the calibrated heuristic gives this row."""

    @property
    def price(self) -> float:
        """The price of all resources together."""
        return self.server_price + self.link_price + self.prepare_price

    @property
    def correction(self) -> float:
        """The effect of what was learned: the score less the heuristic's."""
        return self.score - self.heuristic


class Explained(Struct, frozen=True, kw_only=True):
    """A decision with the parts of every score."""

    rows: tuple[Why, ...]
    """The candidates, best first."""
    shed: float
    """The score of shedding."""
    shed_heuristic: float
    guard: str
    """Why the heuristic decided: ``outside``, ``not_finite`` or ``stale``; "" = it did not."""


def params_of(spec: PolicySpec) -> Floats | None:
    """A priced policy as params of the learned policy; None if the policy has no prices."""
    if spec.kernel is learned.edgewise.kernel:
        return np.array(spec.params)
    if spec.kernel is priced.priced_greedy.kernel:
        return learned.untrained(spec.params)
    return None


def explain(
    tables: list[CandidateTable], params: Floats, memory: Floats | None = None
) -> Explained:
    """Explain the decision on the last of `tables`, and write its scores.

    The tables before it are those of earlier decisions, in order; the policy remembers the links'
    rates and the units from them. `memory` is the memory of the policy, or of the heuristic, at
    the first of these decisions. The policy starts with an empty one if it is None.
    """
    table = tables[-1]
    spec = learned.edgewise
    fresh = spec.new_memory(len(table.servers))
    if memory is not None and memory.size == fresh.size:
        fresh[:] = memory
    remembered, weights = spec.named_memory(fresh), learned.named(params)
    if memory is not None and memory.size != fresh.size:
        known = priced.priced_greedy.named_memory(memory).fleet
        for name in priced.UNITS_MEMORY:
            remembered.fleet[name] = known[name]
    for before in tables[:-1]:
        remember(before, remembered)
        priced.measure(before, remembered.fleet)
    seen = np.zeros(table.mask.size, learned.ROW)
    learned.look(table, weights, remembered, seen)
    units = priced.measured_units(table, remembered.fleet)
    guard = ""
    if weights.options.guarded > 0.0:
        if freshest(table) > weights.options.oldest * units.deadline:
            guard = "stale"
        elif learned.strange(table, weights, remembered, seen):
            guard = "outside"
    if not guard and not finite(table):
        guard = "not_finite"
    scores = table.scores.copy()
    priced.priced_scores(table, weights.calibrated, units)
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
    """The parts of the score of row `r`; `row` is its record, as `learned.score` wrote it."""
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
        utility=float(terms.full_utility * timely * (1.0 + factors.value)),
        server_price=terms.cost * factors.cost,
        link_price=terms.link * factors.link,
        prepare_price=terms.prepare * factors.prepare,
        score=score,
        heuristic=heuristic,
    )
