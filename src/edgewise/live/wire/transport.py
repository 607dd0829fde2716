"""The transport between nodes, balancer and client: the one seam to the network.

`SocketTransport` is the real one; `edgewise.testing` has another, within one process and on virtual
time. Each process gets its transport passed in, so everything else is the same code over both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Protocol

import aiohttp
from aiohttp import web

from edgewise.live.process_config import Listen
from edgewise.live.wire.http_server import Runner
from edgewise.live.wire.sockets import listen, outgoing, url_of
from edgewise.security.identity import Credentials

CONNECT_TIMEOUT = 0.5
"""s. Two lost SYNs would take 3 s; a peer that is not there must leave time for another."""
IDLE_CONNECTION = 60.0
"""s that a connection to a peer is kept: over a thin link a new one costs two round trips."""
ADDRESS_MEMORY = 1
"""s that a peer's address is remembered. A container that was replaced is back at another address
within seconds, and connections are kept, so look-ups are rare."""
ANSWER_LIMIT = 1.0
"""s to write the last answers when a node stops; its requests were given the time to end before."""

OpenSession = Callable[[], aiohttp.ClientSession]
"""Opens an HTTP session; the caller closes it."""


class Transport(Protocol):
    """A node's network."""

    def peer_session(self) -> aiohttp.ClientSession:
        """Open a session to the other servers."""
        ...

    def balancer_session(self) -> aiohttp.ClientSession:
        """Open a session to the balancer."""
        ...

    async def listen(self, app: web.Application, at: Listen, stack: AsyncExitStack) -> str:
        """Serve `app` until `stack` is closed; returns its address. Raises BadInput."""
        ...

    def message_bytes(self, body: int, headers: Mapping[str, str]) -> int:
        """Bytes that a message with a `body` of so many bytes takes on a link."""
        ...


class SocketTransport:
    """HTTP over TCP, with `credentials` over TLS."""

    def __init__(self, credentials: Credentials | None = None) -> None:
        self._credentials = credentials

    def peer_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=IDLE_CONNECTION,
                socket_factory=outgoing,
                ttl_dns_cache=ADDRESS_MEMORY,
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        )

    def balancer_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def listen(self, app: web.Application, at: Listen, stack: AsyncExitStack) -> str:
        runner = Runner(app, ANSWER_LIMIT)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        sock = listen(at.host, at.port)
        credentials = self._credentials
        context = None if credentials is None else credentials.server_context()
        await web.SockSite(runner, sock, ssl_context=context).start()
        return url_of(sock, secure=credentials is not None)

    def message_bytes(self, body: int, headers: Mapping[str, str]) -> int:
        # The headers are 7 % of a model-ready payload of 9 kB.
        return body + sum(len(key) + len(value) + 4 for key, value in headers.items())
