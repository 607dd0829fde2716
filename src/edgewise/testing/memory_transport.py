"""Messages between client, nodes and balancer in one process: a `live.wire.transport.Carrier`.

Shaped like aiohttp's client on one side, and on the other handing real ``web.Request`` objects to
the real applications, so that what the live code says in headers, statuses and bodies is said here.

A message's headers are in after the way's delay. Its payload takes its share of the link from the
start, and is in a delay after the later of *the link is through with it* and *its source had it
all* (cut-through, as in `sim.routes`). An answer takes the delay of the way back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
from aiohttp import WSMessage, WSMsgType, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict
from yarl import URL

from edgewise.live.process_config import Listen
from edgewise.tasks import task_of
from edgewise.testing.shared_link import SharedLink
from edgewise.testing.virtual_loop import until

PORT = 80
"""In addresses, which must have one; there are no ports."""


class Connection:
    """From one party to another: a link, or only a delay, and the delay of the way back."""

    def __init__(self, link: SharedLink | None, delay: float, back: float) -> None:
        self.link, self.delay, self.back = link, delay, back


Ways = Callable[[str, str, str], Connection]
"""(source, target, path of the request) → the way it takes."""


class Switch:
    """Everybody, and how they reach each other.

    Parameters
    ----------
    way:
        From a party to another.
    control_delay:
        s one way between node and balancer.
    take:
        Called with the name of a node and each message of its control channel; returns what arrives
        in its place, None = nothing does.
    """

    def __init__(
        self,
        way: Ways,
        control_delay: float,
        take: Callable[[str, bytes], bytes | None],
    ) -> None:
        self.way = way
        self.control_delay = control_delay
        self.take = take
        self.applications: dict[str, web.Application] = {}
        self.converse: Callable[[Any, str, Callable[[], None]], Awaitable[None]] | None = None
        self.tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Any) -> asyncio.Task[Any]:
        """A task that is kept until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def session(self, source: str) -> aiohttp.ClientSession:
        """What `source` talks to others with."""
        return cast(aiohttp.ClientSession, Session(self, source))


class Party:
    """A node's carrier."""

    def __init__(self, switch: Switch, name: str) -> None:
        self._switch, self._name = switch, name

    def peers(self) -> aiohttp.ClientSession:
        return self._switch.session(self._name)

    def control(self) -> aiohttp.ClientSession:
        return self._switch.session(self._name)

    async def listen(self, app: web.Application, at: Listen, stack: AsyncExitStack) -> str:
        app.freeze()
        self._switch.applications[self._name] = app
        return url(self._name)

    def weight(self, body: int, headers: Mapping[str, str]) -> int:
        return weight(body, headers)


def url(name: str) -> str:
    """The address of a party."""
    return f"http://{name}:{PORT}"


def weight(body: int, headers: Mapping[str, str]) -> int:
    """Bytes that a message takes of a link: its payload, as in the simulator."""
    if "edgewise-ready-size" in headers:
        return task_of().ready_bytes(int(headers["edgewise-ready-size"]))
    return int(headers.get("edgewise-payload-bytes", body))


class Session:
    """As much of ``aiohttp.ClientSession`` as the live code uses."""

    def __init__(self, switch: Switch, source: str) -> None:
        self._switch, self._source = switch, source

    async def __aenter__(self) -> Session:
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
    ) -> Call:
        trace_request_ctx()  # what the client's own tracing calls
        return Call(self._switch, self._source, "POST", URL(to), data, dict(headers or {}))

    def get(self, to: str, **_: Any) -> Call:
        return Call(self._switch, self._source, "GET", URL(to), b"", {})

    async def ws_connect(self, to: str, **_: Any) -> End:
        if self._switch.converse is None:
            raise aiohttp.ClientConnectionError(f"{to}: nobody is there")
        ours, theirs = pair(self._switch, self._source)
        self._switch.start(self._switch.converse(theirs, self._source, ours.hang_up))
        return ours


