"""The space of an evolution strategy: which of the policy's numbers are searched, at which scale.

A search sees a vector of coordinates around 0, scaled so that a unit of each changes the policy by
about as much. The heuristic's own parameters are searched in the unit cube of `edgewise tune`
(logarithmic where the parameter says so); weights on features are linear.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.benchmark.tune import to_unit
from edgewise.errors import BadInput
from edgewise.policies import learned
from edgewise.policies.features import REQUEST_FEATURES, SERVER_FEATURES
from edgewise.policies.priced import PRICED_GREEDY

Floats = NDArray[np.float64]

# With these scales a step of 1.5 in all numbers of one group costs about as much as in another. On
# 40 training worlds, a change by 0.045 of the range of the heuristic's own parameters lost 0.005 of
# utility; weights of 0.15 in the price's head lost 0.001, in the others no measurable utility.
CUBE = 0.015
"""Share of a parameter's range: about a tenth of a price."""
PRICE = 0.12
"""Weights in the head of the server's price, on features of about ½."""
WEIGHT = 0.2
"""Weights in other heads."""
VALUE = 0.05
"""Weights in the head of an answer's value, in which candidates differ less."""
SHED = 0.4
"""Weights in the head of the threshold; times `learned.SHED_SCALE` it is 0.04 of utility."""

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
"""The features that each head of a server uses, each for a reason. The weights of other features
stay 0, since they would add dimensions to the search for little gain."""

WIDE: dict[str, tuple[str, ...]] = {
    "price": ("failure", "link_backlog"),
    "link": ("report_age", "deadline", "aged_moves"),
    "network": ("report_age", "backlog"),
    "wait": ("in_flight", "fleet_backlog", "speed"),
    "spread": ("rate_age", "rate", "aged_moves", "backlog"),
}
"""Further features, in the group *wide*, to find out whether they gain anything."""

MEMORY = ("rate_moves", "rate_off", "aged_moves")
"""Features from the policy's memory of links."""

PARTS = ("price", "link", "margins", "rows", "shed", "memory")
"""Parts of the heads, for ablations: the price of the server; that of the link; the margins and the
spread; the row's heads; the threshold; and the weights of `MEMORY` in all of these."""
GROUPS = ("base", "heads", "wide", "network", *PARTS)
"""Groups of numbers to search. *heads* is all of `PARTS`; *wide* is in no part."""

_PART = {"price": "price", "link": "link", "network": "margins", "wait": "margins",
         "spread": "margins"}  # fmt: skip
"""The part that each head of a server belongs to."""


class SearchSpace:
    """The numbers of `groups` that are searched, with the values of `params` as the origin.

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
        names = list(SERVER_FEATURES)
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
        for i, name in enumerate(REQUEST_FEATURES):
            if i and ("memory" if name in MEMORY else "shed") in wanted:
                free(learned.LAYOUT["shed_head"].start + i, SHED)
        if "network" in groups:
            for part, width in (
                ("server_in", PRICE), ("row_in", PRICE), ("hidden", PRICE), ("bias", PRICE),
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
    """As `tune.from_unit`, but without rounding, in which a small step would vanish."""
    linear = _LOW + unit * (_HIGH - _LOW)
    found: Floats = np.where(_LOG, np.where(_LOG, _LOW, 1.0) * np.exp(unit * _SPAN), linear)
    return found
