"""One node's control channel, as the balancer holds it, and how far the node's clock is ahead.

Clock offsets are measured as in NTP: of the last few Ping/Pong pairs, the one with the shortest
round trip counts, since it had the least time to be lopsided (Mills, RFC 5905, §10, clock filter).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from edgewise.domain import QueueItem, Report, Request
from edgewise.live.wire.messages import Ping, Pong, encode

SAMPLES = 8
"""Round trips in the clock filter, as in RFC 5905; at one a second, drift stays far under a
millisecond."""
SILENCE = 5.0
"""s without a message after which a connection counts as dead: a node reports many times a second,
and TCP itself would take minutes to notice."""
ANSWER_TO_PING = 1.0
"""s in which a node that lives answers, when another wants its place."""
CROSSING = 0.25
"""s. A first Ask that comes this soon after the command was sent has crossed it on the way, and
needs no answer. A later Ask, or a second one, means that the command did not arrive."""
CLOSE_TIMEOUT = 1.0
"""s for a node to answer when its channel is closed."""


class ClockOffset:
    """Measures how far another machine's clock is ahead of this one's."""

    def __init__(self) -> None:
        self._sent: deque[float] = deque(maxlen=SAMPLES)
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)
        self._guess = 0.0

    def ping(self, now: float) -> Ping:
        """The next Ping to send."""
        self._sent.append(now)
        return Ping(at=now)

    def pong(self, pong: Pong, now: float) -> None:
        """Take in the answer to one of the pings; any other Pong is ignored."""
        if pong.ping not in self._sent:
            return
        self._sent.remove(pong.ping)
        self._samples.append((now - pong.ping, pong.at - (pong.ping + now) / 2.0))

    def hint(self, at: float, now: float) -> None:
        """Take in that a message stamped `at` on the other clock arrived now. Used before the first
        Pong."""
        self._guess = at - now

    @property
    def rtt(self) -> float | None:
        """Least recent round trip, s; None before the first."""
        return min(self._samples)[0] if self._samples else None

    @property
    def ahead(self) -> float:
        """s; 0 until anything is known."""
        return min(self._samples)[1] if self._samples else self._guess


class Socket(Protocol):
    """The part of a WebSocket that a connection uses."""

    async def send_bytes(self, data: bytes) -> Any: ...

    async def close(self, *, code: int = 1000, message: bytes = b"") -> Any: ...


class NodeConnection:
    """An open control channel of a node.

    Parameters
    ----------
    server:
        The node's.
    socket:
        Open, with the node's Hello read.
    now:
        s since the epoch.
    abort:
        Drops the TCP connection without a closing handshake.
    instance:
        The number of the node's start, as its Hello says.
    """

    def __init__(
        self,
        server: str,
        socket: Socket,
        now: float,
        abort: Callable[[], None] = lambda: None,
        instance: int = 0,
    ) -> None:
        self.server = server
        self.instance = instance
        self.clock = ClockOffset()
        self.last_message_at = now
        self.abort = abort
        self._socket = socket
        self._message_came = asyncio.Event()
        self._report: Report | None = None  # the newest, on the node's clock
        self._report_on_our_clock: Report | None = None

    async def send(self, message: Any) -> bool:
        """Send a message; False if the connection is gone, which its reader notices by itself."""
        try:
            await self._socket.send_bytes(encode(message))
        except (ConnectionError, RuntimeError):
            return False
        return True

    def heard(self, now: float) -> None:
        """A message has come."""
        self.last_message_at = now
        self._message_came.set()

    async def lives(self, now: float) -> bool:
        """Whether the node sends anything within `ANSWER_TO_PING` s after a ping at `now`."""
        self._message_came.clear()
        try:
            async with asyncio.timeout(ANSWER_TO_PING):
                if not await self.send(self.clock.ping(now)):
                    return False
                await self._message_came.wait()
        except TimeoutError:
            return False
        return True

    async def close(self, code: int, reason: str) -> None:
        """Close with a WebSocket code and a reason; abort if the node does not answer in time."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._socket.close(code=code, message=reason.encode()[:120])
        except TimeoutError:
            self.abort()

    def on_report(self, report: Report, now: float) -> float:
        """Take in a report; returns how far the node's clock is ahead, s."""
        self.clock.hint(report.at, now)
        if self._report is None or report.at >= self._report.at:
            self._report, self._report_on_our_clock = report, None
        return self.clock.ahead

    def report_on_our_clock(self) -> Report | None:
        """The node's newest report with stamps of the balancer's clock, for other nodes."""
        if self._report_on_our_clock is None and self._report is not None:
            self._report_on_our_clock = shift_report(self._report, self.clock.ahead)
        return self._report_on_our_clock


def shift_request(request: Request, ahead: float) -> Request:
    """The request with its stamp moved from a clock that is `ahead` s ahead."""
    if ahead == 0.0:
        return request
    return msgspec.structs.replace(request, sent_at=max(0.0, request.sent_at - ahead))


def shift_report(report: Report, ahead: float) -> Report:
    """The report as other nodes get it: all its stamps moved from a clock that is `ahead` s ahead,
    and without the commands held, which are numbered by this balancer."""
    replace = msgspec.structs.replace
    return replace(
        report,
        at=max(0.0, report.at - ahead),
        held=None,
        queue=tuple(QueueItem(max(0.0, item.deadline - ahead), item.work) for item in report.queue),
        peers={
            name: peer
            if peer.measured_at is None
            else replace(peer, measured_at=max(0.0, peer.measured_at - ahead))
            for name, peer in report.peers.items()
        },
    )
