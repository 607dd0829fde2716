"""The definition of a policy: a function that scores the rows of the candidate table.

A policy is a *kernel*, one function, described by a `PolicySpec` that the decorator `policy` makes
of it. The simulator calls the kernel itself, millions of times a second; `Policy` calls the same
kernel for the live balancer. A new policy costs one kernel with its decorator, and one table test.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from edgewise.compile import compile_error, jit, probability_of, specialised
from edgewise.domain import Candidate, Decision, Observation, ShedReason
from edgewise.errors import EdgewiseError
from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.rng import new_rng, uniform
from edgewise.fleet.table import CandidateTable, blank_table, load, table_of_observation

logger = logging.getLogger(__name__)

Kernel = Callable[[CandidateTable, Array, Array, Array], float]
"""(table, params, memory, rng) → the probability with which the highest-scored row was chosen.

Writes `table.scores`: higher is better, −inf for a row it would never choose. If all admissible
rows are −inf, the request is shed. `params` and `memory` are float64 arrays here; the function that
`policy` decorates sees them by name. `rng` is uint64, see `edgewise.fleet.rng`."""

Describe = Callable[[CandidateTable, int, Array], None]
"""(table, row, out): writes what a learning policy must keep of choosing `row` into `out`, float64
(`PolicySpec.features`,)."""

Learn = Callable[[Array, Array, Array, float], None]
"""(params, memory, features, reward): changes `memory`. `features` are those that `Describe` wrote
at the decision, `reward` is the score of that very request (joined by its id)."""

RANKED_MAX = 8
"""Candidates named in a decision. A fallback beyond the eighth would come after the deadline."""


class PolicyFailed(EdgewiseError):
    """A policy's own code raised."""


class Memory(NamedTuple):
    """The numbers that a policy keeps between decisions; all are 0 before the first one."""

    fleet: Record
    """Numbers kept once."""
    servers: Any
    """Record array (S,): numbers kept for each server."""


@jit
def describe_nothing(table: CandidateTable, row: int, out: Array) -> None:
    """No-op for policies that do not learn."""


@jit
def learn_nothing(params: Array, memory: Array, features: Array, reward: float) -> None:
    """No-op for policies that do not learn."""


Fields = Sequence[str] | np.dtype[Any]
"""Names of float64 numbers, or a dtype for more than that (arrays, records in records)."""


def record_of(fields: Fields) -> np.dtype[Any]:
    """The record type with these fields; one unused number if there are none.

    Raises ValueError for a name that NumPy's records use themselves, such as ``mean``.
    """
    if isinstance(fields, np.dtype):
        kind = fields
    else:
        kind = np.dtype([(name, np.float64) for name in fields] or [("unused", np.float64)])
    for name in kind.names or ():
        if hasattr(np.record, name):
            raise ValueError(f"{name!r} cannot name a number: every NumPy record has one")
    if kind.itemsize % 8 != 0:
        raise ValueError(f"expected whole 8-byte words, got {kind.itemsize} bytes")
    return np.dtype((np.record, kind))


NOTHING = record_of(())


class Parameter(Struct, frozen=True, kw_only=True):
    """A number that a policy can be tuned by.

    >>> Parameter(name="margin", default=1.2, low=0.5, high=3.0, about="on the predicted latency")
    ... # doctest: +ELLIPSIS
    Parameter(name='margin', default=1.2, ...)
    """

    name: str
    """Its name; the kernel reads it as ``params.NAME``."""
    default: float
    low: float
    high: float
    """A tuner stays in [low, high]."""
    unit: str = ""
    """The unit of the number; "" = none."""
    about: str = ""
    """Its meaning, and the reason for its default, in sentences."""
    log: bool = False
    """Searched on a logarithmic scale."""


