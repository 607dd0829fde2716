"""The summary of a run, which ``--json`` writes; simulator and live system share it.

Other tools read its keys: keys may be added, none may be taken away. An absent value (a percentile
of no answers, a utilisation that nobody reported) is None, in JSON null, never 0.
`edgewise.summary_tables` shows summaries on a terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from msgspec import Struct

from edgewise.domain import Outcome, PayloadForm, Request, Status
from edgewise.score import ScoreShape, score

PERCENTILES = (50, 95, 99)


class Utility(Struct, frozen=True, kw_only=True):
    """Mean over all requests, refused and lost ones too; in [0, 1]."""

    expected: float
    realised: float


class LatencyMs(Struct, frozen=True, kw_only=True):
    """Percentiles of the served requests' latency at the client, ms; None if none was served."""

    p50: float | None
    p95: float | None
    p99: float | None


class ServerSummary(Struct, frozen=True, kw_only=True):
    """The part of one server."""

    served: int
    """Requests that it answered, from any ingress."""
    share: float
    """Its share of all served requests; in [0, 1]."""
    utilisation: float | None = None
    """Mean share of its workers that was busy; in [0, 1]."""


class PolicySummary(Struct, frozen=True, kw_only=True):
    """One policy on one trace."""

    policy: str
    requests: int
    outcomes: dict[str, int]
    """By status; they add up to `requests`."""
    utility: Utility
    effective_accuracy: float
    """Share of all requests answered right and in time by a service that meets the demand."""
    deadline_met: float
    """Share of all requests answered within their deadline."""
    accuracy: float | None
    """Share of the served requests that were answered right."""
    latency_ms: LatencyMs
    per_server: dict[str, ServerSummary]
    transferred: float
    """Share of the served requests that were answered by another server than their ingress."""
    model_ready: float | None
    """Share of those that travelled in the model-ready form; None if nothing was transferred."""
    per_model: dict[str, int] = {}
    """Served requests by model."""
    reasons: dict[str, int] = {}
    """Requests that were not served by ``status: reason``."""
    late_send_ms: LatencyMs | None = None
    """How far behind its schedule the client sent, ms; live runs only."""
    seconds: float | None = None
    """From the first request to the last outcome."""


class Summary(Struct, frozen=True, kw_only=True):
    """A run: one or several policies on the same trace.

    >>> Summary(scenario="smoke", seed=1, policies=()).to_json().decode().count("smoke")
    1
    """

    scenario: str
    seed: int
    policies: tuple[PolicySummary, ...]

    def to_json(self) -> bytes:
        """Indented, with a newline at its end."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def percentiles_ms(seconds: Sequence[float]) -> LatencyMs:
    """p50, p95 and p99 of `seconds`, in ms; linear between neighbours, as numpy has it."""
    if not len(seconds):
        return LatencyMs(p50=None, p95=None, p99=None)
    p50, p95, p99 = np.percentile(np.asarray(seconds, np.float64), PERCENTILES) * 1e3
    return LatencyMs(p50=float(p50), p95=float(p95), p99=float(p99))


def summarise(
    policy: str,
    requests: Iterable[Request],
    outcomes: Iterable[Outcome],
    shape: ScoreShape,
    *,
    servers: Sequence[str] = (),
    utilisation: Mapping[str, float] | None = None,
    late_send: LatencyMs | None = None,
    seconds: float | None = None,
) -> PolicySummary:
    """Score and count the outcomes of one policy.

    Parameters
    ----------
    servers:
        Have a line each, even if they served nothing.
    utilisation:
        By server.
    late_send:
        How far behind its schedule the client sent.
    seconds:
        From the first request to the last outcome.

    Raises ValueError unless every request has exactly one outcome and every outcome its request: a
    summary that silently leaves some out flatters whoever loses requests.
    """
    pairs = _join(requests, outcomes)
    scores = [score(request, outcome, shape) for request, outcome in pairs]
    served = [pair for pair in pairs if pair[1].status is Status.SERVED]
    moved = [o for r, o in served if o.server is not None and o.server != r.ingress]
    # score() has refused served requests without a latency.
    latencies = [outcome.latency or 0.0 for _, outcome in served]
    in_time = sum((outcome.latency or 0.0) <= request.deadline for request, outcome in served)
    correct = sum(o.predicted is not None and o.predicted == o.label for _, o in served)
    by_server = dict.fromkeys(servers, 0) | Counter(o.server for _, o in served if o.server)
    by_status = Counter(outcome.status.value for _, outcome in pairs)
    total, answered = max(1, len(pairs)), max(1, len(served))
    busy = utilisation or {}
    return PolicySummary(
        policy=policy,
        requests=len(pairs),
        outcomes={status.value: by_status[status.value] for status in Status},
        utility=Utility(
            expected=sum(each.expected for each in scores) / total,
            realised=sum(each.realised for each in scores) / total,
        ),
        effective_accuracy=sum(each.effective for each in scores) / total,
        deadline_met=in_time / total,
        accuracy=correct / len(served) if served else None,
        latency_ms=percentiles_ms(latencies),
        per_server={
            name: ServerSummary(served=n, share=n / answered, utilisation=busy.get(name))
            for name, n in by_server.items()
        },
        transferred=len(moved) / answered,
        model_ready=(
            sum(each.form is PayloadForm.MODEL_READY for each in moved) / len(moved)
            if moved
            else None
        ),
        per_model=dict(Counter(o.model for _, o in served if o.model is not None).most_common()),
        reasons=dict(
            Counter(
                f"{outcome.status.value}: {outcome.reason or 'no reason given'}"
                for _, outcome in pairs
                if outcome.status is not Status.SERVED
            ).most_common()
        ),
        late_send_ms=late_send,
        seconds=seconds,
    )


def _join(
    requests: Iterable[Request], outcomes: Iterable[Outcome]
) -> list[tuple[Request, Outcome]]:
    waiting = {request.id: request for request in requests}
    ended: set[str] = set()
    pairs = []
    for outcome in outcomes:
        request = waiting.pop(outcome.request, None)
        if request is None:
            what = "stands twice" if outcome.request in ended else "belongs to no request"
            raise ValueError(f"the outcome of {outcome.request} {what}")
        ended.add(outcome.request)
        pairs.append((request, outcome))
    if waiting:
        raise ValueError(f"{len(waiting)} requests have no outcome, {next(iter(waiting))} is one")
    return pairs
