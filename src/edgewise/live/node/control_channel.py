"""The node's side of the control channel: one WebSocket, kept open.

It never gives up connecting, for a node without a balancer still serves. Connection problems go to
the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

import aiohttp

from edgewise.domain import Command
from edgewise.errors import PeerError
from edgewise.fleet.timeouts import HEARTBEAT, RETRY_MAX, RETRY_MIN
from edgewise.live.clock import Clock
from edgewise.live.wire.messages import (
    FleetReports,
    FromBalancer,
    FromNode,
    Hello,
    Ping,
    Pong,
    Welcome,
    check_protocol,
    decode_from_balancer,
    encode,
)
from edgewise.live.wire.transport import OpenSession
from edgewise.security.identity import BALANCER, Credentials, calls

log = logging.getLogger("edgewise.node")

WELCOME_TIMEOUT = 2.0
"""s for the connection, and again for the welcome."""
FLUSH_LIMIT = 0.5
"""s to send the last messages of a node that stops."""
OUTBOX_MAX = 4096
"""Messages waiting to be sent; a channel that is blocked for longer is broken."""
MESSAGE_MAX = 2**24
"""bytes of a message of the balancer: the reports of all servers of a fleet."""


class ControlChannel:
    """A control channel; `run` keeps it connected.

    Parameters
    ----------
    balancer:
        Its address, ``http://host:port``.
    on_welcome:
        Called when a balancer has welcomed this node; it counts from 1 again.
    on_command, on_fleet:
        Called for each such message, in order.
    seed:
        Spreads the reconnection attempts of a fleet.
    open_session:
        Opens the session to the balancer.
    credentials:
        Of this node; None: neither side proves who it is.
    """

    def __init__(
        self,
        balancer: str,
        hello: Hello,
        clock: Clock,
        on_welcome: Callable[[], None],
        on_command: Callable[[Command], None],
        on_fleet: Callable[[FleetReports], None],
        seed: int = 0,
        open_session: OpenSession = aiohttp.ClientSession,
        credentials: Credentials | None = None,
    ) -> None:
        self.connected = False
        self._open_session = open_session
        self._credentials = credentials
        self._url = balancer.rstrip("/") + "/v1/control"
        self._hello = hello
        self._clock = clock
        self._on_welcome, self._on_command, self._on_fleet = on_welcome, on_command, on_fleet
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue(OUTBOX_MAX)
        self._random = random.Random(seed)

    def send(self, message: FromNode) -> bool:
        """Queue a message, sent in order; False if there is no channel to send it on."""
        if not self.connected or self._outbox.full():
            return False
        self._outbox.put_nowait(encode(message))
        return True

    async def run(self) -> None:
        """Connect and reconnect until cancelled."""
        wait = RETRY_MIN
        logged = ""
        async with self._open_session() as session:
            while True:
                problem = ""
                try:
                    await self._serve(session)
                except (PeerError, aiohttp.ClientError, OSError, TimeoutError) as error:
                    problem = str(error) or type(error).__name__
                finally:
                    was_connected, self.connected = self.connected, False
                if was_connected:
                    wait = RETRY_MIN
                    logged = ""
                if problem != logged:  # once for each problem, not at every attempt
                    log.warning(
                        "no balancer at %s (%s); deciding locally, trying on", self._url, problem
                    )
                    logged = problem
                await asyncio.sleep(wait * self._random.uniform(0.5, 1.5))
                wait = min(RETRY_MAX, 2.0 * wait)

    async def _serve(self, session: aiohttp.ClientSession) -> None:
        """Serve one connection until it breaks, which raises."""
        async with asyncio.timeout(WELCOME_TIMEOUT):
            socket = await session.ws_connect(
                self._url,
                heartbeat=HEARTBEAT,
                max_msg_size=MESSAGE_MAX,
                **calls(self._credentials, BALANCER),
            )
        async with socket:
            async with asyncio.timeout(WELCOME_TIMEOUT):
                await socket.send_bytes(encode(self._hello))
                welcome = await self._receive(socket)
            if not isinstance(welcome, Welcome):
                raise PeerError(f"expected a welcome, got {type(welcome).__name__}")
            check_protocol(welcome.protocol, "the balancer")
            while not self._outbox.empty():  # messages of an earlier connection
                self._outbox.get_nowait()
                self._outbox.task_done()
            self.connected = True
            log.info("balancer at %s: policy %s", self._url, welcome.policy)
            self._on_welcome()
            sender = asyncio.create_task(self._send_outbox(socket))
            try:
                while True:  # a sender that fails breaks the socket, so `_receive` fails too
                    self._dispatch(await self._receive(socket))
            finally:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)

    def _dispatch(self, message: FromBalancer) -> None:
        match message:
            case Command():
                self._on_command(message)
            case Ping():
                self.send(Pong(ping=message.at, at=self._clock.now()))
            case FleetReports():
                self._on_fleet(message)
            case Welcome():
                raise PeerError("a second welcome")

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse) -> FromBalancer:
        message = await socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            return decode_from_balancer(message.data)
        if message.type is aiohttp.WSMsgType.TEXT:
            raise PeerError("control channel: expected binary frames, got text")
        why = f": {message.extra:.120}" if message.extra else ""
        raise PeerError(f"the channel was closed{why}")

    async def _send_outbox(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await socket.send_bytes(await self._outbox.get())
            self._outbox.task_done()

    async def flush(self) -> None:
        """Wait until all queued messages are sent, but no longer than `FLUSH_LIMIT`."""
        if self.connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_LIMIT):
                    await self._outbox.join()
