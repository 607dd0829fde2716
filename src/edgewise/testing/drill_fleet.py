"""The fleet of a drill: client, balancer and nodes as processes that can be stopped and killed, and
the faults that happen to them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from edgewise.domain import Command, Decision, Observation, Report, Request, Service, request_id
from edgewise.fleet.tracker import Tracker
from edgewise.live.balancer.api import BalancerApi
from edgewise.live.balancer.balancer import Balancer
from edgewise.live.balancer.dispatcher import Dispatcher
from edgewise.live.client.client import Client
from edgewise.live.clock import Clock
from edgewise.live.node.executor import BatchItem, Executor, Result
from edgewise.live.node.local_runner import CHECK
from edgewise.live.node.node import Node
from edgewise.live.node.received_request import ReceivedRequest
from edgewise.live.process_config import ClientConfig, NodeConfig
from edgewise.live.recorder import Recorder
from edgewise.live.run.addresses import relay_links
from edgewise.live.wire.messages import (
    PROTOCOL,
    Hello,
    OutcomeMessage,
    ReportMessage,
    decode_from_node,
    encode,
)
from edgewise.live.wire.open_inference import InferAnswer
from edgewise.network.settings import LinkChange, new_capacity
from edgewise.policies import make as make_policy
from edgewise.scenario import Misbehaviour
from edgewise.score import ScoreShape
from edgewise.sim.build import CONTROL_DELAY
from edgewise.sim.play import policy_seeds
from edgewise.testing.faults import BALANCER, CLIENT, KINDS, START, Fault, Plan
from edgewise.testing.faulty_network import Endpoint, FaultyNetwork, FaultyTransport
from edgewise.testing.invariants import Effect, Watch
from edgewise.testing.live_fleet import ExactLoad, Routes, shared_links
from edgewise.testing.memory_transport import url_of
from edgewise.testing.processes import NOBODY, Process, ProcessLoop
from edgewise.testing.virtual_loop import sleep_until
from edgewise.worlds.workload import Trace

EPOCH = 1e6
"""s since 1970 at the start, by a clock that is right; clocks are wrong by up to an hour."""
CHECK_PERIOD = 0.25
"""s between checks of the limits."""
QUIET = 12.0
"""s from the last request to the end: a dispatch or decision that has vanished is written off 5 s
after its answer would be worthless."""
ON_NETWORK = frozenset(
    {"partition", "drop", "delay", "duplicate", "reorder", "lie", "fail", "hang"}
)
"""Faults that the network has, while they last."""


class Program(Struct, kw_only=True, eq=False):
    """A program that may be restarted: its lives, and the one that it has now."""

    name: str
    lives: int = 0
    process: Process | None = None
    """None: it is down."""
    ending: asyncio.Event | None = None
    """Asks it to end in good order."""
    ended: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    """It has ended, in whichever way."""
    part: Any = None
    """Its `Node` or `Balancer`."""
    protocol: int = PROTOCOL
    """The version that it speaks after its next start."""
    tasks_before: int = 0
    """Tasks that it had when it was ready."""


class DrillFleet:
    """Make it inside a `ProcessLoop`, then `run` it."""

    def __init__(self, plan: Plan, trace: Trace, watch: Watch) -> None:
        self.plan, self.trace, self.watch = plan, trace, watch
        self.scenario = plan.scenario
        self.loop = asyncio.get_running_loop()
        self._rng = random.Random(f"network {plan.seed}")
        self.links = shared_links(self.scenario, start=0.0)
        self._rates = {name: each.rate_mbps for name, each in relay_links(self.scenario).items()}
        routes = Routes(self.scenario, True, self.links)
        self.network = FaultyNetwork(routes, CONTROL_DELAY, self._rng, watch)
        watch.network = self.network
        watch.on_report = self._on_message  # type: ignore[method-assign]
        names = (BALANCER, *self.scenario.server_names)
        self.programs = {name: Program(name=name) for name in names}
        self._wall = {name: self._rng.uniform(-3600.0, 3600.0) for name in (*names, CLIENT)}
        self.processes: list[Process] = []
        self._is_over = False
        self._disk: list[Fault] = []
        self._thin: dict[str, int] = {}
        self._old_reports: dict[str, Report] = {}
        self.injected: dict[str, int] = dict.fromkeys(KINDS, 0)

    # -- the run ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Play the plan, and check what must hold at its end."""
        self.loop.set_exception_handler(self._on_loose_exception)
        self._start(BALANCER)
        for name in self.scenario.server_names:
            self.loop.call_at(self._rng.random(), self._start, name)
        for fault in self.plan.faults:
            self.loop.call_at(fault.at, self._begin, fault)
        checks = self.loop.create_task(self._check_limits())
        client = self._process(CLIENT)
        client_clock = self._clock(CLIENT)
        await sleep_until(START)
        self._note_tasks()
        await client.start(self._client(client_clock).run())
        self.watch.check_requests(len(self.trace))
        await asyncio.sleep(QUIET)
        self._check_end()
        await self._stop_balancer()
        checks.cancel()

    def _on_loose_exception(self, loop: Any, context: dict[str, Any]) -> None:
        """A callback or a task that nobody awaits has raised."""
        if self._is_over:
            return
        error = context.get("exception")
        self.watch.violated(f"{context['message']}: {error!r}")

    def clean_up(self) -> None:
        """Let what was killed be cancelled with the rest."""
        self._is_over = True
        for process in self.processes:
            process.clean_up()

    def _note_tasks(self) -> None:
        for program in self.programs.values():
            program.tasks_before = self._tasks_of(program.process)

    def _tasks_of(self, process: Process | None) -> int:
        assert isinstance(self.loop, ProcessLoop)
        return 0 if process is None else len(self.loop.tasks_of(process))

    def _check_end(self) -> None:
        names = self.scenario.server_names
        for name in names:
            program = self.programs[name]
            if program.process is None or program.part is None:
                self.watch.violated(f"{name} is not up at the end")
                continue
            self.watch.check_node_at_end(
                program.process, program.part, self._tasks_of(program.process), program.tasks_before
            )
        balancer = self.programs[BALANCER]
        if balancer.process is None or balancer.part is None:
            self.watch.violated("the balancer is not up at the end")
            return
        self.watch.check_calm()
        self.watch.check_balancer_at_end(balancer.process, balancer.part, list(names))
        self.watch.check_runs()
        left = [each for each in self.network.open if each.is_waited_for and each.request]
        if left:
            self.watch.violated(f"{len(left)} connections are left at the end")

    async def _stop_balancer(self) -> None:
        balancer = self.programs[BALANCER]
        if balancer.ending is not None:
            balancer.ending.set()
            await asyncio.sleep(5.0)

    async def _check_limits(self) -> None:
        while True:
            await asyncio.sleep(CHECK_PERIOD)
            self.watch.reached({name: _state(each) for name, each in self.programs.items()})
            for name, program in self.programs.items():
                if program.process is None or program.part is None:
                    continue
                self._tasks_of(program.process)
                if name == BALANCER:
                    self.watch.check_balancer(program.process, program.part)
                else:
                    self.watch.check_node(program.process, program.part)

    # -- processes -------------------------------------------------------------------------------

    def _process(self, name: str, number: int = 1) -> Process:
        process = Process(name, number)
        self.processes.append(process)
        return process

    def _clock(self, name: str) -> Clock:
        now = self.loop.time()
        return Clock(self.loop.time, epoch=EPOCH + now + self._wall[name])

    def _start(self, name: str) -> None:
        """Start a program that is down."""
        program = self.programs[name]
        program.lives += 1
        process = program.process = self._process(name, program.lives)
        program.ending, program.ended = asyncio.Event(), asyncio.Event()
        self.network.vanished.discard(name)
        self.watch.note("start", process)
        work = self._balancer(program) if name == BALANCER else self._node(program)
        process.start(work).add_done_callback(
            lambda task: self._ended(program, process, task), context=NOBODY
        )

    def _ended(self, program: Program, process: Process, task: asyncio.Task[None]) -> None:
        """A process has ended by itself."""
        if self._is_over:
            return
        self.watch.note("end", process)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.watch.violated(f"{process} died: {error!r}")
        process.alive = False
        self.network.ended(process, silently=False)
        if program.process is process:
            program.process = program.part = None
            program.ended.set()

    async def _node(self, program: Program) -> None:
        name, names = program.name, self.scenario.server_names
        config = NodeConfig(
            scenario="",
            server=name,
            balancer=url_of(BALANCER),
            peers={peer: url_of(peer) for peer in names if peer != name},
        )
        process, ending = program.process, program.ending
        assert process is not None
        assert ending is not None
        node = DrillNode(
            config,
            self.scenario,
            self._clock(name),
            FaultyTransport(self.network, name),
            process,
            self.watch,
        )
        async with node:
            program.part = node
            await ending.wait()
            await node.drain()

    async def _balancer(self, program: Program) -> None:
        process, ending, clock = program.process, program.ending, self._clock(BALANCER)
        assert process is not None
        assert ending is not None
        scenario = self.scenario
        policy = make_policy(scenario.policy, policy_seeds(scenario.seed, 1)[0])
        dispatcher = Dispatcher(scenario, policy, clock.now())
        watch_decisions(dispatcher.tracker, process, self.watch)
        dispatcher.recorder = recorder = DrillRecorder(dispatcher.tables, self._disk_fault)
        balancer = Balancer(dispatcher, clock)
        app = BalancerApi(balancer).app()
        app.freeze()
        await balancer.start()
        self.network.endpoints[BALANCER] = Endpoint(
            process=process, app=app, cancels=False, serve_channel=balancer.serve_channel
        )
        program.part = balancer
        await ending.wait()
        del self.network.endpoints[BALANCER]
        await balancer.stop()
        dispatcher.finish()
        recorder.close()
        self.watch.check_settled(process, balancer)
        if recorder.taken != recorder.written + recorder.dropped:
            self.watch.violated(
                f"{process}: {recorder.taken} rows, {recorder.written} written, "
                f"{recorder.dropped} said to be lost"
            )

    def _disk_fault(self) -> Fault | None:
        return self._disk[0] if self._disk else None

    def _client(self, clock: Clock) -> Client:
        scenario, names = self.scenario, self.scenario.server_names
        return Client(
            ClientConfig(
                scenario="",
                balancer=url_of(BALANCER),
                ingress={name: url_of(name) for name in names},
            ),
            ExactLoad(
                trace=self.trace,
                ids=tuple(request_id(number) for number in range(len(self.trace))),
                servers=names,
                payloads={},
                labels=(0,) * len(self.trace),
                names={},
            ),
            ScoreShape.of(scenario.score),
            self.watch.outcome,
            send_labels=True,
            clock=clock,
            session=lambda: self.network.session(CLIENT),
        )

    # -- faults ----------------------------------------------------------------------------------

    def _begin(self, fault: Fault) -> None:
        """Let a fault happen, if it can."""
        if fault.kind in ON_NETWORK:
            self.network.begin(fault)
            self._until(fault, lambda: self.network.end(fault))
        elif fault.kind == "outage":
            self._change_links(fault, +1)
            self._until(fault, lambda: self._change_links(fault, -1))
        elif fault.kind == "clock":
            self._wall[fault.party] += fault.amount
            self._until(fault, lambda: None)
        elif fault.kind == "disk":
            self._disk.append(fault)
            self._until(fault, lambda: self._disk.remove(fault))
        elif fault.kind == "burst":
            self._until(fault, lambda: None)
        else:
            self._at_process(fault)

    def _until(self, fault: Fault, end: Callable[[], None]) -> Effect:
        """Note that a fault has begun, and have `end` called when it is over."""
        self.injected[fault.kind] += 1
        effect = self.watch.fault_began(fault)

        def over() -> None:
            end()
            self.watch.fault_ended(effect)

        self.loop.call_at(max(fault.until, self.loop.time()), over)
        return effect

    def _at_process(self, fault: Fault) -> None:
        program = self.programs[fault.party]
        process = program.process
        if process is None:
            return  # it is down
        if fault.kind == "pause":
            if not process.stopped:
                process.stop()
                self._until(fault, process.go_on)
        elif fault.kind == "crash":
            process.kill()
            program.process = program.part = None
            program.ended.set()
            self.network.ended(process, silently=fault.way == "machine")
            self._until(fault, lambda: self._start(program.name))
        elif fault.kind == "slow":
            node = program.part
            if node is not None:
                node.slow_down(fault.amount)
                self._until(fault, lambda: node.slow_down(1.0))
        elif fault.kind == "broken":
            node = program.part
            if node is not None:
                node.misbehave(Misbehaviour[fault.way.upper()])
                self._until(fault, lambda: node.misbehave(Misbehaviour(0)))
        elif program.ending is not None and not program.ending.is_set():
            self.injected[fault.kind] += 1
            program.protocol = PROTOCOL - 1 if fault.kind == "version" else PROTOCOL
            program.ending.set()
            self.loop.create_task(self._restart(program, fault, self.watch.fault_began(fault)))

    async def _restart(self, program: Program, fault: Fault, effect: Effect) -> None:
        """Start a program again after it has ended in good order, unless a crash came first."""
        lives = program.lives
        await program.ended.wait()
        await asyncio.sleep(fault.duration)
        if program.lives == lives and not self._will_start(program):
            self._start(program.name)
        self.watch.fault_ended(effect)

    def _will_start(self, program: Program) -> bool:
        """Whether a crash has the program down, and will start it again."""
        return any(
            each.fault.kind == "crash" and each.fault.party == program.name
            for each in self.watch.effects
            if each.until == float("inf")
        )

    def _change_links(self, fault: Fault, by: int) -> None:
        """Make the links that leave a server thin, or as they were."""
        for name, link in self.links.items():
            if name.removeprefix("uplink:").split(">")[0] != fault.party:
                continue
            self._thin[name] = self._thin.get(name, 0) + by
            rate = self._rates[name]
            if self._thin[name] > 0 and rate is not None:
                rate = 0.0 if fault.way == "none" else 0.01 * rate
            capacity = new_capacity(LinkChange(rate_mbps=rate), Path())
            assert capacity is not None
            link.change(capacity)

    def _on_message(self, node: str, data: bytes) -> bytes:
        """A node's message as it is sent: of its protocol version, and with a wrong report."""
        message = decode_from_node(data)
        protocol = self.programs[node].protocol
        if isinstance(message, Hello):
            return encode(msgspec.structs.replace(message, protocol=protocol))
        if isinstance(message, OutcomeMessage) and protocol < PROTOCOL:
            return encode(OutcomeMessage(outcome=message.outcome))
        if not isinstance(message, ReportMessage):
            return data
        report = message.report
        old = self._old_reports.setdefault(node, report)
        fault = self.network.at_server("lie", node)
        if fault is None:
            self._old_reports[node] = report
        else:
            self.watch.on_fault(fault)
            report = _wrong(report, old, fault.way)
        return encode(ReportMessage(report=report, protocol=protocol))


