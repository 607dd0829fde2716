"""The network emulator: a TCP relay in user space, as a process of its own.

Clients connect to a route's port, the relay connects to the route's target, and the bytes of each
direction cross the route's links (``flows``). Everything is one thread on one event loop.

Bytes and the end of a stream take the links' time. Setting up a connection does not: the client's
handshake ends at the relay, and the relay connects to the target at once, so a new connection saves
the round trip that the emulated network would cost. A reset is not delayed either; when the target
refuses, it can be so quick that the client's own ``connect`` reports it. A lost packet is a stall
or a reset, which is how a TCP stream sees it, since a relay of streams has no packets. Kernel
buffers at both ends hold up to some hundred KB on top of the queues, so measure throughput at the
receiver, not by the bytes that a sender has written.
"""

from __future__ import annotations

import asyncio
from typing import Any

from edgewise.errors import BadInput
from edgewise.network.emulated_network import EmulatedNetwork, reason
from edgewise.network.relay.config import RelayConfig, Route
from edgewise.network.relay.connection import READ_BYTES, Connection
from edgewise.network.relay.flows import StreamShaper

BACKLOG = 1024
"""Connections that may wait for ``accept``: a burst from a whole fleet."""


class Relay(EmulatedNetwork):
    """A running relay, used as ``async with Relay(config) as relay``.

    Args:
        config: links and routes to emulate.

    Attributes:
        shapers: the links at work, by name.
        connections: the open ones.
        refused: connections that the target did not accept.

    Raises:
        BadInput: the configuration is wrong, or (on entering) a port cannot be bound.
    """

    def __init__(self, config: RelayConfig) -> None:
        super().__init__(config)
        self.shapers: dict[str, StreamShaper] = {}
        self.connections: set[Connection] = set()
        self.refused = 0
        self._routes = config.routes
        self._servers: list[asyncio.Server] = []

    def health(self) -> dict[str, Any]:
        counts = {"connections": len(self.connections), "refused": self.refused}
        return {**counts, **super().health()}

    def make_backends(self) -> dict[str, StreamShaper]:
        self.shapers = {
            name: StreamShaper(name, link, self._timers) for name, link in self._links.items()
        }
        return self.shapers

    async def open_routes(self) -> list[dict[str, Any]]:
        return [await self._listen(route) for route in self._routes]

    async def close_routes(self) -> None:
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
            raise BadInput(f"cannot listen on {host}:{port}: {reason(e)}") from e
        self._servers.append(server)
        name = server.sockets[0].getsockname()
        return {
            "listen": {"host": name[0], "port": name[1]},
            "to": {"host": route.to.host, "port": route.to.port},
        }
