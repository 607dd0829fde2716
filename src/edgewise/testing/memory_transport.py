"""Messages between client, nodes and balancer in one process: a transport without sockets.

It looks like aiohttp's client to whoever calls, and hands real ``web.Request`` objects to the real
applications, so the headers, statuses and bodies that the live code exchanges are all exercised.

A message's headers arrive after the route's delay. Its payload takes its share of the link from the
start, and arrives one delay after the later of *the link has sent it* and *its source had all of
it* (cut-through, as in `sim.routes`). An answer takes the delay of the way back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

from msgspec import Struct
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from edgewise.errors import MissingExtra
from edgewise.live.process_config import Listen
from edgewise.tasks import task_of
from edgewise.testing.shared_link import SharedLink
from edgewise.testing.virtual_loop import sleep_until

try:
    import aiohttp
    from aiohttp import WSMessage, WSMsgType, web
    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.base_protocol import BaseProtocol
    from aiohttp.http import HttpVersion11, RawRequestMessage
except ImportError as error:
    raise MissingExtra("live", error.name or "aiohttp") from error

PORT = 80
"""Addresses must have a port; here it means nothing."""


class MemoryRoute(Struct, frozen=True):
    """How messages get from one party to another: over a link, or only delayed (None)."""

    link: SharedLink | None
    delay: float
    """s one way."""
    back: float
    """s that the answer takes."""


RouteFinder = Callable[[str, str, str], MemoryRoute]
"""(source, target, path of the HTTP request) → the route it takes."""
ServeChannel = Callable[[Any, str, Callable[[], None]], Awaitable[None]]


class MemoryNetwork:
    """All parties by name, and how they reach each other.

    Parameters
    ----------
    route:
        Gives the route of each message.
    control_delay:
        s one way between a node and the balancer, on the control channel.
    intercept:
        Called with a node's name and each message that it sends on its control channel; returns
        what arrives instead, None to lose it.
    """

    def __init__(
        self,
        route: RouteFinder,
        control_delay: float = 0.0,
        intercept: Callable[[str, bytes], bytes | None] = lambda node, data: data,
    ) -> None:
        self.route = route
        self.control_delay = control_delay
        self.intercept = intercept
        self.applications: dict[str, web.Application] = {}
        """Who answers, by name."""
        self.serve_channel: ServeChannel | None = None
        """The balancer's side of a control channel (`Balancer.serve_channel`)."""
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine as a task that the network keeps until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def session(self, source: str) -> aiohttp.ClientSession:
        """The HTTP client of a party."""
        return cast(aiohttp.ClientSession, _Session(self, source))

    async def close(self) -> None:
        """Cancel all messages that are under way."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


class MemoryTransport:
    """A node's `edgewise.live.wire.transport.Transport` over a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network, self._name = network, name

    def peer_session(self) -> aiohttp.ClientSession:
        return self._network.session(self._name)

    def balancer_session(self) -> aiohttp.ClientSession:
        return self._network.session(self._name)

    async def listen(self, app: web.Application, at: Listen, stack: AsyncExitStack) -> str:
        app.freeze()
        self._network.applications[self._name] = app
        return url_of(self._name)

    def message_bytes(self, body: int, headers: Mapping[str, str]) -> int:
        return weight(body, headers)


def url_of(name: str) -> str:
    """The address of a party."""
    return f"http://{name}:{PORT}"


def weight(body: int, headers: Mapping[str, str]) -> int:
    """Bytes that a message takes of a link: those of its payload, as in the simulator."""
    if "edgewise-ready-size" in headers:
        return task_of().ready_bytes(int(headers["edgewise-ready-size"]))
    return int(headers.get("edgewise-payload-bytes", body))


def empty_body(loop: asyncio.AbstractEventLoop) -> aiohttp.StreamReader:
    """The body of a request of which nothing has arrived yet."""
    protocol = BaseProtocol(loop)
    protocol.transport = asyncio.Transport()  # without one it counts as closed
    return aiohttp.StreamReader(protocol, 2**30, loop=loop)


