"""The network emulator: a TCP relay in user space, as a process of its own.

Clients connect to a route's port, the relay connects to the route's target, and the bytes of each
direction cross the route's links (``flows``). Everything is one thread on one event loop.

What is emulated and what is not: bytes and the end of a stream take the links' time. Setting up a
connection does not: the client's handshake ends at the relay, and the relay connects to the target
at once, so a new connection saves the round trip that the emulated network would cost. A reset is
not delayed either. Loss is what a TCP stream sees of it (a stall or a reset), since a relay of
streams has no packets. Kernel buffers at both ends hold up to some hundred KB on top of the queues,
so a sender's "written" means nothing: measure at the receiver.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any, cast

import numpy as np

from edgewise.errors import BadInput, MissingExtra
from edgewise.network.config import Event, LinkPatch, RelayConfig, Route
from edgewise.network.flows import Data, Path, Shaper
from edgewise.network.link import Link, LinkSettings, warm_up
from edgewise.network.timers import Timer, Timers

try:
    import uvloop
    from aiohttp import web

    from edgewise.network.control import control_app
except ImportError as e:
    raise MissingExtra("live", e.name or "uvloop") from e

SOCKET_BUFFER_BYTES = 256 * 1024
"""Kernel buffer of each relayed socket: bounds what a sender can push past the queues (Linux grew
it to 4.5 MB by itself), and is four times what 1 Gbit/s needs on a loopback's round trip."""

PENDING_BYTES = 64 * 1024
"""How much may wait for a target that has not accepted yet."""

CONNECT_TIMEOUT_S = 10.0
"""A target that does not answer in this time is as good as one that refuses."""

BACKLOG = 1024
"""Connections that may wait for ``accept``: a burst of a whole fleet's."""

_READ_BYTES = 64 * 1024


class _Endpoint(asyncio.BufferedProtocol):
    """One of a connection's two sockets: source of one path and sink of the other."""

    def __init__(self, connection: _Connection, buffer: bytearray) -> None:
        self._connection = connection
        self._buffer = buffer
        self._pending: list[Data] = []
        self._pending_bytes = 0
        self._pending_eof = False
        self._full = False
        self._paused = False
        self.transport: asyncio.Transport | None = None
        self.sent_eof = False
        # Set by the connection, before any byte can come.
        self.outgoing: Path
        self.incoming: Path

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport has the methods but not the base class.
        self.transport = transport = cast(asyncio.Transport, transport)
        _tune(transport)
        if self._paused:
            transport.pause_reading()
        for data in self._pending:
            transport.write(data)
        self._pending.clear()
        if self._pending_eof:
            self.write_eof()
        self._connection.made(self)

    def get_buffer(self, sizehint: int) -> bytearray:
        # Shared by all sockets: the loop reads into it and calls buffer_updated before it reads
        # from another one.
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.outgoing.send(bytes(memoryview(self._buffer)[:nbytes]), time.monotonic())

    def eof_received(self) -> bool:
        self.outgoing.send_eof(time.monotonic())
        return True  # the other direction stays open

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self.incoming.unblock(time.monotonic())

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lost(self)

    # -- flows' side

    def writable(self) -> bool:
        if self.transport is None:
            return self._pending_bytes < PENDING_BYTES
        return not self._full

    def write(self, data: Data) -> None:
        if self.transport is None:
            self._pending.append(data)
            self._pending_bytes += len(data)
        else:
            self.transport.write(data)

    def write_eof(self) -> None:
        if self.transport is None:
            self._pending_eof = True
            return
        if not self.transport.is_closing():
            self.transport.write_eof()
        self.sent_eof = True
        self._connection.ended()

    def pause(self) -> None:
        self._paused = True
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        self._paused = False
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()


