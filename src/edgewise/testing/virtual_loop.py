"""An event loop on virtual time: when nothing is ready, time jumps to the next timer.

Code that only sleeps, sets timers and awaits runs unchanged, an hour of it in milliseconds, and the
clock shows exactly the time a timer was set for. looptime 0.9 was not precise enough for comparing
two worlds to 1e-9 s: it counts time in ticks (1 µs by default) and runs 42 empty cycles before
every jump.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from edgewise.live.clock import wake

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is set: every task waits for another one, for ever."""


class _JumpSelector(selectors.SelectSelector):
    """Moves the loop's time forward instead of waiting."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise Deadlock("nothing is ready and no timer is set")
        self.loop.jump()
        return ready


class Timer(asyncio.TimerHandle):
    """Timers due at the same time fire in the order in which they were set, as the simulator's
    events do; a heap alone does not order equals."""

    __slots__ = ("number",)
    number: int

    def __lt__(self, other: Any) -> bool:
        return (self.when(), self.number) < (other.when(), other.number)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time starts at 0 and jumps; for code without sockets and threads.

    Use it through `run_virtual`, or as the ``loop_factory`` of an ``asyncio.Runner``. Running it
    raises `Deadlock` when nothing can ever happen again.
    """

    timer: type[Timer] = Timer
    """What `call_at` makes."""

    def __init__(self) -> None:
        selector = _JumpSelector()
        selector.loop = self
        self._now = 0.0
        self._numbers = itertools.count()
        super().__init__(selector)
        # Timers closer together than this fire together; a real loop has the clock's 1 ns. It must
        # be above 0, or a timer that is due would not count as due.
        self._clock_resolution = 1e-12

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = self.timer(when, callback, args, self, context)
        timer.number = next(self._numbers)
        timer._scheduled = True  # type: ignore[attr-defined]
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        return timer

    def jump(self) -> None:
        """Move time to the next timer."""
        scheduled: list[Any] = self._scheduled  # type: ignore[attr-defined]
        # A plain float: without numba, times computed from arrays are numpy scalars.
        self._now = max(self._now, float(scheduled[0].when()))
        # Adding it to the time must make a difference, or the timer never counts as due.
        self._clock_resolution = max(1e-12, math.ulp(self._now))


def run_virtual(main: Coroutine[Any, Any, T], loop: Callable[[], VirtualLoop] = VirtualLoop) -> T:
    """Run a coroutine on virtual time, as ``asyncio.run`` does on real time; returns its result.

    `loop` makes the event loop. Raises Deadlock, and whatever `main` raises.
    """
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main)


async def sleep_until(when: float) -> None:
    """Sleep until the running loop's time is `when` (s), exactly: durations would be rounded."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    timer = loop.call_at(when, wake, future)
    try:
        await future
    finally:
        timer.cancel()
