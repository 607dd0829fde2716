"""A server's queue and its workers.

Theory of operation
-------------------
A request takes a ticket (`WorkerQueue.enter`) when its headers are in, long before it can run.
When its photo is there it waits for a worker (`WorkerQueue.run`): a photo still on its way must not
block one, and only what waits for a worker counts against the limit, for the rest may be on its way
to another server. A free worker takes the one of earliest deadline (with *fifo* the first that
could run). A job that preprocesses a payload for a transfer is *urgent* and goes
before all others, for another server waits for it.

Both are safe under cancellation: however a request ends (answered, timed out, its client gone), its
place and its waiting job go with it. A job that runs already keeps its worker until it is through,
for a thread cannot be stopped; only its result is dropped.

What may never happen: a job run twice; a worker idle while a job could run.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal, TypeVar

from edgewise.domain import QueueItem
from edgewise.errors import EdgewiseError
from edgewise.fleet.report_timing import busy_share
from edgewise.live.clock import Clock

T = TypeVar("T")


HELD = 8
"""Times the limit of a queue that requests may be held in all, bodies that are still coming in
included: what bounds the memory they take."""


class QueueFull(EdgewiseError):
    """No more requests may wait; answered as shed."""


class RequestExpired(EdgewiseError):
    """A request can no longer score; answered with 504."""


class QueueTicket:
    """What a waiting request holds."""

    def __init__(self, places: set[QueueTicket]) -> None:
        self._places = places
        places.add(self)

    def leave(self) -> None:
        """It runs, or goes elsewhere: it waits here no more. May be called again."""
        self._places.discard(self)


class _Job:
    def __init__(
        self, action: Callable[[], Awaitable[Any]], work: float, deadline: float, dead: float
    ) -> None:
        self.action, self.work, self.deadline, self.dead = action, work, deadline, dead
        self.urgent = False
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class WorkerQueue:
    """Requests that wait, and the workers that run them.

    Parameters
    ----------
    workers:
        How many jobs run at a time.
    limit:
        How many requests may wait for a worker. `HELD` times as many may have a place.
    changed:
        Called after every change of what could run or runs.
    """

    def __init__(
        self,
        clock: Clock,
        workers: int,
        limit: int,
        discipline: Literal["edf", "fifo"] = "edf",
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.clock = clock
        self.workers = workers
        self.limit = limit
        self._edf = discipline == "edf"
        self._changed = changed
        self._places: set[QueueTicket] = set()
        self._numbers = itertools.count()
        self._heap: list[tuple[float, int, _Job]] = []
        self._running: dict[_Job, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy = 0.0
        self._busy_at = clock.now()

    @contextmanager
    def enter(self) -> Iterator[QueueTicket]:
        """Wait from now on. Raises QueueFull."""
        if len(self._places) >= HELD * self.limit:
            raise QueueFull(f"{HELD * self.limit} requests are here already")
        place = QueueTicket(self._places)
        try:
            yield place
        finally:
            place.leave()

    async def run(
        self,
        action: Callable[[], Awaitable[T]],
        work: float,
        deadline: float,
        dead: float = math.inf,
        urgent: bool = False,
    ) -> T:
        """Run `action` on a worker as soon as the order allows; returns what it returns.

        `work` s it is expected to take; `deadline` absolute, what the queue is ordered by; `dead`
        absolute: if no worker has taken it by then it never runs, and Expired is raised. Raises
        QueueFull, unless it is `urgent`.
        """
        if not urgent and not self.idle and self._ordinary >= self.limit:
            raise QueueFull(f"{self.limit} requests wait already")
        job = _Job(action, work, deadline, dead)
        job.urgent = urgent
        number = next(self._numbers)
        key = -math.inf if urgent else deadline if self._edf else float(number)
        heapq.heappush(self._heap, (key, number, job))
        self._start()
        self._changed()
        try:
            return await job.future  # type: ignore[no-any-return]
        finally:
            if any(entry[2] is job for entry in self._heap):  # cancelled while it waited
                self._heap = [entry for entry in self._heap if entry[2] is not job]
                heapq.heapify(self._heap)
                self._changed()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """On leaving, what still runs is cancelled and waited for."""
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self) -> None:
        """Give free workers what they can run."""
        while self._heap and len(self._running) < self.workers:
            job = heapq.heappop(self._heap)[2]
            if job.future.done():  # cancelled, and about to say so
                continue
            now = self.clock.now()
            if now >= job.dead:
                job.future.set_exception(RequestExpired("it waited until it could no longer score"))
                continue
            self._count_busy(now)
            self._running[job] = now
            task = asyncio.get_running_loop().create_task(self._work(job))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, job: _Job) -> None:
        # The next one starts before this one's answer is written: a worker does not wait for that.
        try:
            result = await job.action()
        except asyncio.CancelledError:
            self._through(job)
            job.future.cancel()
            raise
        except Exception as error:
            self._through(job)
            if not job.future.done():  # whoever waits for the job gets it
                job.future.set_exception(error)
        else:
            self._through(job)
            if not job.future.done():
                job.future.set_result(result)
        self._changed()

    def _through(self, job: _Job) -> None:
        self._count_busy(self.clock.now())
        del self._running[job]
        self._start()

    def _count_busy(self, now: float) -> None:
        busy = len(self._running) / self.workers
        self._busy = busy_share(self._busy, busy, now - self._busy_at)
        self._busy_at = now

    # -- what the monitor reads -----------------------------------------------------------------

    @property
    def size(self) -> int:
        """Requests that wait, those whose photo is not in included."""
        return len(self._places)

    @property
    def busy(self) -> int:
        """Workers that run something."""
        return len(self._running)

    @property
    def _ordinary(self) -> int:
        return sum(not job.urgent and not job.future.done() for _, _, job in self._heap)

    @property
    def idle(self) -> bool:
        """Whether a worker has nothing to do."""
        return len(self._running) < self.workers

    def running(self, now: float) -> tuple[float, ...]:
        """What is left of each running job, s. One that takes longer than expected has 0 left."""
        return tuple(max(0.0, at + job.work - now) for job, at in self._running.items())

    def waiting(self) -> tuple[QueueItem, ...]:
        """Jobs that could run if a worker were free, but for urgent ones."""
        return tuple(
            QueueItem(deadline=job.deadline, work=job.work)
            for _, _, job in self._heap
            if not job.urgent
        )

    def urgent_work(self) -> float:
        """s of a worker that waiting urgent jobs will take."""
        return sum(job.work for _, _, job in self._heap if job.urgent)

    def backlog(self, now: float) -> float:
        """s until the workers are through with all that can run, shared evenly."""
        work = sum(job.work for _, _, job in self._heap) + sum(self.running(now))
        return work / self.workers

    def wait(self, deadline: float, now: float) -> float:
        """s until a job of that deadline would be taken, if it could run now and none came after;
        the work ahead of it shared evenly."""
        ahead = sum(
            job.work
            for _, _, job in self._heap
            if job.urgent or not self._edf or job.deadline <= deadline
        )
        return (ahead + sum(self.running(now))) / self.workers

    def utilisation(self, now: float) -> float:
        """Share of the workers that was busy over about a second, 0–1."""
        self._count_busy(now)
        return min(1.0, max(0.0, self._busy))
