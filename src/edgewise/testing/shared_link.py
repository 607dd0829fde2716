"""A link that its flows share equally, on an event loop's time.

Why not the relay's `Shaper`: it sends 16 KiB at a time, so a flow is up to one chunk per concurrent
flow early or late against equal sharing (at 8 Mbit/s and four flows 66 ms), and decisions that rest
on measured rates would follow. The arithmetic of capacity is the relay's and the simulator's own
(`network.capacity`), the sharing is by virtual time as `sim.links` explains it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools

import msgspec

from edgewise.network.capacity import Capacity, bytes_between, time_to_send
from edgewise.network.link import Link, LinkSettings

SAME_BYTES = 1e-6
"""What is left of a flow and less than this is rounding."""


class SharedLink:
    """A link at work.

    Parameters
    ----------
    settings:
        Capacity and delay; jitter and loss are not carried.
    outages:
        (start, end), s on the link's own time, which begins at `origin` of the loop's.
    """

    def __init__(
        self, settings: LinkSettings, outages: list[tuple[float, float]], origin: float
    ) -> None:
        if settings.jitter > 0.0 or settings.loss > 0.0:
            raise ValueError("a link with jitter or loss: their luck is not shared between worlds")
        self.delay = settings.delay
        self._link = Link(settings, outages=outages, origin=origin)
        self._arrays = self._link.arrays()
        self._origin = origin
        self._served = 0.0
        self._at = 0.0
        self._numbers = itertools.count()
        self._flows: list[tuple[float, int, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def cross(self, size: float) -> float:
        """Wait until `size` bytes that begin now have left, and say when that was (loop time, s);
        being cancelled frees the share."""
        loop = asyncio.get_running_loop()
        if self._unlimited and not len(self._arrays.outages):
            return loop.time()
        self._bring_up(loop.time())
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
                self._bring_up(loop.time())
                self._flows.remove(flow)
                heapq.heapify(self._flows)
                self._schedule(loop)

    def change(self, capacity: Capacity) -> None:
        """Carry so much from now on; what has left has left."""
        loop = asyncio.get_running_loop()
        self._bring_up(loop.time())
        self._link.change(
            loop.time(), msgspec.structs.replace(self._link.settings, capacity=capacity)
        )
        self._arrays = self._link.arrays()
        self._schedule(loop)

    def rate(self, now: float) -> float:
        """bytes/s at `now`; inf = unlimited."""
        return self._link.rate_bps(now) / 8.0

    def backlog(self, now: float) -> float:
        """Bytes of flows that have not left by `now`."""
        self._bring_up(now)
        return sum(max(0.0, tag - self._served) for tag, _, _ in self._flows)

    @property
    def _unlimited(self) -> bool:
        return self._link.settings.capacity.unlimited

    def _bring_up(self, now: float) -> None:
        # What is on an unlimited link waits for the end of an outage, and then leaves at once.
        if self._flows and now > self._at and not self._unlimited:
            since, till = self._at - self._origin, now - self._origin
            self._served += bytes_between(*self._arrays, since, till) / len(self._flows)
        self._at = now

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flows:
            left = max(0.0, self._flows[0][0] - self._served) * len(self._flows)
            at = time_to_send(*self._arrays, self._at - self._origin, left)
            self._timer = loop.call_at(self._origin + at, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        self._bring_up(now)
        while self._flows:
            left = max(0.0, self._flows[0][0] - self._served) * len(self._flows)
            across = self._origin + time_to_send(*self._arrays, now - self._origin, left)
            if left > SAME_BYTES and across > now:
                break
            done = heapq.heappop(self._flows)[2]
            if not done.done():
                done.set_result(None)
        self._schedule(loop)
