"""Queue, links, converter and report, on a clock that stands until it is moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest

from edgewise.domain import QueueItem, Service
from edgewise.errors import ImagesError
from edgewise.live.clock import Clock
from edgewise.live.node.converter import Converter
from edgewise.live.node.measured_links import MeasuredLink
from edgewise.live.node.monitor import Monitor
from edgewise.live.node.reporter import Reporter
from edgewise.live.node.worker_queue import (
    TICKETS_PER_PLACE,
    QueueFull,
    RequestExpired,
    WorkerQueue,
)
from edgewise.live.wire.round_trips import LeastRtt


class Time:
    def __init__(self) -> None:
        self.at = 100.0
        self.clock = Clock(lambda: self.at, epoch=100.0)


@pytest.fixture
def time() -> Time:
    return Time()


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


class Bench:
    """A queue whose jobs end when told to."""

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
        dead: float = 1e9,
        urgent: bool = False,
    ) -> None:
        self._ends[name] = asyncio.get_running_loop().create_future()

        async def action() -> str:
            self.started.append(name)
            return await self._ends[name]

        self.tasks[name] = asyncio.create_task(self.queue.run(action, work, deadline, dead, urgent))

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


async def test_the_next_one_starts_before_the_last_ones_answer_is_written(bench: Bench) -> None:
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


async def test_one_that_waited_too_long_never_runs(bench: Bench, time: Time) -> None:
    bench.add("running", 200.0)
    bench.add("dead", 101.0, dead=102.0)
    bench.add("alive", 103.0, dead=105.0)
    await settle()
    time.at = 102.0
    await bench.end("running")
    assert bench.started == ["running", "alive"]
    with pytest.raises(RequestExpired):
        await bench.tasks.pop("dead")
    await bench.end("alive")


async def test_a_cancelled_one_leaves_the_queue(bench: Bench) -> None:
    bench.add("running", 1.0)
    bench.add("gone", 2.0)
    await settle()
    task = bench.tasks.pop("gone")
    task.cancel()
    await settle()
    assert bench.queue.waiting() == ()
    await bench.end("running")
    assert bench.started == ["running"]


async def test_a_cancelled_one_that_runs_keeps_its_worker(bench: Bench) -> None:
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


async def test_a_failure_is_its_own(bench: Bench) -> None:
    async def action() -> None:
        raise ImagesError("broken")

    with pytest.raises(ImagesError):
        await bench.queue.run(action, 0.01, 1.0)
    bench.add("next", 1.0)
    await settle()
    await bench.end("next")


def test_places_are_limited(time: Time) -> None:
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


async def test_only_what_waits_for_a_worker_counts_against_the_limit(bench: Bench) -> None:
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


async def test_what_the_queue_says_of_itself(bench: Bench, time: Time) -> None:
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


# -- links ---------------------------------------------------------------------------------------


def test_a_transfer_alone_shows_the_rate() -> None:
    link = MeasuredLink()
    with link.flow("b", 100_000, lambda: 10.0) as flow:
        report = link.report("b", None, 10.05)
        assert (report.backlog, report.flows, report.throughput) == (100_000, 1, None)
        link.arrived(flow, 10.11, delay=0.010, starved=False)
    report = link.report("b", 0.01, 10.2)
    assert report.throughput == pytest.approx(1e6)
    assert report.measured_at == 10.11
    assert (report.backlog, report.flows) == (0, 0)


def test_two_transfers_share() -> None:
    """Two of 100 kB over 1 MB/s, side by side: both are in after 0.2 s, each had half the rate."""
    link = MeasuredLink()
    with link.flow("b", 100_000, lambda: 10.0) as one, link.flow("c", 100_000, lambda: 10.0) as two:
        link.arrived(one, 10.2, delay=0.0, starved=False)
        link.arrived(two, 10.2, delay=0.0, starved=False)
    assert link.rate == pytest.approx(1e6)


def test_half_shared() -> None:
    """100 kB from 10.0 and 50 kB from 10.05: 50 kB alone, then both 50 kB by halves until 10.15."""
    link = MeasuredLink()
    with link.flow("b", 100_000, lambda: 10.0) as one, link.flow("c", 50_000, lambda: 10.05) as two:
        link.arrived(one, 10.15, delay=0.0, starved=False)
        assert link.rate == pytest.approx(100_000 / 0.15 * (0.05 + 2 * 0.1) / 0.15)
        link.arrived(two, 10.15, delay=0.0, starved=False)


def test_backlog_drains_at_the_measured_rate() -> None:
    link = MeasuredLink()
    link.measured(100_000, 0.1, 1.0, 9.0)
    with link.flow("b", 100_000, lambda: 10.0), link.flow("c", 50_000, lambda: 10.0):
        assert link.report("b", None, 10.05).backlog == pytest.approx(75_000)
        assert link.report("c", None, 10.05).backlog == pytest.approx(25_000)
        assert link.report("b", None, 99.0).backlog == 0
        assert link.report("b", None, 99.0).flows == 1
    assert link.flows == 0


def test_a_transfer_that_fails_measures_nothing() -> None:
    link = MeasuredLink()
    with pytest.raises(OSError, match="gone"), link.flow("b", 1000, lambda: 10.0):
        raise OSError("gone")
    assert link.report("b", None, 11.0).throughput is None
    assert link.flows == 0


def test_a_starved_transfer_counts_only_upwards() -> None:
    link = MeasuredLink()
    link.measured(100_000, 0.1, 1.0, 9.0)
    with link.flow("b", 100_000, lambda: 10.0) as flow:
        link.arrived(flow, 11.0, delay=0.0, starved=True)
    assert link.rate == pytest.approx(1e6)
    with link.flow("b", 100_000, lambda: 12.0) as flow:
        link.arrived(flow, 12.05, delay=0.0, starved=True)
    assert link.rate > 1.2e6


def test_a_first_transfer_that_starved_says_nothing_below_the_prior() -> None:
    link = MeasuredLink()
    with link.flow("b", 100_000, lambda: 10.0) as flow:
        link.arrived(flow, 11.0, delay=0.0, starved=True)  # 100 kB/s at least
    assert link.report("b", None, 11.0).throughput is None
    with link.flow("b", 100_000, lambda: 12.0) as flow:
        link.arrived(flow, 12.01, delay=0.0, starved=True)  # 10 MB/s at least
    assert link.rate == pytest.approx(1e7)


def test_receiver_side_measures_what_came_after_the_first_chunk() -> None:
    link = MeasuredLink()
    with link.flow("me", 100_000, lambda: 10.0) as flow:
        link.received(flow, 80_000, 0.08, 10.1)
    assert link.rate == pytest.approx(1e6)
    with link.flow("me", 500, lambda: 11.0) as flow:
        link.received(flow, 0, 0.0, 11.0)  # all of it in one chunk: nothing to measure
    assert link.rate == pytest.approx(1e6)


def test_a_transfer_of_a_few_bytes_says_nothing_of_the_rate() -> None:
    link = MeasuredLink()
    with link.flow("b", 545, lambda: 10.0) as flow:
        link.arrived(flow, 10.01, delay=0.001, starved=False)
    assert link.report("b", None, 11.0).throughput is None


def test_least_round_trip_of_ten_seconds() -> None:
    rtts = LeastRtt()
    assert rtts.get(0.0) is None
    for at, rtt in ((1.0, 0.020), (2.0, 0.010), (3.0, 0.030), (4.0, 0.015)):
        rtts.add(rtt, at)
    assert rtts.get(5.0) == 0.010
    assert rtts.get(13.0) == 0.015
    assert rtts.get(1000.0) == 0.015  # old, but all there is


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
    """The belief takes the saving off for model-ready ones, so it must not be off already."""
    monitor = monitor_of(WorkerQueue(time.clock, 1, 9))
    assert monitor.work("m", ready=False) == 0.020
    monitor.ran("m", 0.030, ready=False)
    assert monitor.report(1.0).services["m"].service_time == pytest.approx(0.030)
    monitor.ran("m", 0.025, ready=True)
    assert monitor.report(1.0).services["m"].service_time == pytest.approx(0.030)
    assert monitor.work("m", ready=True) == pytest.approx(0.025)
    monitor.ran("m", 0.040, ready=False)
    assert monitor.report(1.0).services["m"].service_time == pytest.approx(0.032)
    assert monitor.report(1.0).services["m"].served == 3


async def test_a_stage_of_its_own_has_its_own_backlog(time: Time) -> None:
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


async def test_a_stage_on_the_workers_takes_one(bench: Bench, time: Time) -> None:
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


async def test_jumps_are_told_at_once_and_drains_are_not(bench: Bench, time: Time) -> None:
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
