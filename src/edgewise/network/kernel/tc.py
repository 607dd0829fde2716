"""The ``tc`` backend: the kernel shapes the traffic that leaves a device.

Theory of operation
-------------------
A `Link` keeps the account: trace, outages, settings. What applies *now* is written into the
device's ``tbf`` whenever it changes: at a step of the trace, at the edges of an outage, at a live
change. Where the kernel has ``netem``, one above the ``tbf`` emulates delay, jitter and loss;
without it these have no effect, and the state says 0. Other impairments never have an effect here.

The rate is that of Ethernet frames: of 1,514 bytes, 1,448 are payload (95.6 %). The relay's rate is
that of the payload.

A ``tbf`` whose rate was 0 has scheduled its next packet for a time far off, and does not reschedule
it when the rate changes, but when the next packet comes. So one is sent.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from typing import Any

import numpy as np

from edgewise.errors import BadInput
from edgewise.network.capabilities import ROOT, Capability, network_namespaces, qdisc
from edgewise.network.capacity import Capacity
from edgewise.network.impairments import IMPAIRMENTS
from edgewise.network.kernel.devices import Device
from edgewise.network.kernel.meter import ThroughputMeter
from edgewise.network.kernel.namespaces import Namespaces
from edgewise.network.link import Link, Passage
from edgewise.network.link_backend import LinkBackend
from edgewise.network.relay.timers import Timer, Timers
from edgewise.network.settings import LinkSettings
from edgewise.network.transmission import bytes_between

NETEM, TBF = 0x10000, 0x20000
"""Handles ``1:`` and ``2:``."""
LEAST_BURST = 3028
"""bytes: two Ethernet frames. With one, a late wake-up of the kernel's is lost for good."""
BURST_S = 0.001
"""s of the rate that may pass at once: how late a kernel timer may be on a busy machine."""
QUEUE_S, QUEUE_BYTES = 0.05, 65536
"""Length of the queue, in s and at least in bytes. Beyond it packets are dropped, as in routers."""
STOPPED = 125.0
"""bytes/s in place of 0, which tbf does not allow: a packet takes 12 s. A slower rate overflows
tbf's own clock, which ends at 275 s for its whole burst."""
UNLIMITED = 4e9
"""bytes/s: the largest 32-bit rate, 32 Gbit/s."""
STEP_S = 0.1
"""s: shorter steps of a trace are averaged. A change costs 1 ms, and lets a burst pass."""
DISCARD = 9
"""UDP port of the packets that only make a queue move."""
NETEM_FIELDS = ("delay", "jitter", "loss")
"""Settings that netem emulates."""


def has_netem() -> Capability:
    """Whether the kernel has netem."""
    return qdisc("netem", network_namespaces())


def unsupported_fields(settings: LinkSettings, netem: Capability) -> list[str]:
    """The delay and the impairments in `settings` that have no effect with ``tc`` on this machine,
    each by its first field."""
    fields = ("delay", *(each.fields[0] for each in IMPAIRMENTS))
    supported = NETEM_FIELDS if netem.ok else ()
    return [each for each in fields if each not in supported and getattr(settings, each) > 0.0]


