"""A belief addressed by names, for the live balancer and for nodes that decide without one.

The functions of `fleet.belief` and `fleet.observe` take indices and arrays. `Tracker` translates
reports, decisions and outcomes into calls of them, stores which dispatch belongs to which request,
and makes observations for a policy. It reads no clock: its methods take `now`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgewise.domain import (
    Attempt,
    Candidate,
    Command,
    Decision,
    Fault,
    Observation,
    Outcome,
    PayloadForm,
    Report,
    Request,
    Service,
    Status,
)
from edgewise.fleet import belief as core
from edgewise.fleet.admission import keep_if_idle
from edgewise.fleet.arrays import Belief, new_belief, records
from edgewise.fleet.commit import commit
from edgewise.fleet.ejection import ANSWERED, attempt_fault, end_probe, on_attempt, only_for_probe
from edgewise.fleet.ejection_view import EjectionView
from edgewise.fleet.intake import (
    ACKNOWLEDGED,
    REPORT,
    REPORT_LINK,
    REPORT_SERVICE,
    ReportArrays,
    renew_server,
    take_link_state,
    take_report,
)
from edgewise.fleet.observe import backlog_at, link_rate, observe
from edgewise.fleet.open_dispatches import OpenDispatch, OpenDispatches
from edgewise.fleet.table import CandidateTable, load, new_table
from edgewise.fleet.timeouts import photo_patience
from edgewise.scenario import EjectionSpec, Scenario
from edgewise.score import ScoreShape, worthless_after
from edgewise.tasks.services import services_of

SILENCE_PERIODS = 10.0
"""Report periods without a report after which a server counts as down. A lost report or a garbage
collector's pause must not look like a failure."""
SILENCE_MIN = 1.0
"""s. Least such time, for very short periods."""


_FAULTS: dict[Fault | None, int] = {
    fault: number for number, fault in enumerate((None, *Fault), ANSWERED)
}


def initial_belief(scenario: Scenario, services: tuple[Service, ...]) -> Belief:
    """The belief that a balancer of `scenario` starts with."""
    servers = scenario.servers
    belief = new_belief(
        scenario.server_names,
        services,
        workers=[server.workers for server in servers.values()],
        speed=[server.speed for server in servers.values()],
        prepare_seconds=[scenario.prepare.seconds / server.speed for server in servers.values()],
        prepare_own=scenario.prepare.on == "own",
        prepare_enabled=scenario.prepare.enabled,
        shared_uplink=scenario.network.topology == "uplink",
        edf=scenario.discipline == "edf",
        silence=max(SILENCE_MIN, SILENCE_PERIODS * scenario.report_period),
    )
    set_ejection(belief, scenario.ejection, scenario.report_period)
    return belief


def set_ejection(belief: Belief, spec: EjectionSpec, period: float) -> None:
    """Set when the belief ejects; `period` is that of the reports, s."""
    if not spec.enabled:
        return
    out = belief.ejection[0]
    out.failures, out.failing, out.unanswered = spec.failures, spec.failing, spec.unanswered
    out.timeout, out.timeout_max = spec.timeout * period, spec.timeout_max * period
    out.probes, out.slow_start = spec.probes, spec.slow_start * period
    out.servers_max = max(1, int(spec.share * len(belief.servers)))