def _state(program: Program) -> str:
    """A program's state, coarsely."""
    process, part = program.process, program.part
    if process is None:
        return "down"
    if part is None:
        return "starting"
    words = ["stopped" if process.stopped else "up"]
    if isinstance(part, Node):
        queue = part.queue
        words += ["draining"] * part.monitor.draining + ["alone"] * (not part.commands.connected)
        waiting = queue._ordinary
        words.append("full" if waiting >= queue.limit else "busy" if waiting else "free")
    else:
        words.append(f"{len(part.connections)} nodes")
    return "-".join(words)


def _wrong(report: Report, old: Report, way: str) -> Report:
    """A report that is not true."""
    replace = msgspec.structs.replace
    if way == "idle":
        return replace(report, running=(), queue=(), prepare_backlog=0.0, utilisation=0.0)
    if way == "busy":
        return replace(report, running=(60.0,) * report.workers, prepare_backlog=60.0)
    if way == "fast":
        services = {
            name: replace(each, service_time=0.1 * each.service_time)
            for name, each in report.services.items()
        }
        return replace(report, services=services)
    if way == "old":
        return old
    return replace(
        report,
        commands_seen=report.commands_seen + 1000,
        arrivals_low=report.arrivals_low + 1000,
        arrivals_bits=0,
    )


