"""A network link as pure arithmetic: when does a chunk of bytes leave, and when is it delivered?

Theory of operation
-------------------
A link has a capacity (the bytes that it can carry, cumulated over time) and outages (intervals in
which the capacity passes unused). When a chunk has left is the inverse of that (`capacity`). It
arrives a propagation delay later, plus what each impairment adds (`impairments`).

A `Link` knows only *one* chunk that has not departed yet, the head: the owner of the queue calls
`Link.depart` for the next chunk when the last one has left. A change at `now` re-schedules the rest
of the head, so nothing promised earlier can block it. Three things may never happen: a chunk is
delivered before an earlier one of the same link (jitter and a shorter delay do not reorder),
capacity is used twice, and capacity that passed while nothing was waiting is used at all.

Units: seconds and bytes; bits per second only where the name says ``_bps``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from edgewise.errors import BadInput
from edgewise.network.capacity import Capacity, FloatArray, LinkArrays
from edgewise.network.impairments import IMPAIRMENTS, Active, active
from edgewise.network.settings import CHANGEABLE, LinkSettings, Outage, checked
from edgewise.network.transmission import bytes_between, send

_NO_DRAWS = (0.0,) * len(IMPAIRMENTS)


class Passage(NamedTuple):
    """A chunk's way over a link.

    Attributes:
        departure: when its last byte has left and the next chunk may start, s; inf = not foreseen.
        delivery: when its last byte is at the far end, s.
        reset: an impairment broke the connection, so it is never delivered.
    """

    departure: float
    delivery: float
    reset: bool


class _Head(NamedTuple):
    """The chunk on the wire: what is left of it from `start` on."""

    size: float
    left: float
    start: float
    fifo: float  # delivery of its predecessor; it comes no earlier
    draws: tuple[float, ...]  # a random number by impairment; 0 where none was drawn


class _InForce(NamedTuple):
    """Settings, and what follows from them."""

    settings: LinkSettings
    capacity: Capacity
    impairments: tuple[Active, ...]


class Link:
    """One direction of a network link, or a medium that several directions share.

    Args:
        settings: what it begins with, outages included.
        capacity: the bandwidth that `settings` describe, if it is loaded already. Otherwise it is
            loaded here, and a trace file's relative path starts at the working directory.
        origin: the caller's time at which the link's own time 0 (trace, outages) lies, s.
        rng: for impairments that draw random numbers.

    Raises:
        BadInput: a setting is wrong, or `rng` is missing.
    """

    def __init__(
        self,
        settings: LinkSettings,
        capacity: Capacity | None = None,
        *,
        origin: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.origin = origin
        self._rng = rng
        self._in_force = self._checked(settings, capacity)
        self._outages = _merged(settings.intervals())
        self._head: _Head | None = None
        self._free = -math.inf
        self._fifo = -math.inf
        self._spare = 0.0

    @property
    def settings(self) -> LinkSettings:
        """The settings that apply now. Outages that were added live are not among them."""
        return self._in_force.settings

    @property
    def capacity(self) -> Capacity:
        """The bandwidth over time that applies now."""
        return self._in_force.capacity

    @property
    def free(self) -> float:
        """When the last chunk given to `depart` has left, as far as is known now, s."""
        return self._free

    def depart(self, size: float, now: float, *, since: float | None = None) -> Passage:
        """Put the next chunk on the wire.

        Call it when the last chunk has left (``now >= free``): the link serves one at a time.

        Args:
            size: bytes, >= 0; a chunk of 0 bytes (an end of stream) waits for its turn, outages and
                delay like any other.
            now: s.
            since: when the chunk began to wait, <= now. A chunk that was waiting when its
                predecessor left starts at that very moment, however late the owner's timer fired,
                so lateness does not add up.

        Returns:
            Its passage, as foreseen now. A change or an outage may revise it.
        """
        since = now if since is None else min(since, now)
        spare = self._spare if since < self._free else 0.0
        start = max(self._free, since)
        return self._schedule(_Head(size, size - spare, start, self._fifo, self._draws()), spare)

    def change(
        self, now: float, settings: LinkSettings, capacity: Capacity | None = None
    ) -> Passage | None:
        """Apply other settings from `now` on; the outages stay those that the link has.

        What the head has sent stays sent; the rest goes under the new settings. What is already on
        its way keeps its delivery time.

        Returns:
            The head's revised passage, or None if nothing is on the wire.
        """
        in_force = self._checked(settings, capacity)
        head = self._cut(now)
        self._in_force = in_force
        return self._reschedule(head)

    def outage(self, now: float, duration: float) -> Passage | None:
        """Send nothing in [now, now + duration); returns as `change` does.

        Raises:
            BadInput: the duration is not a finite number above 0.
        """
        if not (math.isfinite(duration) and duration > 0.0):
            raise BadInput(f"duration: expected seconds > 0, got {duration!r}")
        head = self._cut(now)
        t = now - self.origin
        self._outages = _merged([*map(tuple, self._outages.tolist()), (t, t + duration)])
        return self._reschedule(head)

    def restore(
        self,
        now: float,
        settings: LinkSettings,
        capacity: Capacity | None = None,
        *,
        restart: bool = False,
    ) -> Passage | None:
        """Apply settings and their outages, and end those that were added live.

        With `restart`, `now` becomes the link's time 0. Returns as `change` does.
        """
        in_force, outages = self._checked(settings, capacity), _merged(settings.intervals())
        head = self._cut(now)
        self._in_force, self._outages = in_force, outages
        if restart:
            self.origin = now
        return self._reschedule(head)

    def arrays(self) -> LinkArrays:
        """The link for compiled code; times are the link's own (``now - origin``)."""
        return LinkArrays(*self.capacity, self._outages)

    def rate_bps(self, now: float) -> float:
        """The rate at `now` in bits/s: inf when unlimited, 0 in an outage.

        A staircase has no rate at a point; there it is the mean over the second around `now`.
        """
        t = now - self.origin
        if np.any((self._outages[:, 0] <= t) & (t < self._outages[:, 1])):
            return 0.0
        if self.capacity.unlimited:
            return math.inf
        stairs = bool(np.any(np.diff(self.capacity.times) <= 0.0))
        t0, t1 = (max(t - 0.5, 0.0), t + 0.5) if stairs else (t, t + 1e-6)
        return 8.0 * bytes_between(*self.arrays(), t0, t1) / (t1 - t0)

    def state(self, now: float) -> dict[str, Any]:
        """The state of the link as the control API shows it.

        ``rate_bps`` is the rate at `now`, None while unlimited; ``settings`` has the fields that a
        live change may set.
        """
        rate = self.rate_bps(now)
        return {
            "time": now - self.origin,
            "rate_bps": None if math.isinf(rate) else rate,
            "settings": {name: getattr(self.settings, name) for name in CHANGEABLE},
        }

    def room(self, backlog: int) -> float:
        """Bytes that may still join a queue of `backlog` bytes; inf without a cap."""
        cap = self.settings.queue_bytes
        return math.inf if cap is None else max(cap - backlog, 0)

    def _checked(self, settings: LinkSettings, capacity: Capacity | None) -> _InForce:
        impairments = active(checked(settings))
        if self._rng is None and any(each.draws for each in impairments):
            raise BadInput("a link whose impairments are random needs a random generator (rng)")
        if capacity is None:
            capacity = settings.capacity()
        return _InForce(settings, capacity, impairments)

    def _draws(self) -> tuple[float, ...]:
        if not self._in_force.impairments:
            return _NO_DRAWS
        draws = list(_NO_DRAWS)
        for each in self._in_force.impairments:
            if each.draws:
                assert self._rng is not None  # _checked saw to it
                draws[each.place] = self._rng.random()
        return tuple(draws)

    def _cut(self, now: float) -> _Head | None:
        """Take back what of the head has not been sent by `now`; no later start is before now."""
        head = self._head
        if head is None or self._free <= now:
            self._head = None
            self._free, self._spare = max(self._free, now), 0.0
            return None
        left = head.left
        if head.start < now and not self.capacity.unlimited:
            t0, t1 = head.start - self.origin, now - self.origin
            left -= bytes_between(*self.arrays(), t0, t1)
        return head._replace(left=left, start=max(head.start, now))

    def _reschedule(self, head: _Head | None) -> Passage | None:
        return None if head is None else self._schedule(head, 0.0)

    def _schedule(self, head: _Head, spare: float) -> Passage:
        if self.capacity.unlimited and not self._outages.shape[0]:
            departure, self._spare = head.start, 0.0
        elif head.left <= 0.0 and spare > 0.0:
            departure, self._spare = head.start, -head.left
        else:
            t, self._spare = send(*self.arrays(), head.start - self.origin, head.left)
            departure = self.origin + t
        self._head, self._free = head, departure
        if math.isinf(departure):
            return Passage(departure, math.inf, False)
        arrival, held = departure + self.settings.delay, 0.0
        for each in self._in_force.impairments:
            time = departure - self.origin
            extra = each.extra(each.parameters, head.size, head.draws[each.place], time)
            if each.in_order:
                arrival += extra
            else:
                held += extra
        if math.isinf(arrival + held):
            return Passage(departure, math.inf, True)
        self._fifo = max(arrival, head.fifo)
        return Passage(departure, self._fifo + held, False)


def _merged(outages: Iterable[tuple[Any, ...]]) -> FloatArray:
    """Sorted, disjoint intervals as (k, 2); touching ones become one."""
    merged: list[list[float]] = []
    for start, end in sorted((float(a), float(b)) for a, b in outages):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, dtype=np.float64).reshape(-1, 2)


def warm_up() -> None:
    """Compile (or load from numba's cache) what `Link` calls, before traffic comes."""
    link = Link(LinkSettings(rate_mbps=8.0, outages=(Outage(at=1.0, duration=1.0),)))
    link.depart(1000, 0.5)
    link.rate_bps(0.5)
    link.change(0.5001, LinkSettings())
