"""The pre-processing stage: photos made ready for another server's model, off the event loop.

It has a queue of its own in the reports (`backlog`), wherever its CPU time comes from: *workers* is
the workers' most urgent job, *own* is a core to itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Literal, Protocol

from edgewise.live.clock import Clock
from edgewise.live.node.executor import Slowdown
from edgewise.live.node.worker_queue import WorkerQueue
from edgewise.tasks.task import Task


class PayloadMaker(Protocol):
    async def make(self, photo: bytes, size: int) -> bytes:
        """The model-ready form for a model of input `size`. Raises ImagesError."""
        ...


class PhotoMaker:
    """Crops, resizes and re-encodes in a thread; `speed` < 1 emulates a weaker machine."""

    def __init__(self, task: Task, threads: ThreadPoolExecutor, speed: float, clock: Clock) -> None:
        self._task, self._threads, self._clock = task, threads, clock
        self._speed = min(1.0, speed)

    async def make(self, photo: bytes, size: int) -> bytes:
        start = self._clock.now()
        loop = asyncio.get_running_loop()
        ready, cpu = await loop.run_in_executor(self._threads, self._convert, photo, size)
        await self._clock.sleep_until(start + cpu / self._speed)
        return ready

    def _convert(self, photo: bytes, size: int) -> tuple[bytes, float]:
        """The model-ready form, and the s of CPU that it took."""
        start = time.thread_time()
        ready = self._task.convert(photo, size)
        return ready, time.thread_time() - start


class ReplayMaker:
    """Takes as long as was measured and yields as many bytes as expected."""

    def __init__(self, task: Task, seconds: float, clock: Clock) -> None:
        self._task, self._seconds, self._clock = task, seconds, clock

    async def make(self, photo: bytes, size: int) -> bytes:
        await self._clock.sleep_until(self._clock.now() + self._seconds)
        return bytes(self._task.ready_bytes(size))


class SlowedMaker:
    """Another maker that takes longer by what `drag` says when it starts."""

    def __init__(self, inner: PayloadMaker, drag: Slowdown) -> None:
        self._inner, self._drag = inner, drag

    async def make(self, photo: bytes, size: int) -> bytes:
        async with self._drag.slowed():
            return await self._inner.make(photo, size)


class Converter:
    """The stage of one server.

    Parameters
    ----------
    seconds:
        Of CPU that a conversion takes on this server, as the scenario says; what was measured
        replaces it.
    on:
        Where the CPU is from. With *workers* it is `queue`'s.
    """

    def __init__(
        self,
        maker: PayloadMaker,
        clock: Clock,
        queue: WorkerQueue,
        seconds: float,
        on: Literal["workers", "own"],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._maker = maker
        self._clock = clock
        self._own = on == "own"
        # A core of its own takes them as they come: each waits for exactly those before it, which
        # is what the balancer predicts.
        self._queue = WorkerQueue(clock, 1, 2**31, "fifo", changed) if self._own else queue
        self.seconds = seconds

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """On leaving, what still runs on a core of its own is cancelled and waited for."""
        if not self._own:
            yield
            return
        async with self._queue.at_work():
            yield

    async def make(self, photo: bytes, size: int, deadline: float, dead: float) -> bytes:
        """Wait for the stage, then convert. Raises ImagesError, Expired."""

        async def action() -> bytes:
            start = self._clock.now()
            ready = await self._maker.make(photo, size)
            # A fifth of the news: photos differ by a factor of three in size.
            self.seconds += 0.2 * (self._clock.now() - start - self.seconds)
            return ready

        return await self._queue.run(action, self.seconds, deadline, dead, urgent=not self._own)

    def backlog(self, now: float) -> float:
        """s of CPU that wait here. With *workers* a conversion that runs is among their jobs."""
        if not self._own:
            return self._queue.urgent_work()
        return self._queue.backlog(now)

    def apart(self, now: float) -> float:
        """s of CPU that wait or run on a core of its own; with *workers* 0: it is in theirs."""
        return self._queue.backlog(now) if self._own else 0.0
