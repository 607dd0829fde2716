"""The ``tun`` backend: packets queue in this process, by the same pure ``Link`` as the relay's.

Theory of operation
-------------------
A TUN device is a network card whose wire is a file: what the kernel sends over it is read here, a
packet at a time, and what is written here arrives. So the TCP of both ends is the kernel's own, and
sees the emulated round trip, queue and losses: slow start, congestion windows and retransmissions
are real, where the relay ends TCP on both sides.

One FIFO queue per link. The head packet has been given to the Link; when it has left, the next one
is. A delivered packet is written into the device of its target. A packet that finds no room is
dropped (drop-tail), and so is one that is lost: TCP sees to the rest. ``loss_mode`` and ``stall``
belong to streams and mean nothing here.

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
from edgewise.network.kernel.meter import Meter
from edgewise.network.kernel.namespaces import HOST, Spaces
from edgewise.network.link import Link, LinkSettings, Passage
from edgewise.network.relay.timers import Timer, Timers

MTU = 1500
READ_BATCH = 64
"""Packets read in a row: enough to keep up, few enough that no timer waits a millisecond."""
QUEUE_S, QUEUE_BYTES = 0.1, 131_072
"""s, and at least so many bytes, may wait where a link has no ``queue_bytes``: about twice the
round trips of interest, as home routers have; unbounded, TCP would fill it."""


class PacketShaper:
    """A link and the packets that wait for it, first come, first served.

    Attributes:
        backlog: bytes that wait or are being sent.
        delivered, dropped: bytes that arrived, packets that did not.
    """

    def __init__(self, name: str, link: Link, timers: Timers) -> None:
        self.name, self.link, self.timers = name, link, timers
        self.backlog = 0
        self.delivered = 0
        self.dropped = 0
        self._in_flight = 0
        self._queue: deque[tuple[bytes, float, Tun]] = deque()
        self._transit: deque[tuple[float, bytes, Tun]] = deque()
        self._head: tuple[bytes, Tun, Passage] | None = None
        self._meter = Meter()
        self._timer: Timer | None = None

    def put(self, packet: bytes, now: float, target: Tun) -> None:
        """A packet came that is to cross the link."""
        if self.backlog and self.backlog + len(packet) > self._room():
            self.dropped += 1
            return
        self.backlog += len(packet)
        self._queue.append((packet, now, target))
        if self._head is None:
            self._serve(now)

    def change(self, now: float, settings: LinkSettings) -> None:
        # The Link's own losses are a stream's: a reset tells which packet is gone.
        settings = msgspec.structs.replace(settings, loss_mode="reset")
        self._revise(self.link.change(now, settings), now)

    def outage(self, now: float, duration: float) -> None:
        self._revise(self.link.outage(now, duration), now)

    def restart(
        self, now: float, settings: LinkSettings, outages: list[tuple[float, float]]
    ) -> None:
        settings = msgspec.structs.replace(settings, loss_mode="reset")
        self._revise(self.link.restart(now, settings, outages), now)

    def restore(
        self, now: float, settings: LinkSettings, outages: list[tuple[float, float]]
    ) -> None:
        self.change(now, settings)
        self._revise(self.link.replace_outages(now, outages), now)

    def state(self, now: float) -> dict[str, Any]:
        link = self.link.state(now)
        return {
            "name": self.name,
            **link,
            "backlog_bytes": self.backlog,
            "in_flight_bytes": self._in_flight,
            "delivered_bytes": self.delivered,
            "dropped_packets": self.dropped,
            **self._meter.state(self.delivered, now, link["rate_bps"]),
        }

    def close(self) -> None:
        """Drop what is under way."""
        self._queue.clear()
        self._transit.clear()

    # -- inside

    def _room(self) -> float:
        cap = self.link.settings.queue_bytes
        if cap is not None:
            return cap
        mean = self.link.settings.capacity.mean_bps
        return math.inf if math.isinf(mean) else max(mean / 8.0 * QUEUE_S, QUEUE_BYTES)

    def _serve(self, now: float) -> None:
        """Let go what has left by ``now``; wait for the packet that has not."""
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

    def _revise(self, passage: Passage | None, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._head is not None and passage is not None:
            self._head = (*self._head[:2], passage)
        self._serve(now)


class Tun:
    """A TUN device in a namespace, and where the packets that come out of it go.

    Raises BadInput if it cannot be made.
    """

    def __init__(self, spaces: Spaces, space: str, device: str, address: str, prefix: int) -> None:
        self.address = address
        self._ways: dict[bytes, tuple[PacketShaper, Tun]] = {}
        try:
            self._file = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise BadInput(f"{TUN}: {error.strerror}; `edgewise doctor`") from None
        # Made here under a name of its own; a namespace's `net` may be another's too.
        made = device if space == HOST else f"ew{os.getpid()}n{self._file}"
        try:
            request = struct.pack("16sH22x", made.encode(), IFF_TUN | IFF_NO_PI)
            fcntl.ioctl(self._file, TUNSETIFF, request)
            if space != HOST:
                spaces.move(made, space, device)
            spaces.address(space, device, address, prefix)
            spaces.up(space, device)
        except OSError as error:
            os.close(self._file)
            raise BadInput(f"tun {device}: {error.strerror}; `edgewise doctor`") from None
        except BaseException:
            os.close(self._file)
            raise

    def lead(self, to: str, shaper: PacketShaper, target: Tun) -> None:
        """Packets for the address ``to`` cross this link into that device."""
        self._ways[socket.inet_aton(to)] = shaper, target

    def start(self) -> None:
        """Read from now on, on the running loop."""
        asyncio.get_running_loop().add_reader(self._file, self._readable)

    def write(self, packet: bytes) -> None:
        """A packet arrives. One that the kernel does not take is lost, as on a wire."""
        with contextlib.suppress(OSError):
            os.write(self._file, packet)

    def close(self) -> None:
        """The device disappears."""
        if self._file >= 0:
            asyncio.get_running_loop().remove_reader(self._file)
            os.close(self._file)
            self._file = -1

    def _readable(self) -> None:
        read, file, ways = os.read, self._file, self._ways
        try:
            for _ in range(READ_BATCH):
                packet = read(file, MTU)
                # IPv4 has its target in bytes 16 to 20. IPv6 (the kernel's own discovery) and
                # targets that are nobody's lead nowhere.
                way = ways.get(packet[16:20])
                if way is not None and packet[0] >> 4 == 4:
                    way[0].put(packet, time.monotonic(), way[1])
        except BlockingIOError:
            return
        except OSError:  # the device is gone, with its namespace
            asyncio.get_running_loop().remove_reader(file)
