"""The balancer without its sockets: belief, policy and ledger. Takes `now`; knows no clock.

Requests come in from clients and nodes, reports from nodes, outcomes from all; decisions go out,
and rows for the recorder. A request id is decided once, however often and by whom it is submitted.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgewise.domain import Outcome, PayloadForm, Report, Request, Service, Status
from edgewise.errors import WireError
from edgewise.fleet.table import CONTEXT, R_LATENCY, ROW, SERVER
from edgewise.fleet.tracker import Tracker
from edgewise.live.balancer.experience import table_of
from edgewise.live.balancer.ledger import SETTLE_AFTER, Entry, Ledger, OutcomeSource
from edgewise.live.balancer.shadow import SHADOW
from edgewise.live.recorder import Recorder
from edgewise.live.records import DECISIONS, REPORTS
from edgewise.policy import Policy
from edgewise.scenario import Scenario
from edgewise.score import score, worthless_after

NUMBERS_PER_SECOND = 1000
"""Commands and dispatches are numbered from the wall clock times this, so that a balancer that was
restarted goes on above all it has ever given out: nodes remember the highest they have seen."""


class Counts:
    """What has happened since the start, for ``/metrics`` and ``/v1/state``."""

    def __init__(self) -> None:
        self.requests = 0
        self.again = 0
        """Submissions of a request that was decided already."""
        self.actions = {"run": 0, "transfer": 0, "shed": 0}
        self.reports = 0
        self.reports_late = 0
        """Reports overtaken by a newer one."""
        self.joined = 0
        """Outcomes joined to a decision, the better word of a better source included."""
        self.duplicates = 0
        self.unknown = 0
        self.settled = {status.value: 0 for status in Status}
        self.silent = 0
        """Settled decisions of which nobody said how they ended; counted as lost too."""
        self.late = 0
        """Settled decisions whose deadline was not met."""
        self.shadow_agreed = 0
        self.shadow_differed = 0
        """Decisions in which the shadow policy would have chosen the same, or another, first."""
        self.reward = 0.0
        """Sum of expected utility over settled decisions."""

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


class Dispatcher:
    """Decides, and credits outcomes to decisions.

    Parameters
    ----------
    scenario, policy:
        The fleet and who decides.
    now:
        s since the epoch; only the numbering of commands starts from it.

    shadow:
        Decides every request too, on the same observation; what it would have done is recorded and
        counted, and nothing else comes of it. It learns nothing.

    `recorder` keeps nothing; put one that takes `tables` in its place to keep them.
    """

    def __init__(
        self,
        scenario: Scenario,
        policy: Policy,
        now: float,
        shadow: Policy | None = None,
    ) -> None:
        self.scenario = scenario
        self.policy = policy
        self.shadow = shadow
        self._learns = policy.spec.features > 0
        self.tracker = Tracker(scenario)
        self.tracker.number_from(int(now * NUMBERS_PER_SECOND))
        self.ledger = Ledger()
        self.counts = Counts()
        self._services = {(s.server, s.model): s for s in self.tracker.services}
        self.experience = table_of(self.tracker.servers, self.tracker.candidates)
        self.recorder = Recorder(None, ())

    @property
    def tables(self) -> tuple[Any, ...]:
        """What `recorder` has to take."""
        shadow = () if self.shadow is None else (SHADOW,)
        return (DECISIONS, REPORTS, self.experience, *shadow)

    # -- requests --------------------------------------------------------------------------------

    def decide(
        self, request: Request, now: float, trigger: str, uploaded: float | None = None
    ) -> Entry:
        """Decide a request, or find what was decided. Its stamps are on the clock of `now`.

        Raises WireError if the id was used for a request at another ingress.
        """
        entry = self.ledger.get(request.id)
        if entry is not None:
            if entry.request.ingress != request.ingress:
                raise WireError(
                    "id", f"{request.id} is a request that arrived at {entry.request.ingress}"
                )
            self.counts.again += 1
            return entry
        tracker = self.tracker
        tracker.on_request(request, now)
        seen = tracker.observe(request, now, uploaded)
        decision = self.policy.decide(seen)
        command = tracker.commit(request, decision, seen)
        entry = Entry(
            request=request,
            seen=seen,
            decision=decision,
            command=command,
            trigger=trigger,
            settle_at=request.sent_at
            + worthless_after(request.deadline, tracker.shape.grace)
            + SETTLE_AFTER,
        )
        if self._learns:
            entry.features = self.policy.features(seen, decision.rows[0])
        self.ledger.enter(entry)
        counts = self.counts
        counts.requests += 1
        counts.actions[action(entry)] += 1
        predicted = float(seen.rows[decision.rows[0], R_LATENCY]) if decision.ranked else None
        self.recorder.add(DECISIONS, request, decision, command, trigger, predicted)
        if self.shadow is not None:
            other = self.shadow.decide(seen)
            same = other.rows[0] == decision.rows[0]
            counts.shadow_agreed += same
            counts.shadow_differed += not same
            self.recorder.add(SHADOW, other, decision)
        return entry

    # -- reports ---------------------------------------------------------------------------------

    def on_report(self, report: Report, now: float, clock_ahead: float) -> None:
        """Take in a node's report; its clock is `clock_ahead` s ahead of `now`'s."""
        self.counts.reports += 1
        if not self.tracker.on_report(report, now, clock_ahead):
            self.counts.reports_late += 1
        self.recorder.add(REPORTS, report, now, clock_ahead)

    # -- outcomes --------------------------------------------------------------------------------

    def on_answered(self, outcome: Outcome, now: float, clock_ahead: float) -> None:
        """The ingress has answered. What it cannot know, the client's latency, is taken as the time
        until it began to answer; the client's own word replaces it."""
        entry = self.ledger.get(outcome.request)
        if outcome.status is Status.SERVED and entry is not None:
            if outcome.latency is None:
                at = outcome.stamps.answered
                at = now if at is None else at - clock_ahead
                outcome = msgspec.structs.replace(
                    outcome, latency=max(0.0, at - entry.request.sent_at)
                )
            outcome = self._with_accuracy(outcome)
        self._join(outcome, OutcomeSource.NODE, now)

    def on_outcome(self, outcome: Outcome, now: float) -> str:
        """A client or an evaluator says how a request ended.

        Returns ``joined``, ``duplicate`` or ``unknown``. Raises WireError naming what is missing.
        """
        if outcome.status is Status.SERVED:
            outcome = self._with_accuracy(outcome)
            for field in ("latency", "accuracy"):
                if getattr(outcome, field) is None:
                    raise WireError(field, f"{outcome.request} was served: expected a number")
        source = OutcomeSource.CLIENT if outcome.label is None else OutcomeSource.EVALUATOR
        return self._join(outcome, source, now)

    def _with_accuracy(self, outcome: Outcome) -> Outcome:
        service = self._services.get((outcome.server or "", outcome.model or ""))
        if outcome.accuracy is not None or service is None:
            return outcome
        return msgspec.structs.replace(outcome, accuracy=accuracy_of(service, outcome.form))

    def _join(self, outcome: Outcome, source: OutcomeSource, now: float) -> str:
        entry = self.ledger.get(outcome.request)
        if entry is None:
            self.counts.unknown += 1
            return "unknown"
        if entry.settled or (entry.source is not None and source <= entry.source):
            self.counts.duplicates += 1
            return "duplicate"
        self.tracker.on_outcome(outcome, now)  # the first word counts; it ignores the others
        entry.outcome, entry.source = outcome, source
        scored = outcome.status is not Status.SERVED or None not in (
            outcome.latency,
            outcome.accuracy,
        )
        entry.score = score(entry.request, outcome, self.tracker.shape) if scored else None
        self.counts.joined += 1
        if source is not OutcomeSource.NODE:
            self._learn(entry)
        if source is OutcomeSource.EVALUATOR:
            self._settle(entry)
        return "joined"

    def _learn(self, entry: Entry) -> None:
        """Let the rule learn from a score, once per decision."""
        if entry.features is not None and entry.score is not None:
            self.policy.learn(entry.features, entry.score.expected)
            entry.features = None

    # -- time ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Write off what nobody will speak of any more. Call about once a second."""
        self.tracker.forget(now)
        for entry in self.ledger.due(now):
            self._settle(entry)

    def finish(self) -> None:
        """Settle everything, at the end of a run."""
        for entry in self.ledger.all_open():
            self._settle(entry)

    def _settle(self, entry: Entry) -> None:
        self.ledger.settle(entry)
        self._learn(entry)
        outcome, counts = entry.outcome, self.counts
        status = Status.LOST if outcome is None else outcome.status
        counts.settled[status.value] += 1
        counts.silent += outcome is None
        latency = None if outcome is None else outcome.latency
        in_time = (
            status is Status.SERVED and latency is not None and latency <= entry.request.deadline
        )
        counts.late += not in_time and status is not Status.SHED
        counts.reward += 0.0 if entry.score is None else entry.score.expected
        self.recorder.add(self.experience, entry)


