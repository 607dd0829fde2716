"""The balancer's ``GET /metrics``, in Prometheus' text format.

Counters are read from the dispatcher when somebody asks, so they exist once. Every label value is
from a closed set (servers of the scenario, actions, statuses, HTTP codes), so a client cannot make
the number of time series grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client.registry import Collector

from edgewise.live.balancer.dispatcher import Dispatcher
from edgewise.live.clock import Clock

__all__ = ["CONTENT_TYPE", "BalancerMetrics"]

# A decision takes some tens of microseconds; 5 ms is what a whole round trip may take.
_BUCKETS = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25)


class BalancerMetrics(Collector):
    """The balancer's metrics, in a registry of their own."""

    def __init__(self, dispatcher: Dispatcher, clock: Clock) -> None:
        self._dispatcher, self._clock = dispatcher, clock
        self.errors: dict[int, int] = {}
        """HTTP calls that were refused, by status."""
        self._registry = CollectorRegistry()
        self.decision_duration = Histogram(
            "decision_duration_seconds",
            "From a request's metadata to its decision.",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(self)

    def render(self) -> bytes:
        """The answer to ``GET /metrics``."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry for each `render`."""
        counts = self._dispatcher.counts
        totals = {
            "request": ("Requests decided.", counts.requests),
            "request_again": ("Submissions of a request decided before.", counts.again),
            "decision_overruled": (
                "Decisions to shed that were overruled, as the fleet was idle.",
                counts.overruled,
            ),
            "report": ("Reports of nodes.", counts.reports),
            "report_late": ("Reports overtaken by a newer one.", counts.reports_late),
            "outcome_joined": ("Outcomes joined to a decision.", counts.joined),
            "outcome_duplicate": ("Outcomes known already.", counts.duplicates),
            "outcome_unknown": ("Outcomes of no known decision.", counts.unknown),
            "dispatch_withdrawn": (
                "Dispatches not counted any more, as their ingress did not hold the request.",
                self._dispatcher.tracker.withdrawn,
            ),
            "decision_silent": ("Decisions without any outcome.", counts.silent),
            "deadline_violation": ("Decisions whose deadline was not met.", counts.late),
            "record_dropped": ("Rows not written.", self._dispatcher.recorder.dropped),
        }
        for name, (about, value) in totals.items():
            yield CounterMetricFamily(name, about, value=value)
        yield GaugeMetricFamily("reward", "Sum of expected utility.", value=counts.reward)
        still_open = len(self._dispatcher.decisions)
        yield GaugeMetricFamily(
            "open_decisions", "Decisions without a final outcome.", value=still_open
        )
        yield _counter("decision", "Decisions.", "action", counts.actions)
        yield _counter("outcome", "How decisions ended.", "status", counts.settled)
        yield _counter("request_error", "Refused calls.", "code", self.errors)
        yield self._policy_counters()
        agreed = {"yes": counts.shadow_agreed, "no": counts.shadow_differed}
        about = "Decisions that the shadow policy would have made alike, or not."
        yield _counter("shadow_decision", about, "same", agreed)
        yield from self._server_gauges()

    def _policy_counters(self) -> Metric:
        family = CounterMetricFamily(
            "policy_count",
            "The policy's own counters; the learned one counts what it leaves to the heuristic.",
            labels=("role", "what"),
        )
        policies = {"decides": self._dispatcher.policy, "shadow": self._dispatcher.shadow}
        for role, policy in policies.items():
            for what, count in () if policy is None else policy.counters.items():
                family.add_metric((role, what), count)
        return family

    def _server_gauges(self) -> Iterable[Metric]:
        fleet = self._dispatcher.tracker.state(self._clock.now())
        servers = fleet["servers"]
        ready = [s for s in servers.values() if s["connected"] and not s["draining"]]
        queue = GaugeMetricFamily("queue_size", "Believed queue.", labels=("server",))
        age = GaugeMetricFamily("report_age_seconds", "Age of a report.", labels=("server",))
        for name, state in servers.items():
            queue.add_metric((name,), state["believed_queue"])
            if state["report_age"] is not None:
                age.add_metric((name,), state["report_age"])
        ready_count = GaugeMetricFamily(
            "ready_endpoints", "Servers to choose from.", value=len(ready)
        )
        return ready_count, queue, age, *self._ejections(fleet)

    def _ejections(self, fleet: dict[str, Any]) -> Iterable[Metric]:
        ejected = GaugeMetricFamily(
            "server_ejected", "1 while a server is ejected.", labels=("server",)
        )
        for name, server in fleet["servers"].items():
            now = server["ejection"]
            ejected.add_metric((name,), now is not None and now["state"] == "ejected")
        paths = [path for path in fleet["ejected_paths"].values() if path["state"] == "ejected"]
        yield ejected
        yield GaugeMetricFamily(
            "ejected_paths", "Paths between servers that are ejected.", value=len(paths)
        )
        total = CounterMetricFamily(
            "ejection", "Ejections, failed probes included.", labels=("what", "reason")
        )
        for (what, reason), count in self._dispatcher.tracker.ejections.totals.items():
            total.add_metric((what, reason.replace(" ", "_")), count)
        yield total
        yield CounterMetricFamily(
            "all_ejected_request",
            "Requests for which all candidates were ejected, so that all were admissible.",
            value=fleet["all_ejected"],
        )


def _counter(name: str, about: str, label: str, counts: Mapping[Any, int]) -> Metric:
    family = CounterMetricFamily(name, about, labels=(label,))
    for value, count in counts.items():
        family.add_metric((str(value),), count)
    return family
