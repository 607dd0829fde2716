"""A server's queue and its workers.

Theory of operation
-------------------
A request takes a ticket (`WorkerQueue.enter`) when its headers are in, long before it can run. When
its photo is in, it waits for a worker (`WorkerQueue.run`). A photo that is still coming must not
block a worker, and only requests that wait for a worker count against the limit, for the others may
go on to another server. A free worker takes the job with the earliest deadline, or with *fifo* the
first that could run. A conversion for a transfer is *urgent* and goes before all others, because
another server waits for it.

Both steps are safe under cancellation. However a request ends (answered, timed out, its client
gone), its ticket and its waiting job go with it. A running job keeps its worker until it is done,
for a thread cannot be stopped; only its result is dropped.

What may never happen: a job runs twice; a worker is idle while a job could run.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal, TypeVar

from msgspec import Struct

from edgewise.domain import QueueItem
from edgewise.errors import EdgewiseError
from edgewise.fleet.report_timing import busy_share
from edgewise.live.clock import Clock

T = TypeVar("T")

TICKETS_PER_PLACE = 8
"""Tickets per place in the queue. They include requests whose bodies are still coming in, so this
bounds the memory that bodies take."""


class QueueFull(EdgewiseError):
    """No more requests may wait; answered as shed."""


class RequestExpired(EdgewiseError):
    """A request can no longer score; answered with 504."""


class QueueTicket:
    """Marks a request that waits at this server."""

    def __init__(self, tickets: set[QueueTicket]) -> None:
        self._tickets = tickets
        tickets.add(self)

    def leave(self) -> None:
        """The request runs or goes elsewhere, and no longer waits here. Idempotent."""
        self._tickets.discard(self)


class _Job(Struct, eq=False):
    action: Callable[[], Awaitable[Any]]
    work: float
    deadline: float
    worthless_at: float
    urgent: bool
    future: asyncio.Future[Any]


class WorkerQueue:
    """Requests that wait, and the workers that run them.

    Parameters
    ----------
    workers:
        Jobs that run at a time.
    limit:
        Requests that may wait for a worker. `TICKETS_PER_PLACE` times as many may hold a ticket.
    changed:
        Called after every change of the waiting or running jobs.
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
        self._tickets: set[QueueTicket] = set()
        self._numbers = itertools.count()
        self._heap: list[tuple[float, int, _Job]] = []
        self._running: dict[_Job, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy = 0.0
        self._busy_at = clock.now()

    @contextmanager
    def enter(self) -> Iterator[QueueTicket]:
        """Hold a ticket. Raises QueueFull."""
        if len(self._tickets) >= TICKETS_PER_PLACE * self.limit:
            raise QueueFull(f"{TICKETS_PER_PLACE * self.limit} requests are here already")
        ticket = QueueTicket(self._tickets)
        try:
            yield ticket
        finally:
            ticket.leave()

    async def run(
        self,
        action: Callable[[], Awaitable[T]],
        work: float,
        deadline: float,
        worthless_at: float = math.inf,
        urgent: bool = False,
    ) -> T:
        """Run `action` on a worker as soon as the order allows, and return what it returns.

        Parameters
        ----------
        work:
            s that it is expected to take.
        deadline:
            Absolute; the queue's order.
        worthless_at:
            Absolute. A job that no worker has taken by then never runs.
        urgent:
            It goes before all others, and the limit does not apply.

        Raises QueueFull, RequestExpired.
        """
        if not urgent and not self.idle and self._ordinary >= self.limit:
            raise QueueFull(f"{self.limit} requests wait already")
        future = asyncio.get_running_loop().create_future()
        job = _Job(action, work, deadline, worthless_at, urgent, future)
        number = next(self._numbers)
        key = -math.inf if urgent else deadline if self._edf else float(number)
        heapq.heappush(self._heap, (key, number, job))
        self._start_jobs()
        self._changed()
        try:
            return await future  # type: ignore[no-any-return]
        finally:
            if any(entry[2] is job for entry in self._heap):  # cancelled while it waited
                self._heap = [entry for entry in self._heap if entry[2] is not job]
                heapq.heapify(self._heap)
                self._changed()

    @asynccontextmanager
    async def running_jobs(self) -> AsyncIterator[None]:
        """On leaving, cancel the jobs that still run, and wait for them."""
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start_jobs(self) -> None:
        """Give every free worker a job."""
        while self._heap and len(self._running) < self.workers:
            job = heapq.heappop(self._heap)[2]
            if job.future.done():  # cancelled; `run` has not noticed yet
                continue
            now = self.clock.now()
            if now >= job.worthless_at:
                job.future.set_exception(RequestExpired("it waited until it could no longer score"))
                continue
            self._count_busy(now)
            self._running[job] = now
            task = asyncio.get_running_loop().create_task(self._work(job))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, job: _Job) -> None:
        # The worker takes its next job before this one's answer is written.
        try:
            result = await job.action()
        except asyncio.CancelledError:
            self._done(job)
            job.future.cancel()
            raise
        except Exception as error:
            self._done(job)
            if not job.future.done():  # `run` raises it
                job.future.set_exception(error)
        else:
            self._done(job)
            if not job.future.done():
                job.future.set_result(result)
        self._changed()

    def _done(self, job: _Job) -> None:
        self._count_busy(self.clock.now())
        del self._running[job]
        self._start_jobs()

    def _count_busy(self, now: float) -> None:
        busy = len(self._running) / self.workers
        self._busy = busy_share(self._busy, busy, now - self._busy_at)
        self._busy_at = now

    # -- what the monitor reads ------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Requests that wait, including those whose photo is still coming in."""
        return len(self._tickets)

    @property
    def busy(self) -> int:
        """Workers that run a job."""
        return len(self._running)

    @property
    def _ordinary(self) -> int:
        return sum(not job.urgent and not job.future.done() for _, _, job in self._heap)

    @property
    def idle(self) -> bool:
        """Whether a worker has nothing to do."""
        return len(self._running) < self.workers

    def running(self, now: float) -> tuple[float, ...]:
        """Expected rest of each running job, s; 0 for one that takes longer than expected."""
        return tuple(max(0.0, at + job.work - now) for job, at in self._running.items())

    def waiting(self) -> tuple[QueueItem, ...]:
        """The jobs that wait for a worker, without the urgent ones."""
        return tuple(
            QueueItem(deadline=job.deadline, work=job.work)
            for _, _, job in self._heap
            if not job.urgent
        )

    def urgent_work(self) -> float:
        """s of a worker that the waiting urgent jobs will take."""
        return sum(job.work for _, _, job in self._heap if job.urgent)

    def backlog(self, now: float) -> float:
        """s until the workers are done with all that could run, shared evenly among them."""
        work = sum(job.work for _, _, job in self._heap) + sum(self.running(now))
        return work / self.workers

    def wait(self, deadline: float, now: float) -> float:
        """s until a worker would take a job of that deadline that could run now.

        The work ahead of it is shared evenly among the workers; nothing comes after it.
        """
        ahead = sum(
            job.work
            for _, _, job in self._heap
            if job.urgent or not self._edf or job.deadline <= deadline
        )
        return (ahead + sum(self.running(now))) / self.workers

    def utilisation(self, now: float) -> float:
        """Share of the workers that was busy over about the last second, 0–1."""
        self._count_busy(now)
        return min(1.0, max(0.0, self._busy))
