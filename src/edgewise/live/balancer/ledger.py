"""Every open decision by request id, until its outcome is settled. Takes `now`; knows no clock.

Theory of operation
-------------------
A decision enters once, when it is made. Up to three parties then say how its request ended: the
ingress over its control channel (it cannot know when the client had the last byte), the client,
and the evaluator, who alone knows the right class. The better source replaces the other; a second
word of the same one is a duplicate. The decision is *settled*, once, as soon as the evaluator has
spoken, or some seconds after the answer would be worth nothing: with the best outcome there is, or
without one.

What may never happen: an outcome credited to another request's decision, a decision settled twice
or never, memory that grows with the length of a run. Settled decisions are kept for a while, so
that a request that is submitted again is not decided again.
"""

from __future__ import annotations

import enum
import heapq
from collections import OrderedDict
from typing import Any

from msgspec import Struct

from edgewise.domain import Command, Decision, Observation, Outcome, Request, Score

SETTLE_AFTER = 5.0
"""s past twice the deadline: the client has given up by then and has had time to say so."""
OPEN_MAX = 20_000
"""Open decisions; at about 5 kB each 100 MB. Beyond, the one due first is settled early: 500
decisions/s with deadlines up to 15 s fit."""
RECENT_MAX = 2048
"""Settled decisions that can still be looked at; some 10 MB."""


class OutcomeSource(enum.IntEnum):
    """Who says how a request ended, by how much they know."""

    NODE = 0
    CLIENT = 1
    EVALUATOR = 2


class Entry(Struct, kw_only=True, eq=False, gc=False):
    """A decision and what became of it."""

    request: Request
    """On the balancer's clock."""
    seen: Observation
    decision: Decision
    command: Command
    trigger: str
    """Who came first: ``metadata`` or ``ask``."""
    settle_at: float
    commanded_on: Any = None
    """The channel that carried the command; None: none yet."""
    commanded_at: float = 0.0
    asked: bool = False
    """The ingress has asked for it."""
    outcome: Outcome | None = None
    source: OutcomeSource | None = None
    score: Score | None = None
    settled: bool = False
    features: Any = None
    """What a rule that learns must remember of it; None once it has learned, or if it does not."""


class Ledger:
    """Decisions by request id."""

    def __init__(self, open_max: int = OPEN_MAX, recent_max: int = RECENT_MAX) -> None:
        self._open: dict[str, Entry] = {}
        self._recent: OrderedDict[str, Entry] = OrderedDict()
        self._due: list[tuple[float, str]] = []
        self._open_max, self._recent_max = open_max, recent_max

    def __len__(self) -> int:
        """Open decisions."""
        return len(self._open)

    def get(self, request: str) -> Entry | None:
        """The decision of a request, open or recent."""
        return self._open.get(request) or self._recent.get(request)

    def enter(self, entry: Entry) -> None:
        """Note a decision. Raises ValueError if its request has one already."""
        key = entry.request.id
        if self.get(key) is not None:
            raise ValueError(f"request {key} was decided already")
        self._open[key] = entry
        heapq.heappush(self._due, (entry.settle_at, key))
        if len(self._due) > 2 * len(self._open) + 1000:  # long deadlines, settled long before
            self._due = [(each.settle_at, name) for name, each in self._open.items()]
            heapq.heapify(self._due)

    def settle(self, entry: Entry) -> None:
        """Close an open decision; it stays visible for a while."""
        del self._open[entry.request.id]
        entry.settled = True
        self._recent[entry.request.id] = entry
        if len(self._recent) > self._recent_max:
            self._recent.popitem(last=False)

    def due(self, now: float) -> list[Entry]:
        """Open decisions to settle now: time is up, or there are too many."""
        found: list[Entry] = []
        excess = len(self._open) - self._open_max
        while self._due and (self._due[0][0] <= now or len(found) < excess):
            settle_at, key = heapq.heappop(self._due)
            entry = self._open.get(key)
            if entry is not None and entry.settle_at == settle_at:
                found.append(entry)
        return found

    def all_open(self) -> list[Entry]:
        """What is still open, for the end of a run."""
        return list(self._open.values())
