"""The ``tc`` backend: the kernel shapes what leaves a device, and is told the rate from here.

Theory of operation
-------------------
The pure :class:`~edgewise.network.link.Link` is kept as the book: trace, outages, settings. What it
says of *now* is written into the device's ``tbf`` whenever that changes: at a step of the trace, at
the edges of an outage, at a live change. Where the kernel has ``netem``, delay, jitter and loss go
into one above the ``tbf``. Without it they are not played, and the state says 0.

A rate is what passes the device, headers included: of 1,514 bytes of Ethernet 1,448 are payload,
95.6 %. (The relay's rate is of payload.)

A ``tbf`` whose rate was 0 has planned its next packet for a time far off, and a change of its rate
does not plan anew; the next packet does. So one is sent.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from typing import Any

import numpy as np

from edgewise.errors import BadInput
from edgewise.network.capabilities import ROOT, Capability, namespaces, qdisc
from edgewise.network.capacity import bytes_between
from edgewise.network.kernel.meter import Meter
from edgewise.network.kernel.namespaces import Spaces
from edgewise.network.link import Link, LinkSettings
from edgewise.network.relay.timers import Timer, Timers

NETEM, TBF = 0x10000, 0x20000
"""Handles ``1:`` and ``2:``."""
LEAST_BURST = 3028
"""bytes: two Ethernet frames. With one, a late wake-up of the kernel's is lost for good."""
BURST_S = 0.001
"""s of rate that may pass at once: what a kernel timer may be late by on a busy machine."""
QUEUE_S, QUEUE_BYTES = 0.05, 65536
"""s, and at least so many bytes, may wait; beyond it packets are dropped, as routers do."""
STOPPED = 125.0
"""bytes/s in place of 0, which tbf does not know: a packet takes 12 s. Slower overflows tbf's own
clock, which ends at 275 s for its whole burst."""
UNLIMITED = 4e9
"""bytes/s: the largest 32-bit rate, 32 Gbit/s."""
STEP_S = 0.1
"""s: a trace's shorter steps are averaged. A change costs 1 ms, and lets a burst pass."""
DISCARD = 9
"""UDP port of packets that only make a queue move."""


def has_netem() -> Capability:
    """Whether the kernel delays."""
    return qdisc("netem", namespaces())