class DrillNode(Node):
    """A node as it is deployed, watched."""

    def __init__(
        self,
        config: NodeConfig,
        scenario: Any,
        clock: Clock,
        transport: FaultyTransport,
        process: Process,
        watch: Watch,
    ) -> None:
        self._process, self._watch = process, watch
        super().__init__(config, scenario, clock, transport=transport)

        watch_decisions(self.local_decider._tracker, process, watch)

    def _executor_of(self, here: Mapping[str, Service]) -> Executor:
        return _WatchedExecutor(super()._executor_of(here), self._process, self._watch)

    def _finished(self, received: ReceivedRequest, answer: InferAnswer) -> None:
        self._watch.answered(self._process, received.request, answer, self.clock.now())
        super()._finished(received, answer)


class _WatchedExecutor:
    def __init__(self, inner: Executor, process: Process, watch: Watch) -> None:
        self._inner, self._process, self._watch = inner, process, watch

    async def run(self, batch: Sequence[BatchItem]) -> list[Result]:
        requests = [item.request for item in batch if item.request != CHECK]
        for request in requests:
            self._watch.run_started(self._process, request)
        try:
            return await self._inner.run(batch)
        finally:
            for request in requests:
                self._watch.run_ended(self._process, request)


def watch_decisions(tracker: Tracker, process: Process, watch: Watch) -> None:
    """Have each decision of a tracker watched."""
    commit = tracker.commit

    def watched(
        request: Request, decision: Decision, observation: Observation, *more: Any
    ) -> Command:
        targets = tracker.belief.targets.copy()
        command = commit(request, decision, observation, *more)
        watch.decided(process, tracker, targets, request, command, decision.at)
        return command

    tracker.commit = watched  # type: ignore[method-assign, assignment]