class Tracker:
    """The belief of one balancer, addressed by names of servers, models and requests.

    No server is connected at first (`connect`).
    """

    def __init__(self, scenario: Scenario) -> None:
        self.services = services_of(scenario)
        self.servers = scenario.server_names
        self.shape = ScoreShape.of(scenario.score)
        self.belief = initial_belief(scenario, self.services)
        self.belief.servers["connected"] = 0.0
        self._table = new_table(self.belief)
        self._index = {name: i for i, name in enumerate(self.servers)}
        self._service = {(s.server, s.model): k for k, s in enumerate(self.services)}
        candidates: list[Candidate | None] = [
            Candidate(service.server, service.model, form)
            for service in self.services
            for form in (PayloadForm.ORIGINAL, PayloadForm.MODEL_READY)
        ]
        self._candidates = (*candidates, None)
        self._rows_of = {
            service.model: np.array([each.model == service.model for each in candidates if each])
            for service in self.services
        }
        self._open = OpenDispatches(self.belief, photo_patience(scenario.report_period))
        self._true_links = scenario.network_state == "emulator"
        names = {}
        for i, a in enumerate(self.servers):
            names[scenario.access_of(a)[0]] = i
            for j, b in enumerate(self.servers):
                if i != j:
                    names[scenario.link_between(a, b)[0]] = int(self.belief.path[i, j])
        self._links: dict[str, int] = names
        self._instances: dict[str, int] = {}
        self.ejections = EjectionView(self.belief, self.servers)

    # -- changing --------------------------------------------------------------------------------

    def number_from(self, first: int) -> None:
        """Number commands and dispatches from `first` + 1; call it before all other methods.

        Nodes acknowledge by number, so a restarted balancer must not reuse its earlier numbers.
        """
        self.belief.servers["commands"] = first
        self.belief.servers["dispatches"] = first

    def connect(self, server: str, now: float, instance: int = 0) -> None:
        """Mark `server` as connected and forget its earlier dispatches and report.

        An `instance` other than the last one is a restart: all that was measured of the server and
        its failures are forgotten too.
        """
        s = self._index[server]
        if self._instances.get(server, instance) != instance:
            renew_server(self.belief, s)
        self._instances[server] = instance
        core.reset_server(self.belief, s, now)
        self._open.drop_server(s)
        self.belief.servers[s]["connected"] = 1.0

    def disconnect(self, server: str) -> None:
        """Mark `server` as disconnected: it is no candidate until it connects again."""
        self.belief.servers[self._index[server]]["connected"] = 0.0

    def on_request(self, request: Request, now: float) -> None:
        """Count an arrival. Call it once per request, before `observe`."""
        core.on_request(self.belief, self._index[request.ingress], now)

    def on_report(self, report: Report, now: float, clock_ahead: float = 0.0) -> bool:
        """Update the belief by a report; the server's clock is `clock_ahead` s ahead of ours.

        Returns False, and changes nothing, if a newer report of that server came before.
        """
        at = min(now, report.at - clock_ahead)
        arrays = self._arrays_of(report, at, clock_ahead)
        if not take_report(self.belief, arrays, self._true_links, now):
            return False
        self._open.on_report(self._index[report.server], report, at, now)
        return True

    def _arrays_of(self, report: Report, at: float, clock_ahead: float) -> ReportArrays:
        """Translate a report to arrays: times on our clock, indices instead of names.

        Unknown models and peers are left out, and all links if the emulator reports them
        (`on_link`).
        """
        s = self._index[report.server]
        head, seen = records(1, REPORT)[0], records(1, ACKNOWLEDGED)[0]
        head.server, head.at = s, at
        head.prepare_backlog, head.utilisation = report.prepare_backlog, report.utilisation
        head.draining = report.draining
        seen.commands = report.commands_seen
        seen.low, seen.bits = report.arrivals_low, report.arrivals_bits
        services = [
            (k, measured.service_time, measured.batch, measured.served)
            for model, measured in report.services.items()
            if (k := self._service.get((report.server, model))) is not None
        ]
        links, taken = [], set()
        signs = np.zeros(len(self.servers), np.int64)
        for name, peer in report.peers.items():
            other = self._index.get(name)
            if other is None:
                continue
            signs[other] = peer.answered if peer.unanswered == 0 else -peer.unanswered
            if self._true_links:
                continue
            link = s if other == s else int(self.belief.path[s, other])
            measured_at = math.nan if peer.measured_at is None else peer.measured_at - clock_ahead
            rate = math.nan if peer.throughput is None else peer.throughput
            rtt = math.nan if peer.rtt is None else peer.rtt
            first = link not in taken
            links.append((link, rate, measured_at, rtt, peer.backlog, peer.flows, first))
            taken.add(link)
        return ReportArrays(
            head=head,
            acknowledged=seen,
            running=np.array(report.running, np.float64),
            deadlines=np.array([item.deadline - clock_ahead for item in report.queue], np.float64),
            works=np.array([item.work for item in report.queue], np.float64),
            services=np.array(services, REPORT_SERVICE).view(np.recarray),
            links=np.array(links, REPORT_LINK).view(np.recarray),
            signs=signs,
        )

    def on_link(
        self,
        name: str,
        rate: float,
        rtt: float,
        backlog: float,
        now: float,
        measured_at: float | None = None,
    ) -> None:
        """Update a link by its true state from the emulator (``network_state: emulator``).

        `rate` in bytes/s (inf for unlimited), `rtt` in s and `backlog` in bytes, all as of
        `measured_at` (None: now). Unknown names are ignored.
        """
        link = self._links.get(name)
        if link is None:
            return
        rate_at = now if measured_at is None else measured_at
        take_link_state(self.belief, link, rate, rate_at, rtt, backlog, now)

    def keep_if_idle(self, table: CandidateTable) -> bool:
        """Overrule the scores that would shed the request observed last, if an idle fleet can
        answer it in time. Returns whether they were changed."""
        return bool(keep_if_idle(self.belief, table))

    def commit(
        self,
        request: Request,
        decision: Decision,
        observation: Observation,
        announced_by: str | None = None,
    ) -> Command:
        """Add a decision to the belief and make the command for the ingress.

        `observation` is the one that the decision was made by. `announced_by` is the client whose
        metadata is all there is of the request; None: its ingress has it.
        """
        now = decision.at
        load(self._table, observation)
        command, dispatch, rif = commit(
            self.belief, self._table, decision.rows[0], now, request.sent_at + request.deadline
        )
        if not decision.ranked:
            return Command(
                request=request.id,
                sequence=int(command),
                reason=decision.reason,
                retry_after=self._retry_after(),
            )
        first = decision.ranked[0]
        rows, row = self._table.rows, decision.rows[0]
        entry = OpenDispatch(
            request=request.id,
            ingress=self._index[request.ingress],
            command=int(command),
            server=self._index[first.server],
            dispatch=int(dispatch),
            decided_at=now,
            worthless_at=request.sent_at + worthless_after(request.deadline, self.shape.grace),
            deadline=request.due,
            work=float(rows.service_time[row]),
            input_at=now + float(rows.until_input[row]),
            rif=int(rif),
            announced_by=announced_by,
            came=announced_by is None,
        )
        self._open.add(entry, now)
        return Command(
            request=request.id,
            sequence=int(command),
            dispatch=int(dispatch),
            server=first.server,
            model=first.model,
            form=first.form,
            alternatives=self._alternatives(request, decision),
        )

    def _alternatives(self, request: Request, decision: Decision) -> tuple[Candidate, ...]:
        """The candidates after the first, without those that are admissible as a probe only."""
        others = decision.ranked[1:]
        if self.belief.ejection[0].active == 0:
            return others
        ingress = self._index[request.ingress]
        return tuple(
            other
            for other in others
            if not only_for_probe(self.belief, ingress, self._index[other.server])
        )

    def on_attempts(
        self,
        ingress: str,
        picked: str | None,
        attempts: tuple[Attempt, ...],
        decided_at: float,
        expected: bool,
        now: float,
    ) -> None:
        """Take in how the attempts of `ingress` at a request ended, which was to go to `picked`.

        `expected`: an answer in time was to be expected (`ejection.attempt_fault`).
        """
        source = self._index[ingress]
        for attempt in attempts:
            s = self._index.get(attempt.server)
            if s is not None:
                fault = attempt_fault(_FAULTS[attempt.fault], expected, 0.0, 0.0)
                on_attempt(self.belief, source, s, fault, decided_at, now)
        if picked is not None and all(attempt.server != picked for attempt in attempts):
            end_probe(self.belief, source, self._index[picked], decided_at)

    def warm_up(self, now: float) -> None:
        """Call what only attempts and failures need, so that the first one does not wait for the
        compiler. It changes nothing that counts: a refusal is no failure."""
        attempts = (Attempt(self.servers[-1], Fault.REFUSED),)
        self.on_attempts(self.servers[0], self.servers[0], attempts, now, True, now)
        only_for_probe(self.belief, 0, 0)

    def _retry_after(self) -> float | None:
        """s until the least loaded server that could answer the loaded table's request has done
        the work that waits there; None: no server could."""
        able = {int(s) for s in self._table.rows.server[:-1][self._table.mask[:-1] == 1]}
        backlogs = [self._table.servers[s].backlog for s in able]
        return float(min(backlogs)) if backlogs else None

    def on_outcome(self, outcome: Outcome, now: float) -> bool:
        """End a request by its first outcome. Returns False, and changes nothing, if the request
        is not open."""
        picked = self._open.picked(outcome.request)
        if picked is None:
            return False
        # If another server answered, or none did, the one that was picked has failed.
        failed = outcome.status is not Status.SERVED or outcome.server != self.servers[picked]
        self._open.end(outcome.request, failed, now)
        return True

    def on_asked(self, request: Request, now: float) -> None:
        """The ingress asks for the command of a request that was decided before."""
        self._open.on_asked(request.id, now)

    def forget(self, now: float) -> list[str]:
        """Close, as failed, dispatches whose client has given up, and drop requests that never
        came; returns their ids. Call it about once a second."""
        return self._open.forget(now)

    # -- reading ---------------------------------------------------------------------------------

    def observe(self, request: Request, now: float, uploaded: float | None = None) -> Observation:
        """The request's candidate table at `now`, copied to new arrays.

        `uploaded` is the time at which its photo was complete at the ingress; None: not yet. If it
        names a model, the rows of all others are not admissible, and no server is left out.
        """
        table = self._table.arrays
        sampled = self._table.settings.sampled
        if request.named_model is not None:
            self._table.settings.sampled = 0
        observe(
            self.belief,
            self._table,
            now,
            self._index[request.ingress],
            request.sent_at,
            request.deadline,
            request.accuracy,
            float(request.payload_bytes),
            math.nan if uploaded is None else uploaded,
            self.shape.grace,
            self.shape.accuracy_weight,
        )
        if request.named_model is not None:
            self._table.settings.sampled = sampled
            table.mask[:-1] &= self._rows_of.get(request.named_model, False)
        return Observation(
            request=request,
            at=now,
            rows=table.rows.copy(order="F"),
            mask=table.mask.copy(),
            servers=table.servers.copy(),
            context=table.context.copy(),
            candidates=self._candidates,
        )

    def has_server(self, server: str) -> bool:
        return server in self._index

    @property
    def candidates(self) -> tuple[Candidate | None, ...]:
        """The candidate of each row of an observation; None = shed."""
        return self._candidates

    @property
    def open(self) -> int:
        """Dispatches without an outcome."""
        return len(self._open)

    @property
    def withdrawn(self) -> int:
        """Dispatches that stopped counting because their ingress did not hold the request."""
        return self._open.withdrawn

    def state(self, now: float) -> dict[str, Any]:
        """The belief about the fleet at `now`, for JSON: NaN and infinity become None."""
        servers = {}
        for s, name in enumerate(self.servers):
            core.play_forward(self.belief, s, now)
            row = self.belief.servers[s]
            workers = int(row["workers"])
            free = self.belief.free[s, :workers]
            work = float(self.belief.jobs[s, : row["jobs"]]["work"].sum())
            servers[name] = {
                "connected": bool(row["connected"]),
                "draining": bool(row["draining"]),
                "report_age": _finite_or_none(now - row["report_at"]),
                "reported_queue": int(row["queued"]),
                "believed_queue": int(row["jobs"]),
                "backlog": float(core.water_level(free, workers, now, work) - now),
                "outstanding": int(row["outstanding"]),
                "unconfirmed": int(row["flights"]),
                "utilisation": float(row["utilisation"]),
                "failure": float(row["failure"]),
                "ejection": self.ejections.server(s, now),
                "workers": workers,
                "services": {
                    service.model: {
                        "accuracy": service.accuracy,
                        "service_time": float(self.belief.services[k]["service_time"]),
                    }
                    for k, service in enumerate(self.services)
                    if service.server == name
                },
            }
        links = {}
        for name, link in self._links.items():
            state = self.belief.links[link]
            rate = link_rate(self.belief, link, now)
            backlog, flows = backlog_at(self.belief, link, rate, now)
            links[name] = {
                "rate_bps": _finite_or_none(8.0 * state["rate"]),
                "believed_bps": float(8.0 * rate),
                "rate_age": _finite_or_none(now - state["rate_at"]),
                "rtt": _finite_or_none(state["rtt"]),
                "backlog": float(backlog),
                "flows": float(flows),
            }
        return {
            "at": now,
            "servers": servers,
            "links": links,
            "ejected_paths": self.ejections.paths(now),
            "all_ejected": self.ejections.all_ejected,
            "open": self.open,
        }


def _finite_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
