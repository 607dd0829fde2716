"""The balancer without its sockets: belief, policy and open decisions. Takes `now`; has no clock.

Requests come in from clients and nodes, reports from nodes, outcomes from all of them; commands and
rows for the recorder go out. A request id is decided once, however often and by whom it is
submitted.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from msgspec import Struct

from edgewise.domain import Attempt, Outcome, Report, Request, Status
from edgewise.errors import WireError
from edgewise.fleet.open_dispatches import UNHEARD_AFTER
from edgewise.fleet.table import table_of_observation
from edgewise.fleet.tracker import Tracker
from edgewise.live.balancer.experience import experience_table
from edgewise.live.balancer.open_decisions import (
    SETTLE_AFTER,
    OpenDecisions,
    OutcomeSource,
    TrackedDecision,
)
from edgewise.live.balancer.shadow import SHADOW
from edgewise.live.recorder import Recorder, RecordTable
from edgewise.live.records import DECISIONS, REPORTS
from edgewise.policies import Policy
from edgewise.scenario import Scenario
from edgewise.score import score, worthless_after

log = logging.getLogger(__name__)

NUMBERS_PER_SECOND = 1000
"""Commands and dispatches are numbered from the wall clock times this, so that a balancer that was
restarted goes on above all numbers it has ever given: nodes remember the highest they have seen."""


class Counters(Struct, kw_only=True):
    """Totals since the start, for ``/metrics`` and ``/v1/state``."""

    requests: int = 0
    again: int = 0
    """Submissions of a request that was decided already."""
    actions: dict[str, int] = msgspec.field(
        default_factory=lambda: {"run": 0, "transfer": 0, "shed": 0}
    )
    overruled: int = 0
    """Requests that the policy would have shed, and an idle fleet could answer in time."""
    reports: int = 0
    reports_late: int = 0
    """Reports overtaken by a newer one."""
    joined: int = 0
    """Outcomes joined to a decision, also those that replaced one of a worse source."""
    duplicates: int = 0
    unknown: int = 0
    settled: dict[str, int] = msgspec.field(
        default_factory=lambda: {status.value: 0 for status in Status}
    )
    silent: int = 0
    """Decisions settled without any outcome; counted as lost too."""
    late: int = 0
    """Settled decisions whose deadline was not met."""
    shadow_agreed: int = 0
    shadow_differed: int = 0
    """Decisions in which the shadow policy would have chosen the same row first, or another."""
    reward: float = 0.0
    """Sum of expected utility over settled decisions."""

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return msgspec.structs.asdict(self)


class Dispatcher:
    """Decides, and credits outcomes to decisions.

    `recorder` keeps nothing at first; replace it by one that takes `tables`.

    Parameters
    ----------
    scenario, policy:
        The fleet, and the policy that decides.
    now:
        s since the epoch; only the numbering of commands starts from it.
    shadow:
        A second policy that decides every request on the same observation. Its choice is recorded
        and counted, and has no other effect; it learns nothing.
    """

    def __init__(
        self, scenario: Scenario, policy: Policy, now: float, shadow: Policy | None = None
    ) -> None:
        self.scenario = scenario
        self.policy = policy
        self.shadow = shadow
        self._all_ejected = 0
        self._learns = policy.spec.features > 0
        self.tracker = Tracker(scenario)
        self.tracker.number_from(int(now * NUMBERS_PER_SECOND))
        self.decisions = OpenDecisions()
        self.counts = Counters()
        self._services = {(s.server, s.model): s for s in self.tracker.services}
        self.experience = experience_table(self.tracker.servers, self.tracker.candidates)
        self.recorder = Recorder(None, ())

    @property
    def tables(self) -> tuple[RecordTable, ...]:
        """The tables that `recorder` must have."""
        shadow = () if self.shadow is None else (SHADOW,)
        return (DECISIONS, REPORTS, self.experience, *shadow)

    # -- requests --------------------------------------------------------------------------------

    def decide(
        self,
        request: Request,
        now: float,
        trigger: str,
        uploaded: float | None = None,
        announced_by: str | None = None,
    ) -> TrackedDecision:
        """Decide a request whose stamps are on the clock of `now`, or return its earlier decision.

        `announced_by` is the client whose metadata this is; None: the ingress has the request.
        Raises WireError if the id was used for a request at another ingress.
        """
        entry = self.decisions.get(request.id)
        if entry is not None:
            if entry.request.ingress != request.ingress:
                raise WireError(
                    "id", f"{request.id} is a request that arrived at {entry.request.ingress}"
                )
            self.counts.again += 1
            if announced_by is None:
                self.tracker.on_asked(request, now)
            return entry
        tracker = self.tracker
        tracker.on_request(request, now)
        observation = tracker.observe(request, now, uploaded)
        decision = self.policy.decide(observation, tracker.keep_if_idle)
        other = None
        if self.shadow is not None:  # before the belief counts the decision
            other = self.shadow.decide(observation, tracker.keep_if_idle)
        command = tracker.commit(request, decision, observation, announced_by)
        row = decision.rows[0]
        worthless_at = request.sent_at + worthless_after(request.deadline, tracker.shape.grace)
        if not decision.ranked:  # it is refused as soon as its ingress has it
            worthless_at = min(worthless_at, now + UNHEARD_AFTER)
        entry = TrackedDecision(
            request=request,
            observation=observation,
            decision=decision,
            command=command,
            trigger=trigger,
            settle_at=worthless_at + SETTLE_AFTER,
        )
        if self._learns:
            entry.features = self.policy.features(observation, row)
        self.decisions.enter(entry)
        counts = self.counts
        counts.requests += 1
        counts.actions[entry.action] += 1
        counts.overruled += decision.overruled
        predicted = (
            float(table_of_observation(observation).rows.latency[row]) if decision.ranked else None
        )
        self.recorder.add(DECISIONS, request, decision, command, trigger, predicted)
        if other is not None:
            counts.shadow_agreed += other.rows[0] == row
            counts.shadow_differed += other.rows[0] != row
            self.recorder.add(SHADOW, other, decision)
        return entry

    # -- reports ---------------------------------------------------------------------------------

    def on_report(self, report: Report, now: float, clock_ahead: float) -> None:
        """Take in a node's report; its clock is `clock_ahead` s ahead of the one of `now`."""
        self.counts.reports += 1
        if not self.tracker.on_report(report, now, clock_ahead):
            self.counts.reports_late += 1
        self._log_ejections(now)
        self.recorder.add(REPORTS, report, now, clock_ahead)

    # -- outcomes --------------------------------------------------------------------------------

    def on_answered(
        self,
        outcome: Outcome,
        now: float,
        clock_ahead: float,
        attempts: tuple[Attempt, ...] = (),
    ) -> None:
        """Take in that the ingress has answered a request, after these attempts.

        It cannot know the client's latency: until the client reports it, the time until the ingress
        began to answer stands for it.
        """
        entry = self.decisions.get(outcome.request)
        if entry is not None and not entry.answered:
            entry.answered = True
            self.tracker.on_attempts(
                entry.request.ingress,
                entry.command.server,
                attempts,
                entry.decision.at,
                outcome.stamps.uploaded is not None and entry.in_time_expected,
                now,
            )
            self._log_ejections(now)
        if outcome.status is Status.SERVED and entry is not None:
            if outcome.latency is None:
                at = outcome.stamps.answered
                at = now if at is None else at - clock_ahead
                latency = max(0.0, at - entry.request.sent_at)
                outcome = msgspec.structs.replace(outcome, latency=latency)
            outcome = self._with_accuracy(outcome)
        self._join(outcome, OutcomeSource.NODE, now)

    def on_outcome(self, outcome: Outcome, now: float, *, is_evaluator: bool = True) -> str:
        """Take in a client's or an evaluator's outcome.

        Only an evaluator is believed what the right class is, and how accurate a service.

        Returns ``joined``, ``duplicate`` or ``unknown``. Raises WireError naming a missing field.
        """
        if not is_evaluator:
            outcome = msgspec.structs.replace(outcome, label=None, accuracy=None)
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
        return msgspec.structs.replace(outcome, accuracy=service.accuracy_of(outcome.form))

    def _join(self, outcome: Outcome, source: OutcomeSource, now: float) -> str:
        entry = self.decisions.get(outcome.request)
        if entry is None:
            self.counts.unknown += 1
            return "unknown"
        if entry.settled or (entry.source is not None and source <= entry.source):
            self.counts.duplicates += 1
            return "duplicate"
        self.tracker.on_outcome(outcome, now)  # it ignores all but the first of a request
        entry.outcome, entry.source = outcome, source
        numbers = (outcome.latency, outcome.accuracy)
        if outcome.status is Status.SERVED and None in numbers:
            entry.score = None
        else:
            entry.score = score(entry.request, outcome, self.tracker.shape)
        self.counts.joined += 1
        if source is not OutcomeSource.NODE:
            self._learn(entry)
        if source is OutcomeSource.EVALUATOR:
            self._settle(entry)
        return "joined"

    def _learn(self, entry: TrackedDecision) -> None:
        """Let the policy learn from a score, once per decision."""
        if entry.features is not None and entry.score is not None:
            self.policy.learn(entry.features, entry.score.expected)
            entry.features = None

    def _log_ejections(self, now: float) -> None:
        for change in self.tracker.ejections.changes(now):
            log.warning("%s", change)

    # -- time ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Write off decisions that are overdue, or whose photo never came. Call it about once a
        second."""
        gone = self.tracker.forget(now)
        all_ejected = self.tracker.ejections.all_ejected
        if all_ejected > self._all_ejected:
            log.warning(
                "%d requests could only go where a server or path is ejected; they did",
                all_ejected - self._all_ejected,
            )
        self._all_ejected = all_ejected
        for entry in self.decisions.due(now):
            self._settle(entry)
        for request in gone:
            still_open = self.decisions.get(request)
            if still_open is not None and not still_open.settled:
                self._settle(still_open)

    def finish(self) -> None:
        """Settle everything, at the end of a run."""
        for entry in self.decisions.all_open():
            self._settle(entry)

    def _settle(self, entry: TrackedDecision) -> None:
        self.decisions.settle(entry)
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
