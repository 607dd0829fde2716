"""Which numbers of the policy are searched, and how far a step goes in each.

A search sees a vector of coordinates around 0: one unit of any of them is about as large a change
of the policy as one unit of any other. The heuristic's own parameters are searched in the unit cube
that `edgewise tune` uses (logarithmic where it says so); weights on features are linear.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.benchmark.tune import to_unit
from edgewise.errors import BadInput
from edgewise.policies import learned
from edgewise.policies.features import OMEGA, PHI
from edgewise.policies.priced import PRICED_GREEDY

Floats = NDArray[np.float64]

# Scales such that a step of 1.5 in all of a group costs about as much as in all of another: on 40
# training worlds the heuristic's own parameters lost 0.005 of utility by 0.045 of their range, the
# price's head 0.001 by weights of 0.15, the others nothing that could be told from 0 by those.
CUBE = 0.015
"""Of a parameter's range: a tenth more or less of a price."""
PRICE = 0.12
"""Weights of the server's price, on features of size ½."""
WEIGHT = 0.2
"""Weights of other factors."""
VALUE = 0.05
"""Weights on the worth of an answer, whose differences between candidates are smaller."""
SHED = 0.4
"""Times `learned.SHED_SCALE`: 0.04 of utility."""

HEADS: dict[str, tuple[str, ...]] = {
    "price": (
        "one", "utilisation", "offered_1s", "offered_5s", "backlog", "captive", "fleet",
        "fleet_backlog", "workers", "speed", "deadline", "demanded", "local", "report_age",
        "trend", "in_flight",
    ),
    "link": ("one", "link_backlog", "rate_age", "rate_moves", "rate_off", "fleet", "rate"),
    "network": (
        "one", "link_backlog", "rate_age", "rate_moves", "rate_off", "rate", "aged_moves",
        "deadline",
    ),
    "wait": (
        "one", "utilisation", "offered_1s", "backlog", "report_age", "deadline",
        "loaded_deadline", "trend", "workers",
    ),
    "spread": ("one", "utilisation", "report_age", "rate_moves", "deadline", "local"),
}  # fmt: skip
"""Features that each head of a server may use: those with a reason to. The others' weights stay 0;
what they could add is not worth the dimensions of the search."""

WIDE: dict[str, tuple[str, ...]] = {
    "price": ("failure", "link_backlog"),
    "link": ("report_age", "deadline", "aged_moves"),
    "network": ("report_age", "backlog"),
    "wait": ("in_flight", "fleet_backlog", "speed"),
    "spread": ("rate_age", "rate", "aged_moves", "backlog"),
}
"""Features beyond `HEADS`, in the group *wide*: for finding out whether they give anything."""

MEMORY = ("rate_moves", "rate_off", "aged_moves")
"""Features that come from what the policy remembers of links."""

PARTS = ("price", "link", "margins", "rows", "shed", "memory")
"""Of the heads, for ablations: the server's price; the link's; the margins and the spread; what
depends on the row; the threshold; and the weights of `MEMORY` in all of them."""
GROUPS = ("base", "heads", "wide", "network", *PARTS)
"""*heads* are all of `PARTS`; *wide* are weights that no part has."""

_PART = {"price": "price", "link": "link", "network": "margins", "wait": "margins",
         "spread": "margins"}  # fmt: skip
"""Which part a head of a server belongs to."""


class SearchSpace:
    """The free numbers of `params` (its values are the origin), in the groups named.

    Raises BadInput for an unknown group or none.
    """

    def __init__(self, params: Floats, groups: tuple[str, ...]) -> None:
        unknown = set(groups) - set(GROUPS)
        if unknown or not groups:
            raise BadInput(f"expected some of {', '.join(GROUPS)}, got {', '.join(groups) or '-'}")
        self.groups = groups
        self.origin = params.copy()
        if "network" in groups:
            learned.named(self.origin).options.network = 1.0
        self._base = learned.LAYOUT["priced"] if "base" in groups else None
        self._unit = to_unit(PRICED_GREEDY, params[learned.LAYOUT["priced"]].tolist())
        index: list[int] = []
        scale: list[float] = []

        def free(at: int, by: float) -> None:
            index.append(at)
            scale.append(by)

        wanted = set(PARTS) if "heads" in groups else set(PARTS) & set(groups)
        at = learned.LAYOUT["server_heads"].start
        names = list(PHI)
        for h, head in enumerate(learned.SERVER_HEADS):
            for name in HEADS[head]:
                if ("memory" if name in MEMORY else _PART[head]) in wanted:
                    by = PRICE if head == "price" else WEIGHT
                    free(at + h * learned.P + names.index(name), by)
            if "wide" in groups:
                for name in WIDE[head]:
                    free(at + h * learned.P + names.index(name), WEIGHT)
        if "rows" in wanted:
            at = learned.LAYOUT["row_heads"].start
            for i in range(learned.Q):
                free(at + i, WEIGHT)
            for i in range(learned.Q):
                free(at + learned.Q + i, VALUE)
        for i, name in enumerate(OMEGA):
            if i and ("memory" if name in MEMORY else "shed") in wanted:
                free(learned.LAYOUT["shed_head"].start + i, SHED)
        if "network" in groups:
            for part, width in (
                ("phi_in", PRICE), ("psi_in", PRICE), ("hidden", PRICE), ("bias", PRICE),
            ):  # fmt: skip
                span = learned.LAYOUT[part]
                for i in range(span.start, span.stop):
                    free(i, width)
            span = learned.LAYOUT["out"]
            for i in range(span.start, span.stop):
                free(i, WEIGHT if i < span.start + learned.DEPTH else VALUE)
        self._index = np.array(index, np.int64)
        self._scale = np.array(scale)
        self._cube = len(PRICED_GREEDY) if self._base is not None else 0
        self.size = self._cube + len(index)

    def params(self, x: Floats) -> Floats:
        """The policy's params at coordinates `x` (size,)."""
        out = self.origin.copy()
        n = self._cube
        if self._base is not None:
            out[self._base] = _values(np.clip(self._unit + CUBE * x[:n], 0.0, 1.0))
        out[self._index] += self._scale * x[n:]
        return out


_LOW = np.array([p.low for p in PRICED_GREEDY])
_HIGH = np.array([p.high for p in PRICED_GREEDY])
_LOG = np.array([p.log for p in PRICED_GREEDY])
_SPAN = np.log(np.where(_LOG, _HIGH, 2.0) / np.where(_LOG, _LOW, 1.0))


def _values(unit: Floats) -> Floats:
    """As `tune.from_unit`, but for the rounding: a step must not vanish in it."""
    linear = _LOW + unit * (_HIGH - _LOW)
    found: Floats = np.where(_LOG, np.where(_LOG, _LOW, 1.0) * np.exp(unit * _SPAN), linear)
    return found
