"""The balancer's end of the control channels: who is connected, and how far their clocks are ahead.

One `NodeConnection` is one WebSocket of one node. Clock offsets are measured as NTP does: of the
last few
Ping/Pong pairs the one with the shortest round trip counts, for it had the least time to be
lopsided (Mills, RFC 5905, §10, clock filter).
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import msgspec

from edgewise.domain import PeerReport, QueueItem, Report
from edgewise.live.wire.messages import Ping, Pong, encode

SAMPLES = 8
"""Round trips the clock filter looks at, as in RFC 5905; at one a second, drift stays far under a
millisecond."""
SILENCE = 5.0
"""s without a message from a node, which reports many times a second, after which its connection
counts as dead: TCP itself would take minutes."""
CROSSING = 0.25
"""s. A first Ask that comes this soon after the command was sent has crossed it on the way; sending
it again would be noise. A later Ask, or a second one, means that it did not arrive."""


class Offset:
    """How far another machine's clock is ahead of ours."""

    def __init__(self) -> None:
        self._sent: deque[float] = deque(maxlen=SAMPLES)
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)
        self._guess = 0.0

    def ping(self, now: float) -> Ping:
        self._sent.append(now)
        return Ping(at=now)

    def pong(self, pong: Pong, now: float) -> None:
        """An answer to a ping of ours; any other is ignored."""
        if pong.ping not in self._sent:
            return
        self._sent.remove(pong.ping)
        self._samples.append((now - pong.ping, pong.at - (pong.ping + now) / 2.0))

    def hint(self, at: float, now: float) -> None:
        """A message stamped `at` on the other clock came just now: all there is before a pong."""
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
    """What a channel needs of a WebSocket."""

    async def send_bytes(self, data: bytes) -> Any: ...


class NodeConnection:
    """A node's control channel."""

    def __init__(self, server: str, socket: Socket, now: float) -> None:
        self.server = server
        self.clock = Offset()
        self.heard_at = now
        self.report: Report | None = None
        """Its newest, on its own clock."""
        self._socket = socket
        self._ours: Report | None = None

    async def send(self, message: Any) -> bool:
        """Send; False if the connection is gone, of which its reader learns by itself."""
        try:
            await self._socket.send_bytes(encode(message))
        except (ConnectionError, RuntimeError):
            return False
        return True

    def reported(self, report: Report, now: float) -> float:
        """Note a report; returns how far its clock is ahead."""
        self.clock.hint(report.at, now)
        if self.report is None or report.at >= self.report.at:
            self.report, self._ours = report, None
        return self.clock.ahead

    def report_on_our_clock(self) -> Report | None:
        """Its newest report with stamps of the balancer's clock, for other nodes."""
        if self._ours is None and self.report is not None:
            self._ours = shifted(self.report, self.clock.ahead)
        return self._ours


def shifted(report: Report, ahead: float) -> Report:
    """A report with every stamp moved from a clock that is `ahead` s ahead."""
    return msgspec.structs.replace(
        report,
        at=max(0.0, report.at - ahead),
        queue=tuple(QueueItem(max(0.0, item.deadline - ahead), item.work) for item in report.queue),
        peers={
            name: peer
            if peer.measured_at is None
            else PeerReport(
                peer.throughput,
                max(0.0, peer.measured_at - ahead),
                peer.rtt,
                peer.backlog,
                peer.flows,
            )
            for name, peer in report.peers.items()
        },
    )
