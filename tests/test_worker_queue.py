"""A node's queue, converter and reports, on a clock that a test moves by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest

from edgewise.domain import QueueItem, Service
from edgewise.errors import ImagesError
from edgewise.live.clock import Clock
from edgewise.live.node.converter import Converter
from edgewise.live.node.monitor import Monitor
from edgewise.live.node.reporter import Reporter
from edgewise.live.node.worker_queue import (
    TICKETS_PER_PLACE,
    QueueFull,
    RequestExpired,
    WorkerQueue,
)


class Time:
    def __init__(self) -> None:
        self.at = 100.0
        self.clock = Clock(lambda: self.at, epoch=100.0)


@pytest.fixture
def time() -> Time:
    return Time()


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


class Bench:
    """A queue whose jobs end when the test says so."""

    def __init__(self, queue: WorkerQueue) -> None:
        self.queue = queue
        self.started: list[str] = []
        self._ends: dict[str, asyncio.Future[str]] = {}
        self.tasks: dict[str, asyncio.Task[str]] = {}

    def add(
        self,
        name: str,
        deadline: float,
        work: float = 0.010,
        worthless_at: float = 1e9,
        urgent: bool = False,
    ) -> None:
        self._ends[name] = asyncio.get_running_loop().create_future()

        async def action() -> str:
            self.started.append(name)
            return await self._ends[name]

        self.tasks[name] = asyncio.create_task(
            self.queue.run(action, work, deadline, worthless_at, urgent)
        )

    async def end(self, name: str) -> str:
        self._ends[name].set_result(name)
        result = await self.tasks.pop(name)
        await settle()
        return result


async def bench_of(time: Time, workers: int = 1, discipline: str = "edf") -> Bench:
    return Bench(WorkerQueue(time.clock, workers, 4, discipline))  # type: ignore[arg-type]


@pytest.fixture
async def bench(time: Time) -> AsyncIterator[Bench]:
    bench = await bench_of(time)
    async with bench.queue.running_jobs():
        yield bench
    assert bench.queue.busy == 0
    assert bench.queue.waiting() == ()
    for task in bench.tasks.values():
        task.cancel()
    await asyncio.gather(*bench.tasks.values(), return_exceptions=True)


async def test_earliest_deadline_first(bench: Bench) -> None:
    for name, deadline in (("first", 9.0), ("late", 8.0), ("soon", 3.0), ("next", 4.0)):
        bench.add(name, deadline)
        await settle()
    bench.add("urgent", 99.0, urgent=True)
    await settle()
    assert bench.started == ["first"]
    for name in ("first", "urgent", "soon", "next", "late"):
        assert bench.started[-1] == name
        assert await bench.end(name) == name


async def test_the_next_job_starts_before_the_last_answer_is_written(bench: Bench) -> None:
    done = asyncio.Event()
    started_by_then: list[str] = []

    async def answered() -> None:
        await bench.queue.run(done.wait, 0.1, 5.0)
        started_by_then.extend(bench.started)

    answer = asyncio.create_task(answered())
    await settle()
    bench.add("next", 9.0)
    await settle()
    assert bench.started == []
    done.set()
    await answer
    assert started_by_then == ["next"]
    await bench.end("next")


async def test_fifo_and_two_workers(time: Time) -> None:
    bench = await bench_of(time, 2, "fifo")
    for name, deadline in (("a", 9.0), ("b", 8.0), ("c", 7.0), ("d", 1.0)):
        bench.add(name, deadline)
        await settle()
    assert bench.started == ["a", "b"]
    await bench.end("b")
    assert bench.started == ["a", "b", "c"]
    await bench.end("a")
    assert bench.started == ["a", "b", "c", "d"]
    await bench.end("c")
    await bench.end("d")


async def test_a_job_that_waited_too_long_never_runs(bench: Bench, time: Time) -> None:
    bench.add("running", 200.0)
    bench.add("dead", 101.0, worthless_at=102.0)
    bench.add("alive", 103.0, worthless_at=105.0)
    await settle()
    time.at = 102.0
    await bench.end("running")
    assert bench.started == ["running", "alive"]
    with pytest.raises(RequestExpired):
        await bench.tasks.pop("dead")
    await bench.end("alive")


async def test_a_cancelled_job_leaves_the_queue(bench: Bench) -> None:
    bench.add("running", 1.0)
    bench.add("gone", 2.0)
    await settle()
    task = bench.tasks.pop("gone")
    task.cancel()
    await settle()
    assert bench.queue.waiting() == ()
    await bench.end("running")
    assert bench.started == ["running"]


async def test_a_cancelled_running_job_keeps_its_worker(bench: Bench) -> None:
    bench.add("running", 1.0)
    bench.add("next", 2.0)
    await settle()
    task = bench.tasks["running"]
    task.cancel()
    await settle()
    assert bench.started == ["running"]
    with pytest.raises(asyncio.CancelledError):
        await bench.end("running")
    await settle()
    assert bench.started == ["running", "next"]
    await bench.end("next")


async def test_a_failing_job_harms_no_other(bench: Bench) -> None:
    async def action() -> None:
        raise ImagesError("broken")

    with pytest.raises(ImagesError):
        await bench.queue.run(action, 0.01, 1.0)
    bench.add("next", 1.0)
    await settle()
    await bench.end("next")


def test_tickets_are_limited(time: Time) -> None:
    queue = WorkerQueue(time.clock, 1, 2)
    with ExitStack() as stack:
        first, *_ = (stack.enter_context(queue.enter()) for _ in range(TICKETS_PER_PLACE * 2))
        with pytest.raises(QueueFull, match="16 requests"), queue.enter():
            pass
        first.leave()
        first.leave()
        with queue.enter():
            assert queue.size == TICKETS_PER_PLACE * 2
    assert queue.size == 0


async def test_only_waiting_jobs_count_against_the_limit(bench: Bench) -> None:
    for name in "abcde":  # one runs
        bench.add(name, 1.0)
        with bench.queue.enter():
            await settle()
    bench.add("urgent", 1.0, urgent=True)
    await settle()
    with pytest.raises(QueueFull, match="4 requests"):
        await bench.queue.run(_nothing, 0.01, 1.0)
    for name in ("a", "urgent"):
        await bench.end(name)
    bench.add("f", 1.0)
    await settle()
    for name in "bcdef":
        await bench.end(name)


async def _nothing() -> None:
    pass


async def test_the_figures_of_the_queue(bench: Bench, time: Time) -> None:
    queue = bench.queue
    bench.add("running", 109.0, work=0.5)
    bench.add("waiting", 103.0, work=0.25)
    bench.add("making", 108.0, work=0.125, urgent=True)
    await settle()
    time.at = 100.2
    assert queue.running(100.2) == pytest.approx((0.3,))
    assert queue.waiting() == (QueueItem(deadline=103.0, work=0.25),)
    assert queue.urgent_work() == 0.125
    assert queue.backlog(100.2) == pytest.approx(0.675)
    assert queue.running(101.0) == (0.0,)
    time.at = 103.0
    assert queue.utilisation(103.0) == pytest.approx(0.950, abs=0.001)
    for name in ("running", "making", "waiting"):
        await bench.end(name)
    time.at = 106.0
    assert queue.utilisation(106.0) == pytest.approx(0.047, abs=0.001)


# -- the report ----------------------------------------------------------------------------------

SERVICE = Service(
    server="me", model="m", accuracy=0.8, latency=(0.020,), ready_saving=0.005, input_size=96
)


class Maker:
    async def make(self, photo: bytes, size: int) -> bytes:
        return photo


def monitor_of(queue: WorkerQueue, shared: bool = True, on: str = "workers") -> Monitor:
    converter = Converter(Maker(), queue.clock, queue, 0.003, on)  # type: ignore[arg-type]
    return Monitor("me", {"m": SERVICE}, ("b", "c"), shared, queue, converter)


async def test_report(bench: Bench, time: Time) -> None:
    monitor = monitor_of(bench.queue)
    bench.add("running", 109.0, work=0.5)
    bench.add("waiting", 103.0, work=0.25)
    bench.add("making", 108.0, work=0.003, urgent=True)
    await settle()
    monitor.rtts["b"].add(0.02, 100.0)
    monitor.seen("").commands = 7
    for dispatch in (1, 2, 4):
        monitor.seen("").arrived(dispatch)
    monitor.seen("b").arrived(1)
    with (
        monitor.links["b"].flow("b", 5000, lambda: 100.0),
        monitor.access.flow("me", 700, lambda: 100.0),
    ):
        report = monitor.report(100.1)
    assert report.at == 100.1
    assert report.running == pytest.approx((0.4,))
    assert report.queue == (QueueItem(deadline=103.0, work=0.25),)
    assert report.prepare_backlog == 0.003
    assert report.services["m"].service_time == 0.020
    assert report.services["m"].served == 0
    assert (report.peers["b"].backlog, report.peers["b"].rtt) == (5000, 0.02)
    assert (report.peers["c"].backlog, report.peers["c"].rtt) == (0, None)
    assert report.peers["me"].backlog == 700
    assert (report.commands_seen, report.arrivals_low, report.arrivals_bits) == (7, 2, 0b10)
    other = monitor.report(100.1, "b")
    assert (other.commands_seen, other.arrivals_low, other.arrivals_bits) == (0, 1, 0)
    assert monitor.report(100.1, "nobody").arrivals_low == 0
    for name in ("running", "making", "waiting"):
        await bench.end(name)


def test_peers_behind_one_uplink_share_its_rate(time: Time) -> None:
    shared = monitor_of(WorkerQueue(time.clock, 1, 9))
    shared.links["b"].measured(1e5, 0.1, 1.0, 9.0)
    assert shared.report(10.0).peers["c"].throughput == pytest.approx(1e6)
    apart = monitor_of(WorkerQueue(time.clock, 1, 9), shared=False)
    apart.links["b"].measured(1e5, 0.1, 1.0, 9.0)
    assert apart.report(10.0).peers["c"].throughput is None


def test_service_time_is_that_of_originals(time: Time) -> None:
    """The belief subtracts the saving of model-ready payloads, so it must still be included."""
    monitor = monitor_of(WorkerQueue(time.clock, 1, 9))
    assert monitor.work("m", ready=False) == 0.020
    monitor.ran("m", 0.030, ready=False, now=1.0)
    assert monitor.report(1.0).services["m"].service_time == pytest.approx(0.030)
    monitor.ran("m", 0.025, ready=True, now=1.1)
    assert monitor.report(1.0).services["m"].service_time == pytest.approx(0.030)
    assert monitor.work("m", ready=True) == pytest.approx(0.025)
    monitor.ran("m", 0.040, ready=False, now=1.2)
    assert monitor.report(1.0).services["m"].service_time == pytest.approx(0.032)
    assert monitor.report(1.0).services["m"].served == 3


async def test_a_converter_with_a_core_of_its_own_has_its_own_backlog(time: Time) -> None:
    queue = WorkerQueue(time.clock, 1, 9)
    release = asyncio.Event()

    class Waiting:
        async def make(self, photo: bytes, size: int) -> bytes:
            await release.wait()
            return photo * 2

    converter = Converter(Waiting(), time.clock, queue, 0.003, "own")
    tasks = [asyncio.create_task(converter.convert(b"a", 96, 200.0, 300.0)) for _ in range(3)]
    await settle()
    assert queue.busy == 0
    assert converter.backlog(100.0) == pytest.approx(0.009)
    time.at = 100.001
    assert converter.backlog(100.001) == pytest.approx(0.008)
    release.set()
    assert await asyncio.gather(*tasks) == [b"aa"] * 3
    assert converter.backlog(100.001) == 0.0


async def test_a_converter_on_the_workers_takes_one(bench: Bench, time: Time) -> None:
    converter = Converter(Maker(), time.clock, bench.queue, 0.003, "workers")
    bench.add("running", 109.0)
    bench.add("waiting", 101.0)
    await settle()
    task = asyncio.create_task(converter.convert(b"a", 96, 200.0, 300.0))
    await settle()
    assert not task.done()
    assert converter.backlog(100.0) == 0.003
    await bench.end("running")
    assert await task == b"a"  # before the one that waited longer
    await settle()
    await bench.end("waiting")


async def test_jumps_are_reported_at_once_and_drains_are_not(bench: Bench, time: Time) -> None:
    monitor = monitor_of(bench.queue)
    reporter = Reporter(monitor, time.clock, 0.1, lambda report: None)
    reporter.check_backlog()
    assert not reporter.due
    bench.add("small", 109.0, work=0.05)
    await settle()
    reporter.check_backlog()
    assert not reporter.due
    bench.add("large", 109.0, work=0.3)
    await settle()
    reporter.check_backlog()
    assert reporter.due
    for name in ("small", "large"):
        await bench.end(name)