class _Connection:
    """A client's socket, the target's, and the two paths between them."""

    def __init__(self, relay: Relay, route: Route, buffer: bytearray) -> None:
        self._relay, self._route = relay, route
        self._done = False
        self._connecting: asyncio.Task[None] | None = None
        self.client = _Endpoint(self, buffer)
        self.target = _Endpoint(self, buffer)
        forward = [relay.shapers[name] for name in route.forward]
        backward = [relay.shapers[name] for name in route.backward]
        there = Path(forward, self.client, self.target, self.reset)
        back = Path(backward, self.target, self.client, self.reset)
        self.client.outgoing = self.target.incoming = there
        self.target.outgoing = self.client.incoming = back

    def made(self, endpoint: _Endpoint) -> None:
        if endpoint is self.client:
            self._relay.connections.add(self)
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        elif self._done:
            self._abort(endpoint)
        else:
            endpoint.incoming.unblock(time.monotonic())

    async def _connect(self) -> None:
        to = self._route.to
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(
                    lambda: self.target, to.host, to.port
                )
        except OSError:  # refused, unreachable, unknown host; TimeoutError is one too
            self._relay.refused += 1
            self.reset()

    def ended(self) -> None:
        """Both directions may be over: then nothing more can come."""
        if self.client.sent_eof and self.target.sent_eof and not self._done:
            self._finish()
            for endpoint in (self.client, self.target):
                if endpoint.transport is not None:
                    endpoint.transport.close()

    def lost(self, endpoint: _Endpoint) -> None:
        """A socket is gone; if it did not end in order, the other one must not wait for it."""
        if not self._done:
            self.reset()

    def reset(self) -> None:
        """Break both connections now: their peers see ECONNRESET."""
        if self._done:
            return
        self._finish()
        if self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
        self._abort(self.client)
        self._abort(self.target)

    def _finish(self) -> None:
        self._done = True
        self.client.outgoing.close()
        self.target.outgoing.close()
        self._relay.connections.discard(self)

    @staticmethod
    def _abort(endpoint: _Endpoint) -> None:
        if endpoint.transport is not None and not endpoint.transport.is_closing():
            # A linger time of 0 makes close() send a reset instead of an orderly end.
            _set(endpoint.transport, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            endpoint.transport.abort()


class Relay:
    """A running relay, to be used as ``async with Relay(config) as relay``.

    Args:
        config: checked here.

    Attributes:
        shapers: the links at work, by name.
        ports: after start: ``{"control": {"host", "port"}, "routes": [{"listen": {"host", "port"},
            "to": {"host", "port"}}]}`` with the real ports, routes in the order of the
            configuration.
        refused: connections that the target did not accept.

    Raises:
        BadInput: the configuration is wrong, or (on entering) a port cannot be bound.
    """

    def __init__(self, config: RelayConfig) -> None:
        config.check()
        self.config = config
        self.shapers: dict[str, Shaper] = {}
        self.connections: set[_Connection] = set()
        self.refused = 0
        self.realtime = False
        self.ports: dict[str, Any] = {}
        self._folder = FilePath(config.folder)
        self._initial: dict[str, LinkSettings] = {}
        self._events: dict[str, list[tuple[float, LinkPatch]]] = {}
        for name, link in config.links.items():
            try:
                self._initial[name] = link.settings(self._folder)
                for event in link.events:  # a wrong trace must not wait for its moment
                    event.set.apply(self._initial[name], self._folder)
            except BadInput as e:
                raise BadInput(f"links.{name}: {e}") from e
        self._timers: Timers
        self._pending: list[Timer] = []
        self._servers: list[asyncio.Server] = []
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Relay:
        warm_up()
        loop = asyncio.get_running_loop()
        self._timers = Timers(loop)
        now = time.monotonic()
        for i, (name, link) in enumerate(self.config.links.items()):
            rng = np.random.default_rng([self.config.seed, i])
            pure = Link(self._initial[name], origin=now, outages=link.intervals(), rng=rng)
            self.shapers[name] = Shaper(name, pure, self._timers)
        self._schedule_events(now)
        try:
            routes = [await self._listen(route) for route in self.config.routes]
            host, port = await self._control()
        except BaseException:
            await self.close()
            raise
        self.ports = {"control": {"host": host, "port": port}, "routes": routes}
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop listening and break what is open."""
        for server in self._servers:
            server.close()
        connecting = [c._connecting for c in self.connections if c._connecting is not None]
        for connection in list(self.connections):
            connection.reset()
        await asyncio.gather(*connecting, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        for timer in self._pending:
            timer.cancel()
        self._timers.close()

    # -- what the control API does

    def start(self) -> None:
        """Make now the time 0 of every link: configured settings, outages and events anew."""
        now = time.monotonic()
        for name, shaper in self.shapers.items():
            shaper.restart(now, self._initial[name], self.config.links[name].intervals())
        self._schedule_events(now)

    def patch(self, name: str, patch: LinkPatch) -> None:
        """Change a link now.

        Raises:
            BadInput: the change does not make sense; then nothing is changed.
        """
        shaper = self.shapers[name]
        shaper.change(time.monotonic(), patch.apply(shaper.link.settings, self._folder))

    def restore(self, name: str) -> None:
        """Give a link its configured settings again and end outages that were asked for live."""
        self.shapers[name].restore(
            time.monotonic(), self._initial[name], self.config.links[name].intervals()
        )

    def outage(self, name: str, duration: float) -> None:
        """Stop a link for ``duration`` seconds from now.

        Raises:
            BadInput: the duration is not above 0.
        """
        self.shapers[name].outage(time.monotonic(), duration)

    # -- inside

    def _schedule_events(self, zero: float) -> None:
        for timer in self._pending:
            timer.cancel()
        self._pending = [
            self._timers.at(zero + event.at, self._event(shaper, event, zero + event.at))
            for name, shaper in self.shapers.items()
            for event in sorted(self.config.links[name].events, key=lambda event: event.at)
        ]

    def _event(self, shaper: Shaper, event: Event, at: float) -> Callable[[float], None]:
        def apply(_now: float) -> None:
            shaper.change(at, event.set.apply(shaper.link.settings, self._folder))

        return apply

    async def _listen(self, route: Route) -> dict[str, Any]:
        buffer = bytearray(_READ_BYTES)
        host, port = route.listen.host, route.listen.port
        try:
            server = await asyncio.get_running_loop().create_server(
                lambda: _Connection(self, route, buffer).client, host, port, backlog=BACKLOG
            )
        except (OSError, UnicodeError) as e:
            raise BadInput(f"cannot listen on {host}:{port}: {_reason(e)}") from e
        self._servers.append(server)
        name = server.sockets[0].getsockname()
        return {
            "listen": {"host": name[0], "port": name[1]},
            "to": {"host": route.to.host, "port": route.to.port},
        }

    async def _control(self) -> tuple[str, int]:
        host, port = self.config.control.host, self.config.control.port
        self._runner = web.AppRunner(control_app(self), access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except (OSError, UnicodeError) as e:
            raise BadInput(f"cannot listen on {host}:{port} (control): {_reason(e)}") from e
        address = self._runner.addresses[0]
        return address[0], address[1]


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror) or not isinstance(error, OSError) or not error.errno:
        return str(error)
    return os.strerror(error.errno)


def _set(transport: asyncio.Transport, level: int, option: int, value: int | bytes) -> bool:
    """Set a socket option; False where the kernel does not have it."""
    handle = transport.get_extra_info("socket")
    try:
        handle.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def _tune(transport: asyncio.Transport) -> None:
    _set(transport, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # bbr paces: 11-19 ms outliers in 7 of 8 runs at 100 Mbit/s, where cubic had 2.5 ms at most.
    _set(transport, socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    _set(transport, socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    _set(transport, socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)


async def serve(config: RelayConfig, ready: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Run a relay until cancelled.

    Args:
        config: what to emulate.
        ready: called with :attr:`Relay.ports` once everything listens.

    Raises:
        BadInput: the configuration is wrong or a port cannot be bound.
    """
    async with Relay(config) as relay:
        if ready is not None:
            ready(relay.ports)
        await asyncio.Event().wait()


def run(config: RelayConfig, ready: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Run a relay as this process, on uvloop, until SIGTERM or SIGINT; then return.

    Raises:
        BadInput: as :func:`serve`.
    """
    if config.realtime:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))

    async def until_signal() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(serve(config, ready))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    # What start-up made lives until the end: a full collection need not visit it (it took 20-30 ms
    # with numba loaded, which is an outlier in every transfer under way).
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_signal())
