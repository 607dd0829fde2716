"""A node's report on itself: `domain.Report`, made of the queue, the links and counters.

A figure is added to the reports in two places: its field in `domain.Report`, and its value in
`Monitor.report`. The balancer's state and the recorded reports take their fields from the struct.

The balancer numbers its commands and dispatches, and so does every node that decides for itself.
Each such *decider* gets the report with the acknowledgements of its own numbers ("" is the
balancer). A decider that restarts goes on above its old numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgewise.domain import PeerReport, Report, Service, ServiceReport
from edgewise.fleet.arrays import records
from edgewise.fleet.belief import acknowledge
from edgewise.fleet.estimates import (
    SERVICE_TIME,
    fade_service_time,
    measure_service_time,
    ready_time,
)
from edgewise.fleet.open_dispatches import held_numbers
from edgewise.live.node.converter import Converter
from edgewise.live.node.measured_links import MeasuredLink
from edgewise.live.node.worker_queue import WorkerQueue
from edgewise.live.wire.round_trips import LeastRtt

BALANCER = ""
"""The decider that is not a node."""


class SequencesSeen:
    """The numbers of one decider that this node has seen; never reset."""

    def __init__(self) -> None:
        self.commands = 0
        """The highest command."""
        self.held: set[int] = set()
        """Commands received whose requests are under way here."""
        self.low = 0
        """Every dispatch up to this one has arrived …"""
        self.bits = 0
        """… and those of the next 63 whose bit is set (`domain.Report.arrivals_bits`)."""

    def arrived(self, dispatch: int) -> None:
        """A dispatch is here; 0 is the number of none."""
        if dispatch > 0:
            self.low, self.bits = acknowledge(self.low, self.bits, dispatch)


class Monitor:
    """Keeps what reports are made of. It has no clock: every method takes `now`.

    Parameters
    ----------
    services:
        The services of this server, by model.
    peers:
        The other servers that this one can reach.
    shared_uplink:
        Whether all that leaves this server shares one link.
    """

    def __init__(
        self,
        server: str,
        services: Mapping[str, Service],
        peers: tuple[str, ...],
        shared_uplink: bool,
        queue: WorkerQueue,
        converter: Converter,
    ) -> None:
        self.server = server
        self.access = MeasuredLink()
        uplink = MeasuredLink()
        self.links = {peer: uplink if shared_uplink else MeasuredLink() for peer in peers}
        self.rtts = {peer: LeastRtt() for peer in peers}
        self.unanswered = dict.fromkeys(peers, 0)
        """Signs of life in a row that each peer did not give."""
        self.answered = dict.fromkeys(peers, 0)
        """Those in a row that it did give."""
        self.draining = False
        self._services = services
        self._queue, self._converter = queue, converter
        self._seen = {BALANCER: SequencesSeen()}
        times = records(len(services), np.dtype(SERVICE_TIME))
        times["service_time"] = [service.latency[0] for service in services.values()]
        self._times = dict(zip(services, times, strict=True))
        self._served = dict.fromkeys(services, 0)

    def seen(self, decider: str) -> SequencesSeen:
        """The numbers of `decider` that this node has seen."""
        return self._seen.setdefault(decider, SequencesSeen())

    def on_sign(self, peer: str, given: bool) -> None:
        """A peer gave the sign of life that it was asked for, or did not."""
        self.answered[peer] = self.answered[peer] + 1 if given else 0
        self.unanswered[peer] = 0 if given else self.unanswered[peer] + 1

    def ran(self, model: str, seconds: float, ready: bool, now: float) -> None:
        """A request ran for `seconds`, until `now`.

        The saving of a model-ready payload is added: reports give the service time of originals.
        """
        if ready:
            seconds += self._services[model].ready_saving
        profile = self._services[model].latency[0]
        measure_service_time(self._times[model], profile, seconds, self._served[model] == 0, now)
        self._served[model] += 1

    def work(self, model: str, ready: bool) -> float:
        """s that a request will take of a worker: as measured, or as profiled until the first."""
        service = self._services[model]
        seconds = float(self._times[model].service_time)
        if ready:
            seconds = ready_time(seconds, service.ready_saving)
        return seconds

    def report(self, now: float, decider: str = BALANCER) -> Report:
        """The state at `now`, for `decider`."""
        seen = self._seen.get(decider) or SequencesSeen()
        peers: dict[str, PeerReport] = {
            peer: link.report(
                peer, self.rtts[peer].get(now), now, self.unanswered[peer], self.answered[peer]
            )
            for peer, link in self.links.items()
        }
        peers[self.server] = self.access.report(self.server, None, now)
        return Report(
            server=self.server,
            at=now,
            workers=self._queue.workers,
            running=self._queue.running(now),
            queue=self._queue.waiting(),
            prepare_backlog=self._converter.backlog(now),
            services={
                model: ServiceReport(
                    service_time=self._faded(model, service, now),
                    batch=1.0,
                    served=self._served[model],
                )
                for model, service in self._services.items()
            },
            peers=peers,
            utilisation=self._queue.utilisation(now),
            draining=self.draining,
            commands_seen=seen.commands,
            arrivals_low=seen.low,
            arrivals_bits=seen.bits,
            held=held_numbers(seen.held, seen.commands),
        )

    def _faded(self, model: str, service: Service, now: float) -> float:
        """The measured service time of a model; what was slow fades until it is measured again."""
        fade_service_time(self._times[model], service.latency[0], now)
        return float(self._times[model].service_time)

    def backlog(self, now: float) -> float:
        """s until the workers and a converter of its own are done with what is here."""
        return self._queue.backlog(now) + self._converter.backlog_apart(now)
