"""What a policy is: it scores the rows of the candidate table, and the best one is chosen.

A policy is a *kernel*, one compiled function, with its parameters, its memory and its random draws
as plain arrays. The simulator calls the kernel itself, millions of times a second; `Decider.decide`
wraps the same kernel for the live balancer. A new policy costs one kernel, one table test and one
line in `edgewise.policy.RULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np
from msgspec import Struct

from edgewise.compile import jit
from edgewise.domain import Candidate, Decision, Observation, ShedReason
from edgewise.fleet.arrays import Array
from edgewise.fleet.rng import new_rng
from edgewise.fleet.table import C_ACCURACY, R_ACCURACY, CandidateTable

Kernel = Callable[[CandidateTable, Array, Array, Array], float]
"""(table, params, state, draws) → the probability with which the highest-scored row was drawn.

Writes `table.scores`, higher is better, −inf for a row it would never choose. `params` float64,
fixed; `state` float64, its memory between decisions; `draws` uint64, see `edgewise.fleet.rng`.
If all admissible rows are −inf, the request is shed."""

Describe = Callable[[CandidateTable, int, Array], None]
"""(table, row, out): writes what a learning rule must remember of choosing `row` into `out`,
float64 (`PolicySpec.features`,)."""

Learn = Callable[[Array, Array, Array, float], None]
"""(params, state, features, reward): changes `state`. `features` are those that `Describe` wrote at
the decision, `reward` the score of that very request (joined by its id)."""

RANKED_MAX = 8
"""Candidates named in a decision. A fallback beyond the eighth would come after the deadline."""


@jit
def describe_nothing(table: CandidateTable, row: int, out: Array) -> None:
    """Of a rule that does not learn."""


@jit
def learn_nothing(params: Array, state: Array, features: Array, reward: float) -> None:
    """Of a rule that does not learn."""


class Parameter(Struct, frozen=True, kw_only=True):
    """A number that a rule can be tuned by."""

    name: str
    default: float
    low: float
    high: float
    """A tuner stays in [low, high]."""
    unit: str
    """Of the number; "" = none."""
    about: str
    """What it does, and why the default is what it is."""
    log: bool = False
    """Searched on a logarithmic scale."""


class PolicySpec(Struct, frozen=True, kw_only=True):
    """A kernel with what it needs to run.

    A rule that learns has `features` > 0. Whoever runs it calls ``describe(table, row, out)`` right
    after the decision, before the table is filled anew, with the row of its first candidate (the
    shed row if it shed), keeps `out` beside the request, and when that request's score is known
    calls ``learn(params, state, out, reward)`` once, with the state of the decision's own kernel,
    in the order in which scores become known. A dispatch whose outcome never comes is not learned
    from. All others have `features` = 0 and kernels that do nothing.
    """

    kernel: Kernel
    parameters: tuple[Parameter, ...] = ()
    params: tuple[float, ...] = ()
    """The values it runs with, one for each of `parameters`; () = their defaults."""
    tuned: str = ""
    """The command that found `params`; "" = they are defaults."""
    memory: int = 0
    """Length of its state, but for …"""
    per_server: int = 0
    """… so much more for each server of the fleet."""
    counters: tuple[str, ...] = ()
    """What the first numbers of its state count, for whoever watches it."""
    reads_servers: bool = True
    """Whether it reads the servers' columns of the table; playing one that does not is quicker."""
    features: int = 0
    describe: Describe = describe_nothing
    learn: Learn = learn_nothing
    about: str

    def __post_init__(self) -> None:
        if not self.params:
            defaults = tuple(parameter.default for parameter in self.parameters)
            msgspec.structs.force_setattr(self, "params", defaults)
        elif self.parameters and len(self.params) != len(self.parameters):
            raise ValueError(f"{len(self.parameters)} parameters, {len(self.params)} values")

    @property
    def names(self) -> tuple[str, ...]:
        """Of its parameters."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """(low, high) of each parameter."""
        return tuple((parameter.low, parameter.high) for parameter in self.parameters)

    def new_state(self, servers: int) -> Array:
        """Its memory before the first decision, for a fleet of `servers`: zeros."""
        return np.zeros(self.memory + self.per_server * servers)


class Decider(Protocol):
    """Anything that decides."""

    @property
    def name(self) -> str: ...

    def decide(self, observation: Observation) -> Decision:
        """Choose among the observation's rows. Never raises on a valid observation."""
        ...


class Policy:
    """A rule at work: the `Decider` the live balancer calls.

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
        self, name: str, rule: PolicySpec, seed: int = 0, params: tuple[float, ...] | None = None
    ) -> None:
        if params is not None and len(params) != len(rule.params):
            raise ValueError(f"{name} takes {len(rule.params)} parameters, got {len(params)}")
        self.name = name
        self.rule = rule
        self._params = np.array(rule.params if params is None else params, np.float64)
        self._state = np.zeros(0)
        self._draws = new_rng(seed)
        self._scores = np.zeros(0)
        self._wanted = np.ones(1, np.uint8)
        self._fleet = (-1, -1)

    def decide(self, observation: Observation) -> Decision:
        fleet = (observation.mask.size, observation.servers.shape[0])
        if fleet != self._fleet:
            # The first decision says how large the fleet is; another fleet starts it afresh.
            self._fleet = fleet
            self._scores = np.zeros(fleet[0])
            self._state = self.rule.new_state(fleet[1])
        table = self._table(observation)
        probability = self.rule.kernel(table, self._params, self._state, self._draws)
        return decision(observation, self._scores, probability, self.name)

    @property
    def counters(self) -> dict[str, int]:
        """What the rule has counted since the first decision (`PolicySpec.counters`)."""
        names = self.rule.counters
        return dict(zip(names, self._state[: len(names)].astype(int).tolist(), strict=False))

    def features(self, observation: Observation, row: int) -> Array:
        """What to keep of having chosen `row`, for `learn`; empty if the rule does not learn."""
        out = np.zeros(self.rule.features)
        if out.size:
            self.rule.describe(self._table(observation), row, out)
        return out

    def learn(self, features: Array, reward: float) -> None:
        """Learn from the score of a request, with its own decision's `features`."""
        if features.size:
            self.rule.learn(self._params, self._state, features, reward)

    def _table(self, observation: Observation) -> CandidateTable:
        return CandidateTable(
            observation.rows,
            observation.mask,
            observation.servers,
            observation.context,
            self._scores,
            self._wanted,
        )


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
