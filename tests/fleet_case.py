"""A fleet of round numbers, for tests that compute by hand.

    a: 1 worker    small 0.7 in 20 ms, large 0.9 in 50 ms
    b: 2 workers   large 0.9 in 40 ms

Payloads are 100 kB, links 1 MB/s with a round trip of 10 ms once `measured` has said so.
"""

from __future__ import annotations

from edgewise import scenario
from edgewise.domain import PeerReport, QueueItem, Report, Request
from edgewise.fleet.tracker import Tracker

TEXT = """
name: two
report_period: 0.1
servers:
  a:
    workers: 1
    services: [{model: small, accuracy: 0.7, latency: [0.02]}, {model: large, accuracy: 0.9, latency: [0.05]}]
  b:
    workers: 2
    services: [{model: large, accuracy: 0.9, latency: [0.04]}]
workload:
  duration: 1
  arrivals: {kind: constant, rate: 10}
  ingress: {a: 1, b: 1}
  demands: [{share: 1, deadline: [1, 1], accuracy: 0}]
"""  # noqa: E501

NOW = 1_000_000.0
"""s; a power of ten, so that hundredths of a second stay exact to the nanosecond."""
RATE = 1e6
RTT = 0.010
SIZE = 100_000

A_SMALL, A_LARGE, B_LARGE, B_LARGE_READY, SHED = 0, 2, 4, 5, 6
"""Rows of the candidate table."""


def two_servers(more: str = "") -> scenario.Scenario:
    """The fleet; `more` is YAML added at the top level."""
    return scenario.loads(TEXT + more)


def tracker(more: str = "") -> Tracker:
    """A tracker of the fleet with both servers connected and nothing reported."""
    made = Tracker(two_servers(more))
    for server in made.servers:
        made.connect(server, NOW)
    return made


def measured(rate: float = RATE, at: float = NOW) -> PeerReport:
    """A link as its sender has measured it."""
    return PeerReport(rate, at, RTT, 0, 0)


def report(server: str, at: float = NOW, **more: object) -> Report:
    """An idle server's report, links measured."""
    fields: dict[str, object] = {
        "server": server,
        "at": at,
        "workers": 2 if server == "b" else 1,
        "peers": {"a": measured(), "b": measured()},
    }
    return Report(**{**fields, **more})  # type: ignore[arg-type]


def queue(*items: tuple[float, float]) -> tuple[QueueItem, ...]:
    """(deadline in s from NOW, work in s) each."""
    return tuple(QueueItem(NOW + deadline, work) for deadline, work in items)


def request(name: str = "r1", **more: object) -> Request:
    """A photo of 100 kB to `a`, sent now, due in 1 s."""
    fields: dict[str, object] = {
        "id": name,
        "ingress": "a",
        "payload_bytes": SIZE,
        "sent_at": NOW,
        "deadline": 1.0,
    }
    return Request(**{**fields, **more})  # type: ignore[arg-type]