async def answer(
    app: web.Application,
    method: str,
    to: URL,
    headers: Mapping[str, str],
    payload: Any,
    writer: AbstractStreamWriter,
) -> None:
    """Have an application answer a request whose headers are in."""
    task = asyncio.current_task()
    assert task is not None
    # aiohttp's own mocks take longer than handling the request does.
    request = web.Request(
        RawRequestMessage(
            method,
            to.path_qs,
            HttpVersion11,
            CIMultiDictProxy(CIMultiDict({"Host": "localhost", **headers})),
            (),
            False,
            None,
            False,
            False,
            to.relative(),
        ),
        payload,
        cast(Any, SimpleNamespace(ssl_context=None, peername=None, sockname=None, transport=None)),
        writer,
        task,
        asyncio.get_running_loop(),
        client_max_size=2**30,
    )
    response = await app._handle(request)
    await response.prepare(request)
    await response.write_eof()


class _Session:
    """The part of ``aiohttp.ClientSession`` that the live code uses."""

    def __init__(self, network: MemoryNetwork, source: str) -> None:
        self._network, self._source = network, source

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
        **_: Any,
    ) -> _Exchange:
        trace_request_ctx()  # the client's own tracing calls it when the first bytes leave
        return _Exchange(self._network, self._source, "POST", URL(to), data, dict(headers or {}))

    def get(self, to: str, *, timeout: aiohttp.ClientTimeout | None = None, **_: Any) -> _Exchange:
        patience = None if timeout is None else timeout.total
        return _Exchange(self._network, self._source, "GET", URL(to), b"", {}, patience)

    async def ws_connect(self, to: str, **_: Any) -> _ChannelEnd:
        network, node = self._network, self._source
        if network.serve_channel is None:
            raise aiohttp.ClientConnectionError(f"{to}: nobody listens")
        ours = _ChannelEnd(network.control_delay, lambda data: network.intercept(node, data))
        theirs = _ChannelEnd(network.control_delay, lambda data: data)
        ours.other, theirs.other = theirs, ours
        network.start(network.serve_channel(theirs, node, ours.abort))
        return ours


_NOWHERE = MemoryRoute(None, 0.0, 0.0)
"""The route to an address at which nobody listens."""


class _Exchange:
    """One HTTP request and its response: aiohttp's request context and response in one object."""

    def __init__(
        self,
        network: MemoryNetwork,
        source: str,
        method: str,
        to: URL,
        data: Any,
        headers: dict[str, str],
        patience: float | None = None,
    ) -> None:
        self._patience = patience
        self._network, self._method, self._to, self._data = network, method, to, data
        self._headers = headers
        self._target = to.host or ""
        self._route = _NOWHERE
        if self._target in network.applications:
            self._route = network.route(source, self._target, to.path)
        self._tasks: list[asyncio.Task[Any]] = []
        self.status = 0

    async def __aenter__(self) -> _Exchange:
        app = self._network.applications.get(self._target)
        if app is None:
            raise aiohttp.ClientConnectionError(f"{self._to}: nobody listens")
        loop = asyncio.get_running_loop()
        self._writer = _ResponseWriter(loop, self._route.back)
        payload = empty_body(loop)
        data = self._data
        if data is not None and hasattr(data, "getvalue"):
            data = data.getvalue()
        if isinstance(data, bytes):
            self._headers["Content-Length"] = str(len(data))
        self._tasks = [
            self._network.start(self._carry(data, payload)),
            self._network.start(self._serve(app, payload, self._leaves_at() + self._route.delay)),
        ]
        self._tasks[1].add_done_callback(self._writer.fail)
        try:
            async with asyncio.timeout(self._patience):
                self.status = await self._writer.head
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:  # if they still run, the caller is gone
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def read(self) -> bytes:
        return await self._writer.body

    def _leaves_at(self) -> float:
        """When the headers leave: those of a photo go before it, whatever its link is doing."""
        now, link = asyncio.get_running_loop().time(), self._route.link
        return now if link is None or self._method != "GET" else link.leaves_at(now)

    async def _carry(
        self, data: bytes | AsyncIterator[bytes] | None, to: aiohttp.StreamReader
    ) -> None:
        """Deliver the body."""
        loop = asyncio.get_running_loop()
        began = ready = loop.time()
        delay, link = self._route.delay, self._route.link
        sending = None
        if link is not None and data:
            size = weight(len(data) if isinstance(data, bytes) else 0, self._headers)
            sending = self._network.start(link.transmit(size))
        try:
            if data is None or isinstance(data, bytes):
                rest = data or b""
                if sending is not None and rest:
                    # The first byte comes with the headers, so that the receiver can time the rest.
                    await sleep_until(began + delay)
                    to.feed_data(rest[:1])
                    rest = rest[1:]
            else:
                rest = b"".join([chunk async for chunk in data])
                ready = loop.time()
            if sending is not None:  # it may have been sent before its first byte arrives
                ready = max(ready, await sending)
        finally:
            if sending is not None:
                sending.cancel()
        await sleep_until(ready + delay)
        if rest:
            to.feed_data(rest)
        to.feed_eof()

    async def _serve(self, app: web.Application, payload: Any, at: float) -> None:
        await sleep_until(at)
        await answer(app, self._method, self._to, self._headers, payload, self._writer)