class TcShaper(LinkBackend):
    """A link whose packets the kernel queues before they leave a device.

    Raises BadInput if the kernel refuses the qdisc, or a change needs what this machine lacks.
    """

    def __init__(
        self,
        name: str,
        link: Link,
        timers: Timers,
        namespaces: Namespaces,
        device: Device,
        *,
        netem: Capability,
    ) -> None:
        super().__init__(name, link, timers)
        self._netem = netem
        self._namespaces, self._device = namespaces, device
        self._index = namespaces.index(device.namespace, device.device)
        # A tbf splits a bundle of packets that is larger than its burst only when the bundle comes
        # in. If a change made the burst smaller than a waiting bundle, the queue would get stuck.
        namespaces.single_packets(device.namespace, self._index)
        self._kick = namespaces.socket(device.namespace)
        with contextlib.suppress(OSError):
            self._kick.connect((device.peer, DISCARD))
        self._meter = ThroughputMeter()
        self._timer: Timer | None = None
        self._made = False
        self._rate = math.nan

    def change(self, now: float, settings: LinkSettings, capacity: Capacity | None = None) -> None:
        for field in unsupported_fields(settings, self._netem):
            if getattr(settings, field) != getattr(self.link.settings, field):
                raise BadInput(f"{field}: the tc backend does not support it{self._reason(field)}")
        super().change(now, settings, capacity)

    def state(self, now: float) -> dict[str, Any]:
        counters = self._namespaces.statistics(self._device.namespace, self._index, TBF)
        link = super().state(now)
        link["settings"] |= dict.fromkeys(unsupported_fields(self.link.settings, self._netem), 0.0)
        return {
            **link,
            "backlog_bytes": counters.get("backlog", 0),
            "in_flight_bytes": 0,
            "delivered_bytes": counters.get("bytes", 0),
            "dropped_packets": counters.get("drops", 0),
            **self._meter.state(counters.get("bytes", 0), now, link["rate_bps"]),
        }

    def close(self) -> None:
        """Stop following the trace; the device keeps its last rate."""
        if self._timer is not None:
            self._timer.cancel()
        self._kick.close()

    def revise(self, passage: Passage | None, now: float) -> None:
        self._apply(now)

    def _reason(self, field: str) -> str:
        return f" here: it needs netem ({self._netem.needs})" if field in NETEM_FIELDS else ""

    def _apply(self, now: float) -> None:
        """Set the rate that applies now, and come back when it changes."""
        t = now - self.link.origin
        until = self._until(t)
        # Whether it is an outage is seen in the middle: at the edge rounding decides.
        middle = t + 0.5 * min(until - t, STEP_S)
        rate = self._mean(t, until)
        if math.isfinite(rate) and self.link.rate_bps(self.link.origin + middle) == 0.0:
            rate = 0.0
        self._set_rate(rate / 8.0)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.timers.at(self.link.origin + until, self._apply)

    def _until(self, t: float) -> float:
        """When the rate changes next, s of the link's time; inf = never."""
        arrays = self.link.arrays()
        edges = [float(edge) for edge in arrays.outages.ravel() if edge > t + 1e-6]
        if arrays.period > 0.0:
            turn = math.floor((t + 1e-6) / arrays.period) * arrays.period
            times = arrays.times
            # The first edge of the trace that is at least a step ahead.
            i = bisect.bisect_left(times, t - turn + STEP_S - 1e-6)
            edges.append(turn + (float(times[i]) if i < len(times) else arrays.period))
        elif len(arrays.times) > 2:
            later = arrays.times[np.searchsorted(arrays.times, t + STEP_S - 1e-6) :]
            edges += [float(later[0])] if len(later) else []
        return max(min(edges, default=math.inf), t + 1e-3)

    def _mean(self, t: float, until: float) -> float:
        """Mean rate from `t` until `until`, bits/s; inf = unlimited."""
        if self.link.capacity.unlimited:
            return math.inf
        end = min(until, t + 1.0) if math.isinf(until) else until
        return 8.0 * bytes_between(*self.link.arrays(), t, end) / (end - t)

    def _set_rate(self, rate: float) -> None:
        was, self._rate = self._rate, rate
        rate_set = min(max(rate, STOPPED), UNLIMITED)
        settings = self.link.settings
        queue = settings.queue_bytes or int(max(rate_set * QUEUE_S, QUEUE_BYTES))
        burst = int(max(rate_set * BURST_S, LEAST_BURST))
        verb = "change" if self._made else "add"
        namespace = self._device.namespace
        try:
            parent = ROOT
            if self._netem.ok:
                self._namespaces.tc(
                    verb, "netem", namespace, self._index, NETEM, parent=ROOT,
                    delay=int(1e6 * settings.delay + 5e5 * settings.jitter),
                    jitter=int(5e5 * settings.jitter),
                    loss=100.0 * settings.loss,
                    limit=100_000,
                )  # fmt: skip
                parent = NETEM | 1
            self._namespaces.tc(
                verb, "tbf", namespace, self._index, TBF, parent=parent,
                rate=int(rate_set), burst=burst, limit=queue + burst,
            )  # fmt: skip
        except BadInput as error:
            raise BadInput(f"links.{self.name}, device {self._device.device}: {error}") from None
        self._made = True
        if was < STOPPED <= rate:
            with contextlib.suppress(OSError):
                self._kick.send(b"")
