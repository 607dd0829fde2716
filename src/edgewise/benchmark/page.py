"""A suite's result as one HTML page with plots, which loads nothing from elsewhere.

The plots are Plotly's, so that they answer questions: hovering shows a figure and its interval, a
click in the legend hides a policy, an axis zooms. Plotly's script (4 MB) is part of the page, so
that it works offline.
"""

from __future__ import annotations

import html
import importlib
import math
from collections.abc import Sequence
from typing import Any

from edgewise.benchmark.compare import Line, SuiteComparison
from edgewise.benchmark.report import COLUMNS, versions
from edgewise.errors import MissingExtra
from edgewise.html_page import html_page, html_table

# Okabe & Ito's colours, which can be told apart with every colour blindness; black is for axes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#F0E442")
SHOWN = 8
"""Policies drawn by family; the others are only in the table."""


def page(comparison: SuiteComparison) -> str:
    """The page's HTML. Raises MissingExtra without plotly."""
    result = comparison.result
    plots = _Plots()
    about = (
        f"<code>{html.escape(result.command)}</code><br>{len(result.families)} families × "
        f"{len(result.seeds)} held-out seeds ({result.seeds[0]:,} … {result.seeds[-1]:,}) × "
        f"{len(result.policies)} policies, {sum(map(sum, result.requests)):,} requests each. "
        f"{html.escape(versions(comparison))}."
    )
    body = [
        f"<h1>edgewise bench: {html.escape(result.suite or 'suite')}</h1>",
        f'<p class="about">{about}</p>',
        "<p>Expected utility: mean of accuracy × timeliness over all requests, shed and lost ones "
        "too. Bars and ± are 95 % confidence intervals over seeds; over families they are "
        "clustered by seed.</p>",
        "<h2>Over all families</h2>",
        _overall(plots, comparison),
        _table(comparison.overall, comparison.mean_reference),
        "<h2>By family</h2>",
        _by_family(plots, comparison),
        "<h2>Against each family's best heuristic</h2>",
        "<p>Paired differences of expected utility, in percent of the best heuristic's; grey: the "
        "interval contains 0.</p>",
        _against(plots, comparison),
        "<h2>Utility and tail latency</h2>",
        "<p>Shedding requests that cannot be served in time shortens the tail of the others; read "
        "both axes.</p>",
        _tail(plots, comparison),
        "<h2>Every figure</h2>",
        *[_family(comparison, f) for f in range(len(result.families))],
    ]
    return html_page("edgewise bench", body, head=plots.script)


_AXIS = {"gridcolor": "#e8e8e8", "zerolinecolor": "#bbb", "linecolor": "#bbb"}
_LAYOUT = {
    "template": {
        "layout": {
            "plot_bgcolor": "white", "paper_bgcolor": "white", "xaxis": _AXIS, "yaxis": _AXIS,
        }
    },
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
    "margin": {"l": 10, "r": 20, "t": 10, "b": 40},
}  # fmt: skip


def require_plotly() -> None:
    """Raise MissingExtra without plotly; long jobs call it before they begin."""
    try:
        importlib.import_module("plotly.io")
    except ImportError:
        raise MissingExtra("bench", "plotly") from None


class _Plots:
    """Draws plots; `script` must be in the page's head."""

    def __init__(self) -> None:
        require_plotly()
        self._io = importlib.import_module("plotly.io")
        offline = importlib.import_module("plotly.offline")
        self.script = f"<script>{offline.get_plotlyjs()}</script>"

    def draw(self, data: list[dict[str, Any]], **layout: Any) -> str:
        """A plot of Plotly's traces `data`; `layout` is Plotly's too."""
        drawn: str = self._io.to_html(
            {"data": data, "layout": {**_LAYOUT, **layout}},
            full_html=False,
            include_plotlyjs=False,
            config={"displayModeBar": False, "responsive": True},
            validate=False,
        )
        return drawn


def _overall(plots: _Plots, comparison: SuiteComparison) -> str:
    lines = comparison.overall[::-1]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [line.policy for line in lines],
        **_utilities(lines),
        "marker": {"color": COLOURS[0]},
        "hovertemplate": "%{y}: %{x:.4f}<extra></extra>",
    }
    return plots.draw(
        [bars],
        height=60 + 24 * len(lines),
        xaxis={"title": {"text": "expected utility"}, "rangemode": "tozero"},
        yaxis={"automargin": True},
        bargap=0.35,
    )


