"""A link whose flows share it equally, on an event loop's time.

The relay's `Shaper` would not do: it sends 16 KiB at a time, so a flow ends up to one chunk per
concurrent flow earlier or later than under equal sharing (66 ms at 8 Mbit/s and four flows), and
decisions that rest on measured rates would follow. Capacity is computed as in the relay and the
simulator (`network.capacity`); flows are shared by virtual time, as `sim.links` explains.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools

from edgewise.network.capacity import Capacity
from edgewise.network.impairments import active
from edgewise.network.link import Link
from edgewise.network.settings import LinkSettings
from edgewise.network.transmission import bytes_between, time_to_send
from edgewise.testing.processes import NOBODY

ROUNDING_BYTES = 1e-6
"""A flow with less than this left is done: the rest is rounding."""


class SharedLink:
    """A link that carries any number of flows at a time.

    Parameters
    ----------
    settings:
        Bandwidth, delay and outages. Raises ValueError for impairments: the two worlds would draw
        them differently.
    origin:
        The loop's time at which the link's own time begins, s.
    """

    def __init__(self, settings: LinkSettings, origin: float) -> None:
        if active(settings):
            raise ValueError("a shared link has no impairments")
        self.delay = settings.delay
        self._link = Link(settings, origin=origin)
        self._arrays = self._link.arrays()
        self._origin = origin
        self._served = 0.0  # bytes that each flow has sent since the busy period began
        self._at = 0.0
        self._numbers = itertools.count()
        self._flows: list[tuple[float, int, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def transmit(self, size: float) -> float:
        """Send `size` bytes, starting now; returns the loop's time when the last one has left.

        Cancelling it frees its share.
        """
        loop = asyncio.get_running_loop()
        if self._unlimited and not len(self._arrays.outages):
            return loop.time()
        self._advance(loop.time())
        if not self._flows:  # a new busy period: nothing refers to the old virtual time
            self._served = 0.0
        done: asyncio.Future[None] = loop.create_future()
        flow = (self._served + size, next(self._numbers), done)
        heapq.heappush(self._flows, flow)
        self._schedule(loop)
        try:
            await done
            return loop.time()
        finally:
            if flow in self._flows:
                self._advance(loop.time())
                self._flows.remove(flow)
                heapq.heapify(self._flows)
                self._schedule(loop)

    def leaves_at(self, now: float) -> float:
        """The loop's time at which a message without a payload leaves that is sent `now`: at once,
        or when an outage ends."""
        for begin, end in self._arrays.outages.tolist():
            if begin <= now - self._origin < end:
                now = self._origin + end
        return now

    def change(self, capacity: Capacity) -> None:
        """Use another capacity from now on; bytes that have left are not affected."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._advance(now)
        self._link.change(now, self._link.settings, capacity)
        self._arrays = self._link.arrays()
        self._schedule(loop)

    def rate(self, now: float) -> float:
        """bytes/s at `now`; inf = unlimited."""
        return self._link.rate_bps(now) / 8.0

    def backlog(self, now: float) -> float:
        """Bytes that have not left by `now`, over all flows."""
        self._advance(now)
        return sum(max(0.0, tag - self._served) for tag, _, _ in self._flows)

    @property
    def _unlimited(self) -> bool:
        return self._link.capacity.unlimited

    def _advance(self, now: float) -> None:
        # On an unlimited link, flows wait for the end of an outage and then leave at once.
        if self._flows and now > self._at and not self._unlimited:
            since, till = self._at - self._origin, now - self._origin
            self._served += bytes_between(*self._arrays, since, till) / len(self._flows)
        self._at = now

    def _first_done(self, since: float) -> tuple[float, float]:
        """Bytes that must leave before the first flow is done, and the loop's time when they will
        have, if they start at `since`."""
        left = max(0.0, self._flows[0][0] - self._served) * len(self._flows)
        return left, self._origin + time_to_send(*self._arrays, since - self._origin, left)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flows:
            when = self._first_done(self._at)[1]
            self._timer = loop.call_at(when, self._end_flows, loop, context=NOBODY)

    def _end_flows(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        self._advance(now)
        while self._flows:
            left, at = self._first_done(now)
            if left > ROUNDING_BYTES and at > now:
                break
            done = heapq.heappop(self._flows)[2]
            if not done.done():
                done.set_result(None)
        self._schedule(loop)