class Call:
    """One HTTP request and its response, both ``async with`` and response in one."""

    def __init__(
        self,
        switch: Switch,
        source: str,
        method: str,
        to: URL,
        data: Any,
        headers: dict[str, str],
    ) -> None:
        self._switch, self._method, self._to, self._data = switch, method, to, data
        self._headers = headers
        self._target = to.host or ""
        self._way = switch.way(source, self._target, to.path)
        self._tasks: list[asyncio.Task[Any]] = []
        self.status = 0

    async def __aenter__(self) -> Call:
        app = self._switch.applications.get(self._target)
        if app is None:
            raise aiohttp.ClientConnectionError(f"{self._to}: nobody is there")
        loop = asyncio.get_running_loop()
        self._back = Back(loop, self._way.back)
        began = loop.time()
        protocol = BaseProtocol(loop)
        protocol.transport = asyncio.Transport()  # or it counts as closed
        payload = aiohttp.StreamReader(protocol, 2**30, loop=loop)
        data = self._data
        if data is not None and hasattr(data, "getvalue"):
            data = data.getvalue()
        if isinstance(data, bytes):
            self._headers["Content-Length"] = str(len(data))
        self._tasks = [
            self._switch.start(self._carry(data, payload)),
            self._switch.start(self._serve(app, payload, began + self._way.delay)),
        ]
        self._tasks[1].add_done_callback(self._back.give_up)
        try:
            self.status = await self._back.head
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:  # who called has gone, if they still run
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def read(self) -> bytes:
        return await self._back.body

    async def _carry(
        self, data: bytes | AsyncIterator[bytes] | None, to: aiohttp.StreamReader
    ) -> None:
        """Bring the body over."""
        loop = asyncio.get_running_loop()
        began = ready = loop.time()
        crossing = None
        if self._way.link is not None and data:
            size = weight(len(data) if isinstance(data, bytes) else 0, self._headers)
            crossing = self._switch.start(self._way.link.cross(size))
        try:
            if data is None or isinstance(data, bytes):
                whole = data or b""
                if crossing is not None and whole:
                    # The first byte comes with the headers, so that the receiver can time the rest.
                    await until(began + self._way.delay)
                    to.feed_data(whole[:1])
                    whole = whole[1:]
            else:
                whole = b"".join([chunk async for chunk in data])
                ready = loop.time()
            if crossing is not None:  # it may be across before its first byte is in
                ready = max(ready, await crossing)
        finally:
            if crossing is not None:
                crossing.cancel()
        await until(ready + self._way.delay)
        if whole:
            to.feed_data(whole)
        to.feed_eof()

    async def _serve(self, app: web.Application, payload: Any, at: float) -> None:
        await until(at)
        request = make_mocked_request(
            self._method,
            self._to.path_qs,
            headers=CIMultiDict(self._headers),
            app=app,
            writer=self._back,
            payload=payload,
            # Of its own mocks each takes longer than all that the request is handled by.
            transport=None,
            protocol=SimpleNamespace(ssl_context=None, peername=None, sockname=None),
            client_max_size=2**30,
        )
        response = await app._handle(request)
        await response.prepare(request)
        await response.write_eof()


class Back(AbstractStreamWriter):
    """What a server writes; its caller sees it `delay` s later."""

    def __init__(self, loop: asyncio.AbstractEventLoop, delay: float) -> None:
        self._loop, self._delay = loop, delay
        self.head: asyncio.Future[int] = loop.create_future()
        self.body: asyncio.Future[bytes] = loop.create_future()
        self._written = bytearray()

    async def write_headers(self, status_line: str, headers: Any) -> None:
        self._later(self.head, int(status_line.split()[1]))

    async def write(self, chunk: Any) -> None:
        self._written += chunk

    async def write_eof(self, chunk: bytes = b"") -> None:
        self._written += chunk
        self._later(self.body, bytes(self._written))

    async def drain(self) -> None:
        pass

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        raise NotImplementedError

    def enable_chunking(self) -> None:
        pass

    def give_up(self, server: asyncio.Task[None]) -> None:
        """Pass on what the server died of."""
        error = None if server.cancelled() else server.exception()
        for future in (self.head, self.body):
            if error is not None and not future.done():
                future.set_exception(error)
                future.exception()  # one of them may have nobody waiting for it

    def _later(self, future: asyncio.Future[Any], value: Any) -> None:
        def tell() -> None:
            if not future.done():
                future.set_result(value)

        self._loop.call_at(self._loop.time() + self._delay, tell)


class End:
    """One end of a control channel, shaped like both of aiohttp's WebSockets."""

    def __init__(self, delay: float, take: Callable[[bytes], bytes | None]) -> None:
        self._delay, self._take = delay, take
        self._inbox: asyncio.Queue[WSMessage] = asyncio.Queue()
        self._coming: deque[WSMessage] = deque()
        self.other: End

    async def __aenter__(self) -> End:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def send_bytes(self, data: bytes) -> None:
        taken = self._take(data)
        if taken is not None:
            self._send(WSMessage(WSMsgType.BINARY, taken, None))

    async def close(self, *, code: int = 1000, message: bytes = b"") -> None:
        self._send(WSMessage(WSMsgType.CLOSED, None, None))
        self._inbox.put_nowait(WSMessage(WSMsgType.CLOSED, None, None))

    def hang_up(self) -> None:
        """Close at once."""
        for end in (self, self.other):
            end._inbox.put_nowait(WSMessage(WSMsgType.CLOSED, None, None))

    async def receive(self, timeout: float | None = None) -> WSMessage:  # noqa: ASYNC109
        async with asyncio.timeout(timeout):
            return await self._inbox.get()

    def __aiter__(self) -> End:
        return self

    async def __anext__(self) -> WSMessage:
        message = await self.receive()
        if message.type is WSMsgType.CLOSED:
            raise StopAsyncIteration
        return message

    def _send(self, message: WSMessage) -> None:
        # In order, also of what is sent at one moment, for which the loop's heap knows no order.
        loop = asyncio.get_running_loop()
        self.other._coming.append(message)
        loop.call_at(loop.time() + self._delay, self.other._arrive)

    def _arrive(self) -> None:
        self._inbox.put_nowait(self._coming.popleft())


def pair(switch: Switch, node: str) -> tuple[End, End]:
    """A node's end of a control channel and the balancer's."""
    ours = End(switch.control_delay, lambda data: switch.take(node, data))
    theirs = End(switch.control_delay, lambda data: data)
    ours.other, theirs.other = theirs, ours
    return ours, theirs


async def hung_up(switch: Switch) -> None:
    """End what is still under way."""
    tasks = [*switch.tasks]
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)
