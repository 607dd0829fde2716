"""An edge server's process: everything of `live/` put together.

`Node` is the wiring, and usable in tests without a process; `run` is the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from edgewise import __version__
from edgewise.domain import Report, Request
from edgewise.errors import BadInput
from edgewise.fleet.belief import acknowledge
from edgewise.fleet.estimates import fair_rate, ready_time, smooth_rate, starved
from edgewise.fleet.report_timing import busy_share, jumped
from edgewise.fleet.request_noise import RequestNoise
from edgewise.fleet.timeouts import give_up_at, worth_running
from edgewise.live.clock import Clock
from edgewise.live.node.command_source import CommandSource
from edgewise.live.node.control_channel import ControlChannel
from edgewise.live.node.converter import (
    Converter,
    PayloadMaker,
    PhotoMaker,
    ReplayMaker,
    SlowedMaker,
)
from edgewise.live.node.executor import (
    Executor,
    OnnxExecutor,
    ReplayExecutor,
    Slowdown,
    SlowedExecutor,
    SlowerMachineExecutor,
)
from edgewise.live.node.http_api import NodeApi
from edgewise.live.node.local_decider import LocalDecider
from edgewise.live.node.monitor import Monitor
from edgewise.live.node.node_metrics import NodeMetrics
from edgewise.live.node.peers import PeerClient
from edgewise.live.node.reporter import Reporter
from edgewise.live.node.request_handler import RequestHandler
from edgewise.live.node.worker_queue import WorkerQueue
from edgewise.live.process_config import NodeConfig
from edgewise.live.startup import freeze_startup_objects
from edgewise.live.wire.messages import FleetReports, Hello, OutcomeMessage, ReportMessage
from edgewise.live.wire.open_inference import InferAnswer
from edgewise.live.wire.transport import SocketTransport, Transport
from edgewise.scenario import Scenario, load
from edgewise.score import ScoreShape
from edgewise.tasks import task_of
from edgewise.tasks.services import services_of

log = logging.getLogger("edgewise.node")

WATCH_PERIOD = 1.0
"""s between signs of life asked of a peer: ten samples in the window of the least round trip."""
DRAIN_LIMIT = 10.0
"""s that a node takes to finish what it has when told to stop; Kubernetes kills after 30."""


class LauncherMessage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line on a node's standard input, from its launcher."""

    slow: Annotated[float, Meta(ge=1.0)]
    """[times] Longer everything takes that starts from now on."""


