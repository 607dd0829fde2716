"""What a node's ``GET /metrics`` shows, in Prometheus' text format.

Every label value is from a closed set (models of this server, status, HTTP code): a client cannot
make the number of time series grow.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE", "NodeMetrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
# OpenTelemetry's for http.server.request.duration.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_DECISION_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class NodeMetrics:
    """A node's metrics, in a registry of their own."""

    def __init__(self, models: tuple[str, ...]) -> None:
        self._models = frozenset(models)
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "request", "Requests answered as ingress.", ("status", "model"), registry=registry
        )
        self.errors = Counter(
            "request_error", "Requests answered with an error.", ("code",), registry=registry
        )
        self.duration = Histogram(
            "http_server_request_duration_seconds",
            "From the headers to the answer.",
            buckets=_BUCKETS,
            registry=registry,
        )
        self.decision = Histogram(
            "decision_duration_seconds",
            "From the headers to the command.",
            buckets=_DECISION_BUCKETS,
            registry=registry,
        )
        self.late = Counter(
            "deadline_violation", "Requests served after their deadline.", registry=registry
        )
        self.transfers = Counter(
            "transfer", "Requests of peers run here.", ("code",), registry=registry
        )
        self.queue = Gauge("queue_size", "Requests that wait.", registry=registry)
        self.inflight = Gauge("requests_in_flight", "Requests taken.", registry=registry)
        self.utilisation = Gauge("worker_utilisation", "Busy share.", registry=registry)
        self.attached = Gauge("balancer_connected", "1 if a balancer decides.", registry=registry)

    def count(self, status: str, model: str | None, code: int) -> None:
        """A request was answered."""
        label = model if model in self._models else "none" if model is None else "other"
        self.requests.labels(status, label).inc()
        if code >= 400:
            self.errors.labels(str(code)).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
