"""What a policy is: it scores the rows of the candidate table, and the best one is chosen.

A policy is a *kernel*, one compiled function, with its parameters, its memory and its random draws
as plain arrays. The simulator calls the kernel itself, millions of times a second; `Policy.decide`
wraps the same kernel for the live balancer. A new policy costs one kernel, one table test and one
line in `edgewise.policy.RULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from msgspec import Struct

from edgewise.domain import Candidate, Decision, Observation, ShedReason
from edgewise.fleet.draws import new_draws
from edgewise.fleet.layout import Array
from edgewise.fleet.table import C_ACCURACY, R_ACCURACY, Table

Kernel = Callable[[Table, Array, Array, Array], float]
"""(table, params, state, draws) → the probability with which the highest-scored row was drawn.

Writes `table.scores`, higher is better, −inf for a row it would never choose. `params` float64,
fixed; `state` float64, its memory between decisions; `draws` uint64, see `edgewise.fleet.draws`.
If all admissible rows are −inf, the request is shed."""

RANKED_MAX = 8
"""Candidates named in a decision. A fallback beyond the eighth would come after the deadline."""


class Rule(Struct, frozen=True, kw_only=True):
    """A kernel with what it needs to run."""

    kernel: Kernel
    params: tuple[float, ...] = ()
    memory: int = 0
    """Length of its state."""
    statistics: bool = False
    """Whether it reads the columns that `edgewise.fleet.table.statistics` fills."""
    about: str


class Policy(Protocol):
    """Anything that decides."""

    @property
    def name(self) -> str: ...

    def decide(self, observation: Observation) -> Decision:
        """Choose among the observation's rows. Never raises on a valid observation."""
        ...


class KernelPolicy:
    """A rule at work: the `Policy` the live balancer calls.

    Parameters
    ----------
    name, rule:
        As in `edgewise.policy.RULES`.
    seed:
        Of its random draws.
    params:
        In place of the rule's own; same length. Raises ValueError otherwise.
    """

    def __init__(
        self, name: str, rule: Rule, seed: int = 0, params: tuple[float, ...] | None = None
    ) -> None:
        if params is not None and len(params) != len(rule.params):
            raise ValueError(f"{name} takes {len(rule.params)} parameters, got {len(params)}")
        self.name = name
        self._kernel = rule.kernel
        self._params = np.array(rule.params if params is None else params, np.float64)
        self._state = np.zeros(rule.memory)
        self._draws = new_draws(seed)
        self._scores = np.zeros(0)
        self._wanted = np.ones(1, np.uint8)

    def decide(self, observation: Observation) -> Decision:
        if self._scores.size != observation.mask.size:
            self._scores = np.zeros(observation.mask.size)
        table = Table(
            observation.rows,
            observation.mask,
            observation.servers,
            observation.context,
            self._scores,
            self._wanted,
        )
        probability = self._kernel(table, self._params, self._state, self._draws)
        return decision(observation, self._scores, probability, self.name)


def decision(
    observation: Observation, scores: Array, probability: float, policy: str, version: str = "1"
) -> Decision:
    """The decision that `scores` (R,) make: admissible rows by falling score, shed where it stands.

    Rows scored below shed are left out: they are not worth running, not even as a fallback.
    """
    shed = observation.mask.size - 1
    usable = np.where(observation.mask == 1, scores, -math.inf)
    order = np.argsort(-usable, kind="stable")[: RANKED_MAX + 1]
    rows: list[int] = []
    ranked: list[Candidate] = []
    for row in order.tolist():
        candidate = observation.candidates[row]
        if candidate is None or usable[row] == -math.inf:
            break
        rows.append(row)
        ranked.append(candidate)
    reason = None
    if not ranked:
        rows = [shed]
        reason = _why_shed(observation)
    return Decision(
        request=observation.request.id,
        ranked=tuple(ranked[:RANKED_MAX]),
        rows=tuple(rows[:RANKED_MAX]),
        probability=probability if ranked or reason is ShedReason.PRICE else 1.0,
        policy=policy,
        version=version,
        at=observation.at,
        reason=reason,
    )


def _why_shed(observation: Observation) -> ShedReason:
    if observation.mask[:-1].any():
        return ShedReason.PRICE
    if (observation.rows[:-1, R_ACCURACY] >= observation.context[C_ACCURACY]).any():
        return ShedReason.NONE_UP
    return ShedReason.NO_SERVICE
