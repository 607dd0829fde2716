"""When a report is due: on its period, and at once when something jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edgewise.domain import Report
from edgewise.live.clock import Clock
from edgewise.live.monitor import Monitor

JUMP_PERIODS = 1.0
"""A backlog that differs by so many report periods' work from what the last report let expect is
news: waiting for the next one would cost a decision about as much."""
GAP = 0.2
"""Of the period between two reports at least: jumps come in bursts."""


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
        expected = max(0.0, self._last_backlog - (now - self._last_at))
        if abs(self._monitor.backlog(now) - expected) > JUMP_PERIODS * self._period:
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
