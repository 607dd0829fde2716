"""What a run came to: the summary that ``--json`` writes, and the table that compares policies.

The simulator and the live system both end here. The keys are a contract that other tools read; more
may be added, none taken away. An absent value (a percentile of no answers, a utilisation that
nobody reported) is None, in JSON null, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from msgspec import Struct
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

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
    """What one server did."""

    served: int
    """Requests that it answered, wherever they came in."""
    share: float
    """Of all served requests; in [0, 1]."""
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
    """Share of all requests answered right, in time, by a service that meets the demand."""
    deadline_met: float
    """Share of all requests answered within their deadline."""
    accuracy: float | None
    """Share of the served requests that were answered right."""
    latency_ms: LatencyMs
    per_server: dict[str, ServerSummary]
    transferred: float
    """Share of the served requests that another server than their ingress answered."""
    model_ready: float | None
    """Share of those that travelled in the model-ready form; None if nothing was transferred."""
    per_model: dict[str, int] = {}
    """Served requests by model."""
    reasons: dict[str, int] = {}
    """Why requests were not served: ``status: reason`` to count."""
    late_send_ms: LatencyMs | None = None
    """How far behind its schedule the client sent, ms; live runs only."""
    seconds: float | None = None
    """From the first request to the last outcome."""


class Summary(Struct, frozen=True, kw_only=True):
    """A run: one or several policies on the same trace."""

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
    late: LatencyMs | None = None,
    seconds: float | None = None,
) -> PolicySummary:
    """Score and count the outcomes of one policy.

    `servers` get a line even if they served nothing; `late` says how far behind its schedule the
    client sent.
    Raises ValueError unless every request has exactly one outcome and every outcome its request: a
    summary that silently leaves some out flatters whoever loses requests.
    """
    asked = {request.id: request for request in requests}
    counts = dict.fromkeys((status.value for status in Status), 0)
    served = dict.fromkeys(servers, 0)
    models: dict[str, int] = {}
    reasons: dict[str, int] = {}
    latencies: list[float] = []
    expected = realised = 0.0
    effective = in_time = right = moved = ready = 0
    seen: set[str] = set()
    for outcome in outcomes:
        request = asked.get(outcome.request)
        if request is None or outcome.request in seen:
            what = "stands twice" if request else "belongs to no request"
            raise ValueError(f"the outcome of {outcome.request} {what}")
        seen.add(outcome.request)
        counts[outcome.status.value] += 1
        worth = score(request, outcome, shape)
        expected += worth.expected
        realised += worth.realised
        effective += worth.effective
        if outcome.status is not Status.SERVED:
            key = f"{outcome.status.value}: {outcome.reason or 'no reason given'}"
            reasons[key] = reasons.get(key, 0) + 1
            continue
        assert outcome.latency is not None  # score() has refused it otherwise
        latencies.append(outcome.latency)
        in_time += outcome.latency <= request.deadline
        right += outcome.predicted is not None and outcome.predicted == outcome.label
        if outcome.model is not None:
            models[outcome.model] = models.get(outcome.model, 0) + 1
        if outcome.server is not None:
            served[outcome.server] = served.get(outcome.server, 0) + 1
            if outcome.server != request.ingress:
                moved += 1
                ready += outcome.form is PayloadForm.MODEL_READY
    if len(seen) != len(asked):
        missing = next(key for key in asked if key not in seen)
        raise ValueError(f"{len(asked) - len(seen)} requests have no outcome, {missing} is one")
    total, answered = max(1, len(asked)), max(1, len(latencies))
    busy = utilisation or {}
    return PolicySummary(
        policy=policy,
        requests=len(asked),
        outcomes=counts,
        utility=Utility(expected=expected / total, realised=realised / total),
        effective_accuracy=effective / total,
        deadline_met=in_time / total,
        accuracy=right / len(latencies) if latencies else None,
        latency_ms=percentiles_ms(latencies),
        per_server={
            name: ServerSummary(served=n, share=n / answered, utilisation=busy.get(name))
            for name, n in served.items()
        },
        transferred=moved / answered,
        model_ready=ready / moved if moved else None,
        per_model=dict(sorted(models.items(), key=lambda item: -item[1])),
        reasons=dict(sorted(reasons.items(), key=lambda item: -item[1])),
        late_send_ms=late,
        seconds=seconds,
    )


# -- tables --------------------------------------------------------------------------------------


def comparison(summary: Summary) -> Group:
    """Policies by falling expected utility, each with its difference to the best other one.

    Two tables and a legend, each narrow enough for a terminal of 80 columns.
    """
    ranked = sorted(summary.policies, key=lambda each: -each.utility.expected)
    several = len(ranked) > 1
    count = ", ".join(sorted({f"{each.requests:,}" for each in ranked}))
    worth = _table(f"{summary.scenario}: {count} requests, seed {summary.seed}")
    for heading in ["utility", *(["vs best other"] if several else []), "effective", "in time"]:
        worth.add_column(heading, justify="right", no_wrap=True)
    worth.add_column("realised", justify="right", no_wrap=True)
    how = _table(None)
    for heading in ("p50 ms", "p95 ms", "p99 ms", "moved", "ready"):
        how.add_column(heading, justify="right", no_wrap=True)
    how.add_column("not served")
    for place, each in enumerate(ranked):
        style = "bold" if several and place == 0 else ""
        cells = [f"{each.utility.expected:.3f}"]
        if several:
            rival = ranked[1] if place == 0 else ranked[0]
            cells.append(_difference(each.utility.expected, rival.utility.expected))
        cells += [_percent(each.effective_accuracy), _percent(each.deadline_met)]
        worth.add_row(each.policy, *cells, f"{each.utility.realised:.3f}", style=style)
        latency = each.latency_ms
        how.add_row(
            each.policy,
            *(_whole(value) for value in (latency.p50, latency.p95, latency.p99)),
            _percent(each.transferred),
            _percent(each.model_ready),
            ", ".join(f"{n} {s}" for s, n in each.outcomes.items() if n and s != "served") or "-",
            style=style,
        )
    legend = (
        "utility: accuracy of the model × timeliness, mean over all requests, refused and lost "
        "ones too; realised: with 1 or 0 for right or wrong in place of the accuracy. "
        "effective: answered right, in time, by a model that meets the demand. "
        "moved: of the served, elsewhere than where they came in; ready: of these, model-ready."
    )
    return Group(worth, how, Text(legend, style="dim"))


def _table(title: str | None) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("policy", no_wrap=True)
    return table


def per_server(summary: Summary) -> Table:
    """Who served how much under each policy: share of the served, and how busy it was."""
    names = list(dict.fromkeys(name for each in summary.policies for name in each.per_server))
    table = _table("share of the served requests / share of the workers' time busy")
    for name in names:
        table.add_column(name, justify="right")
    for each in sorted(summary.policies, key=lambda each: -each.utility.expected):
        cells = []
        for name in names:
            server = each.per_server.get(name)
            cells.append(
                "-"
                if server is None
                else f"{_percent(server.share)} / {_percent(server.utilisation)}"
            )
        table.add_row(each.policy, *cells)
    return table


def _difference(mine: float, other: float) -> str:
    relative = f" ({100 * (mine / other - 1):+.0f} %)" if other > 0 else ""
    return f"{mine - other:+.3f}{relative}"


def _percent(share: float | None) -> str:
    return "-" if share is None or not math.isfinite(share) else f"{100 * share:.0f} %"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
