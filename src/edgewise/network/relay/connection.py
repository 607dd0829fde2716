"""One relayed connection: two sockets, and a path of links in each direction between them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from typing import Protocol, cast

from edgewise.network.relay.config import Address
from edgewise.network.relay.flows import Data, Path, StreamShaper

SOCKET_BUFFER_BYTES = 256 * 1024
"""Kernel buffer of each relayed socket: bounds how much a sender can push past the queues (Linux
grew it to 4.5 MB by itself). 2 ms at 1 Gbit/s: ample on a loopback and on a LAN."""

PENDING_BYTES = 64 * 1024
"""Bytes that may wait for a target that has not accepted yet."""

CONNECT_TIMEOUT_S = 10.0
"""A target that does not answer within this time counts as one that refuses."""

READ_BYTES = 64 * 1024
"""The most that one read takes: four turns, which a flow may queue for its first link."""


class Owner(Protocol):
    """The relay, which accepts connections."""

    connections: set[Connection]
    refused: int


class Endpoint(asyncio.BufferedProtocol):
    """One of a connection's two sockets: source of one path and sink of the other."""

    def __init__(self, connection: Connection, buffer: bytearray) -> None:
        self._connection = connection
        self._buffer = buffer
        self._pending: list[Data] = []
        self._pending_bytes = 0
        self._pending_eof = False
        self._full = False
        self._paused = False
        self.transport: asyncio.Transport | None = None
        self.sent_eof = False
        self.lost = False
        # Set by the connection, before any byte can come.
        self.outgoing: Path
        self.incoming: Path

    # -- called by asyncio

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
        # from another socket.
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
        self.lost = True
        self._connection.lost()

    # -- called by flows

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
            # asyncio's own loop raises ENOTCONN where uvloop notices later that the peer is gone.
            with contextlib.suppress(OSError):
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


class Connection:
    """A client's socket, the target's, and the two paths between them.

    Args:
        owner: has the set of open connections and counts refusals.
        to: the target; the relay connects to it as soon as the client has connected.
        forward, backward: links to cross, in order.
        buffer: sockets are read into it; all connections of a loop may share it.

    Attributes:
        client: the protocol for the accepted socket.
        connecting: the task that connects to the target, once there is a client.
        closed: set when both sockets are gone.
    """

    def __init__(
        self,
        owner: Owner,
        to: Address,
        forward: list[StreamShaper],
        backward: list[StreamShaper],
        buffer: bytearray,
    ) -> None:
        self._owner, self._to = owner, to
        self._done = False
        self.connecting: asyncio.Task[None] | None = None
        self.closed = asyncio.Event()
        self.client = Endpoint(self, buffer)
        self.target = Endpoint(self, buffer)
        there = Path(forward, self.client, self.target, self.reset)
        back = Path(backward, self.target, self.client, self.reset)
        self.client.outgoing = self.target.incoming = there
        self.target.outgoing = self.client.incoming = back

    def made(self, endpoint: Endpoint) -> None:
        if endpoint is self.client:
            self._owner.connections.add(self)
            self.connecting = asyncio.get_running_loop().create_task(self._connect())
        elif self._done:
            self._abort(endpoint)
        else:
            endpoint.incoming.unblock(time.monotonic())

    async def _connect(self) -> None:
        to = self._to
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(
                    lambda: self.target, to.host, to.port
                )
        except (OSError, UnicodeError):  # refused, unreachable, no such host, too late
            self._owner.refused += 1
            self.reset()

    def ended(self) -> None:
        """Close the connection if both directions have ended."""
        if self.client.sent_eof and self.target.sent_eof and not self._done:
            self._finish()
            for endpoint in (self.client, self.target):
                if endpoint.transport is not None:
                    endpoint.transport.close()

    def lost(self) -> None:
        """Note that a socket is gone. If it did not end in order, reset the other one too."""
        if not self._done:
            self.reset()
        if all(e.lost or e.transport is None for e in (self.client, self.target)):
            self._owner.connections.discard(self)
            self.closed.set()

    def reset(self) -> None:
        """Break both connections at once: their peers see ECONNRESET."""
        self._finish()
        if self.connecting is not None and not self.connecting.done():
            self.connecting.cancel()
        self._abort(self.client)
        self._abort(self.target)

    def _finish(self) -> None:
        self._done = True
        self.client.outgoing.close()
        self.target.outgoing.close()

    @staticmethod
    def _abort(endpoint: Endpoint) -> None:
        if endpoint.transport is not None and not endpoint.lost:
            # A linger time of 0 makes close() send a reset instead of an orderly end.
            _set(endpoint.transport, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            endpoint.transport.abort()


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
