"""When a node reports: once a period, and at once when its backlog jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edgewise.domain import Report
from edgewise.fleet.report_timing import GAP, jumped
from edgewise.live.clock import Clock
from edgewise.live.node.monitor import Monitor


class Reporter:
    """Calls `send` with a report whenever one is due."""

    def __init__(
        self, monitor: Monitor, clock: Clock, period: float, send: Callable[[Report], None]
    ) -> None:
        self._monitor = monitor
        self._clock = clock
        self._period = period
        self._send = send
        self._last_at = 0.0
        self._last_backlog = 0.0
        self._wanted = asyncio.Event()

    def report_soon(self) -> None:
        """Do not let the next report wait for its period."""
        self._wanted.set()

    def check_backlog(self) -> None:
        """Report soon if the backlog has jumped since the last report."""
        now = self._clock.now()
        backlog = self._monitor.backlog(now)
        if jumped(backlog, self._last_backlog, now - self._last_at, self._period):
            self._wanted.set()

    @property
    def due(self) -> bool:
        """Whether the next report does not wait for its period."""
        return self._wanted.is_set()

    async def run(self) -> None:
        """Report until cancelled; two reports are at least `GAP` of a period apart."""
        while True:
            self._wanted.clear()
            now = self._clock.now()
            self._last_at, self._last_backlog = now, self._monitor.backlog(now)
            self._send(self._monitor.report(now))
            await asyncio.sleep(GAP * self._period)
            try:
                async with asyncio.timeout((1.0 - GAP) * self._period):
                    await self._wanted.wait()
            except TimeoutError:
                pass
