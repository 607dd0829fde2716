"""An event loop whose time jumps to the next timer when nothing is ready.

looptime 0.9 was looked at first. It counts time in ticks (1 µs by default) and runs 42 empty cycles
before every jump; here two worlds are compared to 1e-9 s, so time has to be exactly what the
timer asked for.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import selectors
from collections.abc import Callable
from contextvars import Context
from typing import Any

from edgewise.live.clock import wake


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is set: everybody waits for somebody else, for ever."""


class _Jump(selectors.SelectSelector):
    """Instead of waiting, moves the loop's time."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise Deadlock("a deadlock: nothing is ready, and no timer is set")
        self.loop.jump()
        return ready


class _Timer(asyncio.TimerHandle):
    """Of those due at one moment the one that was set first goes first, as the simulator's events
    do; a heap alone knows no order among equals."""

    __slots__ = ("number",)
    number: int

    def __lt__(self, other: Any) -> bool:
        return (self.when(), self.number) < (other.when(), other.number)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time, from 0 on; for code without sockets and threads.

    Raises Idle out of ``run_until_complete`` in a deadlock.
    """

    def __init__(self) -> None:
        selector = _Jump()
        selector.loop = self
        self._now = 0.0
        self._numbers = itertools.count()
        super().__init__(selector)
        # Timers closer than this fire together; a real loop has the clock's 1 ns. It must be above
        # 0, or a timer that is due would not count as due.
        self._clock_resolution = 1e-12

    def time(self) -> float:
        return self._now

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        timer.number = next(self._numbers)
        timer._scheduled = True  # type: ignore[attr-defined]
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        return timer

    def jump(self) -> None:
        """Be at the next timer."""
        scheduled: list[Any] = self._scheduled  # type: ignore[attr-defined]
        self._now = max(self._now, scheduled[0].when())
        # It must make a difference when added to the time, or the timer never counts as due.
        self._clock_resolution = max(1e-12, math.ulp(self._now))


async def until(when: float) -> None:
    """Wait for a moment of the running loop; exactly, where a sum of durations would round."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    timer = loop.call_at(when, wake, future)
    try:
        await future
    finally:
        timer.cancel()