def action(entry: Entry) -> str:
    """What the ingress is to do: ``run``, ``transfer`` or ``shed``."""
    if entry.command.server is None:
        return "shed"
    return "run" if entry.command.server == entry.request.ingress else "transfer"


def accuracy_of(service: Service, form: PayloadForm | None) -> float:
    """Accuracy of a service fed a payload of `form`."""
    if form is PayloadForm.MODEL_READY and service.ready_accuracy is not None:
        return service.ready_accuracy
    return service.accuracy


def explain(entry: Entry) -> dict[str, Any]:
    """A decision with the numbers it rested on, columns named, ready for JSON."""
    seen, decision = entry.seen, entry.decision
    columns, of_server = tuple(ROW), tuple(SERVER)
    ranked = []
    for candidate, row in zip(decision.ranked, decision.rows, strict=False):
        server = seen.servers[int(seen.rows[row, 0])]
        ranked.append(
            {
                "server": candidate.server,
                "model": candidate.model,
                "form": candidate.form.name.lower(),
                "row": dict(zip(columns, seen.rows[row].tolist(), strict=True)),
                "server_row": dict(zip(of_server, server.tolist(), strict=True)),
            }
        )
    return {
        "request": entry.request,
        "action": action(entry),
        "trigger": entry.trigger,
        "decision": decision,
        "ranked": ranked,
        "admissible": int(seen.mask[:-1].sum()),
        "context": dict(zip(CONTEXT, seen.context.tolist(), strict=True)),
        "outcome": entry.outcome,
        "source": None if entry.source is None else entry.source.name.lower(),
        "score": entry.score,
        "settled": entry.settled,
    }
