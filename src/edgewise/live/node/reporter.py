"""Reports as they fall due: on their period, and at once when something jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edgewise.domain import Report
from edgewise.fleet.report_timing import GAP, jumped
from edgewise.live.clock import Clock
from edgewise.live.node.monitor import Monitor


class Reporter:
    """Hands reports to `send`."""

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

    def now(self) -> None:
        """Something happened that must be told."""
        self._wanted.set()

    def look(self) -> None:
        """Something changed; tell it if it is a jump."""
        now = self._clock.now()
        backlog = self._monitor.backlog(now)
        if jumped(backlog, self._last_backlog, now - self._last_at, self._period):
            self._wanted.set()

    @property
    def due(self) -> bool:
        """Whether the next report will not wait for its period."""
        return self._wanted.is_set()

    async def run(self) -> None:
        """Report until cancelled."""
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
