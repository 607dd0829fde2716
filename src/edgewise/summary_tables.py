"""Summaries on a terminal: policies compared, and the part of each server."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from edgewise.summary import Summary


def show(summary: Summary, console: Console) -> None:
    """Print all tables of a summary."""
    console.print(comparison_tables(summary))
    console.print(server_table(summary))


def comparison_tables(summary: Summary) -> Group:
    """Policies by falling expected utility, each with its difference to the best other one.

    Two tables and a legend, for a terminal of 80 columns.
    """
    ranked = sorted(summary.policies, key=lambda each: -each.utility.expected)
    several = len(ranked) > 1
    count = ", ".join(sorted({f"{each.requests:,}" for each in ranked}))
    scores = _table(f"{summary.scenario}: {count} requests, seed {summary.seed}")
    for heading in ["utility", *(["vs best other"] if several else []), "effective", "in time"]:
        scores.add_column(heading, justify="right", no_wrap=True)
    scores.add_column("realised", justify="right", no_wrap=True)
    details = _table(None)
    for heading in ("p50 ms", "p95 ms", "p99 ms", "moved", "ready"):
        details.add_column(heading, justify="right", no_wrap=True)
    details.add_column("not served")
    for place, each in enumerate(ranked):
        style = "bold" if several and place == 0 else ""
        cells = [f"{each.utility.expected:.3f}"]
        if several:
            rival = ranked[1] if place == 0 else ranked[0]
            cells.append(_difference(each.utility.expected, rival.utility.expected))
        cells += [_percent(each.effective_accuracy), _percent(each.deadline_met)]
        scores.add_row(each.policy, *cells, f"{each.utility.realised:.3f}", style=style)
        latency = each.latency_ms
        details.add_row(
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
        "moved: of the served, answered by another server; ready: of these, sent model-ready."
    )
    return Group(scores, details, Text(legend, style="dim"))


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


def server_table(summary: Summary) -> Table:
    """Each server's share of the served requests and utilisation, under each policy."""
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
