"""An edge server, wired together from the other modules of `live.node`.

`Node` can be used in tests without a process; `node_process.run` is the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

from edgewise import __version__
from edgewise.domain import Report, Request, Service
from edgewise.errors import BadInput
from edgewise.fleet.estimates import waited_for_source
from edgewise.fleet.request_noise import RequestNoise
from edgewise.fleet.retries import RetryBudget
from edgewise.fleet.timeouts import SIGN_PERIOD
from edgewise.live.clock import Clock
from edgewise.live.node.command_source import CommandSource
from edgewise.live.node.control_channel import ControlChannel
from edgewise.live.node.converter import Converter, PhotoMaker, ReplayMaker
from edgewise.live.node.execution import Executors
from edgewise.live.node.executor import (
    Executor,
    Misbehaving,
    MisbehavingExecutor,
    OnnxExecutor,
    ReplayExecutor,
    Slowdown,
    SlowedExecutor,
    SlowerMachineExecutor,
)
from edgewise.live.node.forwarder import Forwarder
from edgewise.live.node.http_api import NodeApi
from edgewise.live.node.local_decider import LocalDecider
from edgewise.live.node.local_runner import LocalRunner
from edgewise.live.node.measured_links import MeasuredLink
from edgewise.live.node.monitor import Monitor, SequencesSeen
from edgewise.live.node.node_metrics import NodeMetrics
from edgewise.live.node.peers import PeerClient
from edgewise.live.node.readiness import Readiness
from edgewise.live.node.received_request import ReceivedRequest
from edgewise.live.node.reporter import Reporter
from edgewise.live.node.request_handler import RequestHandler
from edgewise.live.node.worker_queue import WorkerQueue
from edgewise.live.process_config import NodeConfig
from edgewise.live.wire.http_server import Usage
from edgewise.live.wire.messages import PROTOCOL, FleetReports, Hello, OutcomeMessage, ReportMessage
from edgewise.live.wire.open_inference import InferAnswer
from edgewise.live.wire.transport import SocketTransport, Transport
from edgewise.scenario import Misbehaviour, Scenario, load
from edgewise.score import ScoreShape
from edgewise.security import access
from edgewise.security.identity import Role, credentials_for, is_loopback
from edgewise.tasks import task_of
from edgewise.tasks.services import services_of

log = logging.getLogger("edgewise.node")

DRAIN_LIMIT = 10.0
"""s that a stopping node takes to finish its requests; Kubernetes kills after 30."""


class Node:
    """One edge server, used as ``async with Node(config) as node``.

    Parameters
    ----------
    scenario:
        In place of the file that `config` names.
    executor:
        In place of the one that the scenario names.
    transport:
        In place of sockets.

    Raises BadInput: an unknown server, a missing or corrupt model, a taken port (on entering).
    """

    def __init__(
        self,
        config: NodeConfig,
        scenario: Scenario | None = None,
        clock: Clock | None = None,
        executor: Executor | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.config = config
        self.scenario = scenario = load(config.scenario) if scenario is None else scenario
        self.clock = clock = Clock() if clock is None else clock
        self.url = ""
        _check_names(config, scenario)
        self._credentials = credentials_for(
            config.identity,
            (Role.NODE,),
            config.server,
            hosts=(config.listen.host,) if transport is None else (),
            trust_anyone=config.trust_anyone_who_connects,
        )
        self._transport = SocketTransport(self._credentials) if transport is None else transport
        self._stack = AsyncExitStack()
        self._services = services_of(scenario)
        self._task = task_of(scenario.task)
        here = {each.model: each for each in self._services if each.server == config.server}
        spec = scenario.servers[config.server]
        self.queue = WorkerQueue(
            clock, spec.workers, spec.queue_limit, scenario.discipline, self._queue_changed
        )
        self._threads = ThreadPoolExecutor(spec.workers + 1, "edgewise")  # one to convert
        self._slowdown = Slowdown(clock)
        self._misbehaving = Misbehaving()
        self._executor = self._executor_of(here) if executor is None else executor
        self.converter = self._converter()
        self.monitor = Monitor(
            config.server,
            here,
            tuple(config.peers),
            scenario.network.topology == "uplink",
            self.queue,
            self.converter,
        )
        self.local_decider = LocalDecider(scenario, config.server, clock.now())
        self.commands = CommandSource(config.server, clock, self.monitor, self.local_decider)
        self.reporter = Reporter(self.monitor, clock, scenario.report_period, self._send_report)
        self._channel = self._control_channel(tuple(here))

    def _executor_of(self, here: Mapping[str, Service]) -> Executor:
        """The executor that the scenario names, for the services of this server."""
        classes = {model: task_of(service.task).classes for model, service in here.items()}
        return MisbehavingExecutor(self._well_behaved(here), self._misbehaving, classes)

    def _well_behaved(self, here: Mapping[str, Service]) -> Executor:
        scenario, clock = self.scenario, self.clock
        if scenario.executor == "replay":
            numbered = {k: each for k, each in enumerate(self._services) if each in here.values()}
            noise = RequestNoise(scenario.seed, scenario.service_noise.cv)
            return ReplayExecutor(numbered, clock, noise, self._slowdown)
        executor: Executor = OnnxExecutor(self._task, tuple(here), self._threads)
        speed = scenario.servers[self.config.server].speed
        if speed < 1.0:
            executor = SlowerMachineExecutor(executor, speed, clock)
        return SlowedExecutor(executor, self._slowdown)

    def _converter(self) -> Converter:
        prepare, clock = self.scenario.prepare, self.clock
        speed = self.scenario.servers[self.config.server].speed
        seconds = prepare.seconds / speed
        replay = self.scenario.executor == "replay"
        maker = (
            ReplayMaker(self._task, seconds, clock)
            if replay
            else PhotoMaker(self._task, self._threads, speed, clock)
        )
        return Converter(
            maker,
            clock,
            self.queue,
            seconds,
            prepare.on,
            self._slowdown,
            self._queue_changed,
        )

    def _control_channel(self, models: tuple[str, ...]) -> ControlChannel | None:
        if self.config.balancer is None:
            return None
        channel = ControlChannel(
            self.config.balancer,
            Hello(
                server=self.config.server,
                models=models,
                version=__version__,
                instance=int(self.clock.now() * 1e6),
            ),
            self.clock,
            on_welcome=self.reporter.report_soon,
            on_command=self.commands.on_command,
            on_fleet=self._on_fleet,
            seed=self.scenario.seed,
            open_session=self._transport.balancer_session,
            credentials=self._credentials,
        )
        self.commands.use(channel)
        return channel

    # -- life ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Node:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            self._threads.shutdown(wait=False)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        config, scenario, stack, clock = self.config, self.scenario, self._stack, self.clock
        here = {each.model: each for each in self._services if each.server == config.server}
        fleet = {(each.server, each.model): each for each in self._services}
        grace = ScoreShape.of(scenario.score).grace
        stack.enter_context(clock.precise_timers())
        peers = PeerClient(config.peers, clock, self.monitor, self._transport, self._credentials)
        self.budget = RetryBudget(clock.now())
        self.readiness = Readiness()
        runner = LocalRunner(
            here, grace, self.queue, self._executor, self.monitor, clock, self.readiness
        )
        forwarder = Forwarder(peers, self.converter, fleet, clock)
        executors = Executors(runner, forwarder, self.monitor, clock, self.budget)
        self.usage = Usage(config.limits, config.body_limit)
        self.handler = RequestHandler(
            executors,
            self.commands,
            self._services,
            self.usage,
            self._finished,
        )
        metrics = self._metrics(tuple(here))
        self.usage.on_error = metrics.refused
        api = NodeApi(
            self.handler,
            clock,
            self.monitor,
            metrics,
            self.usage,
            scenario.server_names,
            scenario.task,
            {each.model for each in self._services},
        )
        stack.callback(self._threads.shutdown)
        stack.push_async_callback(peers.close)
        await stack.enter_async_context(self.converter.running())
        await stack.enter_async_context(self.queue.running_jobs())
        admits = access.guard(
            access.NODE, self._credentials, on_loopback=is_loopback(config.listen.host)
        )
        self.url = await self._transport.listen(api.app(admits), config.listen, stack)
        await self._warm_up(peers)
        self._background(self.reporter.run())
        self._background(self.readiness.keep_checking(runner.check))
        self._background(peers.watch(SIGN_PERIOD, self._decides_alone, self._on_peer))
        if self._channel is not None:
            self._background(self._channel.run())

    def _metrics(self, models: tuple[str, ...]) -> NodeMetrics:
        metrics = NodeMetrics(models)
        metrics.gauge("queue_size", "Requests that wait.", lambda: self.queue.size)
        metrics.gauge("requests_in_flight", "Requests taken.", lambda: self.inflight)
        metrics.gauge(
            "worker_utilisation", "Busy share.", lambda: self.queue.utilisation(self.clock.now())
        )
        metrics.gauge(
            "balancer_connected", "1 if a balancer decides.", lambda: self.commands.connected
        )
        usage = self.usage
        metrics.gauge("connections", "Open connections.", lambda: usage.connections)
        metrics.gauge("upload_bytes", "Bodies coming in.", lambda: usage.upload_bytes)
        metrics.counters(
            "limit_reached", "Requests that met a limit.", "limit", lambda: usage.reached
        )
        metrics.gauge("ready", "1 if the executor works.", lambda: self.readiness.ready)
        metrics.counter("executor_failure", "Errors of it.", lambda: self.readiness.failures)
        metrics.counter("retry", "Second tries at other servers.", lambda: self.budget.granted)
        metrics.counter(
            "retry_denied", "Those that the budget did not allow.", lambda: self.budget.denied
        )
        return metrics

    async def _warm_up(self, peers: PeerClient) -> None:
        """Do once what is slow the first time, so that no request pays for it.

        HTTP is gone through both ways, and the compiled functions are loaded (up to a second each).
        The executor has run its models when it was made.
        """
        await peers.warm_connection(self.url)
        now, runner = self.clock.now(), self.handler.runner
        request = Request(
            id="warm-up",
            ingress=self.config.server,
            payload_bytes=1,
            sent_at=now,
            deadline=1.0,
        )
        for model in runner.services:
            self.monitor.work(model, ready=True)
            runner.worth_running(request, model)
        RetryBudget(now).take(now)
        runner.give_up_at(request)
        runner.worthless_at(request)
        SequencesSeen().arrived(1)
        link = MeasuredLink()
        with link.flow("", 1.0, self.clock.now) as flow:
            link.arrived(flow, now, 0.0, waited_for_source(now, now, now))
        self.reporter.check_backlog()
        self.local_decider.warm_up(request, now)
        self.local_decider.on_own_report(self.monitor.report(now, self.config.server), now)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until the node stops."""
        task = asyncio.create_task(work)
        task.add_done_callback(log_failure)

        async def stop() -> None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        self._stack.push_async_callback(stop)

    async def drain(self, limit: float = DRAIN_LIMIT) -> bool:
        """Take no new request and finish those here; False if that takes longer than `limit` s."""
        self.monitor.draining = True
        self.reporter.report_soon()
        try:
            async with asyncio.timeout(limit):
                await self.handler.requests.idle()
        except TimeoutError:
            return False
        finally:
            if self._channel is not None:
                await self._channel.flush()
        return True

    def slow_down(self, factor: float) -> None:
        """Stretch everything that starts from now on by `factor` ≥ 1: an emulated slow spell."""
        self._slowdown.factor = factor

    def misbehave(self, how: Misbehaviour) -> None:
        """Let the models fail or answer wrongly from now on: an emulated failure."""
        self._misbehaving.how = how

    @property
    def inflight(self) -> int:
        """Requests taken and not yet answered."""
        return self.handler.requests.inflight

    # -- events ----------------------------------------------------------------------------------

    def _decides_alone(self) -> bool:
        return not self.commands.connected

    def _on_fleet(self, fleet: FleetReports) -> None:
        self.local_decider.on_fleet(fleet, self.clock.now())

    def _on_peer(self, peer: str, report: Report | None, rtt: float) -> None:
        self.local_decider.on_peer(peer, report, rtt, self.clock.now())

    def _queue_changed(self) -> None:
        self.reporter.check_backlog()

    def _send_report(self, report: Report) -> None:
        self.local_decider.forget(self.clock.now())
        if self._channel is not None:
            self._channel.send(ReportMessage(report=report, protocol=PROTOCOL))

    def _finished(self, received: ReceivedRequest, answer: InferAnswer) -> None:
        attempts = tuple(received.attempts)
        self.local_decider.on_outcome(answer.outcome, self.clock.now(), attempts)
        if self._channel is not None:
            self._channel.send(OutcomeMessage(outcome=answer.outcome, attempts=attempts))


def _check_names(config: NodeConfig, scenario: Scenario) -> None:
    if config.server not in scenario.servers:
        known = ", ".join(scenario.servers)
        raise BadInput(f"server: unknown {config.server!r}; the scenario has: {known}")
    for peer in config.peers:
        if peer not in scenario.servers or peer == config.server:
            raise BadInput(f"peers: {peer!r} is no other server of the scenario")


def log_failure(task: asyncio.Task[None]) -> None:
    """Log a background task's exception, which nobody awaits."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a bug: %r", error, exc_info=error)