class DrillRecorder(Recorder):
    """A recorder whose disk has faults, and keeps nothing."""

    def __init__(self, tables: Sequence[Any], fault: Callable[[], Fault | None]) -> None:
        super().__init__(None, tables)
        self.taken = self.written = 0
        self._fault = fault
        self._parts = {table.name: _NoParts(self, table) for table in tables}  # type: ignore[misc]
        self._thread = _AtOnce(fault)  # type: ignore[assignment]

    def add(self, table: Any, *arguments: Any) -> None:
        self.taken += 1
        super().add(table, *arguments)


class _NoParts:
    """In place of a table's segments."""

    def __init__(self, recorder: DrillRecorder, table: Any) -> None:
        self._recorder, self._table = recorder, table

    def write(self, gathered: list[tuple[Any, ...]]) -> tuple[int, str]:
        fault = self._recorder._fault()
        if fault is not None and fault.way == "full":
            return len(gathered), "No space left on device"
        for arguments in gathered:
            self._table.row(*arguments)
        self._recorder.written += len(gathered)
        return 0, ""

    def join(self) -> None:
        pass


class _AtOnce:
    """In place of the thread that writes: it works when it is asked to, or when the disk is well
    again."""

    def __init__(self, fault: Callable[[], Fault | None]) -> None:
        self._fault = fault
        self._waiting: list[tuple[Future[Any], Callable[..., Any], Any]] = []

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.append((future, work, arguments))
        fault = self._fault()
        if fault is None or fault.way != "slow":
            self._work()
        return future

    def _work(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future, work, arguments in waiting:
            future.set_result(work(*arguments))

    def shutdown(self, wait: bool = True) -> None:
        self._work()
