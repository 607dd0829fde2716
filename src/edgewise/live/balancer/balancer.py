"""The balancer's process: control channels, HTTP, timers, files, around a `Dispatcher`.

Theory of operation
-------------------
One event loop, one thread; deciding takes tens of microseconds and never waits. A request becomes
known by a client's metadata (HTTP) or by an ingress's Ask (control channel), whichever is first;
its command goes down the ingress's channel once. Should that channel have broken meanwhile, the
node asks again on the next one and gets the same command.

What may never happen: one request decided twice; a slow or dead node holding up the others (each
channel has a task of its own, and one that is silent is cut); a decision without a record.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from aiohttp import WSMsgType, web

from edgewise import policy as policies
from edgewise.domain import Outcome, PeerReport, QueueItem, Report, Request, ServiceReport, Status
from edgewise.errors import BadInput, PeerError, WireError
from edgewise.live.balancer.api import application
from edgewise.live.balancer.channels import CROSSING, SILENCE, NodeConnection
from edgewise.live.balancer.dispatcher import Dispatcher
from edgewise.live.balancer.emulator_feed import follow
from edgewise.live.balancer.ledger import Entry
from edgewise.live.balancer.metrics import BalancerMetrics
from edgewise.live.clock import Clock
from edgewise.live.process_config import BalancerConfig
from edgewise.live.recorder import Recorder
from edgewise.live.startup import freeze_startup_objects
from edgewise.live.wire import messages
from edgewise.live.wire.sockets import listen, url_of
from edgewise.policy import Policy
from edgewise.scenario import Scenario, load

log = logging.getLogger(__name__)

TICK = 1.0
"""s between Ping, Fleet and writing off what nobody speaks of any more."""
FLUSH_TICKS = 10
"""Ticks between writes of what was recorded: at most so many seconds are lost to a SIGKILL."""
MESSAGE_MAX = 2**20
"""bytes of a control message; a report of 256 waiting requests has about 6 kB."""
CLOSE_TIMEOUT = 1.0
"""s to say good-bye to nodes when stopping."""


class Balancer:
    """A balancer at work, for its HTTP interface to call.

    Parameters
    ----------
    dispatcher:
        Decides.
    clock:
        The only one.
    relays:
        Control interfaces to read the network's state from.
    """

    def __init__(self, dispatcher: Dispatcher, clock: Clock, relays: tuple[str, ...] = ()) -> None:
        self.dispatcher = dispatcher
        self.clock = clock
        self.metrics = BalancerMetrics(dispatcher, clock)
        self.channels: dict[str, NodeConnection] = {}
        """The live one of each connected server."""
        self._relays = relays
        self._sockets: dict[NodeConnection, tuple[web.WebSocketResponse, Callable[[], None]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._models = {
            name: {service.model for service in server.services}
            for name, server in dispatcher.scenario.servers.items()
        }

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the timers; a running loop is there."""
        self._tasks = [asyncio.create_task(self._tick())]
        self._tasks += [
            asyncio.create_task(follow(url.rstrip("/"), self._on_link)) for url in self._relays
        ]

    async def stop(self) -> None:
        """Close the channels and stop the timers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(
            *(self._hang_up(channel, 1001, "the balancer stops") for channel in [*self._sockets]),
        )

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK)
            ticks += 1
            self.dispatcher.tick(self.clock.now())
            if ticks % FLUSH_TICKS == 0:
                self.dispatcher.recorder.flush()

    def _on_link(self, name: str, rate: float, rtt: float, backlog: float) -> None:
        self.dispatcher.tracker.on_link(name, rate, rtt, backlog, self.clock.now())

    # -- what it shows ---------------------------------------------------------------------------

    def missing(self) -> list[str]:
        """Servers of the scenario that are not connected."""
        return [name for name in self.dispatcher.tracker.servers if name not in self.channels]

    def state(self) -> dict[str, Any]:
        """The fleet as it is believed to be, with ages, and counters."""
        state = self.dispatcher.tracker.state(self.clock.now())
        for name, server in state["servers"].items():
            channel = self.channels.get(name)
            server["clock_ahead"] = None if channel is None else channel.clock.ahead
            server["control_rtt"] = None if channel is None else channel.clock.rtt
        return {
            "policy": self.dispatcher.policy.name,
            "scenario": self.dispatcher.scenario.name,
            **state,
            "decisions_open": len(self.dispatcher.ledger),
            "counts": self.dispatcher.counts.as_dict(),
        }

    # -- control channels ------------------------------------------------------------------------

    async def command(self, entry: Entry, channel: NodeConnection | None) -> None:
        """Send a decision's command to its ingress; without a channel, the ingress will ask."""
        if channel is None:
            return
        entry.commanded_on, entry.commanded_at = channel, self.clock.now()
        await channel.send(entry.command)

    async def open_channel(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/control``: one node's channel, until it ends."""
        socket = web.WebSocketResponse(
            compress=False, max_msg_size=MESSAGE_MAX, timeout=CLOSE_TIMEOUT
        )
        await socket.prepare(request)

        def cut() -> None:
            if request.transport is not None:
                request.transport.abort()

        await self.serve_channel(socket, request.remote or "", cut)
        return socket

    async def serve_channel(
        self, socket: web.WebSocketResponse, remote: str, cut: Callable[[], None]
    ) -> None:
        """Serve a node's channel until it ends; `cut` ends it without a word."""
        try:
            hello = await self._hello(socket)
        except PeerError as error:
            log.warning("refused %s: %s", remote, error)
            await socket.close(code=1008, message=str(error).encode()[:120])
            return
        channel = NodeConnection(hello.server, socket, self.clock.now())
        older = self.channels.get(hello.server)
        # In one go, with no await between: there is never a moment with two of them, or none.
        self.channels[hello.server] = channel
        self._sockets[channel] = (socket, cut)
        self.dispatcher.tracker.connect(hello.server, self.clock.now())
        log.info("%s connected%s", hello.server, " again" if older else "")
        keeper = asyncio.create_task(self._keep(channel))
        if older is not None:
            await self._hang_up(older, 1008, f"{hello.server} has connected anew")
        try:
            await self._listen(socket, channel)
        except PeerError as error:
            log.warning("%s: %s", hello.server, error)
            await socket.close(code=1007, message=str(error).encode()[:120])
        finally:
            keeper.cancel()
            self._sockets.pop(channel, None)
            if self.channels.get(hello.server) is channel:
                del self.channels[hello.server]
                self.dispatcher.tracker.disconnect(hello.server)
                log.info("%s disconnected", hello.server)
            with contextlib.suppress(asyncio.CancelledError):
                await keeper

    async def _hello(self, socket: web.WebSocketResponse) -> messages.Hello:
        try:
            frame = await socket.receive(timeout=SILENCE)
        except TimeoutError:
            raise PeerError(f"no hello within {SILENCE:g} s") from None
        if frame.type is not WSMsgType.BINARY:
            raise PeerError("expected a hello in a binary frame")
        hello = messages.decode_from_node(frame.data)
        if not isinstance(hello, messages.Hello):
            raise PeerError(f"expected a hello first, got {type(hello).__name__}")
        if hello.protocol != messages.PROTOCOL:
            raise PeerError(f"protocol {hello.protocol}, this balancer speaks {messages.PROTOCOL}")
        models = self._models.get(hello.server)
        if models is None:
            known = ", ".join(self._models)
            raise PeerError(f"no server {hello.server!r} in the scenario: {known}")
        if lacking := models - set(hello.models):
            raise PeerError(f"{hello.server} should run {', '.join(sorted(lacking))}: does not")
        return hello

    async def _listen(self, socket: web.WebSocketResponse, channel: NodeConnection) -> None:
        decode, clock = messages.decode_from_node, self.clock
        async for frame in socket:
            if frame.type is not WSMsgType.BINARY:
                raise PeerError("expected binary frames")
            now = clock.now()
            channel.heard_at = now
            message = decode(frame.data)
            if isinstance(message, messages.Ask):
                await self._asked(channel, message, now)
            elif isinstance(message, messages.ReportMessage):
                self._of(channel, message.report.server, "report")
                ahead = channel.reported(message.report, now)
                self.dispatcher.on_report(message.report, now, ahead)
            elif isinstance(message, messages.OutcomeMessage):
                self.dispatcher.on_answered(message.outcome, now, channel.clock.ahead)
            elif isinstance(message, messages.Pong):
                channel.clock.pong(message, now)
            else:
                raise PeerError("a second hello")

    async def _asked(self, channel: NodeConnection, ask: messages.Ask, now: float) -> None:
        self._of(channel, ask.request.ingress, "request")
        ahead = channel.clock.ahead
        request, uploaded = ask.request, ask.uploaded
        known = self.dispatcher.ledger.get(request.id)
        if known is None:
            request = on_our_clock(request, ahead)
            uploaded = None if uploaded is None else uploaded - ahead
        try:
            entry = self.dispatcher.decide(request, now, "ask", uploaded)
        except WireError as error:
            raise PeerError(str(error)) from None
        if known is None:
            self.metrics.decision_duration.observe(self.clock.now() - now)
        crossed = (
            known is not None
            and not entry.asked
            and entry.commanded_on is channel
            and now - entry.commanded_at < CROSSING
        )
        entry.asked = True
        if not crossed:
            await self.command(entry, channel)

    def _of(self, channel: NodeConnection, server: str, what: str) -> None:
        if server != channel.server:
            raise PeerError(f"{what} of {server} on the channel of {channel.server}")

    async def _keep(self, channel: NodeConnection) -> None:
        """Welcome a node, then ping it and tell it of the others, until it falls silent."""
        now = self.clock.now()
        await channel.send(messages.Welcome(policy=self.dispatcher.policy.name, at=now))
        await channel.send(channel.clock.ping(self.clock.now()))
        while True:
            await asyncio.sleep(TICK)
            now = self.clock.now()
            if now - channel.heard_at > SILENCE:
                log.warning("%s: silent for %.1f s, cut off", channel.server, SILENCE)
                self._cut(channel)
                return
            await channel.send(messages.FleetReports(reports=self._others(channel), at=now))
            await channel.send(channel.clock.ping(self.clock.now()))

    def _others(self, channel: NodeConnection) -> tuple[Report, ...]:
        reports = (
            other.report_on_our_clock() for other in self.channels.values() if other is not channel
        )
        return tuple(report for report in reports if report is not None)

    def _cut(self, channel: NodeConnection) -> None:
        found = self._sockets.get(channel)
        if found is not None:
            found[1]()

    async def _hang_up(self, channel: NodeConnection, code: int, reason: str) -> None:
        found = self._sockets.get(channel)
        if found is None:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await found[0].close(code=code, message=reason.encode()[:120])
        except TimeoutError:
            self._cut(channel)


def on_our_clock(request: Request, ahead: float) -> Request:
    """A request with `sent_at` moved from a clock that is `ahead` s ahead."""
    if ahead == 0.0:
        return request
    return Request(
        id=request.id,
        ingress=request.ingress,
        payload_bytes=request.payload_bytes,
        sent_at=max(0.0, request.sent_at - ahead),
        deadline=request.deadline,
        accuracy=request.accuracy,
        task=request.task,
    )


# -- the process -----------------------------------------------------------------------------------


def prepare(config: BalancerConfig, clock: Clock) -> Dispatcher:
    """Read the scenario, make the policy, and compile (or load) what decides.

    Raises BadInput: scenario, policy or folder cannot be used.
    """
    scenario = load(config.scenario)
    name = config.policy or scenario.policy
    policy = policies.make(name, scenario.seed)
    if config.relays and scenario.network_state != "emulator":
        raise BadInput(
            f"relays: they are only read with `network_state: emulator`, and {scenario.name} has "
            f"`{scenario.network_state}`"
        )
    shadow = config.shadow or scenario.shadow
    other = None if shadow is None else policies.make(shadow, scenario.seed)
    warm_up(scenario, policies.make(name, scenario.seed), clock.now())
    if shadow is not None:
        warm_up(scenario, policies.make(shadow, scenario.seed), clock.now())
    dispatcher = Dispatcher(scenario, policy, clock.now(), other)
    if config.out is not None:
        dispatcher.recorder = Recorder(Path(config.out), dispatcher.tables)
    return dispatcher


def warm_up(scenario: Scenario, policy: Policy, now: float) -> None:
    """Run everything compiled once, on a belief that is thrown away: the first request must not
    wait for the compiler."""
    scratch = Dispatcher(scenario, policy, now)
    names = scratch.tracker.servers
    for name in names:
        scratch.tracker.connect(name, now)
        report = Report(
            server=name,
            at=now,
            workers=scenario.servers[name].workers,
            running=(0.01,),
            queue=(QueueItem(now + 1.0, 0.01),),
            services={
                service.model: ServiceReport(0.01, 1.0, 1)
                for service in scenario.servers[name].services
            },
            peers={other: PeerReport(1e6, now, 0.001, 0, 0) for other in names},
        )
        scratch.on_report(report, now, 0.0)
    from_there = Request(id="warm-up", ingress=names[0], payload_bytes=1, sent_at=now, deadline=1.0)
    entry = scratch.decide(from_there, now, "ask")
    service = scratch.tracker.services[0]
    served = Outcome(
        request=entry.request.id, status=Status.SERVED, server=service.server, model=service.model
    )
    scratch.on_answered(served, now, 0.0)
    scratch.on_outcome(msgspec.structs.replace(served, latency=0.1, label=0, predicted=0), now)
    scratch.decide(msgspec.structs.replace(from_there, id="warm-up-2"), now, "ask")
    for link in scenario.link_names():
        scratch.tracker.on_link(link, 1e6, 0.0, 0.0, now)
    scratch.tracker.state(now)
    scratch.tracker.forget(now + 1e6)
    scratch.finish()


async def serve(
    config: BalancerConfig, ready: Callable[[dict[str, Any]], None] | None = None
) -> None:
    """Run a balancer until cancelled; then everything is written.

    Parameters
    ----------
    config:
        What to run.
    ready:
        Called with ``{"balancer": scenario, "url": URL}`` once it listens.

    Raises BadInput: as `prepare`, or the port cannot be listened on.
    """
    clock = Clock()
    dispatcher = prepare(config, clock)
    balancer = Balancer(dispatcher, clock, config.relays)
    runner = web.AppRunner(application(balancer), access_log=None, shutdown_timeout=CLOSE_TIMEOUT)
    try:
        await runner.setup()
        sock = listen(config.listen.host, config.listen.port)
        await web.SockSite(runner, sock).start()
        await balancer.start()
        freeze_startup_objects()
        if ready is not None:
            ready({"balancer": dispatcher.scenario.name, "url": url_of(sock)})
        await asyncio.Event().wait()
    finally:
        await balancer.stop()
        await runner.cleanup()
        dispatcher.finish()
        await asyncio.to_thread(dispatcher.recorder.close)


def run(config: BalancerConfig, ready: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Run a balancer as this process, on uvloop, until SIGTERM or SIGINT; then return.

    Raises BadInput: as `serve`.
    """

    async def until_signal() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(serve(config, ready))
        told = False

        def stop() -> None:
            nonlocal told
            if not told:  # a second signal must not interrupt the writing that the first began
                told = True
                task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_signal())