class _ResponseWriter(AbstractStreamWriter):
    """Takes what a server writes and shows it to the caller `delay` s later."""

    def __init__(self, loop: asyncio.AbstractEventLoop, delay: float) -> None:
        self._loop, self._delay = loop, delay
        self.head: asyncio.Future[int] = loop.create_future()
        self.body: asyncio.Future[bytes] = loop.create_future()
        self._written = bytearray()

    async def write_headers(self, status_line: str, headers: Any) -> None:
        self._set_later(self.head, int(status_line.split()[1]))

    async def write(self, chunk: Any) -> None:
        self._written += chunk

    async def write_eof(self, chunk: bytes = b"") -> None:
        self._written += chunk
        self._set_later(self.body, bytes(self._written))

    async def drain(self) -> None:
        pass

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        raise NotImplementedError

    def enable_chunking(self) -> None:
        pass

    def fail(self, server: asyncio.Task[None]) -> None:
        """Pass on the exception that ended the server's task, if one did."""
        error = None if server.cancelled() else server.exception()
        for future in (self.head, self.body):
            if error is not None and not future.done():
                future.set_exception(error)
                future.exception()  # one of them may have nobody waiting for it

    def _set_later(self, future: asyncio.Future[Any], value: Any) -> None:
        def set_result() -> None:
            if not future.done():
                future.set_result(value)

        self._loop.call_at(self._loop.time() + self._delay, set_result)


class _ChannelEnd:
    """One end of a control channel, with the methods of both of aiohttp's WebSockets."""

    other: _ChannelEnd

    def __init__(self, delay: float, intercept: Callable[[bytes], bytes | None]) -> None:
        self._delay, self._intercept = delay, intercept
        self._inbox: asyncio.Queue[WSMessage] = asyncio.Queue()
        self._under_way: deque[WSMessage] = deque()

    async def __aenter__(self) -> _ChannelEnd:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def send_bytes(self, data: bytes) -> None:
        passed = self._intercept(data)
        if passed is not None:
            self._send(WSMessage(WSMsgType.BINARY, passed, None))

    async def close(self, *, code: int = 1000, message: bytes = b"") -> None:
        self._send(WSMessage(WSMsgType.CLOSED, None, None))
        self._inbox.put_nowait(WSMessage(WSMsgType.CLOSED, None, None))

    def abort(self) -> None:
        """Close both ends at once."""
        for end in (self, self.other):
            end._inbox.put_nowait(WSMessage(WSMsgType.CLOSED, None, None))

    async def receive(self, timeout: float | None = None) -> WSMessage:  # noqa: ASYNC109
        async with asyncio.timeout(timeout):
            return await self._inbox.get()

    def __aiter__(self) -> _ChannelEnd:
        return self

    async def __anext__(self) -> WSMessage:
        message = await self.receive()
        if message.type is WSMsgType.CLOSED:
            raise StopAsyncIteration
        return message

    def _send(self, message: WSMessage) -> None:
        # Through a queue, so that messages sent at the same time stay in order.
        loop = asyncio.get_running_loop()
        self.other._under_way.append(message)
        loop.call_at(loop.time() + self._delay, self.other._arrive)

    def _arrive(self) -> None:
        self._inbox.put_nowait(self._under_way.popleft())
