"""The converter: makes photos model-ready for another server, off the event loop.

Its backlog is reported apart from the workers' (`Converter.backlog`), wherever its CPU time comes
from: with *workers* a conversion is the workers' most urgent job, with *own* it has a core to
itself.
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
        """Make a photo ready for a model of input `size`. Raises ImagesError."""
        ...


class PhotoMaker:
    """Crops, resizes and re-encodes in a thread; a `speed` below 1 emulates a weaker machine."""

    def __init__(self, task: Task, threads: ThreadPoolExecutor, speed: float, clock: Clock) -> None:
        self._task, self._threads, self._clock = task, threads, clock
        self._speed = min(1.0, speed)

    async def make(self, photo: bytes, size: int) -> bytes:
        start = self._clock.now()
        loop = asyncio.get_running_loop()
        ready, cpu = await loop.run_in_executor(self._threads, self._make_timed, photo, size)
        await self._clock.sleep_until(start + cpu / self._speed)
        return ready

    def _make_timed(self, photo: bytes, size: int) -> tuple[bytes, float]:
        """The model-ready form, and the CPU seconds that it took."""
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


class Converter:
    """The converter of one server.

    Parameters
    ----------
    seconds:
        CPU time of a conversion on this server, as the scenario says. Measurements replace it.
    on:
        Where the CPU time comes from; *workers* are those of `queue`.
    slowdown:
        The slow spells of this server, which conversions go through as well.
    changed:
        Called after every change of a queue of its own.
    """

    def __init__(
        self,
        maker: PayloadMaker,
        clock: Clock,
        queue: WorkerQueue,
        seconds: float,
        on: Literal["workers", "own"],
        slowdown: Slowdown | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._maker = maker
        self._clock = clock
        self._slowdown = Slowdown(clock) if slowdown is None else slowdown
        self._own = on == "own"
        # A core of its own runs them in the order of arrival: each waits for exactly those before
        # it, which is what the balancer predicts.
        self._queue = WorkerQueue(clock, 1, 2**31, "fifo", changed) if self._own else queue
        self.seconds = seconds

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """On leaving, cancel what still runs on a core of its own, and wait for it."""
        if not self._own:
            yield
            return
        async with self._queue.running_jobs():
            yield

    async def convert(self, photo: bytes, size: int, deadline: float, worthless_at: float) -> bytes:
        """Wait for CPU time, then convert. Raises ImagesError, RequestExpired."""

        async def action() -> bytes:
            start = self._clock.now()
            async with self._slowdown.slowed():
                ready = await self._maker.make(photo, size)
            # A weight of a fifth: photos differ by a factor of three in size.
            self.seconds += 0.2 * (self._clock.now() - start - self.seconds)
            return ready

        return await self._queue.run(
            action, self.seconds, deadline, worthless_at, urgent=not self._own
        )

    def backlog(self, now: float) -> float:
        """CPU seconds of conversions that wait, and of running ones on a core of its own.

        With *workers* a conversion that runs is among the workers' jobs.
        """
        if not self._own:
            return self._queue.urgent_work()
        return self._queue.backlog(now)

    def backlog_apart(self, now: float) -> float:
        """CPU seconds that wait or run on a core of its own; 0 with *workers*."""
        return self._queue.backlog(now) if self._own else 0.0
