"""Every open decision by request id, until its outcome is settled. Takes `now`; has no clock.

Theory of operation
-------------------
A decision enters once, when it is made. Then up to three parties report how its request ended: the
ingress over its control channel (it cannot know when the client had the last byte), the client, and
the evaluator, who alone knows the right class. A better source replaces a worse one; a second
report from the same source is a duplicate. A decision is *settled* once: when the evaluator has
reported, or some seconds after the answer would be worth nothing, with the best outcome there is or
without one.

Never: an outcome credited to another request's decision, a decision settled twice or not at all,
memory that grows with the length of a run. Settled decisions are kept for a while, so that a
request that is submitted again is not decided again.
"""

from __future__ import annotations

import enum
import heapq
from collections import OrderedDict
from typing import Any

from msgspec import Struct

from edgewise.domain import Command, Decision, Observation, Outcome, Request, Score
from edgewise.fleet.table import CONTEXT, ROW, SERVER, table_of_observation

SETTLE_AFTER = 5.0
"""s past twice the deadline: the client has given up by then and has had time to report."""
OPEN_MAX = 20_000
"""Open decisions; at about 5 kB each 100 MB. Beyond, the one due first is settled early: 500
decisions/s with deadlines up to 15 s fit."""
RECENT_MAX = 2048
"""Settled decisions that are kept; some 10 MB."""


_LATENCY = [*ROW].index("latency")


class OutcomeSource(enum.IntEnum):
    """Who reports how a request ended, by how much they know."""

    NODE = 0
    CLIENT = 1
    EVALUATOR = 2


class TrackedDecision(Struct, kw_only=True, eq=False, gc=False):
    """A decision and what became of it."""

    request: Request
    """On the balancer's clock."""
    observation: Observation
    decision: Decision
    command: Command
    trigger: str
    """Who submitted the request first: ``metadata`` or ``ask``."""
    settle_at: float
    commanded_on: Any = None
    """The connection that carried the command; None: it has not been sent."""
    commanded_at: float = 0.0
    asked: bool = False
    """The ingress has asked for the command."""
    moved_to: str = ""
    """Another ingress that has asked for it since: the client has gone on there."""
    answered: bool = False
    """The ingress has said how the request ended."""
    outcome: Outcome | None = None
    source: OutcomeSource | None = None
    score: Score | None = None
    settled: bool = False
    features: Any = None
    """Input of a learning policy's `Learn`; None once it has learned, or if it does not learn."""

    @property
    def action(self) -> str:
        """What the ingress does: ``run``, ``transfer`` or ``shed``."""
        if self.command.server is None:
            return "shed"
        return "run" if self.command.server == self.request.ingress else "transfer"

    @property
    def in_time_expected(self) -> bool:
        """Whether the answer was expected within the deadline."""
        latency = self.observation.rows[self.decision.rows[0], _LATENCY]
        return bool(latency <= self.request.deadline)

    def details(self) -> dict[str, Any]:
        """The decision with the numbers it rested on, columns named; ready for JSON."""
        seen, decision = self.observation, self.decision
        ranked = []
        for candidate, row in zip(decision.ranked, decision.rows, strict=False):
            server = seen.servers[int(table_of_observation(seen).rows.server[row])]
            ranked.append(
                {
                    "server": candidate.server,
                    "model": candidate.model,
                    "form": candidate.form.name.lower(),
                    "row": dict(zip(ROW, seen.rows[row].tolist(), strict=True)),
                    "server_row": dict(zip(SERVER, server.tolist(), strict=True)),
                }
            )
        return {
            "request": self.request,
            "action": self.action,
            "trigger": self.trigger,
            "decision": decision,
            "ranked": ranked,
            "admissible": int(seen.mask[:-1].sum()),
            "context": dict(zip(CONTEXT, seen.context.tolist(), strict=True)),
            "outcome": self.outcome,
            "source": None if self.source is None else self.source.name.lower(),
            "score": self.score,
            "settled": self.settled,
        }


class OpenDecisions:
    """Decisions by request id, open or settled lately; its length is that of the open ones."""

    def __init__(self, open_max: int = OPEN_MAX, recent_max: int = RECENT_MAX) -> None:
        self._open: dict[str, TrackedDecision] = {}
        self._recent: OrderedDict[str, TrackedDecision] = OrderedDict()
        self._due: list[tuple[float, str]] = []
        self._open_max, self._recent_max = open_max, recent_max

    def __len__(self) -> int:
        return len(self._open)

    def get(self, request: str) -> TrackedDecision | None:
        """The decision on a request, open or recent."""
        return self._open.get(request) or self._recent.get(request)

    def enter(self, entry: TrackedDecision) -> None:
        """Add a decision. Raises ValueError if its request has one already."""
        key = entry.request.id
        if self.get(key) is not None:
            raise ValueError(f"request {key} was decided already")
        self._open[key] = entry
        heapq.heappush(self._due, (entry.settle_at, key))
        if len(self._due) > 2 * len(self._open) + 1000:  # long deadlines, settled long before
            self._due = [(each.settle_at, name) for name, each in self._open.items()]
            heapq.heapify(self._due)

    def settle(self, entry: TrackedDecision) -> None:
        """Close an open decision; it can still be read for a while."""
        del self._open[entry.request.id]
        entry.settled = True
        self._recent[entry.request.id] = entry
        if len(self._recent) > self._recent_max:
            self._recent.popitem(last=False)

    def due(self, now: float) -> list[TrackedDecision]:
        """Open decisions to settle now: their time is up, or there are too many."""
        entries: list[TrackedDecision] = []
        excess = len(self._open) - self._open_max
        while self._due and (self._due[0][0] <= now or len(entries) < excess):
            settle_at, key = heapq.heappop(self._due)
            entry = self._open.get(key)
            if entry is not None and entry.settle_at == settle_at:
                entries.append(entry)
        return entries

    def all_open(self) -> list[TrackedDecision]:
        """All open decisions, for the end of a run."""
        return list(self._open.values())
