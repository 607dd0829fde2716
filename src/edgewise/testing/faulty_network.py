"""HTTP and control channels between processes over a network on which anything can go wrong.

As `memory_transport`, with these differences: whoever talks is a `Process` that can be stopped or
killed; messages of one connection keep their order, as over TCP, and those of different ones do
not; and every message meets the faults that are active on its path when it is sent or arrives.

- A *partition* holds messages back until it is over and TCP sends them again.
- A lost message takes its connection along: both ends notice (*reset*), or neither does (*silent*).
- A killed process resets its connections. If its machine vanished, nobody is told, until somebody
  sends to the machine after it is up again.
- A stopped process accepts connections and data, as its kernel does for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, cast

import aiohttp
from aiohttp import WSMessage, WSMsgType, web
from aiohttp.abc import AbstractStreamWriter
from msgspec import Struct
from yarl import URL

from edgewise.live.process_config import Listen
from edgewise.live.wire.request_metadata import HEADER
from edgewise.live.wire.transfers import is_transfer
from edgewise.live.wire.transport import CONNECT_TIMEOUT
from edgewise.testing.faults import Fault
from edgewise.testing.memory_transport import (
    RouteFinder,
    answer,
    empty_body,
    url_of,
    weight,
)
from edgewise.testing.processes import NOBODY, Process, current_process

NEW_CONNECTION = 0.3
"""Share of HTTP requests that find no connection open: others go over one that is kept."""
RESENT_AFTER = 0.2
"""s at most from the end of a partition to TCP's next attempt."""
HANGING = 10.0
"""s for which a server that hangs keeps a transfer: longer than anybody waits for it."""
SOCKET_BUFFERS = 128 * 2**10
"""bytes on a control channel that nobody has read; beyond, the sender waits."""

_EVERY_MESSAGE = ("delay", "reorder")
"""Faults that every message on the path meets, more or less."""

ServeChannel = Callable[[Any, str, Callable[[], None]], Awaitable[None]]


class Endpoint(Struct, frozen=True, kw_only=True):
    """Who answers under a name."""

    process: Process
    app: web.Application
    cancels: bool
    """Whether a handler is cancelled when its client goes away."""
    serve_channel: ServeChannel | None = None


class Observer:
    """What a `FaultyNetwork` tells; these do nothing."""

    def on_fault(self, fault: Fault) -> None:
        """A message met a fault."""

    def on_raised(self, process: Process, path: str, error: Exception) -> None:
        """A handler raised instead of answering."""

    def on_report(self, node: str, data: bytes) -> bytes:
        """A node sends a message on its channel; returns what is sent instead."""
        return data