class Node:
    """One edge server, to be used as ``async with Node(config) as node``.

    Parameters
    ----------
    scenario:
        In place of the file that `config` names.
    executor:
        In place of the one that the scenario names.
    carrier:
        In place of sockets.

    Raises (on entering) BadInput: unknown server, missing or corrupt model, port taken.
    """

    def __init__(
        self,
        config: NodeConfig,
        scenario: Scenario | None = None,
        clock: Clock | None = None,
        executor: Executor | None = None,
        carrier: Transport | None = None,
    ) -> None:
        self.config = config
        self._carrier = SocketTransport() if carrier is None else carrier
        self.scenario = load(config.scenario) if scenario is None else scenario
        self.clock = Clock() if clock is None else clock
        self.url = ""
        if config.server not in self.scenario.servers:
            known = ", ".join(self.scenario.servers)
            raise BadInput(f"server: unknown {config.server!r}; the scenario has: {known}")
        for peer in config.peers:
            if peer not in self.scenario.servers or peer == config.server:
                raise BadInput(f"peers: {peer!r} is no other server of the scenario")
        self._build(executor)
        self._stack = AsyncExitStack()

    def _build(self, executor: Executor | None) -> None:
        config, scenario, clock = self.config, self.scenario, self.clock
        name = config.server
        spec = scenario.servers[name]
        task = task_of(scenario.task)
        everyone = services_of(scenario)
        mine = {service.model: service for service in everyone if service.server == name}
        self.queue = WorkerQueue(
            clock, spec.workers, spec.queue_limit, scenario.discipline, self._changed
        )
        self._threads = ThreadPoolExecutor(spec.workers + 1, "edgewise")  # one for the stage
        self._drag = Slowdown(clock)
        maker: PayloadMaker
        if scenario.executor == "onnx":
            if executor is None:
                executor = OnnxExecutor(task, tuple(mine), self._threads)
                if spec.speed < 1.0:
                    executor = SlowerMachineExecutor(executor, spec.speed, clock)
                executor = SlowedExecutor(executor, self._drag)
            maker = PhotoMaker(task, self._threads, spec.speed, clock)
        else:
            if executor is None:
                here = {k: each for k, each in enumerate(everyone) if each.server == name}
                noise = RequestNoise(scenario.seed, scenario.service_noise.cv)
                executor = ReplayExecutor(here, clock, noise, self._drag)
            maker = ReplayMaker(task, scenario.prepare.seconds / spec.speed, clock)
        self._executor = executor
        self.stage = Converter(
            SlowedMaker(maker, self._drag),
            clock,
            self.queue,
            scenario.prepare.seconds / spec.speed,
            scenario.prepare.on,
            self._changed,
        )
        self.monitor = Monitor(
            name,
            mine,
            tuple(config.peers),
            scenario.network.topology == "uplink",
            self.queue,
            self.stage,
        )
        self.alone = LocalDecider(scenario, name, clock.now())
        self.decisions = CommandSource(name, clock, self.monitor, self.alone)
        self.metrics = NodeMetrics(tuple(mine))
        self.reporter = Reporter(self.monitor, clock, scenario.report_period, self._send_report)
        self._channel: ControlChannel | None = None
        if config.balancer is not None:
            self._channel = ControlChannel(
                config.balancer,
                Hello(server=name, models=tuple(mine), version=__version__),
                clock,
                began=lambda _: self._began(),
                on_command=self.decisions.on_command,
                on_fleet=self._on_fleet,
                seed=scenario.seed,
                session=self._carrier.control,
            )
            self.decisions.use(self._channel)
        self._fleet = {(service.server, service.model): service for service in everyone}
        self._mine = mine

    async def __aenter__(self) -> Node:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            self._threads.shutdown(wait=False)
            raise
        return self

    async def _start(self) -> None:
        config, stack = self.config, self._stack
        stack.enter_context(self.clock.precise_timers())
        self.peers = PeerClient(
            config.server, config.peers, self.clock, self.monitor, self._carrier
        )
        self.edge = RequestHandler(
            config.server,
            self._mine,
            self._fleet,
            ScoreShape.of(self.scenario.score).grace,
            self.clock,
            self.queue,
            self.stage,
            self._executor,
            self.monitor,
            self.decisions,
            self.peers,
            self._answered,
        )
        stack.callback(self._threads.shutdown)
        stack.push_async_callback(self.peers.close)
        await stack.enter_async_context(self.stage.at_work())
        await stack.enter_async_context(self.queue.at_work())
        api = NodeApi(
            self.edge,
            self.clock,
            self.monitor,
            self.metrics,
            config.body_limit,
            self._refresh,
            self.scenario.server_names,
        )
        self.url = await self._carrier.listen(api.app(), config.listen, stack)
        # The first time costs: HTTP both ways is walked once, and what requests and reports need is
        # compiled (up to a second each). The executor has seen to the models.
        await self.peers.greet(self.url)
        acknowledge(0, 0, 1)
        jumped(1.0, 1.0, 1.0, 1.0)
        busy_share(0.0, 0.0, 1.0)
        give_up_at(1.0, 1.0, 1.0, 1.0)
        worth_running(1.0, 1.0, 1.0, 1.0, False)
        ready_time(1.0, 0.5)
        smooth_rate(1.0, 0.0, 1.0, 1.0, 1.0, 1.0, False)
        fair_rate(1.0, 1.0, 1)
        starved(1.0, 1.0, 1.0)
        now = self.clock.now()
        self.alone.on_own_report(self.monitor.report(now, config.server), now)
        self._background(self.reporter.run())
        self._background(self.peers.watch(WATCH_PERIOD, self._is_alone, self._heard))
        if self._channel is not None:
            self._background(self._channel.run())

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_complain)

        async def stop() -> None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        self._stack.push_async_callback(stop)

    async def drain(self, limit: float = DRAIN_LIMIT) -> bool:
        """Take nothing new and finish what is here; False if it was not done after `limit` s."""
        self.edge.draining = self.monitor.draining = True
        self.reporter.now()
        try:
            async with asyncio.timeout(limit):
                while self.edge.inflight:
                    await self.edge.quiet()
        except TimeoutError:
            return False
        finally:
            if self._channel is not None:
                await self._channel.flush()
        return True

    def slow_down(self, factor: float) -> None:
        """What starts from now on takes `factor` (≥ 1) times as long: a slow spell, emulated."""
        self._drag.factor = factor

    # -- what happens -----------------------------------------------------------------------------

    def _is_alone(self) -> bool:
        return not self.decisions.attached

    def _began(self) -> None:
        self.reporter.now()

    def _on_fleet(self, fleet: FleetReports) -> None:
        self.alone.on_fleet(fleet, self.clock.now())

    def _heard(self, peer: str, report: Report | None, rtt: float) -> None:
        self.alone.on_peer(peer, report, rtt, self.clock.now())

    def _changed(self) -> None:
        self.reporter.look()

    def _send_report(self, report: Report) -> None:
        now = self.clock.now()
        self.alone.forget(now)
        if self._channel is not None:
            self._channel.send(ReportMessage(report=report))

    def _answered(self, request: Request, answer: InferAnswer) -> None:
        if self._channel is not None:
            self._channel.send(OutcomeMessage(outcome=answer.outcome))

    def _refresh(self) -> None:
        now = self.clock.now()
        self.metrics.queue.set(self.queue.size)
        self.metrics.inflight.set(self.edge.inflight)
        self.metrics.utilisation.set(self.queue.utilisation(now))
        self.metrics.attached.set(float(self.decisions.attached))


