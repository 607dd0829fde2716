"""A node's ``GET /metrics``, in Prometheus' text format.

Every label value comes from a closed set (this server's models, status, HTTP code), so a client
cannot make the number of time series grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client.registry import Collector

from edgewise.live.node.received_request import ReceivedRequest
from edgewise.live.wire.open_inference import InferAnswer

__all__ = ["CONTENT_TYPE", "NodeMetrics"]

# The buckets of OpenTelemetry's http.server.request.duration.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_DECISION_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class _CounterFunction(Collector):
    """Counters whose values are kept elsewhere, by label; "": one without a label."""

    def __init__(
        self,
        name: str,
        about: str,
        values: Callable[[], Mapping[str, float]],
        label: str | None = None,
    ) -> None:
        self._name, self._about, self._values = name, about, values
        self._labels = [] if label is None else [label]

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._about, labels=self._labels)
        for label, value in self._values().items():
            family.add_metric([label] if self._labels else [], value)
        yield family


class NodeMetrics:
    """A node's metrics, in a registry of their own."""

    def __init__(self, models: tuple[str, ...]) -> None:
        self._models = frozenset(models)
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "request", "Requests answered as ingress.", ("status", "model"), registry=registry
        )
        self._errors = Counter(
            "request_error", "Requests answered with an error.", ("code",), registry=registry
        )
        self._duration = Histogram(
            "http_server_request_duration_seconds",
            "From the headers to the answer.",
            buckets=_BUCKETS,
            registry=registry,
        )
        self._decision = Histogram(
            "decision_duration_seconds",
            "From the headers to the command.",
            buckets=_DECISION_BUCKETS,
            registry=registry,
        )
        self._late = Counter(
            "deadline_violation", "Requests served after their deadline.", registry=registry
        )
        self._attempts = Counter(
            "attempt",
            "Servers tried for requests that arrived here, by how that ended.",
            ("result",),
            registry=registry,
        )
        self._transfers = Counter(
            "transfer", "Requests of peers run here.", ("code",), registry=registry
        )

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Show `value()` under `name`."""
        Gauge(name, about, registry=self._registry).set_function(value)

    def refused(self, code: int) -> None:
        """Count a request that was answered with an error before it was one of this fleet."""
        self._errors.labels(str(code)).inc()

    def counters(
        self, name: str, about: str, label: str, values: Callable[[], Mapping[str, float]]
    ) -> None:
        """Show `values()`, which never fall, as the counter `name` by `label`."""
        self._registry.register(_CounterFunction(name, about, values, label))

    def counter(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Show `value()`, which never falls, as the counter `name`."""
        self._registry.register(_CounterFunction(name, about, lambda: {"": value()}))

    def answered(self, received: ReceivedRequest, answer: InferAnswer, now: float) -> None:
        """Count a client's request that was answered at `now`."""
        model = answer.outcome.model
        label = model if model in self._models else "none" if model is None else "other"
        self._requests.labels(answer.outcome.status.value, label).inc()
        if answer.code >= 400:
            self._errors.labels(str(answer.code)).inc()
        for attempt in received.attempts:
            fault = attempt.fault
            self._attempts.labels("answered" if fault is None else fault.value).inc()
        self._duration.observe(now - received.accepted)
        if received.decided is not None:
            self._decision.observe(max(0.0, received.decided - received.accepted))
        if answer.served and received.request.slack(now) < 0.0:
            self._late.inc()

    def transfer_answered(self, code: int) -> None:
        """Count a peer's request that was answered with an HTTP status."""
        self._transfers.labels(str(code)).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
