"""The balancer: control channels and timers around a `Dispatcher`.

Theory of operation
-------------------
One event loop, one thread; deciding takes tens of microseconds and never waits. The balancer learns
of a request by the client's metadata (HTTP, `api`) or by its ingress's Ask (control channel),
whichever comes first, and sends the command down the ingress's channel once. If that channel broke
meanwhile, the node asks again on the next one and gets the same command.

Never: one request decided twice; a slow or dead node that holds up the others (each channel has a
task of its own, and a silent one is cut); a decision without a record.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from aiohttp import WSMsgType, web

from edgewise.domain import Report
from edgewise.errors import PeerError, WireError
from edgewise.live.balancer.balancer_metrics import BalancerMetrics
from edgewise.live.balancer.dispatcher import Dispatcher
from edgewise.live.balancer.node_connection import CROSSING, SILENCE, NodeConnection, shift_request
from edgewise.live.balancer.open_decisions import TrackedDecision
from edgewise.live.balancer.relay_poller import poll_relay
from edgewise.live.clock import Clock
from edgewise.live.wire import messages
from edgewise.security.identity import Credentials, Identity, node

log = logging.getLogger(__name__)

TICK = 1.0
"""s between Pings, fleet reports and writing off overdue decisions."""
PULSE = 0.2
"""s between looks at the clock, by which the balancer notices that it stood still."""
STALL = 1.0
"""s beyond a pulse after which metadata is not used: it may have waited in a socket for so long,
and says only how much time was left when it was sent. A full garbage collection takes a quarter."""
STALE_FOR = 1.0
"""s after a stall for which metadata is not used: by then all that had queued up is read."""
FLUSH_TICKS = 10
"""Ticks between writes to disk: a SIGKILL loses at most so many seconds of records."""


class Balancer:
    """Serves the nodes' control channels, and has what the HTTP interface shows.

    Parameters
    ----------
    dispatcher:
        Decides.
    clock:
        The only one.
    relays:
        Control addresses of relays, to read the network's state from.
    credentials:
        Of this process; None: nobody proves who they are.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        clock: Clock,
        relays: tuple[str, ...] = (),
        credentials: Credentials | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self.clock = clock
        self.metrics = BalancerMetrics(dispatcher, clock)
        self.connections: dict[str, NodeConnection] = {}
        """The newest one of each connected server."""
        self.credentials = credentials
        self._relays = relays
        self._pulse_at: float | None = None
        self._stale_until = 0.0
        self._open: set[NodeConnection] = set()  # also older ones that are being closed
        self._tasks: list[asyncio.Task[None]] = []
        self._models = {
            name: {service.model for service in server.services}
            for name, server in dispatcher.scenario.servers.items()
        }

    # -- starting and stopping -------------------------------------------------------------------

    async def start(self) -> None:
        """Start the timers. Needs a running loop."""
        relays = (poll_relay(url, self._on_link, self.credentials) for url in self._relays)
        work = [self._tick(), self._pulse(), *relays]
        self._tasks = [asyncio.create_task(each) for each in work]

    async def stop(self) -> None:
        """Stop the timers and close the channels."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(each.close(1001, "the balancer stops") for each in [*self._open]))

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK)
            ticks += 1
            self.dispatcher.tick(self.clock.now())
            if ticks % FLUSH_TICKS == 0:
                self.dispatcher.recorder.flush()

    async def _pulse(self) -> None:
        while True:
            self.stood_still(self.clock.now())
            await asyncio.sleep(PULSE)

    def stood_still(self, now: float) -> bool:
        """Whether the balancer has just stood still, so that what it reads now may be old."""
        if self._pulse_at is not None and now - self._pulse_at > PULSE + STALL:
            log.warning("stood still for %.1f s", now - self._pulse_at)
            self._stale_until = now + STALE_FOR
        if self._tasks:
            self._pulse_at = now
        return now < self._stale_until

    def _on_link(self, name: str, rate: float, rtt: float, backlog: float) -> None:
        self.dispatcher.tracker.on_link(name, rate, rtt, backlog, self.clock.now())

    # -- state -----------------------------------------------------------------------------------

    def missing(self) -> list[str]:
        """Servers of the scenario that are not connected."""
        return [name for name in self.dispatcher.tracker.servers if name not in self.connections]

    def state(self) -> dict[str, Any]:
        """The belief about the fleet, with ages, and counters; ready for JSON."""
        state = self.dispatcher.tracker.state(self.clock.now())
        for name, server in state["servers"].items():
            connection = self.connections.get(name)
            server["clock_ahead"] = None if connection is None else connection.clock.ahead
            server["control_rtt"] = None if connection is None else connection.clock.rtt
            report = None if connection is None else connection.report_on_our_clock()
            server["report"] = None if report is None else report.figures()
        return {
            "policy": self.dispatcher.policy.name,
            "scenario": self.dispatcher.scenario.name,
            **state,
            "decisions_open": len(self.dispatcher.decisions),
            "counts": self.dispatcher.counts.as_dict(),
        }

    # -- control channels ------------------------------------------------------------------------

    async def send_command(self, entry: TrackedDecision, connection: NodeConnection | None) -> None:
        """Send a decision's command to its ingress; one that is not connected will ask for it."""
        if connection is not None:
            entry.commanded_on, entry.commanded_at = connection, self.clock.now()
            await connection.send(entry.command)

    async def serve_channel(
        self,
        socket: web.WebSocketResponse,
        remote: str,
        abort: Callable[[], None],
        who: Identity | None = None,
    ) -> None:
        """Serve a node's channel until it ends.

        Parameters
        ----------
        abort:
            Drops it without a closing handshake.
        who:
            The node's identity; None: identities are off.
        """
        try:
            hello = await self._read_hello(socket)
            if who is not None and who != node(hello.server):
                raise PeerError(f"hello of {hello.server} by {who}")
            older = await self._outlived(hello, who)
        except PeerError as error:
            log.warning("refused %s: %s", remote, error)
            await socket.close(code=1008, message=str(error).encode()[:120])
            return
        server = hello.server
        connection = NodeConnection(server, socket, self.clock.now(), abort, hello.instance)
        # No await in between: there are never two of them, nor none.
        self.connections[server] = connection
        self._open.add(connection)
        self.dispatcher.tracker.connect(server, self.clock.now(), hello.instance)
        log.info("%s connected%s", server, " again" if older else "")
        keeper = asyncio.create_task(self._keep_alive(connection))
        if older is not None:
            older.abort()
        try:
            await self._read_messages(socket, connection)
        except PeerError as error:
            log.warning("%s: %s", server, error)
            await socket.close(code=1007, message=str(error).encode()[:120])
        except ConnectionError:
            pass  # aiohttp answers a ping on a connection that has just ended
        finally:
            keeper.cancel()
            self._open.discard(connection)
            if self.connections.get(server) is connection:
                del self.connections[server]
                self.dispatcher.tracker.disconnect(server)
                log.info("%s disconnected", server)
            with contextlib.suppress(asyncio.CancelledError):
                await keeper

    async def _outlived(self, hello: messages.Hello, who: Identity | None) -> NodeConnection | None:
        """The connection whose place a node may take, since nobody is at its other end any more.

        Raises PeerError while the first of that name lives, or if the second does not prove that it
        is the same: by its identity, or without identities by the number of its start.
        """
        older = self.connections.get(hello.server)
        if older is None:
            return None
        is_same = who is not None or older.instance == hello.instance
        if not is_same or await older.lives(self.clock.now()):
            raise PeerError(f"another {hello.server} is connected and lives")
        if self.connections.get(hello.server) not in (older, None):
            raise PeerError(f"another {hello.server} has just connected")
        return older

    async def _read_hello(self, socket: web.WebSocketResponse) -> messages.Hello:
        try:
            frame = await socket.receive(timeout=SILENCE)
        except TimeoutError:
            raise PeerError(f"no hello within {SILENCE:g} s") from None
        if frame.type is not WSMsgType.BINARY:
            raise PeerError("expected a hello in a binary frame")
        hello = messages.decode_from_node(frame.data)
        if not isinstance(hello, messages.Hello):
            raise PeerError(f"expected a hello first, got {type(hello).__name__}")
        messages.check_protocol(hello.protocol, f"{hello.server} (edgewise {hello.version})")
        models = self._models.get(hello.server)
        if models is None:
            known = ", ".join(self._models)
            raise PeerError(f"no server {hello.server!r} in the scenario: {known}")
        if lacking := models - set(hello.models):
            raise PeerError(f"{hello.server} should run {', '.join(sorted(lacking))}: does not")
        return hello

    async def _read_messages(
        self, socket: web.WebSocketResponse, connection: NodeConnection
    ) -> None:
        decode, clock = messages.decode_from_node, self.clock
        async for frame in socket:
            if frame.type is not WSMsgType.BINARY:
                raise PeerError("expected binary frames")
            now = clock.now()
            connection.heard(now)
            message = decode(frame.data)
            if isinstance(message, messages.Ask):
                await self._on_ask(connection, message, now)
            elif isinstance(message, messages.ReportMessage):
                _check_sender(connection, message.report.server, "report")
                messages.check_protocol(message.protocol, connection.server)
                ahead = connection.on_report(message.report, now)
                self.dispatcher.on_report(message.report, now, ahead)
            elif isinstance(message, messages.OutcomeMessage):
                self._on_answered(connection, message, now)
            elif isinstance(message, messages.Pong):
                connection.clock.pong(message, now)
            else:
                raise PeerError("a second hello")

    def _on_answered(
        self, connection: NodeConnection, message: messages.OutcomeMessage, now: float
    ) -> None:
        outcome = message.outcome
        entry = self.dispatcher.decisions.get(outcome.request)
        if entry is not None and entry.moved_to == connection.server:
            return  # not of this decision; the client reports it itself
        if entry is not None:
            _check_sender(connection, entry.request.ingress, "outcome of a request")
        self.dispatcher.on_answered(outcome, now, connection.clock.ahead, message.attempts)

    async def _on_ask(self, connection: NodeConnection, ask: messages.Ask, now: float) -> None:
        request, uploaded, ahead = ask.request, ask.uploaded, connection.clock.ahead
        _check_sender(connection, request.ingress, "request")
        known = self.dispatcher.decisions.get(request.id) is not None
        if not known:
            request = shift_request(request, ahead)
            if request.expired(now):
                return  # the message was long on its way; its node has decided by itself
            uploaded = None if uploaded is None else uploaded - ahead
        try:
            entry = self.dispatcher.decide(request, now, "ask", uploaded)
        except WireError:  # its client has gone on from another ingress
            first = self.dispatcher.decisions.get(request.id)
            if first is not None:
                first.moved_to = connection.server
            return  # this one decides by itself
        if not known:
            self.metrics.decision_duration.observe(self.clock.now() - now)
        crossed = (
            known
            and not entry.asked
            and entry.commanded_on is connection
            and now - entry.commanded_at < CROSSING
        )
        entry.asked = True
        if not crossed:
            await self.send_command(entry, connection)

    async def _keep_alive(self, connection: NodeConnection) -> None:
        """Welcome a node; then ping it and send the others' reports, until it falls silent."""
        now = self.clock.now()
        await connection.send(messages.Welcome(policy=self.dispatcher.policy.name, at=now))
        await connection.send(connection.clock.ping(self.clock.now()))
        while True:
            await asyncio.sleep(TICK)
            now = self.clock.now()
            if now - connection.last_message_at > SILENCE:
                log.warning("%s: silent for %.1f s, cut off", connection.server, SILENCE)
                connection.abort()
                return
            reports = self._other_reports(connection)
            await connection.send(messages.FleetReports(reports=reports, at=now))
            await connection.send(connection.clock.ping(self.clock.now()))

    def _other_reports(self, connection: NodeConnection) -> tuple[Report, ...]:
        others = (each for each in self.connections.values() if each is not connection)
        reports = (other.report_on_our_clock() for other in others)
        return tuple(report for report in reports if report is not None)


def _check_sender(connection: NodeConnection, server: str, what: str) -> None:
    if server != connection.server:
        raise PeerError(f"{what} of {server} on the channel of {connection.server}")
