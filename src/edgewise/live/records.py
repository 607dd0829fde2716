"""The tables of a run: their columns, and the rows that requests, decisions and reports become.

Columns are SI units (seconds, bytes, bytes/s); stamps are s since the epoch, on the clock said.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from edgewise.domain import Command, Decision, Outcome, Report, Request, Score, Stamps
from edgewise.live.recorder import RecordTable

RUN_SCENARIO = "scenario.yaml"
"""A run's scenario, beside its tables."""
CLIENT_NOTES = "client.json"
"""The client's figures that no table has: how late it sent, what the balancer did not take."""

_CANDIDATE = pa.struct([("server", pa.string()), ("model", pa.string()), ("form", pa.int8())])
_SECONDS = pa.float64()


def request_row(
    request: Request, image: str | None = None, label: int | None = None
) -> tuple[Any, ...]:
    """A row of `REQUESTS`."""
    return (
        request.id,
        request.ingress,
        request.payload_bytes,
        request.sent_at,
        request.deadline,
        request.accuracy,
        request.task,
        image,
        label,
    )


def outcome_row(outcome: Outcome, score: Score) -> tuple[Any, ...]:
    """A row of `OUTCOMES`."""
    stamps = outcome.stamps
    return (
        outcome.request,
        outcome.status.value,
        outcome.latency,
        outcome.server,
        outcome.model,
        outcome.form,
        outcome.predicted,
        outcome.label,
        outcome.accuracy,
        outcome.reason,
        *(getattr(stamps, name) for name in Stamps.__struct_fields__),
        *stamps.stages().values(),
        score.expected,
        score.realised,
        score.effective,
        score.timeliness,
        score.meets_demand,
    )


def decision_row(
    request: Request,
    decision: Decision,
    command: Command,
    trigger: str,
    predicted_latency: float | None,
) -> tuple[Any, ...]:
    """A row of `DECISIONS`."""
    return (
        request.id,
        request.ingress,
        decision.at,
        request.sent_at,
        request.deadline,
        request.accuracy,
        request.payload_bytes,
        trigger,
        decision.policy,
        decision.version,
        decision.probability,
        command.server,
        command.model,
        command.form if command.server is not None else None,
        decision.reason.value if decision.reason is not None else None,
        predicted_latency,
        decision.rows,
        [(each.server, each.model, each.form) for each in decision.ranked],
        command.sequence,
        command.dispatch,
    )


def report_row(report: Report, received: float, clock_ahead: float) -> tuple[Any, ...]:
    """A row of `REPORTS`."""
    return (
        report.server,
        report.at,
        received,
        clock_ahead,
        report.workers,
        report.running,
        [item.deadline for item in report.queue],
        [item.work for item in report.queue],
        report.prepare_backlog,
        report.utilisation,
        report.draining,
        report.commands_seen,
        report.arrivals_low,
        report.arrivals_bits,
        [
            (model, each.service_time, each.batch, each.served)
            for model, each in report.services.items()
        ],
        [
            (peer, each.throughput, each.measured_at, each.rtt, each.backlog, each.flows)
            for peer, each in report.peers.items()
        ],
    )


REQUESTS = RecordTable(
    "requests",
    request_row,
    pa.schema(
        [
            ("request", pa.string()),
            ("ingress", pa.string()),
            ("payload_bytes", pa.int64()),
            ("sent_at", _SECONDS),  # client's clock
            ("deadline", _SECONDS),
            ("accuracy", pa.float64()),
            ("task", pa.string()),
            ("image", pa.string()),  # file name; null: generated
            ("label", pa.int32()),
        ]
    ),
)
"""What the client sent."""

OUTCOMES = RecordTable(
    "outcomes",
    outcome_row,
    pa.schema(
        [
            ("request", pa.string()),
            ("status", pa.string()),
            ("latency", _SECONDS),
            ("server", pa.string()),
            ("model", pa.string()),
            ("form", pa.int8()),
            ("predicted", pa.int32()),
            ("label", pa.int32()),
            ("accuracy", pa.float64()),
            ("reason", pa.string()),
            *((f"stamp_{name}", _SECONDS) for name in Stamps.__struct_fields__),
            *((f"stage_{name}", _SECONDS) for name in Stamps().stages()),
            ("expected", pa.float64()),
            ("realised", pa.float64()),
            ("effective", pa.bool_()),
            ("timeliness", pa.float64()),
            ("meets_demand", pa.bool_()),
        ]
    ),
)
"""How it ended, with its score: one row per request."""

DECISIONS = RecordTable(
    "decisions",
    decision_row,
    pa.schema(
        [
            ("request", pa.string()),
            ("ingress", pa.string()),
            ("at", _SECONDS),  # this and sent_at: balancer's clock
            ("sent_at", _SECONDS),
            ("deadline", _SECONDS),
            ("accuracy", pa.float64()),
            ("payload_bytes", pa.int64()),
            ("trigger", pa.string()),  # who came first: metadata or ask
            ("policy", pa.string()),
            ("version", pa.string()),
            ("probability", pa.float64()),
            ("server", pa.string()),  # null = shed
            ("model", pa.string()),
            ("form", pa.int8()),
            ("reason", pa.string()),
            ("predicted_latency", _SECONDS),
            ("rows", pa.list_(pa.int32())),
            ("ranked", pa.list_(_CANDIDATE)),
            ("sequence", pa.int64()),
            ("dispatch", pa.int64()),
        ]
    ),
)
"""What the balancer decided."""

REPORTS = RecordTable(
    "reports",
    report_row,
    pa.schema(
        [
            ("server", pa.string()),
            ("at", _SECONDS),  # the reporter's clock, as all stamps in it
            ("received", _SECONDS),  # balancer's clock
            ("clock_ahead", _SECONDS),  # of the reporter's clock against the balancer's
            ("workers", pa.int32()),
            ("running", pa.list_(_SECONDS)),
            ("queue_deadlines", pa.list_(_SECONDS)),
            ("queue_works", pa.list_(_SECONDS)),
            ("prepare_backlog", _SECONDS),
            ("utilisation", pa.float64()),
            ("draining", pa.bool_()),
            ("commands_seen", pa.int64()),
            ("arrivals_low", pa.int64()),
            ("arrivals_bits", pa.int64()),
            (
                "services",
                pa.list_(
                    pa.struct(
                        [
                            ("model", pa.string()),
                            ("service_time", _SECONDS),
                            ("batch", pa.float64()),
                            ("served", pa.int64()),
                        ]
                    )
                ),
            ),
            (
                "peers",
                pa.list_(
                    pa.struct(
                        [
                            ("server", pa.string()),
                            ("throughput", pa.float64()),
                            ("measured_at", _SECONDS),
                            ("rtt", _SECONDS),
                            ("backlog", pa.float64()),
                            ("flows", pa.int64()),
                        ]
                    )
                ),
            ),
        ]
    ),
)
"""What the nodes said of themselves."""
