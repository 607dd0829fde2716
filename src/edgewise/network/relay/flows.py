"""Byte streams through shared links: queues, turns, back-pressure, ends and resets. No sockets.

Theory of operation
-------------------
A `Path` is one direction of one connection: a source, a `LinkStage` for each link that its bytes
cross, a sink. A stage holds the bytes that wait for the link and those that are on their way over
it. A `StreamShaper` is a link at work: the stages that have something to send take turns, up to
16 KiB each, so flows share the link equally. Turns go by *start tags* (start-time fair queueing;
Goyal, Vin and Cheng, SIGCOMM 1996): the stage that has sent least since the others began is next. A
short answer then waits for about one turn. With turns in a row it waited for one turn of each flow,
and 20 transfers on an 8 Mbit/s uplink held it up by a third of a second. Only the chunk whose turn
it is has been given to the `Link`. When it has left, the next turn begins; when it is delivered, it
joins the next stage, or the sink.

Times handed on are the *ideal* ones (a chunk joins the next queue when it was due, not when the
timer fired), so late timers neither add up over links nor lower a rate.

Nothing grows without bound. A stage does not send while the bytes on their way and those that wait
behind it for the next link reach `WINDOW_BYTES`, nor while the next link's queue is full, nor while
the sink cannot take more. A source stops reading while the first stage holds `READ_AHEAD_BYTES`.

An end of stream is a chunk of 0 bytes, so that it keeps its place behind the data. A reset is not
part of a stream: it overtakes everything and ends both directions.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from edgewise.network.link import Link, Passage
from edgewise.network.link_backend import LinkBackend
from edgewise.network.relay.timers import Timer, Timers
from edgewise.network.units import CHUNK_BYTES

BULK_BYTES = 64 * 1024
"""A turn on an unlimited link, where no flow waits for another."""

READ_AHEAD_BYTES = 64 * 1024
"""Four turns: the socket is read again long before the queue is empty, at any rate of interest."""

WINDOW_BYTES = 4 * 1024 * 1024
"""How much one flow may have under way on one link: 500 Mbit/s times 50 ms is 3.1 MB. A flow that
needs more is limited to WINDOW_BYTES / delay, as TCP would limit it to its window."""

Data = bytes | memoryview


class PathSink(Protocol):
    """Where a path ends."""

    def writable(self) -> bool:
        """False while it cannot take more; it calls `Path.unblock` when it can again."""

    def write(self, data: Data) -> None:
        """Take bytes, in order."""

    def write_eof(self) -> None:
        """No byte will follow."""


class PathSource(Protocol):
    """Where a path begins; it calls `Path.send` and `Path.send_eof`."""

    def pause(self) -> None:
        """Stop sending."""

    def resume(self) -> None:
        """Continue to send."""


class Path:
    """One direction of a connection.

    Args:
        shapers: the links to cross, in order; none = straight through.
        on_reset: called once if a loss breaks the connection.
    """

    def __init__(
        self,
        shapers: list[StreamShaper],
        source: PathSource,
        sink: PathSink,
        on_reset: Callable[[], None],
    ) -> None:
        self.source, self.sink, self.on_reset = source, sink, on_reset
        self.closed = False
        self.paused = False
        self.received = 0
        self.delivered = 0
        self.stages: list[LinkStage] = []
        following: LinkStage | None = None
        for shaper in reversed(shapers):
            following = LinkStage(shaper, self, following)
            self.stages.insert(0, following)
        for before, stage in zip(self.stages, self.stages[1:], strict=False):
            stage.previous = before

    def send(self, data: Data, now: float) -> None:
        """Take bytes from the source."""
        self.received += len(data)
        if self.stages:
            self.stages[0].put(memoryview(data), now, now)
        else:
            self.deliver(data)
        self.check_source()

    def send_eof(self, now: float) -> None:
        """End the stream; everything sent before still arrives."""
        if self.stages:
            self.stages[0].put(b"", now, now)
        else:
            self.deliver(b"")

    def deliver(self, data: Data) -> None:
        """Hand bytes to the sink, or its end if there are none."""
        if self.closed:
            return
        if data:
            self.delivered += len(data)
            self.sink.write(data)
        else:
            self.sink.write_eof()

    def unblock(self, now: float) -> None:
        """Continue: the sink can take more again."""
        if self.stages:
            self.stages[-1].unblock(now)
        self.check_source()

    def check_source(self) -> None:
        """Pause the source if the first queue is full, or let it continue.

        Called after each turn of the first stage; a full queue always has a turn to come.
        """
        if self.closed:
            return
        full = not (self.stages[0].accepts() if self.stages else self.sink.writable())
        if full != self.paused:
            self.paused = full
            if full:
                self.source.pause()
            else:
                self.source.resume()

    def close(self) -> None:
        """Drop everything that is under way."""
        if not self.closed:
            self.closed = True
            for stage in self.stages:
                stage.drop()


class LinkStage:
    """One path at one link: the bytes that wait for it, and those on their way over it."""

    __slots__ = (
        "blocked",
        "following",
        "in_flight",
        "last_delivery",
        "path",
        "previous",
        "queue",
        "queued",
        "ready_since",
        "shaper",
        "tag",
        "transit",
        "waiting",
    )

    def __init__(self, shaper: StreamShaper, path: Path, following: LinkStage | None) -> None:
        self.shaper, self.path, self.following = shaper, path, following
        self.previous: LinkStage | None = None
        self.queue: deque[tuple[Data, float]] = deque()  # bytes, time since when they wait
        self.queued = 0
        self.waiting = False  # has a turn to come
        self.tag = 0.0  # start tag of its next turn, bytes
        self.blocked = False  # could not send at its turn
        self.ready_since = -math.inf
        self.transit: deque[tuple[float, Data]] = deque()  # due, bytes
        self.in_flight = 0
        self.last_delivery = -math.inf

    def put(self, data: Data, since: float, now: float) -> None:
        """Queue bytes (or the end) for the link."""
        if self.path.closed:
            return
        self.queue.append((data, since))
        self.queued += len(data)
        self.shaper.backlog += len(data)
        if not self.waiting and not self.blocked:
            self.shaper.join(self)
        self.shaper.serve(now)

    def take(self, limit: int) -> tuple[list[Data], int, float]:
        """Take up to `limit` bytes that waited together from the front of the queue, or an end.

        Returns the parts, their size, and since when the first one waits.
        """
        data, since = self.queue[0]
        if not data:
            self.queue.popleft()
            return [], 0, since
        parts: list[Data] = []
        size = 0
        # Bytes that came after the link became free belong to the next turn, or they would be sent
        # before they were there.
        latest = max(since, self.ready_since, self.shaper.link.free)
        while self.queue:
            data, arrived = self.queue[0]
            if not data or arrived > latest:
                break
            if size + len(data) > limit:
                parts.append(data[: limit - size])
                self.queue[0] = (data[limit - size :], arrived)
                size = limit
                break
            parts.append(data)
            size += len(data)
            self.queue.popleft()
        self.queued -= size
        return parts, size, since

    def accepts(self) -> bool:
        """Whether more may be queued."""
        return self.queued == 0 or (
            self.queued < READ_AHEAD_BYTES and self.shaper.link.room(self.shaper.backlog) > 0
        )

    def may_send(self) -> bool:
        """Whether there is room behind this link."""
        nxt = self.following
        if nxt is None:
            return self.in_flight < WINDOW_BYTES and self.path.sink.writable()
        return self.in_flight + nxt.queued < WINDOW_BYTES and (
            nxt.queued == 0 or nxt.shaper.link.room(nxt.shaper.backlog) > 0
        )

    def unblock(self, now: float) -> None:
        """Take turns again if the stage was blocked by what comes after the link."""
        if self.blocked and self.may_send():
            self.blocked = False
            self.ready_since = now
            if self.queue:
                self.shaper.join(self)
                self.shaper.serve(now)

    def leave(self, data: Data, delivery: float, now: float) -> None:
        """Note that a chunk has left. It is due at `delivery`, but not before its predecessor."""
        self.last_delivery = max(self.last_delivery, delivery)
        self.transit.append((self.last_delivery, data))
        if len(self.transit) == 1:
            if self.last_delivery <= now:
                self.arrive(now)
            else:
                self.shaper.timers.at(self.last_delivery, self.arrive)

    def arrive(self, now: float) -> None:
        """Hand on the chunks that are due."""
        transit, shaper = self.transit, self.shaper
        while transit and transit[0][0] <= now:
            due, data = transit.popleft()
            self.in_flight -= len(data)
            shaper.in_flight -= len(data)
            if self.path.closed:
                continue
            shaper.delivered += len(data)
            if self.following is None:
                self.path.deliver(data)
            else:
                self.following.put(data, due, now)
        if transit:
            shaper.timers.at(transit[0][0], self.arrive)
        self.unblock(now)

    def drop(self) -> None:
        """Drop the queue; chunks on their way are dropped when they are due."""
        self.shaper.backlog -= self.queued
        self.queued = 0
        self.queue.clear()


class StreamShaper(LinkBackend):
    """A named link and the flows that take turns on it.

    Attributes:
        backlog: bytes that wait or are being sent.
        in_flight: bytes that have left and have not arrived.
        delivered: bytes that arrived since the start.
        sent: bytes that left, likewise.
    """

    def __init__(self, name: str, link: Link, timers: Timers) -> None:
        super().__init__(name, link, timers)
        self.backlog = 0
        self.in_flight = 0
        self.delivered = 0
        self.sent = 0
        self._turns: list[tuple[float, int, LinkStage]] = []  # heap: start tag, order of joining
        self._joined = 0
        self._virtual = 0.0  # start tag of the turn under way, bytes
        self._head: tuple[LinkStage, Data, int, float, Passage] | None = None
        self._timer: Timer | None = None
        self._serving = False
        self._busy: deque[tuple[float, float, int]] = deque()  # from, to, bytes sent

    def join(self, stage: LinkStage) -> None:
        """Give a stage a turn."""
        stage.waiting = True
        self._joined += 1
        heapq.heappush(self._turns, (max(self._virtual, stage.tag), self._joined, stage))

    def serve(self, now: float) -> None:
        """Start the next turn if the link is free, and pass on chunks that have left by `now`."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._head is None and self._turns:
                self._virtual, _, stage = heapq.heappop(self._turns)
                self._start(stage, now)
                if self._head is not None and self._head[4].departure <= now:
                    self._finish(now)
        finally:
            self._serving = False
        if self._head is not None and self._timer is None:
            self._timer = self.timers.at(self._head[4].departure, self._due)

    def last_second(self, now: float) -> tuple[float, float]:
        """Share of the last second in which a chunk was on the wire, and bits/s sent in it."""
        self._forget(now)
        since = now - 1.0
        busy, sent = 0.0, 0.0
        for start, end, size in self._busy:
            inside = min(end, now) - max(start, since)
            busy += max(inside, 0.0)
            sent += size * (inside / (end - start) if end > start else 1.0)
        if self._head is not None:
            busy += max(now - max(self._head[3], since), 0.0)
        return min(busy, 1.0), 8.0 * max(sent, 0.0)

    def state(self, now: float) -> dict[str, Any]:
        """The link as the control API shows it.

        ``utilisation`` is the share of the last second in which a chunk was on the wire,
        ``throughput_bps`` what left in that second, ``flows`` the streams that have bytes waiting.
        """
        utilisation, throughput = self.last_second(now)
        return {
            **super().state(now),
            "backlog_bytes": self.backlog,
            "in_flight_bytes": self.in_flight,
            "delivered_bytes": self.delivered,
            "utilisation": utilisation,
            "throughput_bps": throughput,
            "flows": self.flows(),
        }

    def flows(self) -> int:
        """How many streams have bytes waiting."""
        head = self._head
        return sum(1 for *_, s in self._turns if s.queued) + (
            1 if head is not None and not head[0].waiting else 0
        )

    def _start(self, stage: LinkStage, now: float) -> None:
        stage.waiting = False
        if not stage.queue:
            return
        if not stage.may_send():
            stage.blocked = True
            return
        unlimited = self.link.capacity.unlimited
        parts, size, since = stage.take(BULK_BYTES if unlimited else CHUNK_BYTES)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        stage.in_flight += size
        stage.tag = self._virtual + size
        since = max(since, stage.ready_since)
        start = max(self.link.free, since)
        passage = self.link.depart(size, now, since=since)
        self._head = (stage, data, size, start, passage)
        if stage.queue:
            self.join(stage)
        # The queue is shorter now, so the stage before may continue.
        if stage.previous is not None:
            stage.previous.unblock(now)
        else:
            stage.path.check_source()

    def _finish(self, now: float) -> None:
        assert self._head is not None
        stage, data, size, start, passage = self._head
        self._head = None
        self.backlog -= size
        self.in_flight += size
        self.sent += size
        self._note(start, passage.departure, size)
        if passage.reset and not stage.path.closed:
            stage.in_flight -= size
            self.in_flight -= size
            stage.path.on_reset()
        else:
            stage.leave(data, passage.delivery, now)

    def _due(self, now: float) -> None:
        self._timer = None
        if self._head is not None and self._head[4].departure <= now:
            self._finish(now)
        self.serve(now)

    def settle(self, now: float) -> None:
        if self._head is not None and self._head[4].departure <= now:
            self._finish(now)
        self.serve(now)

    def revise(self, passage: Passage | None, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._head is not None and passage is not None:
            self._head = (*self._head[:4], passage)
            if passage.departure <= now:
                self._finish(now)
        self.serve(now)

    def _note(self, start: float, end: float, size: int) -> None:
        self._busy.append((start, end, size))
        self._forget(end)

    def _forget(self, now: float) -> None:
        while self._busy and self._busy[0][1] < now - 1.0:
            self._busy.popleft()