class PolicySpec(Struct, frozen=True, kw_only=True):
    """A policy's description: its kernel with all that is needed to run it.

    A policy that learns has `features` > 0. Whoever runs it calls ``describe(table, row, out)``
    right after the decision, before the table is filled anew, with the row of its first candidate
    (the shed row if it shed), keeps `out` beside the request, and when that request's score is
    known calls ``learn(params, memory, out, reward)`` once, with the memory of the decision's own
    kernel, in the order in which scores become known. A dispatch whose outcome never comes is not
    learned from. All other policies have `features` = 0 and no-ops for both.
    """

    name: str
    kernel: Kernel
    about: str
    """One line."""
    source: str = ""
    """Its origin as FILE:NAME; "" = this package."""
    parameters: tuple[Parameter, ...] = ()
    params: tuple[float, ...] = ()
    """The values it runs with, one for each of `parameters`; () = their defaults."""
    tuned: str = ""
    """The command that found `params`; "" = they are defaults."""
    params_type: np.dtype[Any] = NOTHING
    """Record type that its kernel reads `params` as."""
    fleet_type: np.dtype[Any] = NOTHING
    """Record type of ``memory.fleet``."""
    server_type: np.dtype[Any] = NOTHING
    """Record type of ``memory.servers[s]``."""
    counters: tuple[str, ...] = ()
    """Names of the counts at the beginning of ``memory.fleet``, for monitoring."""
    reads_servers: bool = True
    """Whether it reads the table's columns of servers; simulating one that does not is faster."""
    compiled: bool = True
    """False: the kernel is plain Python, which the simulator has to call for every decision."""
    features: int = 0
    describe: Describe = describe_nothing
    learn: Learn = learn_nothing

    def __post_init__(self) -> None:
        if not self.params:
            defaults = tuple(parameter.default for parameter in self.parameters)
            msgspec.structs.force_setattr(self, "params", defaults)
        elif self.parameters and len(self.params) != len(self.parameters):
            raise ValueError(
                f"{self.name} has {len(self.parameters)} parameters, got {len(self.params)} values"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Its parameters' names."""
        return tuple(parameter.name for parameter in self.parameters)

    def new_params(self, values: Sequence[float] | None = None) -> Array:
        """The array that the kernel takes: its own values, or these in their order.

        Raises ValueError if it has another number of `parameters`.
        """
        if values is not None and self.parameters and len(values) != len(self.params):
            raise ValueError(f"{self.name} takes {len(self.params)} parameters, got {len(values)}")
        found = np.array(self.params if values is None else values, np.float64)
        return found if found.size else np.zeros(1)  # a record needs a field

    def new_memory(self, servers: int) -> Array:
        """Its memory before the first decision, for a fleet of `servers`: zeros."""
        return np.zeros((self.fleet_type.itemsize + self.server_type.itemsize * servers) // 8)

    def named_params(self, params: Array) -> Record:
        """`params` as its kernel sees them; a view."""
        return params.view(self.params_type)[0]

    def named_memory(self, memory: Array) -> Memory:
        """`memory` as its kernel sees it; a view."""
        end = self.fleet_type.itemsize // 8
        return Memory(memory[:end].view(self.fleet_type)[0], memory[end:].view(self.server_type))


# -- from a function to a policy ------------------------------------------------------------------


def _kernel(table: CandidateTable, params: Array, memory: Array, rng: Array) -> float:
    """Template: the decorated function, given its params and memory by name."""
    return probability_of(
        FUNCTION(  # type: ignore[name-defined]  # noqa: F821
            table,
            params.view(PARAMS)[0],  # type: ignore[name-defined]  # noqa: F821
            Memory(
                memory[:FLEET_END].view(FLEET)[0],  # type: ignore[name-defined]  # noqa: F821
                memory[FLEET_END:].view(SERVERS),  # type: ignore[name-defined]  # noqa: F821
            ),
            rng,
        )
    )


def _learn(params: Array, memory: Array, features: Array, reward: float) -> None:
    """Template: the function that learns, given its params and memory by name."""
    FUNCTION(  # type: ignore[name-defined]  # noqa: F821
        params.view(PARAMS)[0],  # type: ignore[name-defined]  # noqa: F821
        Memory(
            memory[:FLEET_END].view(FLEET)[0],  # type: ignore[name-defined]  # noqa: F821
            memory[FLEET_END:].view(SERVERS),  # type: ignore[name-defined]  # noqa: F821
        ),
        features,
        reward,
    )


def policy(
    *,
    name: str = "",
    about: str = "",
    parameters: Sequence[Parameter] = (),
    params: np.dtype[Any] | None = None,
    memory: Fields = (),
    memory_per_server: Fields = (),
    counters: Sequence[str] = (),
    reads_servers: bool = True,
    compiled: bool = True,
    features: int = 0,
    describe: Callable[..., Any] | None = None,
    learn: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], PolicySpec]:
    """Make a policy of a function ``kernel(table, params, memory, rng)``.

    The function writes `table.scores`: the admissible row of highest score is chosen, −inf is never
    chosen, and the last row sheds the request. It returns the probability with which that row was
    chosen, or nothing if it is certain; `draw` returns it for a random choice.

    Parameters
    ----------
    name:
        The policy's; by default the function's.
    about:
        One line; by default the first line of the function's docstring.
    parameters:
        Read as ``params.NAME``. `params` is a record type in their place, for a policy with more
        numbers than can be listed.
    memory, memory_per_server:
        Names of the numbers that it remembers, ``memory.fleet.NAME`` and
        ``memory.servers[s].NAME``, or record types. Zero before the first decision.
    counters:
        Those at the beginning of `memory` that are shown to whoever monitors the balancer.
    reads_servers:
        False if it never reads the table's columns of servers; it is then simulated faster.
    compiled:
        False: run as plain Python, which is slower but may use anything.
    features, describe, learn:
        For a policy that learns from rewards: see `PolicySpec`.

    Example
    -------
    >>> @policy(parameters=[Parameter(name="margin", default=1.2, low=0.5, high=3.0)])
    ... def careful(table, params, memory, rng):
    ...     '''Least predicted latency, shed if that is late by its margin.'''
    ...     for r in range(len(table.mask) - 1):
    ...         table.scores[r] = -params.margin * table.rows.latency[r]
    ...     table.scores[-1] = -table.context.deadline
    >>> careful.name, careful.params
    ('careful', (1.2,))
    """

    def make(function: Callable[..., Any]) -> PolicySpec:
        fleet, servers = record_of(memory), record_of(memory_per_server)
        names = [parameter.name for parameter in parameters]
        kinds = _record_types(record_of(names if params is None else params), fleet, servers)
        inner = jit(inline=True) if compiled else _plain
        outer = jit if compiled else _plain
        kernel = specialised(
            _kernel, function, FUNCTION=inner(function), probability_of=probability_of, **kinds
        )
        learning = learn_nothing
        if learn is not None:
            learning = outer(specialised(_learn, learn, FUNCTION=_once(inner, learn), **kinds))
        text = (function.__doc__ or "").strip()
        return PolicySpec(
            name=name or function.__name__,
            kernel=outer(kernel),
            about=about or text.partition("\n")[0],
            parameters=tuple(parameters),
            params_type=kinds["PARAMS"],
            fleet_type=fleet,
            server_type=servers,
            counters=tuple(counters),
            reads_servers=reads_servers,
            compiled=compiled,
            features=features,
            describe=describe_nothing if describe is None else _once(outer, describe),
            learn=learning,
        )

    return make


def _record_types(
    params: np.dtype[Any], fleet: np.dtype[Any], servers: np.dtype[Any]
) -> dict[str, Any]:
    """Globals of the templates `_kernel` and `_learn`."""
    return {
        "Memory": Memory,
        "PARAMS": params,
        "FLEET": fleet,
        "FLEET_END": fleet.itemsize // 8,
        "SERVERS": servers,
    }


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _once(
    compiler: Callable[[Callable[..., Any]], Callable[..., Any]], function: Callable[..., Any]
) -> Callable[..., Any]:
    """Compile `function` unless it has been."""
    return function if hasattr(function, "py_func") else compiler(function)


@jit
def draw(table: CandidateTable, rng: Array) -> float:
    """Choose a row at random, with the scores as weights; returns the probability of the row.

    A kernel writes weights ≥ 0 into `table.scores`, that of shedding (the last row) too, and
    returns what this returns. Rows that are not admissible are never drawn. The row drawn gets the
    highest score; the others keep theirs, so that the more likely ones are the first fallbacks.
    With no weight above 0 the request is shed, which is certain.

    >>> @policy(compiled=False)
    ... def by_accuracy(table, params, memory, rng):
    ...     table.scores[:-1] = table.rows.accuracy[:-1]
    ...     table.scores[-1] = 0.0
    ...     return draw(table, rng)
    >>> by_accuracy.name
    'by_accuracy'
    """
    shed = table.mask.size - 1
    total = 0.0
    top = 0.0
    for r in range(shed + 1):
        if table.mask[r] == 0 or not (table.scores[r] > 0.0):
            table.scores[r] = -math.inf
        else:
            total += table.scores[r]
            top = max(top, table.scores[r])
    if total == 0.0:
        return 1.0
    left = uniform(rng) * total
    chosen = shed
    weight = 1.0
    for r in range(shed + 1):
        if table.scores[r] > 0.0:
            chosen = r
            weight = table.scores[r]
            left -= weight
            if left < 0.0:
                break
    table.scores[chosen] = top + 1.0
    return weight / total


# -- at work --------------------------------------------------------------------------------------


class Policy:
    """A policy at work in the live balancer: its parameters, memory and random numbers.

    Parameters
    ----------
    name:
        Written into its decisions.
    spec:
        What decides.
    seed:
        Of its random numbers.
    params:
        In place of the spec's own; same length. Raises ValueError otherwise.

    Example
    -------
    >>> from edgewise.policies import make
    >>> make("sed").name
    'sed'
    """

    def __init__(
        self, name: str, spec: PolicySpec, seed: int = 0, params: Sequence[float] | None = None
    ) -> None:
        self.name = name
        self.spec = spec
        self._params = spec.new_params(params)
        self._memory = np.zeros(0)
        self._rng = new_rng(seed)
        self._table: CandidateTable | None = None

    def decide(
        self,
        observation: Observation,
        keep: Callable[[CandidateTable], bool] = lambda table: False,
    ) -> Decision:
        """Choose among the observation's rows.

        If the request would be shed, `keep` is called with the scored table; it may change the
        scores, and returns whether it did (`fleet.tracker.Tracker.keep_if_idle`).

        A kernel that raises, which those of this package never do, is logged, and the row of least
        predicted latency takes its place: requests have to be answered all the same.
        """
        table = self._load(observation)
        table.scores[-1] = -math.inf
        name = self.name
        try:
            probability = call(self.spec, table, self._params, self._memory, self._rng)
        except PolicyFailed as error:
            logger.error("%s", error)
            table.scores[:-1] = -table.rows.latency[:-1]
            table.scores[-1] = -math.inf
            probability, name = 1.0, f"{name}-failed"
        made = decision(observation, table.scores, probability, name)
        if not made.ranked and keep(table):
            made = decision(observation, table.scores, probability, name)
            made = msgspec.structs.replace(made, overruled=True)
        return made

    @property
    def counters(self) -> dict[str, int]:
        """The policy's counts since its first decision, by name (`PolicySpec.counters`)."""
        names = self.spec.counters
        return dict(zip(names, self._memory[: len(names)].astype(int).tolist(), strict=False))

    def features(self, observation: Observation, row: int) -> Array:
        """The features of choosing `row`, for `learn`; empty if the policy does not learn."""
        out = np.zeros(self.spec.features)
        if out.size:
            self.spec.describe(self._load(observation), row, out)
        return out

    def learn(self, features: Array, reward: float) -> None:
        """Learn from the score of a request, with its own decision's `features`."""
        if features.size:
            self.spec.learn(self._params, self._memory, features, reward)

    def _load(self, observation: Observation) -> CandidateTable:
        """The observation as a table. A fleet of another size starts the policy afresh."""
        table = self._table
        if table is None or (
            table.arrays.rows.shape != observation.rows.shape
            or table.arrays.servers.shape != observation.servers.shape
        ):
            servers = observation.servers.shape[0]
            self._table = table = blank_table(servers, observation.mask.size // 2)
            self._memory = self.spec.new_memory(servers)
        load(table, observation)
        return table


def call(
    spec: PolicySpec, table: CandidateTable, params: Array, memory: Array, rng: Array
) -> float:
    """One decision of a policy; the probability of the best row. Raises PolicyFailed, naming the
    policy and what was wrong, if its code raises or returns no probability."""
    try:
        probability = float(spec.kernel(table, params, memory, rng))
    except Exception as error:
        raise PolicyFailed(f"policy {spec.source or spec.name}: {_explained(error)}") from error
    if not 0.0 < probability <= 1.0:
        raise PolicyFailed(
            f"policy {spec.source or spec.name}: expected a probability in (0, 1], or nothing, "
            f"got {probability:g}"
        )
    return probability


def _explained(error: Exception) -> str:
    """The message of a kernel's exception, in one line."""
    not_compiled = compile_error(error)
    if not_compiled is not None:
        return f"cannot be compiled: {not_compiled}; with compiled=False it runs as plain Python"
    where = traceback.extract_tb(error.__traceback__)[-1]
    what = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {what} (line {where.lineno} of {where.filename})"


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
    table = table_of_observation(observation)
    named = observation.request.named_model
    for row, accuracy in enumerate(table.rows.accuracy[:-1]):
        candidate = observation.candidates[row]
        assert candidate is not None
        if accuracy >= table.context.accuracy and named in (None, candidate.model):
            return ShedReason.NONE_UP
    return ShedReason.NO_SERVICE
