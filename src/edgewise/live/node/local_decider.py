"""The local decider: the balancer's belief and policies inside a node, for its own requests.

A node decides for itself while the control channel is broken, when the balancer is too slow for a
request, and always where no balancer is configured. It then knows its own state, its own
dispatches, the last fleet reports of the balancer, and the reports that its peers give when asked.
"""

from __future__ import annotations

import msgspec

from edgewise import policies
from edgewise.domain import Attempt, Command, Outcome, Report, Request, Status
from edgewise.fleet.tracker import Tracker
from edgewise.live.wire.messages import FleetReports
from edgewise.scenario import Scenario


class LocalDecider:
    """A balancer for one ingress."""

    def __init__(self, scenario: Scenario, server: str, now: float) -> None:
        self._tracker = Tracker(scenario)
        self._policy = policies.make(scenario.policy, scenario.seed)
        self._server = server
        self._heard_of: set[str] = set()
        # Peers remember the highest number of this node, also from before a restart.
        self._tracker.number_from(int(now * 1000.0))
        self._tracker.connect(server, now)

    def warm_up(self, request: Request, now: float) -> None:
        """Decide on a made-up request, so that no other waits for a compiler."""
        self._tracker.warm_up(now)
        self.decide(request, now, None)
        forgotten = Report(server=self._server, at=now + 1.0, workers=1, held=())
        self._tracker.on_report(forgotten, now + 1.0)
        self._tracker.on_asked(request, now + 1.0)
        self.decide(msgspec.structs.replace(request, id="warm-up-2", accuracy=1.0), now, None)
        self.on_outcome(Outcome(request=request.id, status=Status.FAILED), now)
        self._tracker.connect(self._server, now)

    def decide(self, request: Request, now: float, uploaded: float | None) -> Command:
        """The command for a request; its numbers are this node's own."""
        self._tracker.on_request(request, now)
        observation = self._tracker.observe(request, now, uploaded)
        decision = self._policy.decide(observation, self._tracker.keep_if_idle)
        return self._tracker.commit(request, decision, observation)

    def on_own_report(self, report: Report, now: float) -> None:
        """Take in this server's own report."""
        self._tracker.on_report(report, now)

    def on_fleet(self, fleet: FleetReports, now: float) -> None:
        """Take in the balancer's reports; its clock and the delay make `fleet.at` − `now`."""
        for report in fleet.reports:
            self._on_report(report, now, fleet.at - now)

    def on_peer(self, peer: str, report: Report | None, rtt: float, now: float) -> None:
        """Take in a peer's answer after `rtt` s; it made its report half of that ago."""
        if report is not None and report.server == peer:
            self._on_report(report, now, report.at - (now - 0.5 * rtt))

    def _on_report(self, report: Report, now: float, clock_ahead: float) -> None:
        if report.server == self._server or not self._tracker.has_server(report.server):
            return
        if report.server not in self._heard_of:
            self._heard_of.add(report.server)
            self._tracker.connect(report.server, now)
        self._tracker.on_report(report, now, clock_ahead)

    def on_outcome(self, outcome: Outcome, now: float, attempts: tuple[Attempt, ...] = ()) -> None:
        """Take in how a request of this ingress ended, whoever decided it, and its attempts."""
        decided_at = outcome.stamps.decided
        if decided_at is not None:
            picked = attempts[0].server if attempts else None
            uploaded = outcome.stamps.uploaded is not None
            self._tracker.on_attempts(self._server, picked, attempts, decided_at, uploaded, now)
        self._tracker.on_outcome(outcome, now)

    def forget(self, now: float) -> None:
        """Write off old dispatches; call this about once a second."""
        self._tracker.forget(now)
