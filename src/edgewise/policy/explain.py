"""Why the priced policies chose what they chose: each candidate's score, part by part."""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.fleet.table import CandidateTable
from edgewise.policy import learned, priced
from edgewise.policy.base import PolicySpec
from edgewise.policy.features import remember
from edgewise.policy.guard import finite, freshest

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
    if rule.kernel is learned.edgewise:
        return np.array(rule.params)
    if rule.kernel is priced.priced_greedy.kernel:
        return learned.untrained(rule.params)
    return None


def explain(
    tables: list[CandidateTable], params: Floats, memory: Floats | None = None
) -> Explained:
    """The decision on the last of `tables`; those before it are the decisions before, in order, of
    which the policy remembers the links' rates. Writes its `scores`.

    `memory` is what it remembers already, as its state has it behind the first `learned.MEMORY`
    numbers; None: nothing.
    """
    table = tables[-1]
    memory = np.zeros(learned.PER_SERVER * len(table.servers)) if memory is None else memory.copy()
    for before in tables[:-1]:
        remember(before, memory)
    omega = np.empty(learned.W)
    phis = np.zeros((len(table.servers), learned.P))
    psis = np.zeros((table.mask.size, learned.Q))
    learned.describe_all(table, memory, omega, phis, psis)
    added = np.zeros((table.mask.size, 2))
    if params[learned.O_NETWORK] > 0.0:
        learned.network(table, params, phis, psis, added)
    parts = np.zeros((table.mask.size, learned.N_PARTS))
    learned.score(table, params, omega, phis, psis, added, parts)
    guard = ""
    if params[learned.O_GUARDED] > 0.0:
        if freshest(table) > params[learned.O_OLDEST]:
            guard = "stale"
        elif learned.strange(table, params, omega, phis, psis):
            guard = "outside"
    if not guard and not finite(table):
        guard = "not_finite"
    scores = table.scores.copy()
    priced.priced_scores(table, params[learned.LAYOUT["calibrated"]])
    plain = table.scores.copy()
    if guard:
        scores = plain
    table.scores[:] = scores
    shed = table.mask.size - 1
    rows = [r for r in np.argsort(-scores, kind="stable").tolist() if r != shed and table.mask[r]]
    return Explained(
        rows=tuple(
            Why(
                row=r,
                latency=float(table.rows.latency[r]),
                margined=float(parts[r, 0]),
                utility=float(parts[r, 1] * (1.0 + parts[r, 5])),
                server_price=float(parts[r, 2]),
                link_price=float(parts[r, 3]),
                prepare_price=float(parts[r, 4]),
                score=float(scores[r]),
                heuristic=float(plain[r]),
            )
            for r in rows
        ),
        shed=float(scores[shed]),
        shed_heuristic=float(plain[shed]),
        guard=guard,
    )
