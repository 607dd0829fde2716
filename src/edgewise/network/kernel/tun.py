"""The ``tun`` backend: packets queue in this process, timed by the same `Link` as the relay's.

Theory of operation
-------------------
A TUN device is a network card whose wire is a file: this process reads the packets that the kernel
sends over it, and packets that it writes arrive. So the TCP of both ends is the kernel's own, and
sees the emulated round trip, queue and losses: slow start, congestion windows and retransmissions
are real, where the relay ends TCP on both sides.

Each link has one FIFO queue. Its head packet has been given to the `Link`; once it has left, the
next one is. A delivered packet is written into the device of its target. A packet that finds the
queue full is dropped (drop-tail), and so is one that is lost: TCP retransmits both. ``loss_mode``
and ``stall`` are for streams and have no effect here.

A rate is of IP packets: of 1,500 bytes 1,448 are TCP's payload, 96.5 %.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import math
import os
import socket
import struct
import time
from collections import deque
from typing import Any

import msgspec

from edgewise.errors import BadInput
from edgewise.network.capabilities import IFF_NO_PI, IFF_TUN, TUN, TUNSETIFF
from edgewise.network.kernel.devices import Device
from edgewise.network.kernel.meter import ThroughputMeter
from edgewise.network.kernel.namespaces import HOST, Namespaces
from edgewise.network.link import Link, Passage
from edgewise.network.link_backend import LinkBackend
from edgewise.network.relay.timers import Timer, Timers
from edgewise.network.settings import LinkSettings

MTU = 1500
READ_BATCH = 64
"""Packets read in one go: enough to keep up, few enough that no timer waits a millisecond."""
QUEUE_S, QUEUE_BYTES = 0.1, 131_072
"""Length of the queue, in s and at least in bytes, where a link has no ``queue_bytes``: about twice
the round trips of interest, as home routers have. TCP would fill an unbounded queue."""


class PacketShaper(LinkBackend):
    """A link and the packets that wait for it, first come, first served.

    Attributes:
        backlog: bytes that wait or are being sent.
        delivered: bytes that arrived.
        dropped: packets that did not.
    """

    def __init__(self, name: str, link: Link, timers: Timers) -> None:
        super().__init__(name, link, timers)
        self.backlog = 0
        self.delivered = 0
        self.dropped = 0
        self._in_flight = 0
        self._queue: deque[tuple[bytes, float, Tun]] = deque()
        self._transit: deque[tuple[float, bytes, Tun]] = deque()
        self._head: tuple[bytes, Tun, Passage] | None = None
        self._meter = ThroughputMeter()
        self._timer: Timer | None = None

    def put(self, packet: bytes, now: float, target: Tun) -> None:
        """Queue a packet that is to cross the link."""
        if self.backlog and self.backlog + len(packet) > self._room():
            self.dropped += 1
            return
        self.backlog += len(packet)
        self._queue.append((packet, now, target))
        if self._head is None:
            self._serve(now)

    def state(self, now: float) -> dict[str, Any]:
        link = super().state(now)
        return {
            **link,
            "backlog_bytes": self.backlog,
            "in_flight_bytes": self._in_flight,
            "delivered_bytes": self.delivered,
            "dropped_packets": self.dropped,
            **self._meter.state(self.delivered, now, link["rate_bps"]),
        }

    def close(self) -> None:
        """Drop all packets that are under way."""
        self._queue.clear()
        self._transit.clear()

    def adapted(self, settings: LinkSettings) -> LinkSettings:
        # Losses of a `Link` are those of a stream: a reset tells which packet is lost.
        return msgspec.structs.replace(settings, loss_mode="reset")

    def revise(self, passage: Passage | None, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._head is not None and passage is not None:
            self._head = (*self._head[:2], passage)
        self._serve(now)

    def _room(self) -> float:
        cap = self.link.settings.queue_bytes
        if cap is not None:
            return cap
        mean = self.link.capacity.mean_bps
        return math.inf if math.isinf(mean) else max(mean / 8.0 * QUEUE_S, QUEUE_BYTES)

    def _serve(self, now: float) -> None:
        """Pass on the packets that have left by `now`, and wait for the next one to leave."""
        while True:
            if self._head is None:
                if not self._queue:
                    return
                packet, since, target = self._queue.popleft()
                passage = self.link.depart(len(packet), now, since=since)
                self._head = packet, target, passage
            packet, target, passage = self._head
            if passage.departure > now:
                if self._timer is None:
                    self._timer = self.timers.at(passage.departure, self._due)
                return
            self._head = None
            self.backlog -= len(packet)
            if passage.reset:
                self.dropped += 1
            elif passage.delivery <= now and not self._transit:
                self._deliver(packet, target)
            else:
                self._in_flight += len(packet)
                self._transit.append((passage.delivery, packet, target))
                if len(self._transit) == 1:
                    self.timers.at(passage.delivery, self._arrive)

    def _due(self, now: float) -> None:
        self._timer = None
        self._serve(now)

    def _arrive(self, now: float) -> None:
        transit = self._transit
        while transit and transit[0][0] <= now:
            _, packet, target = transit.popleft()
            self._in_flight -= len(packet)
            self._deliver(packet, target)
        if transit:
            self.timers.at(transit[0][0], self._arrive)

    def _deliver(self, packet: bytes, target: Tun) -> None:
        self.delivered += len(packet)
        target.write(packet)


class Tun:
    """A TUN device in a namespace, and the routes of the packets that come out of it.

    Raises BadInput if it cannot be made.
    """

    def __init__(self, namespaces: Namespaces, device: Device) -> None:
        self._routes: dict[bytes, tuple[PacketShaper, Tun]] = {}
        try:
            self._file = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise BadInput(f"{TUN}: {error.strerror}; `edgewise doctor`") from None
        # Made here under a unique name: each namespace may have a device of the same name.
        namespace, name = device.namespace, device.device
        made = name if namespace == HOST else f"ew{os.getpid()}n{self._file}"
        try:
            request = struct.pack("16sH22x", made.encode(), IFF_TUN | IFF_NO_PI)
            fcntl.ioctl(self._file, TUNSETIFF, request)
            if namespace != HOST:
                namespaces.move(made, namespace, name)
            namespaces.address(namespace, name, device.address, device.prefix)
            namespaces.up(namespace, name)
        except OSError as error:
            os.close(self._file)
            raise BadInput(f"tun {name}: {error.strerror}; `edgewise doctor`") from None
        except BaseException:
            os.close(self._file)
            raise

    def add_route(self, to: str, shaper: PacketShaper, target: Tun) -> None:
        """Send packets for the address `to` over this link into that device."""
        self._routes[socket.inet_aton(to)] = shaper, target

    def start(self) -> None:
        """Start reading, on the running loop."""
        asyncio.get_running_loop().add_reader(self._file, self._readable)

    def write(self, packet: bytes) -> None:
        """Deliver a packet. If the kernel does not take it, it is lost, as on a wire."""
        with contextlib.suppress(OSError):
            os.write(self._file, packet)

    def close(self) -> None:
        """Remove the device."""
        if self._file >= 0:
            asyncio.get_running_loop().remove_reader(self._file)
            os.close(self._file)
            self._file = -1

    def _readable(self) -> None:
        read, file, routes = os.read, self._file, self._routes
        try:
            for _ in range(READ_BATCH):
                packet = read(file, MTU)
                # IPv4 has its target in bytes 16 to 20. Packets for other targets are dropped, and
                # so is IPv6 (the kernel's neighbour discovery).
                route = routes.get(packet[16:20])
                if route is not None and packet[0] >> 4 == 4:
                    route[0].put(packet, time.monotonic(), route[1])
        except BlockingIOError:
            return
        except OSError:  # the device is gone, with its namespace
            asyncio.get_running_loop().remove_reader(file)
