"""The HTTP server of nodes and balancer: aiohttp's, with limits, and with JSON for every error.

aiohttp has a time-out for idle connections only. Here a connection also has `Limits.header_timeout`
for each request's headers, and the number of connections is bounded in all and for each address.
Requests that are no HTTP (or too long, or HTTP/2, or TLS) are answered in JSON and logged as one
line without their bytes. Limits on bodies are the application's.

A client that shuts down its sending side after its request still gets its answer. It cannot be told
from one that has gone, so it is sent *100 Continue* now and then, which every client of HTTP/1.1
skips: a socket that is gone answers with a reset, and the request is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import http_exceptions, web
from aiohttp.web_protocol import RequestHandler

from edgewise.live.process_config import Limits

log = logging.getLogger("edgewise.http")

PROBE_MIN, PROBE_MAX = 0.05, 5.0
"""s between probes of a client that sends no more, doubling from the first to the second: the
second probe already notices one that is gone."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Usage:
    """The limits of a server, what counts against them, and how often each was reached."""

    def __init__(self, limits: Limits | None = None, body_bytes: int = 2**20) -> None:
        self.limits = Limits() if limits is None else limits
        self.body_bytes = body_bytes
        """bytes of a request's body at most."""
        self.connections = 0
        self.clients: Counter[str] = Counter()
        """Connections by address."""
        self.reached: Counter[str] = Counter()
        """How often each limit was reached."""
        self.on_error: Callable[[int], None] = lambda code: None
        """Called with the HTTP code of each error that the application does not answer itself."""
        self.upload_bytes = 0
        """bytes of all bodies that are still coming in."""

    def open(self, client: str) -> str | None:
        """Count a connection; returns the limit that it is over, None if there is room."""
        self.connections += 1
        self.clients[client] += 1
        if self.connections > self.limits.connections:
            return "connections"
        if self.clients[client] > self.limits.connections_per_client:
            return "connections_per_client"
        return None

    def close(self, client: str) -> None:
        """A connection has ended."""
        self.connections -= 1
        self.clients[client] -= 1
        if self.clients[client] <= 0:
            del self.clients[client]


USAGE: web.AppKey[Usage] = web.AppKey("usage", Usage)
"""An application's usage; without one it has the default limits."""


class Runner(web.AppRunner):
    """`aiohttp.web.AppRunner` for this server."""

    def __init__(self, app: web.Application, shutdown_timeout: float) -> None:
        super().__init__(app, access_log=None, shutdown_timeout=shutdown_timeout)
        self._usage = app.get(USAGE) or Usage()

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made, self._usage)


class _Server(web.Server):
    def __init__(self, made: web.Server, usage: Usage) -> None:
        limits = usage.limits
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=limits.idle_timeout,
            max_line_size=limits.header_bytes,
            max_field_size=limits.header_bytes,
        )
        self.usage = usage

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(RequestHandler):
    """One connection of a client."""

    def __init__(self, manager: _Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._usage = manager.usage
        self._client = ""
        self._parsed = 0
        self._body: Any = None
        self._header_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._probe_after = PROBE_MIN

    # -- connections -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if peer else ""
        super().connection_made(transport)
        over = self._usage.open(self._client)
        if over is not None:
            self._refuse(503, f"too many connections ({over})", over)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._manager is not None:
            self._usage.close(self._client)
        for timer in (self._header_timer, self._probe_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _refuse(self, code: int, problem: str, limit: str) -> None:
        """Answer outside of any request, and close."""
        self._usage.reached[limit] += 1
        self._usage.on_error(code)
        transport = self.transport
        if transport is not None:
            body = msgspec.json.encode({"error": problem})
            transport.write(
                b"HTTP/1.1 %d Refused\r\nContent-Type: application/json\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (code, len(body), body)
            )
        self.force_close()

    def _process_keepalive(self) -> None:
        closing = self._force_close
        super()._process_keepalive()
        if self._force_close and not closing:
            self._usage.reached["idle_timeout"] += 1

    # -- headers ---------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        in_body = self._body is not None and not self._body.is_eof()
        super().data_received(data)
        if self._request_count > self._parsed:
            self._parsed = self._request_count
            self._body = self._messages[-1][1] if self._messages else self._body
            self._stop_header_timer()
        elif not in_body and self._header_timer is None and not self._upgraded:
            seconds = self._usage.limits.header_timeout
            self._header_timer = self._loop.call_later(seconds, self._headers_late)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_late(self) -> None:
        self._header_timer = None
        if not self._force_close:
            self._refuse(408, "the headers did not come in time", "header_timeout")

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, or was not handled."""
        if request._payload_writer.output_size > 0:
            raise ConnectionError("an error after the answer had begun")
        kind = "" if exc is None else type(exc).__name__
        problem = "not HTTP/1.1"
        if isinstance(exc, http_exceptions.LineTooLong):
            status, problem = 431, f"a header is over {self._usage.limits.header_bytes} bytes"
            self._usage.reached["header_bytes"] += 1
        elif isinstance(exc, http_exceptions.ContentEncodingError):
            status, problem = 415, "the Content-Encoding is not known here: gzip, deflate"
        elif status >= 500:
            problem = "an error of the server"
        # Not the exception's text: it has the client's bytes.
        log.info("%s: %d, %s", self._client, status, kind or problem)
        self._usage.on_error(status)
        body = msgspec.json.encode({"error": problem})
        response = web.Response(status=status, body=body, content_type="application/json")
        response.force_close()
        return response

    # -- clients that send no more ---------------------------------------------------------------

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open for the answer."""
        if self._body is None or not self._body.is_eof() or not self._busy:
            return False
        if self.ssl_context is not None:  # asyncio closes those in any case
            return False
        self._close = True  # after the answer
        self._probe()
        return True

    @property
    def _busy(self) -> bool:
        """Whether a request is being answered."""
        return self._waiter is None or self._waiter.done()

    def _probe(self) -> None:
        """Find out whether the client is still there, until the answer begins."""
        request = self._current_request
        if self.transport is None or not self._busy:
            return
        if request is not None:
            if request._payload_writer.output_size > 0:
                return
            if request.version >= (1, 1):
                self.transport.write(_CONTINUE)
        self._probe_timer = self._loop.call_later(self._probe_after, self._probe)
        self._probe_after = min(PROBE_MAX, 2.0 * self._probe_after)
