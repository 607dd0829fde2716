"""A running network: the life of every backend's process, with its control API."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any, Self

from edgewise.errors import BadInput, MissingExtra
from edgewise.network.link import warm_up
from edgewise.network.link_backend import LinkBackend
from edgewise.network.link_controller import LinkController
from edgewise.network.relay.config import NetworkConfig
from edgewise.network.relay.timers import Timers
from edgewise.security.identity import Role, credentials_for, is_loopback

try:
    import uvloop
    from aiohttp import web

    from edgewise.network.control import control_app
except ImportError as e:
    raise MissingExtra("live", e.name or "uvloop") from e

Ready = Callable[[dict[str, Any]], None]


class EmulatedNetwork(LinkController):
    """Base of the backends, used as ``async with Backend(config) as network``.

    Attributes:
        ports: after start: ``{"control": {"host", "port"}, "routes": [...]}``, see `open_routes`.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.realtime = config.realtime
        self.ports: dict[str, Any] = {}
        self._control = config.control
        self.credentials = credentials_for(
            config.identity,
            (Role.RELAY,),
            hosts=config.listening(),
            trust_anyone=config.trust_anyone_who_connects,
        )
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        warm_up()
        self._timers = Timers(asyncio.get_running_loop())
        try:
            self.backends = self.make_backends()
            self.start()
            routes = await self.open_routes()
            self.ports = {"control": await self._serve_control(), "routes": routes}
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop everything."""
        await self.close_routes()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._forget_events()
        self._timers.close()

    # -- for the backends

    def make_backends(self) -> Mapping[str, LinkBackend]:
        """Set up the links. Raises BadInput."""
        raise NotImplementedError

    async def open_routes(self) -> list[dict[str, Any]]:
        """Let traffic in; returns ``{"listen": {"host", "port"}, "to": {"host", "port"}}`` for
        each route, with the real ports. Raises BadInput."""
        return []

    async def close_routes(self) -> None:
        """Stop all traffic and release what the backend has opened."""

    async def _serve_control(self) -> dict[str, Any]:
        address = self._control
        app = control_app(self, self.credentials, on_loopback=is_loopback(address.host))
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        context = None if self.credentials is None else self.credentials.server_context()
        try:
            await web.TCPSite(self._runner, address.host, address.port, ssl_context=context).start()
        except (OSError, UnicodeError) as e:
            where = f"{address.host}:{address.port}"
            raise BadInput(f"cannot listen on {where} (control): {reason(e)}") from e
        host, port = self._runner.addresses[0][:2]
        return {"host": host, "port": port}


def reason(error: Exception) -> str:
    """Why a socket could not be opened, in words."""
    if isinstance(error, socket.gaierror) or not isinstance(error, OSError) or not error.errno:
        return str(error)
    return os.strerror(error.errno)


def run(network: EmulatedNetwork, ready: Ready | None = None) -> None:
    """Run a backend as this process, on uvloop, until SIGTERM or SIGINT; then return.

    `ready` is called with the ports once everything listens. With ``realtime`` in its configuration
    the process asks for SCHED_RR; without CAP_SYS_NICE this has no effect. Raises BadInput.
    """
    if network.realtime:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))

    async def serve() -> None:
        async with network:
            # Objects made during start-up live until the end: the collector need not visit them.
            gc.collect()
            gc.freeze()
            if ready is not None:
                ready(network.ports)
            await asyncio.Event().wait()

    async def until_signal() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(serve())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_signal())