class TcShaper:
    """A link whose bytes the kernel queues at the egress of one device.

    Raises BadInput if the kernel refuses the qdisc, or a change needs a netem that it has not.
    """

    def __init__(
        self,
        name: str,
        link: Link,
        timers: Timers,
        spaces: Spaces,
        space: str,
        device: str,
        peer: str,
        *,
        netem: Capability,
    ) -> None:
        self.name, self.link = name, link
        self._timers, self._netem, self._device = timers, netem, device
        self._index = spaces.index(space, device)
        self._spaces, self._space = spaces, space
        # A tbf splits a bundle that is larger than its burst, but only when it comes in. One that
        # waits while a change makes the burst smaller than it would wait for ever, and all behind.
        spaces.single_packets(space, self._index)
        self._kick = spaces.socket(space)
        with contextlib.suppress(OSError):
            self._kick.connect((peer, DISCARD))
        self._meter = Meter()
        self._timer: Timer | None = None
        self._made = False
        self._rate = math.nan

    def change(self, now: float, settings: LinkSettings) -> None:
        if not self._netem.ok:
            for field in ("delay", "jitter", "loss"):
                value = getattr(settings, field)
                if value not in (0.0, getattr(self.link.settings, field)):
                    raise BadInput(
                        f"{field}: the tc backend needs the kernel's netem for it, which is not "
                        f"here ({self._netem.needs})"
                    )
        self.link.change(now, settings)
        self._apply(now)

    def outage(self, now: float, duration: float) -> None:
        self.link.outage(now, duration)
        self._apply(now)

    def restart(
        self, now: float, settings: LinkSettings, outages: list[tuple[float, float]]
    ) -> None:
        self.link.restart(now, settings, outages)
        self._apply(now)

    def restore(
        self, now: float, settings: LinkSettings, outages: list[tuple[float, float]]
    ) -> None:
        self.link.change(now, settings)
        self.link.replace_outages(now, outages)
        self._apply(now)

    def state(self, now: float) -> dict[str, Any]:
        found = self._spaces.statistics(self._space, self._index, TBF)
        played = {} if self._netem.ok else {"delay": 0.0, "jitter": 0.0, "loss": 0.0}
        link = self.link.state(now)
        return {
            "name": self.name,
            **link,
            **played,
            "backlog_bytes": found.get("backlog", 0),
            "in_flight_bytes": 0,
            "delivered_bytes": found.get("bytes", 0),
            "dropped_packets": found.get("drops", 0),
            **self._meter.state(found.get("bytes", 0), now, link["rate_bps"]),
        }

    def close(self) -> None:
        """Stop following the trace; the device stays as it is."""
        if self._timer is not None:
            self._timer.cancel()
        self._kick.close()

    # -- inside

    def _apply(self, now: float) -> None:
        """Tell the kernel what applies now, and come back when that ends."""
        t = now - self.link.origin
        until = self._until(t)
        # In the middle of what is to come, not at its edge, where rounding decides.
        middle = t + 0.5 * min(until - t, STEP_S)
        rate = self._mean(t, until)
        if math.isfinite(rate) and self.link.rate_bps(self.link.origin + middle) == 0.0:
            rate = 0.0
        self._tell(rate / 8.0)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._timers.at(self.link.origin + until, self._apply)

    def _until(self, t: float) -> float:
        """When the rate changes next, in the link's time; inf = never."""
        arrays = self.link.arrays()
        edges = [float(edge) for edge in arrays.outages.ravel() if edge > t + 1e-6]
        if arrays.period > 0.0:
            turn = math.floor((t + 1e-6) / arrays.period) * arrays.period
            times = arrays.times
            # At least a step ahead: the edge of the trace's own after that.
            i = bisect.bisect_left(times, t - turn + STEP_S - 1e-6)
            edges.append(turn + (float(times[i]) if i < len(times) else arrays.period))
        elif len(arrays.times) > 2:
            later = arrays.times[np.searchsorted(arrays.times, t + STEP_S - 1e-6) :]
            edges += [float(later[0])] if len(later) else []
        return max(min(edges, default=math.inf), t + 1e-3)

    def _mean(self, t: float, until: float) -> float:
        """bits/s over what is to come; inf = unlimited."""
        if self.link.settings.capacity.unlimited:
            return math.inf
        end = min(until, t + 1.0) if math.isinf(until) else until
        return 8.0 * bytes_between(*self.link.arrays(), t, end) / (end - t)

    def _tell(self, rate: float) -> None:
        was, self._rate = self._rate, rate
        told = min(max(rate, STOPPED), UNLIMITED)
        settings = self.link.settings
        queue = settings.queue_bytes or int(max(told * QUEUE_S, QUEUE_BYTES))
        burst = int(max(told * BURST_S, LEAST_BURST))
        verb = "change" if self._made else "add"
        try:
            parent = ROOT
            if self._netem.ok:
                self._spaces.tc(
                    verb, "netem", self._space, self._index, NETEM, parent=ROOT,
                    delay=int(1e6 * settings.delay + 5e5 * settings.jitter),
                    jitter=int(5e5 * settings.jitter),
                    loss=100.0 * settings.loss,
                    limit=100_000,
                )  # fmt: skip
                parent = NETEM | 1
            self._spaces.tc(
                verb, "tbf", self._space, self._index, TBF, parent=parent,
                rate=int(told), burst=burst, limit=queue + burst,
            )  # fmt: skip
        except BadInput as error:
            raise BadInput(f"links.{self.name}, device {self._device}: {error}") from None
        self._made = True
        if was < STOPPED <= rate:
            with contextlib.suppress(OSError):
                self._kick.send(b"")
