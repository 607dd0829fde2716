"""Deciding without a balancer: the same belief and the same policies, inside the node.

Used while the control channel is broken, when the balancer is too slow for a request, and always
where none is configured. What is known then: this node's own state, what it has dispatched itself,
the last fleet the balancer told of, and the reports its peers give when asked.
"""

from __future__ import annotations

from edgewise import policy
from edgewise.domain import Command, Outcome, Report, Request, Status
from edgewise.fleet.tracker import Tracker
from edgewise.live.wire.messages import FleetReports
from edgewise.scenario import Scenario


class LocalDecider:
    """A balancer for one ingress."""

    def __init__(self, scenario: Scenario, server: str, now: float) -> None:
        self._tracker = Tracker(scenario)
        self._policy = policy.make(scenario.policy, scenario.seed)
        self._server = server
        self._heard: set[str] = set()
        # Peers remember the highest number of ours that they have seen, from before a restart too.
        self._tracker.number_from(int(now * 1000.0))
        self._tracker.connect(server, now)
        self._compile(now)

    def _compile(self, now: float) -> None:
        """The first call of each compiled function takes a second: not while a request waits."""
        request = Request(
            id="warm-up", ingress=self._server, payload_bytes=1, sent_at=now, deadline=1.0
        )
        self.decide(request, now, None)
        self.on_outcome(Outcome(request=request.id, status=Status.FAILED), now)
        self._tracker.connect(self._server, now)

    def decide(self, request: Request, now: float, uploaded: float | None) -> Command:
        """What to do with a request; numbers in the command are this node's own."""
        self._tracker.on_request(request, now)
        seen = self._tracker.observe(request, now, uploaded)
        return self._tracker.commit(request, self._policy.decide(seen), seen)

    def on_own_report(self, report: Report, now: float) -> None:
        self._tracker.on_report(report, now)

    def on_fleet(self, fleet: FleetReports, now: float) -> None:
        """What the balancer knew; its clock is `fleet.at` − `now` ahead, and the way here."""
        for report in fleet.reports:
            self._take(report, now, fleet.at - now)

    def on_peer(self, peer: str, report: Report | None, rtt: float, now: float) -> None:
        """A peer answered after `rtt` s: it is there, and its report was made half of that ago."""
        if report is not None and report.server == peer:
            self._take(report, now, report.at - (now - 0.5 * rtt))

    def _take(self, report: Report, now: float, clock_ahead: float) -> None:
        if report.server == self._server or not self._tracker.knows(report.server):
            return
        if report.server not in self._heard:
            self._heard.add(report.server)
            self._tracker.connect(report.server, now)
        self._tracker.on_report(report, now, clock_ahead)

    def on_outcome(self, outcome: Outcome, now: float) -> None:
        self._tracker.on_outcome(outcome, now)

    def forget(self, now: float) -> None:
        """Call about once a second."""
        self._tracker.forget(now)