def _complain(task: asyncio.Task[None]) -> None:
    """A task in the background must not die in silence."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a bug: %r", error, exc_info=error)


def run(config: NodeConfig) -> None:
    """The process: serve until SIGTERM or SIGINT, then drain.

    One line of JSON on standard output says that it is ready, and where; the log goes to standard
    error. Raises BadInput.
    """
    import uvloop

    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s {config.server} %(levelname)s %(message)s",
    )
    uvloop.run(_serve(config))


async def _serve(config: NodeConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    node = Node(config)
    async with node, _listening(node):
        freeze_startup_objects()
        ready = {"ready": {"node": config.server, "url": node.url}}
        print(msgspec.json.encode(ready).decode(), flush=True)
        await stop.wait()
        log.info("draining: %d requests in flight", node.edge.inflight)
        if not await node.drain():
            log.warning("gave up on %d requests after %g s", node.edge.inflight, DRAIN_LIMIT)


@contextlib.asynccontextmanager
async def _listening(node: Node) -> AsyncIterator[None]:
    """Do what the launcher says on standard input: ``{"slow": 1.8}``, a slow spell of that factor.

    A node that was not started by a launcher has no pipe there, and nothing to be told.
    """
    mode = 0 if sys.stdin is None else os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        yield
        return
    lines = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )

    async def obey() -> None:
        async for line in lines:
            try:
                told = msgspec.json.decode(line, type=LauncherMessage)
            except msgspec.DecodeError as error:
                log.warning("standard input: %s", error)
                continue
            node.slow_down(told.slow)

    task = asyncio.create_task(obey())
    task.add_done_callback(_complain)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        transport.close()
