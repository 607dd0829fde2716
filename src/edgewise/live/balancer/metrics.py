"""What the balancer's ``GET /metrics`` shows, in Prometheus' text format.

Counters are read from the dispatcher when somebody asks, so they exist once. Every label value is
from a closed set (servers of the scenario, actions, statuses, HTTP codes): a client cannot make the
number of time series grow.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from edgewise.live.balancer.dispatcher import Dispatcher
from edgewise.live.clock import Clock

__all__ = ["CONTENT_TYPE", "BalancerMetrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
# A decision takes some tens of microseconds; 5 ms is what a whole round trip may take.
_BUCKETS = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25)


class BalancerMetrics(Collector):
    """The balancer's metrics, in a registry of their own."""

    def __init__(self, dispatcher: Dispatcher, clock: Clock) -> None:
        self._dispatcher, self._clock = dispatcher, clock
        self.errors: dict[int, int] = {}
        """Requests to the HTTP interface that were refused, by status."""
        self._registry = CollectorRegistry()
        self.decision_duration = Histogram(
            "decision_duration_seconds",
            "From a request's metadata to its decision.",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(self)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        counts = self._dispatcher.counts
        plain = {
            "request": ("Requests decided.", counts.requests),
            "request_again": ("Submissions of a request decided before.", counts.again),
            "report": ("Reports of nodes.", counts.reports),
            "report_late": ("Reports overtaken by a newer one.", counts.reports_late),
            "outcome_joined": ("Outcomes joined to a decision.", counts.joined),
            "outcome_duplicate": ("Outcomes known already.", counts.duplicates),
            "outcome_unknown": ("Outcomes of no known decision.", counts.unknown),
            "decision_silent": ("Decisions of which nobody said how they ended.", counts.silent),
            "deadline_violation": ("Decisions whose deadline was not met.", counts.late),
            "record_dropped": ("Rows not written.", self._dispatcher.recorder.dropped),
        }
        for name, (about, value) in plain.items():
            yield CounterMetricFamily(name, about, value=value)
        yield GaugeMetricFamily("reward", "Sum of expected utility.", value=counts.reward)
        still = len(self._dispatcher.ledger)
        yield GaugeMetricFamily("open_decisions", "Decisions without a final outcome.", value=still)
        actions = CounterMetricFamily("decision", "Decisions.", labels=("action",))
        for action, count in counts.actions.items():
            actions.add_metric((action,), count)
        yield actions
        settled = CounterMetricFamily("outcome", "How decisions ended.", labels=("status",))
        for status, count in counts.settled.items():
            settled.add_metric((status,), count)
        yield settled
        errors = CounterMetricFamily("request_error", "Refused calls.", labels=("code",))
        for code, count in self.errors.items():
            errors.add_metric((str(code),), count)
        yield errors
        guard = CounterMetricFamily(
            "policy_count",
            "What the policy counts: of the learned one, decisions it left to the heuristic.",
            labels=("role", "what"),
        )
        watched = {"decides": self._dispatcher.policy, "shadow": self._dispatcher.shadow}
        for role, policy in watched.items():
            for what, count in () if policy is None else policy.counters.items():
                guard.add_metric((role, what), count)
        yield guard
        shadow = CounterMetricFamily(
            "shadow_decision", "Decisions the shadow policy shares, or not.", labels=("same",)
        )
        shadow.add_metric(("yes",), counts.shadow_agreed)
        shadow.add_metric(("no",), counts.shadow_differed)
        yield shadow
        servers = self._dispatcher.tracker.state(self._clock.now())["servers"]
        ready = [s for s in servers.values() if s["connected"] and not s["draining"]]
        yield GaugeMetricFamily("ready_endpoints", "Servers to choose from.", value=len(ready))
        queue = GaugeMetricFamily("queue_size", "Believed queue.", labels=("server",))
        age = GaugeMetricFamily("report_age_seconds", "Age of a report.", labels=("server",))
        for name, state in servers.items():
            queue.add_metric((name,), state["believed_queue"])
            if state["report_age"] is not None:
                age.add_metric((name,), state["report_age"])
        yield queue
        yield age
