"""A node's measurements of the links that it sends and receives on. Pure: methods take `now`.

Bytes are *on* a link from the moment the node accepts them for a peer until the peer says that the
last of them is in. In between, their progress is estimated: the transfers on a link share its
measured rate equally. With one uplink, all peers are behind the same `MeasuredLink`. The
simulator's counterpart is `sim.transfers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec import Struct

from edgewise.domain import PeerReport
from edgewise.fleet.estimates import bytes_per_transfer, smooth_rate


class Flow(Struct, eq=False):
    """One transfer under way."""

    peer: str
    size: float
    started: float
    shared: float
    """The link's `_shared` at the start."""
    finishes_at: float
    """The link's `_sent` when the transfer is done."""


class MeasuredLink:
    """One link of this node: its uplink, its path to one peer, or its clients' path to it."""

    def __init__(self) -> None:
        self.rate = math.nan
        """bytes/s for one transfer alone; NaN: never measured."""
        self.rate_at = math.nan
        self._flows: list[Flow] = []
        self._shared = 0.0
        """∫ number of flows dt."""
        self._sent = 0.0
        """Estimated bytes that each flow would have sent had it been there all the time: fair
        queueing's virtual time. A flow is done when this reaches its `finishes_at`."""
        self._at = 0.0

    def _advance(self, now: float) -> None:
        seconds = max(0.0, now - self._at)
        self._shared += seconds * len(self._flows)
        self._sent += bytes_per_transfer(self.rate, seconds, len(self._flows))
        self._at = max(now, self._at)

    @contextmanager
    def flow(self, peer: str, size: float, clock: Callable[[], float]) -> Iterator[Flow]:
        """A transfer of `size` bytes to `peer`.

        It ends with `arrived` or `received`; without either it ends here, unmeasured. `clock`
        returns the time of both ends.
        """
        now = clock()
        self._advance(now)
        flow = Flow(peer, size, now, self._shared, self._sent + size)
        self._flows.append(flow)
        try:
            yield flow
        finally:
            if flow in self._flows:
                self._advance(clock())
                self._flows.remove(flow)

    def arrived(self, flow: Flow, now: float, delay: float, starved: bool) -> None:
        """The peer has the last byte; its word of that took `delay` s and came at `now`.

        `starved`: the link waited for the sender (`fleet.estimates.waited_for_source`).
        """
        self._end(flow, flow.size, now - flow.started - delay, now, starved)

    def received(self, flow: Flow, size: float, seconds: float, now: float) -> None:
        """The receiver's side: `size` bytes of a flow came within `seconds`, the last one now."""
        self._end(flow, size, seconds, now, False)

    def _end(self, flow: Flow, size: float, seconds: float, now: float, starved: bool) -> None:
        if flow not in self._flows:
            return
        self._advance(now)
        self._flows.remove(flow)
        lasted = now - flow.started
        sharing = (self._shared - flow.shared) / lasted if lasted > 0.0 else 1.0
        if size > 0.0:
            self.measured(size, seconds, sharing, now, starved)

    def measured(
        self, size: float, seconds: float, sharing: float, now: float, starved: bool = False
    ) -> None:
        """`size` bytes took `seconds` while, on average, `sharing` transfers used the link."""
        self.rate, self.rate_at = smooth_rate(
            self.rate, self.rate_at, now, float(size), seconds, sharing, starved
        )

    @property
    def flows(self) -> int:
        """Transfers under way."""
        return len(self._flows)

    def report(
        self, peer: str, rtt: float | None, now: float, unanswered: int = 0, answered: int = 0
    ) -> PeerReport:
        """The report on `peer`. The rate and its age are the link's, the backlog is the peer's."""
        self._advance(now)
        flows = [flow for flow in self._flows if flow.peer == peer]
        known = not math.isnan(self.rate)
        return PeerReport(
            throughput=self.rate if known else None,
            measured_at=self.rate_at if known else None,
            rtt=rtt,
            backlog=sum(max(0.0, flow.finishes_at - self._sent) for flow in flows),
            flows=len(flows),
            unanswered=unanswered,
            answered=answered,
        )