class FaultyNetwork:
    """All parties by name, and what is wrong between them.

    Parameters
    ----------
    route:
        The route of each message, while nothing is wrong.
    control_delay:
        s one way between a node and the balancer, on the control channel.
    rng:
        Draws which messages meet a fault.
    """

    def __init__(
        self, route: RouteFinder, control_delay: float, rng: random.Random, observer: Observer
    ) -> None:
        self.route = route
        self.control_delay = control_delay
        self.rng = rng
        self.observer = observer
        self.endpoints: dict[str, Endpoint] = {}
        self.vanished: set[str] = set()
        """Machines that are off: nobody says that nobody is there."""
        self.active: list[Fault] = []
        self.open: dict[Connection, None] = {}
        """Connections that somebody uses."""
        self._held: dict[Way, None] = {}

    def session(self, source: str, connect_timeout: float | None = None) -> aiohttp.ClientSession:
        """The HTTP client of a party."""
        return cast(aiohttp.ClientSession, _Session(self, source, connect_timeout))

    def begin(self, fault: Fault) -> None:
        self.active.append(fault)

    def end(self, fault: Fault) -> None:
        self.active.remove(fault)
        for way in [*self._held]:
            if not self.is_blocked(way.source, way.target):
                del self._held[way]
                self.later(self.rng.random() * RESENT_AFTER, way.resend)

    def hold(self, way: Way) -> None:
        """Keep a way whose messages wait for the end of a partition."""
        self._held[way] = None

    def later(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        """Do something in `seconds`, whatever happens to the process that asks for it."""
        loop = asyncio.get_running_loop()
        loop.call_at(loop.time() + seconds, action, *arguments, context=NOBODY)

    def is_blocked(self, source: str, target: str) -> bool:
        return any(
            each.kind == "partition" and each.concerns(source, target) for each in self.active
        )

    def hits(self, kind: str, source: str, target: str) -> Fault | None:
        """The fault of a kind that a message from `source` to `target` meets, if it does."""
        for each in self.active:
            if (
                each.kind == kind
                and each.concerns(source, target)
                and (kind in _EVERY_MESSAGE or self.rng.random() < each.amount)
            ):
                self.observer.on_fault(each)
                return each
        return None

    def at_server(self, kind: str, server: str) -> Fault | None:
        """The fault of a kind that a server has."""
        for each in self.active:
            if each.kind == kind and each.party == server:
                return each
        return None

    def extra_delay(self, source: str, target: str) -> float:
        """s that a message takes longer, by the faults on its path."""
        faults = (self.hits(kind, source, target) for kind in _EVERY_MESSAGE)
        return sum(self.rng.random() * each.amount for each in faults if each is not None)

    def ended(self, process: Process, *, silently: bool) -> None:
        """A process has ended: its kernel resets its connections, unless the machine vanished."""
        endpoint = self.endpoints.get(process.name)
        if endpoint is not None and endpoint.process is process:
            del self.endpoints[process.name]
        if silently:
            self.vanished.add(process.name)
        for connection in [*self.open]:
            connection.process_ended(process, silently)

    def is_asked(self, process: Process, request: str) -> bool:
        """Whether somebody waits for this process's answer to a request."""
        return any(
            each.server is process and each.request == request and each.is_waited_for
            for each in self.open
        )


class Way:
    """One direction of a connection: messages arrive in order."""

    def __init__(self, connection: Connection, source: str, target: str, delay: float) -> None:
        self.source, self.target, self.delay = source, target, delay
        self._connection = connection
        self._last = 0.0
        self._held: list[Callable[[], None]] = []

    def send(self, action: Callable[[], None], *, exempt: bool = False) -> None:
        """Have `action` done at the other end when a message gets there; `exempt`: no fault but
        partitions and delays concerns it."""
        connection = self._connection
        if connection.is_dead:
            return
        network = connection.network
        lost = None if exempt else network.hits("drop", self.source, self.target)
        if lost is not None:
            if lost.way == "silent":
                connection.is_dead = True
                return
            action = connection.reset
        now = asyncio.get_running_loop().time()
        extra = network.extra_delay(self.source, self.target)
        self._last = max(self._last, now + self.delay + extra)
        network.later(self._last - now, self._arrive, action)

    def _arrive(self, action: Callable[[], None]) -> None:
        network = self._connection.network
        if self._held or network.is_blocked(self.source, self.target):
            self._held.append(action)
            network.hold(self)
        elif not self._connection.is_dead:
            action()

    def resend(self) -> None:
        """Deliver what a partition has held, unless there is another one by now."""
        network = self._connection.network
        if network.is_blocked(self.source, self.target):
            network.hold(self)
            return
        held, self._held = self._held, []
        for action in held:
            if not self._connection.is_dead:
                action()


class Connection:
    """A connection of a process to whoever listens under a name."""

    def __init__(
        self,
        network: FaultyNetwork,
        source: str,
        target: str,
        delays: tuple[float, float],
        request: str = "",
    ) -> None:
        process = current_process()
        assert process is not None, "only processes connect"
        self.network, self.caller, self.request = network, process, request
        self.server: Process | None = None
        self.there = Way(self, source, target, delays[0])
        self.back = Way(self, target, source, delays[1])
        self.is_dead = False
        """No message passes any more; the ends may not know."""
        self.is_waited_for = True
        """The caller waits for an answer."""
        self.at_caller: Callable[[BaseException], None] = lambda error: None
        self.at_server: Callable[[], None] = lambda: None
        network.open[self] = None

    def accepted(self, process: Process) -> None:
        self.server = process

    def reset(self) -> None:
        """Break it; both ends notice."""
        self.is_dead = True
        self._tell_caller(aiohttp.ServerDisconnectedError())
        self.at_server()
        self.over()

    def over(self) -> None:
        """Nobody uses it any more."""
        self.network.open.pop(self, None)

    def refuse(self) -> None:
        """Nobody listens: the caller is told, unless the machine is off."""
        if self.there.target not in self.network.vanished:
            error = aiohttp.ClientConnectionError(f"{self.there.target}: connection refused")
            self.back.send(lambda: self._tell_caller(error), exempt=True)

    def to_server(self, action: Callable[[], None]) -> None:
        """Send a message to the server, which may have ended meanwhile."""

        def arrive() -> None:
            if self.server is None or self.server.alive:
                action()
            elif self.there.target not in self.network.vanished:
                self.back.send(self._server_gone, exempt=True)

        self.there.send(arrive)

    def to_caller(self, action: Callable[[], None]) -> None:
        """Send a message to the caller, which may have ended meanwhile."""

        def arrive() -> None:
            if self.caller.alive:
                action()
            elif self.caller.name not in self.network.vanished:
                self.there.send(self._caller_gone, exempt=True)

        self.back.send(arrive)

    def process_ended(self, process: Process, silently: bool) -> None:
        """One of the ends has ended."""
        if process is self.caller:
            self.is_waited_for = False
            if silently:
                self.over()
            else:
                self.there.send(self._caller_gone, exempt=True)
        elif process is self.server and not silently:
            self.back.send(self._server_gone, exempt=True)

    def hang_up(self) -> None:
        """The caller closes it before it has the answer."""
        self.is_waited_for = False
        self.there.send(self._caller_gone)

    def _caller_gone(self) -> None:
        self.is_waited_for = False
        self.at_server()
        self.over()

    def _server_gone(self) -> None:
        self._tell_caller(aiohttp.ServerDisconnectedError())
        self.over()

    def _tell_caller(self, error: BaseException) -> None:
        self.is_waited_for = False
        self.at_caller(error)


class FaultyTransport:
    """A node's `edgewise.live.wire.transport.Transport` over a `FaultyNetwork`."""

    def __init__(self, network: FaultyNetwork, name: str) -> None:
        self._network, self._name = network, name

    def peer_session(self) -> aiohttp.ClientSession:
        return self._network.session(self._name, CONNECT_TIMEOUT)

    def balancer_session(self) -> aiohttp.ClientSession:
        return self._network.session(self._name)

    async def listen(self, app: web.Application, at: Listen, stack: AsyncExitStack) -> str:
        app.freeze()
        process = current_process()
        assert process is not None, "only processes listen"
        self._network.endpoints[self._name] = Endpoint(process=process, app=app, cancels=True)
        stack.callback(self._network.endpoints.pop, self._name, None)
        return url_of(self._name)

    def message_bytes(self, body: int, headers: Mapping[str, str]) -> int:
        return weight(body, headers)


class _Session:
    """The part of ``aiohttp.ClientSession`` that the live code uses."""

    def __init__(self, network: FaultyNetwork, source: str, connect_timeout: float | None) -> None:
        self._network, self._source, self._connect_timeout = network, source, connect_timeout

    async def __aenter__(self) -> _Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def close(self) -> None:
        pass

    def post(
        self,
        to: str,
        *,
        data: Any = None,
        headers: Any = None,
        trace_request_ctx: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> Exchange:
        trace_request_ctx()  # the client's own tracing calls it when the first bytes leave
        return self._exchange("POST", to, data, dict(headers or {}), options)

    def get(self, to: str, **options: Any) -> Exchange:
        return self._exchange("GET", to, b"", {}, options)

    def _exchange(
        self, method: str, to: str, data: Any, headers: dict[str, str], options: dict[str, Any]
    ) -> Exchange:
        timeout = options.get("timeout")
        return Exchange(
            self._network,
            self._source,
            (method, URL(to)),
            data,
            headers,
            None if timeout is None else timeout.total,
            self._connect_timeout,
        )

    async def ws_connect(self, to: str, *, heartbeat: float | None = None, **_: Any) -> ChannelEnd:
        return await connect(self._network, self._source, URL(to).host or "", heartbeat)


class Exchange:
    """One HTTP request and its response: aiohttp's request context and response in one object."""

    def __init__(
        self,
        network: FaultyNetwork,
        source: str,
        what: tuple[str, URL],
        data: Any,
        headers: dict[str, str],
        timeout: float | None,
        connect_timeout: float | None,
    ) -> None:
        self._network, self._source, self._data, self._headers = network, source, data, headers
        self._method, self._to = what
        self._target = self._to.host or ""
        self._timeout, self._connect_timeout = timeout, connect_timeout
        self._tasks: list[asyncio.Task[Any]] = []
        self._timers: list[asyncio.TimerHandle] = []
        self.status = 0

    async def __aenter__(self) -> Exchange:
        loop = asyncio.get_running_loop()
        self._head: asyncio.Future[int] = loop.create_future()
        self._content: asyncio.Future[bytes] = loop.create_future()
        if self._timeout is not None:
            self._timers = [
                loop.call_later(self._timeout, self._fail, aiohttp.ServerTimeoutError())
            ]
        try:
            await self._connect()
            self._begin()
            self.status = await self._head
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()

    async def read(self) -> bytes:
        return await self._content

    async def _connect(self) -> None:
        """Wait until there is a connection. Raises ServerTimeoutError."""
        network, target = self._network, self._target
        is_new = network.rng.random() < NEW_CONNECTION
        unreachable = target in network.vanished or (
            is_new
            and (
                network.is_blocked(self._source, target) or network.is_blocked(target, self._source)
            )
        )
        if unreachable and self._connect_timeout is not None:
            await asyncio.sleep(self._connect_timeout)
            raise aiohttp.ServerTimeoutError(f"{target}: no connection in time")

    def _begin(self) -> None:
        """Send the headers and the body; perhaps they arrive twice."""
        network = self._network
        self._route = network.route(self._source, self._target, self._to.path)
        if hasattr(self._data, "getvalue"):
            self._data = self._data.getvalue()
        if isinstance(self._data, bytes):
            self._headers["Content-Length"] = str(len(self._data))
        self._request = _Request(self, self._fail)
        self._tasks = [
            asyncio.get_running_loop().create_task(
                self._request.carry(self._data, self._route.link)
            )
        ]
        again = self._method == "POST" and isinstance(self._data, bytes)
        if again and network.hits("duplicate", self._source, self._target):
            process = current_process()
            assert process is not None
            process.start(self._repeat(network.rng.random() * 0.5))

    async def _repeat(self, after: float) -> None:
        """Send the same request once more; nobody reads its answer."""
        await asyncio.sleep(after)
        request = _Request(self, lambda error: None, is_copy=True)
        await request.carry(self._data, None)

    def _fail(self, error: BaseException) -> None:
        for future in (self._head, self._content):
            if not future.done():
                future.set_exception(error)
                future.exception()  # one of them may have nobody waiting for it

    def _close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        for future in (self._head, self._content):
            if future.done() and not future.cancelled():
                future.exception()
        if self._tasks:
            content = self._content
            failed = not content.done() or content.cancelled() or content.exception() is not None
            self._request.close(is_answered=not failed)


class _Request:
    """A request on its connection, at both ends."""

    def __init__(
        self, exchange: Exchange, fail: Callable[[BaseException], None], is_copy: bool = False
    ) -> None:
        network, source, target = exchange._network, exchange._source, exchange._target
        self._exchange, self._network, self._is_copy = exchange, network, is_copy
        headers = exchange._headers
        route = exchange._route
        self.connection = Connection(
            network, source, target, (route.delay, route.back), headers.get(HEADER + "id", "")
        )
        if is_copy:
            self.connection.is_waited_for = False
        self.connection.at_caller = fail
        self.connection.at_server = self._gone
        self._payload = empty_body(asyncio.get_running_loop())
        self._handler: asyncio.Task[None] | None = None
        self._cancels = False
        self.is_closed = False
        """The server knows that nobody waits any more."""
        self.connection.to_server(self._arrive)

    # -- at the caller ---------------------------------------------------------------------------

    async def carry(self, data: bytes | AsyncIterator[bytes] | None, link: Any) -> None:
        """Send the body."""
        loop = asyncio.get_running_loop()
        sending = None
        if link is not None and data:
            size = weight(len(data) if isinstance(data, bytes) else 0, self._exchange._headers)
            sending = loop.create_task(link.transmit(size), context=NOBODY.copy())
        try:
            if data is None or isinstance(data, bytes):
                rest = data or b""
                if rest:  # the first byte comes with the headers
                    self._feed(rest[:1])
                    rest = rest[1:]
            else:
                rest = b"".join([chunk async for chunk in data])
            if sending is not None:
                await sending
        except Exception as error:  # as aiohttp does when a body cannot be read
            self.connection.at_caller(aiohttp.ClientConnectionError(str(error)))
            self.connection.hang_up()
            return
        finally:
            if sending is not None:
                sending.cancel()
        self._feed(rest)
        self.connection.to_server(self._end_body)

    def _feed(self, data: bytes) -> None:
        if data:
            self.connection.to_server(partial(self._take, data))

    def _take(self, data: bytes) -> None:
        self._payload.feed_data(data)

    def _end_body(self) -> None:
        self._payload.feed_eof()

    def close(self, *, is_answered: bool) -> None:
        if is_answered:
            self.connection.is_waited_for = False
        else:
            self.connection.hang_up()

    # -- at the server ---------------------------------------------------------------------------

    def _arrive(self) -> None:
        """The headers are in."""
        network, exchange, connection = self._network, self._exchange, self.connection
        endpoint = network.endpoints.get(exchange._target)
        if endpoint is None:
            connection.refuse()
            connection.over()
            return
        connection.accepted(endpoint.process)
        self._cancels = endpoint.cancels
        self._handler = endpoint.process.start(self._serve(endpoint))

    async def _serve(self, endpoint: Endpoint) -> None:
        exchange, connection = self._exchange, self.connection
        writer = _Answer(self)
        try:
            if is_transfer(exchange._headers) and await self._misbehave(endpoint, writer):
                return
            await answer(
                endpoint.app,
                exchange._method,
                exchange._to,
                exchange._headers,
                self._payload,
                writer,
            )
        except ConnectionError:
            pass
        except Exception as error:
            self._network.observer.on_raised(endpoint.process, exchange._to.path, error)
            with contextlib.suppress(ConnectionError):
                await writer.write_headers("HTTP/1.1 500 Internal Server Error", {})
                await writer.write_eof(b"500 Internal Server Error")
        finally:
            connection.over()

    async def _misbehave(self, endpoint: Endpoint, writer: _Answer) -> bool:
        """Answer a transfer as a server with a fault does; False if it has none."""
        network, name = self._network, endpoint.process.name
        fault = network.at_server("fail", name)
        if fault is not None:
            network.observer.on_fault(fault)
            await writer.write_headers(f"HTTP/1.1 {fault.way} Error", {})
            await writer.write_eof(b'{"error": "a fault of the drill"}')
            return True
        fault = network.at_server("hang", name)
        if fault is not None:
            network.observer.on_fault(fault)
            await writer.write_headers("HTTP/1.1 202 Accepted", {})
            await asyncio.sleep(HANGING)
            return True
        return False

    def _gone(self) -> None:
        """The caller is gone, as far as the server can tell."""
        self.is_closed = True
        if not self._payload.is_eof():
            self._payload.set_exception(aiohttp.ClientConnectionResetError("Connection lost"))
        if self._handler is not None and self._cancels:
            self._handler.cancel()

    def head(self, status: int) -> None:
        self._exchange.status = status
        _set(self._exchange._head, status)

    def content(self, data: bytes) -> None:
        _set(self._exchange._content, data)

    @property
    def is_copy(self) -> bool:
        return self._is_copy


def _set(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


class _Answer(AbstractStreamWriter):
    """Takes what a server writes, and sends it to the caller."""

    def __init__(self, request: _Request) -> None:
        self._request = request
        self._written = bytearray()

    async def write_headers(self, status_line: str, headers: Any) -> None:
        self._check()
        status = int(status_line.split()[1])
        if not self._request.is_copy:
            self._request.connection.to_caller(lambda: self._request.head(status))

    async def write(self, chunk: Any) -> None:
        self._check()
        self._written += chunk

    async def write_eof(self, chunk: bytes = b"") -> None:
        self._check()
        self._written += chunk
        content = bytes(self._written)
        if not self._request.is_copy:
            self._request.connection.to_caller(lambda: self._request.content(content))

    def _check(self) -> None:
        if self._request.is_closed:
            raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    async def drain(self) -> None:
        pass

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        raise NotImplementedError

    def enable_chunking(self) -> None:
        pass


# -- control channels ----------------------------------------------------------------------------


async def connect(
    network: FaultyNetwork, source: str, target: str, heartbeat: float | None
) -> ChannelEnd:
    """Open a control channel. Raises ClientConnectionError."""
    loop = asyncio.get_running_loop()
    connection = Connection(network, source, target, (network.control_delay,) * 2)
    opened: asyncio.Future[None] = loop.create_future()
    ours = ChannelEnd(connection, connection.to_server, source)
    theirs = ChannelEnd(connection, connection.to_caller, "")
    ours.other, theirs.other = theirs, ours

    def at_caller(error: BaseException) -> None:
        if not opened.done():
            opened.set_exception(error)
            opened.exception()
        ours.break_off()

    connection.at_caller, connection.at_server = at_caller, theirs.break_off

    def arrive() -> None:
        endpoint = network.endpoints.get(target)
        if endpoint is None or endpoint.serve_channel is None:
            connection.refuse()
            connection.over()
            return
        connection.accepted(endpoint.process)
        served = endpoint.process.start(
            cast(Any, endpoint.serve_channel(theirs, source, connection.reset))
        )
        served.add_done_callback(lambda task: theirs.end(task), context=NOBODY)
        connection.to_caller(lambda: _set(opened, None))

    connection.to_server(arrive)
    try:
        await opened
    except BaseException:
        connection.hang_up()
        raise
    if heartbeat is not None:
        ours.watch(heartbeat)
    return ours


class ChannelEnd:
    """One end of a control channel, with the methods of both of aiohttp's WebSockets."""

    other: ChannelEnd

    def __init__(
        self,
        connection: Connection,
        send: Callable[[Callable[[], None]], None],
        node: str,
    ) -> None:
        self._connection, self._send, self._node = connection, send, node
        self._inbox: asyncio.Queue[WSMessage] = asyncio.Queue()
        self._closed = False
        self._unread = 0  # bytes that are under way to this end or wait to be read
        self._room = asyncio.Event()
        self._heartbeat: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> ChannelEnd:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def send_bytes(self, data: bytes) -> None:
        if self._node:
            data = self._connection.network.observer.on_report(self._node, data)
        while self.other._unread > SOCKET_BUFFERS and not self._closed:
            self.other._room.clear()
            await self.other._room.wait()
        if self._closed:
            raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
        self._post(WSMessage(WSMsgType.BINARY, data, None))

    async def close(self, *, code: int = 1000, message: bytes = b"") -> None:
        if not self._closed:
            self._post(WSMessage(WSMsgType.CLOSED, None, None))
        self.break_off()
        self._connection.over()

    def end(self, task: asyncio.Task[Any]) -> None:
        """The server's side has ended: its connection is closed."""
        if not task.cancelled() and (error := task.exception()) is not None:
            process = self._connection.server
            assert process is not None
            assert isinstance(error, Exception)
            self._connection.network.observer.on_raised(process, "control channel", error)
        if not self._closed:
            self._post(WSMessage(WSMsgType.CLOSED, None, None))
            self.break_off()
        self._connection.over()

    def break_off(self) -> None:
        """This end learns that the channel is broken. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.other._room.set()
        self._inbox.put_nowait(WSMessage(WSMsgType.CLOSED, None, None))

    async def receive(self, timeout: float | None = None) -> WSMessage:  # noqa: ASYNC109
        async with asyncio.timeout(timeout):
            while True:
                message = await self._inbox.get()
                if message.type is WSMsgType.PING:  # aiohttp answers it
                    self._post(WSMessage(WSMsgType.PONG, None, None))
                    continue
                if self._heartbeat is not None and not self._closed:
                    self.watch(self._heartbeat)
                if message.type is not WSMsgType.PONG:
                    break
        if message.data is not None:
            self._unread -= len(message.data)
            self._room.set()
        if message.type is WSMsgType.CLOSED:
            self.break_off()
        return message

    def __aiter__(self) -> ChannelEnd:
        return self

    async def __anext__(self) -> WSMessage:
        message = await self.receive()
        if message.type is WSMsgType.CLOSED:
            raise StopAsyncIteration
        return message

    def watch(self, heartbeat: float) -> None:
        """Ping the other end when nothing has come for `heartbeat` s, and break off if nothing
        comes within half of that."""
        if self._timer is not None:
            self._timer.cancel()
        self._heartbeat = heartbeat
        loop = asyncio.get_running_loop()

        def ping() -> None:
            self._post(WSMessage(WSMsgType.PING, None, None))
            self._timer = loop.call_later(0.5 * heartbeat, give_up)

        def give_up() -> None:
            self._connection.hang_up()
            self.break_off()

        self._timer = loop.call_later(heartbeat, ping)

    def _post(self, message: WSMessage) -> None:
        if message.data is not None:
            self.other._unread += len(message.data)
        self._send(lambda: self.other._arrive(message))

    def _arrive(self, message: WSMessage) -> None:
        if not self._closed:
            self._inbox.put_nowait(message)
