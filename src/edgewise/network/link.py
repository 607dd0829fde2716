"""A network link as pure arithmetic: when does a chunk of bytes leave, and when is it delivered?

Theory of operation
-------------------
A link has a :class:`~edgewise.network.capacity.Capacity` (the bytes that it can carry, cumulated
over time) and outages (intervals in which the capacity passes unused). When a chunk has left is the
inverse of that, in ``capacity``.

:class:`Link` adds propagation delay, jitter, loss and live changes. It only ever knows *one* chunk
that has not departed yet, the head: whoever owns the queue calls :meth:`Link.depart` for the next
chunk when the last one has left. A change at ``now`` re-schedules the rest of the head, so nothing
promised earlier can block it. Three things may never happen: a chunk is delivered before an earlier
one of the same link (jitter and a shorter delay do not reorder), capacity is used twice, and
capacity that passed while nobody was waiting is used at all.

Units: seconds and bytes; bits per second only where the name says ``_bps``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from edgewise.errors import BadInput
from edgewise.network.capacity import (
    Capacity,
    FloatArray,
    LinkArrays,
    bytes_between,
    capacity_time,
    constant,
    send,
    stepwise,
    time_to_send,
)

__all__ = [
    "Capacity",
    "Link",
    "LinkArrays",
    "LinkSettings",
    "Passage",
    "bytes_between",
    "capacity_time",
    "constant",
    "stepwise",
    "time_to_send",
    "warm_up",
]

CHUNK_BYTES = 16 * 1024
"""What a relay sends at a time, each with a jitter of its own. 64 KiB made 64 flows unfair
(first/last finish 0.21); 1,500 bytes cost 92 % of a core at 500 Mbit/s; 16 KiB gave 0.83 and
12-33 %."""

PACKET_BYTES = 1500
"""What loss strikes: one Ethernet packet. A 16 KiB chunk is eleven of them."""

STALL_S = 0.2
"""How long a lost packet holds back its stream: Linux's least retransmission timeout. Fast
retransmission takes one round trip only, so this is the price of the unlucky (tail) loss."""


class LinkSettings(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Everything about a link that can be changed while it carries traffic.

    Attributes:
        capacity: see :func:`constant`, :func:`stepwise` and ``trace``.
        delay: propagation delay one way, s.
        jitter: each chunk takes up to this much longer, s, uniformly; order is kept, so within a
            dense stream the delay tends to ``delay + jitter``.
        loss: probability that a packet of 1,500 bytes is lost, 0 <= loss < 1.
        loss_mode: what a stream sees of a loss. ``stall``: what was lost comes ``stall`` later (and
            again, if it is lost again); ``reset``: the connection breaks.
        stall: s, see above. Other streams on the link are not held up.
        queue_bytes: how much may wait for the link; None = no limit but the owner's.
    """

    capacity: Capacity = constant(None)
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    loss_mode: Literal["stall", "reset"] = "stall"
    stall: float = STALL_S
    queue_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("delay", "jitter", "stall"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise BadInput(f"{name}: expected seconds >= 0, got {value!r}")
        if not 0.0 <= self.loss < 1.0:
            raise BadInput(f"loss: expected a probability, 0 <= loss < 1, got {self.loss!r}")
        if self.loss_mode not in ("stall", "reset"):
            raise BadInput(f"loss_mode: expected 'stall' or 'reset', got {self.loss_mode!r}")
        if self.queue_bytes is not None and self.queue_bytes <= 0:
            raise BadInput(f"queue_bytes: expected a number above 0, got {self.queue_bytes!r}")


class Passage(NamedTuple):
    """A chunk's way over a link.

    Attributes:
        departure: when its last byte has left and the next chunk may start, s; inf = not foreseen.
        delivery: when its last byte is at the far end, stalls included, s.
        stalls: how often a loss held it up; the streams behind it are not concerned.
        reset: the loss broke the connection, so it is never delivered.
    """

    departure: float
    delivery: float
    stalls: int
    reset: bool


class _Head(NamedTuple):
    """The chunk on the wire: what is left of it from ``start`` on, and its luck."""

    size: float
    left: float
    start: float
    fifo: float  # no delivery before this one: the chunk's predecessor
    jitter_draw: float
    loss_draw: float


class Link:
    """One direction of a network link, or a medium that several directions share.

    Args:
        settings: what it begins with.
        origin: the caller's time at which the link's own time 0 (trace, outages) lies, s.
        outages: (start, end) in the link's own time, s; overlapping ones are merged.
        rng: for jitter and loss; needed as soon as either is above 0.

    Raises:
        BadInput: an outage ends before it starts, or ``rng`` is missing.
    """

    def __init__(
        self,
        settings: LinkSettings,
        *,
        origin: float = 0.0,
        outages: Iterable[tuple[float, float]] = (),
        rng: np.random.Generator | None = None,
    ) -> None:
        self.origin = origin
        self._rng = rng
        self._outages = _merged(outages)
        self._head: _Head | None = None
        self._free = -math.inf
        self._fifo = -math.inf
        self._spare = 0.0
        self._settings = self._checked(settings)

    @property
    def settings(self) -> LinkSettings:
        """What applies now."""
        return self._settings

    @property
    def free(self) -> float:
        """When the last chunk given to :meth:`depart` has left, as far as is known now, s."""
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
            Its passage, as foreseen now. :meth:`change` and :meth:`outage` may revise it.
        """
        since = now if since is None else min(since, now)
        spare = self._spare if since < self._free else 0.0
        head = _Head(
            size=size,
            left=size - spare,
            start=max(self._free, since),
            fifo=self._fifo,
            jitter_draw=self._draw() if self._settings.jitter > 0.0 else 0.0,
            loss_draw=self._draw() if self._settings.loss > 0.0 else 0.0,
        )
        return self._schedule(head, spare)

    def change(self, now: float, settings: LinkSettings) -> Passage | None:
        """Apply other settings from ``now`` on.

        What the head has sent stays sent; the rest goes under the new settings. What is already on
        its way keeps its delivery time.

        Returns:
            The head's revised passage, or None if nothing is on the wire.
        """
        settings = self._checked(settings)
        head = self._cut(now)
        self._settings = settings
        return None if head is None else self._schedule(head, 0.0)

    def outage(self, now: float, duration: float) -> Passage | None:
        """Send nothing in [now, now + duration); returns as :meth:`change` does.

        Raises:
            BadInput: the duration is not a finite number above 0.
        """
        if not (math.isfinite(duration) and duration > 0.0):
            raise BadInput(f"duration: expected seconds > 0, got {duration!r}")
        head = self._cut(now)
        t = now - self.origin
        self._outages = _merged([*map(tuple, self._outages.tolist()), (t, t + duration)])
        return None if head is None else self._schedule(head, 0.0)

    def restart(
        self, now: float, settings: LinkSettings, outages: Iterable[tuple[float, float]] = ()
    ) -> Passage | None:
        """Make ``now`` the link's time 0, with these settings and only these outages."""
        settings, intervals = self._checked(settings), _merged(outages)
        head = self._cut(now)
        self._settings, self._outages, self.origin = settings, intervals, now
        return None if head is None else self._schedule(head, 0.0)

    def replace_outages(self, now: float, outages: Iterable[tuple[float, float]]) -> Passage | None:
        """Forget the known outages for these (link time, s); returns as :meth:`change` does."""
        intervals = _merged(outages)
        head = self._cut(now)
        self._outages = intervals
        return None if head is None else self._schedule(head, 0.0)

    def arrays(self) -> LinkArrays:
        """The link for compiled code; times are the link's own (``now - origin``)."""
        return LinkArrays(*self._settings.capacity, self._outages)

    def rate_bps(self, now: float) -> float:
        """The rate at ``now`` in bits/s: inf when unlimited, 0 in an outage.

        A staircase has no rate at a point; there it is the mean over the second around ``now``.
        """
        t = now - self.origin
        if np.any((self._outages[:, 0] <= t) & (t < self._outages[:, 1])):
            return 0.0
        if self._settings.capacity.unlimited:
            return math.inf
        stairs = bool(np.any(np.diff(self._settings.capacity.times) <= 0.0))
        t0, t1 = (max(t - 0.5, 0.0), t + 0.5) if stairs else (t, t + 1e-6)
        return 8.0 * bytes_between(*self.arrays(), t0, t1) / (t1 - t0)

    def state(self, now: float) -> dict[str, Any]:
        """What the control API shows of any link: SI units; ``rate_bps`` None while unlimited."""
        rate, settings = self.rate_bps(now), self._settings
        return {
            "time": now - self.origin,
            "rate_bps": None if math.isinf(rate) else rate,
            "delay": settings.delay,
            "jitter": settings.jitter,
            "loss": settings.loss,
            "loss_mode": settings.loss_mode,
            "stall": settings.stall,
            "queue_bytes": settings.queue_bytes,
        }

    def room(self, backlog: int) -> float:
        """Bytes that may still join a queue of ``backlog`` bytes; inf without a cap."""
        cap = self._settings.queue_bytes
        return math.inf if cap is None else max(cap - backlog, 0)

    def _draw(self) -> float:
        assert self._rng is not None  # _checked saw to it
        return self._rng.random()

    def _checked(self, settings: LinkSettings) -> LinkSettings:
        if self._rng is None and (settings.jitter > 0.0 or settings.loss > 0.0):
            raise BadInput("a link with jitter or loss needs a random generator (rng)")
        return settings

    def _cut(self, now: float) -> _Head | None:
        """Take back what of the head has not been sent by ``now``; no later start is before now."""
        head = self._head
        if head is None or self._free <= now:
            self._head = None
            self._free, self._spare = max(self._free, now), 0.0
            return None
        left = head.left
        if head.start < now and not self._settings.capacity.unlimited:
            t0, t1 = head.start - self.origin, now - self.origin
            left -= bytes_between(*self.arrays(), t0, t1)
        return head._replace(left=left, start=max(head.start, now))

    def _schedule(self, head: _Head, spare: float) -> Passage:
        if self._settings.capacity.unlimited and not self._outages.shape[0]:
            departure, self._spare = head.start, 0.0
        elif head.left <= 0.0 and spare > 0.0:
            departure, self._spare = head.start, -head.left
        else:
            t, self._spare = send(*self.arrays(), head.start - self.origin, head.left)
            departure = self.origin + t
        s = self._settings
        arrival = max(departure + s.delay + s.jitter * head.jitter_draw, head.fifo)
        stalls, reset = _losses(s, head.size, head.loss_draw)
        self._head, self._free, self._fifo = head, departure, arrival
        return Passage(departure, arrival + stalls * s.stall, stalls, reset)


def _losses(settings: LinkSettings, size: float, draw: float) -> tuple[int, bool]:
    """How often a chunk must be sent again, from one uniform draw in [0, 1).

    All n packets are through after k repetitions with probability (1 - p^(k+1))^n: the inverse of
    that distribution, so that one draw decides however often a packet is lost.
    """
    if settings.loss <= 0.0 or size <= 0.0:
        return 0, False
    packets = math.ceil(size / PACKET_BYTES)
    worst = 1.0 - draw ** (1.0 / packets)
    if worst >= settings.loss:
        return 0, False
    if settings.loss_mode == "reset":
        return 0, True
    # Float rounding can make `worst` 0 (a draw next to 1); 1e-16 bounds the logarithm.
    return math.ceil(math.log(max(worst, 1e-16)) / math.log(settings.loss)) - 1, False


def _merged(outages: Iterable[tuple[Any, ...]]) -> FloatArray:
    """Sorted, disjoint intervals as (k, 2); touching ones become one."""
    merged: list[list[float]] = []
    for start, end in sorted((float(a), float(b)) for a, b in outages):
        if not (math.isfinite(start) and math.isfinite(end) and end >= start):
            raise BadInput(f"outage: expected finite start <= end, got {start!r}, {end!r}")
        if end == start:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, dtype=np.float64).reshape(-1, 2)


def warm_up() -> None:
    """Compile (or load from numba's cache) what :class:`Link` calls, before traffic comes."""
    link = Link(LinkSettings(capacity=constant(8e6)), outages=[(1.0, 2.0)])
    link.depart(1000, 0.5)
    link.rate_bps(0.5)
    link.change(0.5001, LinkSettings())
