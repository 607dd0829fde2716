"""The network emulator: a TCP relay in user space, as a process of its own.

Clients connect to a route's port, the relay connects to the route's target, and the bytes of each
direction cross the route's links (``flows``). Everything is one thread on one event loop.

What is emulated and what is not: bytes and the end of a stream take the links' time. Setting up a
connection does not: the client's handshake ends at the relay, and the relay connects to the target
at once, so a new connection saves the round trip that the emulated network would cost. A reset is
not delayed either; when the target refuses, it can be so quick that the client's own ``connect``
reports it. Loss is what a TCP stream sees of it (a stall or a reset), since a relay of
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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgewise.errors import BadInput, MissingExtra
from edgewise.network.config import LinkPatch, RelayConfig, Route, load_config
from edgewise.network.connection import READ_BYTES, Connection
from edgewise.network.flows import Shaper
from edgewise.network.link import Link, LinkSettings, warm_up
from edgewise.network.timers import Timer, Timers

try:
    import uvloop
    from aiohttp import web

    from edgewise.network.control import RelayControl, control_app
except ImportError as e:
    raise MissingExtra("live", e.name or "uvloop") from e

__all__ = ["Relay", "RelayConfig", "RelayControl", "load_config", "run", "serve"]

BACKLOG = 1024
"""Connections that may wait for ``accept``: a burst of a whole fleet's."""


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
        self.connections: set[Connection] = set()
        self.refused = 0
        self.ports: dict[str, Any] = {}
        self._folder = Path(config.folder)
        self._initial: dict[str, LinkSettings] = {}
        self._links: dict[str, Link] = {}
        self._events: list[tuple[float, str, dict[str, Any]]] = []
        for i, (name, link) in enumerate(config.links.items()):
            rng = np.random.default_rng([config.seed, i])
            try:
                self._initial[name] = settings = link.settings(self._folder)
                self._links[name] = Link(settings, outages=link.intervals(), rng=rng)
                # Read now: a wrong trace must not wait for its moment, nor a file hold up traffic.
                self._events += [(e.at, name, e.set.changes(self._folder)) for e in link.events]
            except BadInput as e:
                raise BadInput(f"links.{name}: {e}") from e
        self._events.sort(key=lambda event: event[0])
        self._timers: Timers
        self._pending: list[Timer] = []
        self._servers: list[asyncio.Server] = []
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Relay:
        warm_up()
        loop = asyncio.get_running_loop()
        self._timers = Timers(loop)
        self.shapers = {
            name: Shaper(name, link, self._timers) for name, link in self._links.items()
        }
        self.start()
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
        connections = list(self.connections)
        for connection in connections:
            connection.reset()
        connecting = [c.connecting for c in connections if c.connecting is not None]
        await asyncio.gather(*connecting, return_exceptions=True)
        for connection in connections:
            await connection.closed.wait()
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
        for timer in self._pending:
            timer.cancel()
        self._pending = [self._event(name, what, now + at) for at, name, what in self._events]

    async def patch(self, name: str, patch: LinkPatch) -> None:
        """Change a link now, or when its trace has been read.

        Raises:
            BadInput: the change does not make sense; then nothing is changed.
        """
        changes = await asyncio.to_thread(patch.changes, self._folder)
        self._change(name, changes, time.monotonic())

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

    def _change(self, name: str, changes: dict[str, Any], at: float) -> None:
        shaper = self.shapers[name]
        shaper.change(at, msgspec.structs.replace(shaper.link.settings, **changes))

    def _event(self, name: str, changes: dict[str, Any], at: float) -> Timer:
        # The change counts from when it was planned, not from when the timer fired.
        return self._timers.at(at, lambda _now: self._change(name, changes, at))

    async def _listen(self, route: Route) -> dict[str, Any]:
        buffer = bytearray(READ_BYTES)
        forward = [self.shapers[name] for name in route.forward]
        backward = [self.shapers[name] for name in route.backward]

        def accept() -> asyncio.BaseProtocol:
            return Connection(self, route.to, forward, backward, buffer).client

        host, port = route.listen.host, route.listen.port
        try:
            server = await asyncio.get_running_loop().create_server(
                accept, host, port, backlog=BACKLOG
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

    def started(ports: dict[str, Any]) -> None:
        # What start-up made lives until the end: collections need not visit it again.
        gc.collect()
        gc.freeze()
        if ready is not None:
            ready(ports)

    async def until_signal() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(serve(config, started))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_signal())