def _by_family(plots: _Plots, comparison: SuiteComparison) -> str:
    families = _family_names(comparison)
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": line.policy,
            "y": families,
            **_utilities([comparison.line(f, line.policy) for f in range(len(families))]),
            "marker": {"color": COLOURS[n % len(COLOURS)], "size": 9},
            "hovertemplate": f"%{{y}}, {line.policy}: %{{x:.4f}}<extra></extra>",
        }
        for n, line in enumerate(comparison.overall[:SHOWN])
    ]
    return plots.draw(
        data,
        height=120 + 30 * len(families),
        xaxis={"title": {"text": "expected utility"}},
        yaxis={"autorange": "reversed", "automargin": True},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )


def _against(plots: _Plots, comparison: SuiteComparison) -> str:
    """A heat map of policies by families."""
    policies = [line.policy for line in comparison.overall]
    families = _family_names(comparison)

    def cell(policy: str, f: int) -> tuple[float | None, str]:
        if policy == comparison.reference[f]:
            return 0.0, "best"
        difference = comparison.line(f, policy).difference
        mean = 100 * difference.mean / comparison.reference_utility(f)
        text = f"{mean:+.1f}" if abs(mean) < 9.95 else f"{mean:+.0f}"
        return mean if difference.sign else None, text

    cells = [[cell(policy, f) for f in range(len(families))] for policy in policies]
    heat = {
        "type": "heatmap",
        "x": families,
        "y": policies,
        "z": [[value for value, _ in row] for row in cells],
        "text": [[text for _, text in row] for row in cells],
        "texttemplate": "%{text}",
        "textfont": {"size": 10},
        "zmid": 0,
        "zmin": -30,
        "zmax": 30,
        "colorscale": [[0.0, "#D55E00"], [0.5, "#FFFFFF"], [1.0, "#009E73"]],
        "xgap": 1,
        "ygap": 1,
        "showscale": False,
        "hovertemplate": "%{y}, %{x}: %{text} %<extra></extra>",
    }
    return plots.draw(
        [heat],
        height=150 + 24 * len(policies),
        plot_bgcolor="#e3e3e3",
        xaxis={"tickangle": -40, "automargin": True, "showgrid": False},
        yaxis={"autorange": "reversed", "automargin": True, "showgrid": False},
    )


def _tail(plots: _Plots, comparison: SuiteComparison) -> str:
    lines = [line for line in comparison.overall if not math.isnan(line.p99.mean)]
    points = {
        "type": "scatter",
        "mode": "markers+text",
        "x": [1e3 * line.p99.mean for line in lines],
        "y": [line.utility.mean for line in lines],
        "text": [line.policy for line in lines],
        "textposition": "top center",
        "textfont": {"size": 10},
        "marker": {"size": 9, "color": COLOURS[0]},
        "hovertemplate": "%{text}: utility %{y:.3f}, p99 %{x:.0f} ms<extra></extra>",
    }
    return plots.draw(
        [points],
        height=460,
        xaxis={"title": {"text": "p99 latency of the served, ms"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "expected utility"}, "automargin": True},
    )


def _utilities(lines: Sequence[Line]) -> dict[str, Any]:
    """The lines' utilities along x, with error bars."""
    halves = [None if math.isnan(line.utility.half) else line.utility.half for line in lines]
    bars = {"type": "data", "array": halves, "thickness": 1.2, "width": 3, "color": "#555"}
    return {"x": [line.utility.mean for line in lines], "error_x": bars}


def _family_names(comparison: SuiteComparison) -> list[str]:
    return [name.replace("_", " ") for name in comparison.result.families]


def _family(comparison: SuiteComparison, f: int) -> str:
    name = html.escape(_family_names(comparison)[f])
    best = html.escape(comparison.reference[f])
    table = _table(comparison.families[f], comparison.reference_utility(f))
    return f"<details><summary>{name} (best heuristic: {best})</summary>{table}</details>"


def _table(lines: Sequence[Line], reference: float) -> str:
    rows = []
    for line in lines:
        style = {1: "better", -1: "worse", 0: ""}[line.difference.sign]
        rows.append(
            [
                f'<span class="{style if heading.startswith("vs ") else ""}">'
                f"{html.escape(cell(line, reference))}</span>"
                for heading, cell in COLUMNS.items()
            ]
        )
    return html_table(list(COLUMNS), rows)
