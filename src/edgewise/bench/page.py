"""A suite as one HTML page with plots, which needs nothing else to be looked at.

Plotly, for its plots can be asked: hovering gives the figure and its interval, a legend entry
hides a policy, an axis zooms. Its script (4 MB) is in the page, which so works offline.
"""

from __future__ import annotations

import html
import importlib
import math
from collections.abc import Sequence
from typing import Any

from edgewise.bench.compare import Line, SuiteComparison
from edgewise.bench.report import mean_reference, percent_of, plus_minus
from edgewise.bench.statistics import Interval
from edgewise.errors import MissingExtra

# Okabe & Ito's colours, which tell apart under every colour blindness; black is the axes'.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#F0E442")
SHOWN = 8
"""Policies drawn by family; the others stand in the table."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 0 auto; padding: 1.5rem;
       max-width: 1100px; }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.about { color: #555; margin-top: 0 } code { background: #f3f3f3; padding: .1em .3em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #e5e5e5;
         white-space: nowrap }
th:first-child, td:first-child { text-align: left } .scroll { overflow-x: auto }
.better { color: #00704f } .worse { color: #b33a00 } details { margin: .4rem 0 }
"""


def page(comparison: SuiteComparison) -> str:
    """The page's HTML. Raises MissingExtra without plotly."""
    result = comparison.result
    plots = _Plots()
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    about = (
        f"<code>{html.escape(result.command)}</code><br>{len(result.families)} families × "
        f"{len(result.seeds)} held-out seeds ({result.seeds[0]:,} … {result.seeds[-1]:,}) × "
        f"{len(result.policies)} policies, {sum(map(sum, result.requests)):,} requests each. "
        f"{html.escape(versions)}."
    )
    body = [
        f"<h1>edgewise bench: {html.escape(result.suite or 'suite')}</h1>",
        f'<p class="about">{about}</p>',
        "<p>Expected utility: mean of accuracy × timeliness over all requests, refused and lost "
        "ones too. Bars and ± are 95 % confidence intervals over seeds; over families they are "
        "clustered by seed.</p>",
        "<h2>Over all families</h2>",
        plots.draw(_overall(comparison)),
        _table(comparison.overall, mean_reference(comparison)),
        "<h2>By family</h2>",
        plots.draw(_by_family(comparison)),
        "<h2>Against each family's best heuristic</h2>",
        "<p>Paired differences of expected utility, in percent of the best heuristic's; grey: the "
        "interval contains 0.</p>",
        plots.draw(_against(comparison)),
        "<h2>Utility and tail latency</h2>",
        "<p>Refusing what cannot be served in time shortens the tail of what is; so read both.</p>",
        plots.draw(_tail(comparison)),
        "<h2>Every figure</h2>",
        *[_family(comparison, f) for f in range(len(result.families))],
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>edgewise bench</title><style>{_STYLE}</style>{plots.script}</head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


_AXIS = {"gridcolor": "#e8e8e8", "zerolinecolor": "#bbb", "linecolor": "#bbb"}
_TEMPLATE = {"plot_bgcolor": "white", "paper_bgcolor": "white", "xaxis": _AXIS, "yaxis": _AXIS}


class _Plots:
    def __init__(self) -> None:
        try:
            self._io = importlib.import_module("plotly.io")
            offline = importlib.import_module("plotly.offline")
        except ImportError:
            raise MissingExtra("bench", "plotly") from None
        self.script = f"<script>{offline.get_plotlyjs()}</script>"

    def draw(self, figure: dict[str, Any]) -> str:
        layout = {
            "template": {"layout": _TEMPLATE},
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
            "margin": {"l": 10, "r": 20, "t": 10, "b": 40},
            **figure["layout"],
        }
        drawn: str = self._io.to_html(
            {"data": figure["data"], "layout": layout},
            full_html=False,
            include_plotlyjs=False,
            config={"displayModeBar": False, "responsive": True},
            validate=False,
        )
        return drawn


def _overall(comparison: SuiteComparison) -> dict[str, Any]:
    lines = comparison.overall[::-1]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [line.policy for line in lines],
        "x": [line.utility.mean for line in lines],
        "error_x": _error([line.utility for line in lines]),
        "marker": {"color": COLOURS[0]},
        "hovertemplate": "%{y}: %{x:.4f}<extra></extra>",
    }
    return {
        "data": [bars],
        "layout": {
            "height": 60 + 24 * len(lines),
            "xaxis": {"title": {"text": "expected utility"}, "rangemode": "tozero"},
            "yaxis": {"automargin": True},
            "bargap": 0.35,
        },
    }


def _by_family(comparison: SuiteComparison) -> dict[str, Any]:
    families = [name.replace("_", " ") for name in comparison.result.families]
    shown = [line.policy for line in comparison.overall[:SHOWN]]
    data = []
    for place, policy in enumerate(shown):
        found = [_line(lines, policy) for lines in comparison.families]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": policy,
                "y": families,
                "x": [line.utility.mean for line in found],
                "error_x": _error([line.utility for line in found]),
                "marker": {"color": COLOURS[place % len(COLOURS)], "size": 9},
                "hovertemplate": f"%{{y}}, {policy}: %{{x:.4f}}<extra></extra>",
            }
        )
    return {
        "data": data,
        "layout": {
            "height": 120 + 30 * len(families),
            "xaxis": {"title": {"text": "expected utility"}},
            "yaxis": {"autorange": "reversed", "automargin": True},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        },
    }


def _against(comparison: SuiteComparison) -> dict[str, Any]:
    """A heat map: policies by families."""
    policies = [line.policy for line in comparison.overall]
    families = [name.replace("_", " ") for name in comparison.result.families]
    values: list[list[float | None]] = []
    texts: list[list[str]] = []
    for policy in policies:
        row: list[float | None] = []
        text: list[str] = []
        for lines, reference in zip(comparison.families, comparison.reference, strict=True):
            base = _line(lines, reference).utility.mean
            difference = _line(lines, policy).difference
            if policy == reference:
                row.append(0.0)
                text.append("best")
                continue
            mean = 100 * difference.mean / base
            row.append(mean if difference.sign else None)
            text.append(f"{mean:+.1f}" if abs(mean) < 9.95 else f"{mean:+.0f}")
        values.append(row)
        texts.append(text)
    heat = {
        "type": "heatmap",
        "x": families,
        "y": policies,
        "z": values,
        "text": texts,
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
    return {
        "data": [heat],
        "layout": {
            "height": 150 + 24 * len(policies),
            "plot_bgcolor": "#e3e3e3",
            "xaxis": {"tickangle": -40, "automargin": True, "showgrid": False},
            "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False},
        },
    }


def _tail(comparison: SuiteComparison) -> dict[str, Any]:
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
    return {
        "data": [points],
        "layout": {
            "height": 460,
            "xaxis": {"title": {"text": "p99 latency of the served, ms"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "expected utility"}, "automargin": True},
        },
    }


def _error(values: Sequence[Interval]) -> dict[str, Any]:
    halves = [None if math.isnan(value.half) else value.half for value in values]
    return {"type": "data", "array": halves, "thickness": 1.2, "width": 3, "color": "#555"}


def _family(comparison: SuiteComparison, f: int) -> str:
    lines, reference = comparison.families[f], comparison.reference[f]
    base = _line(lines, reference).utility.mean
    name = comparison.result.families[f].replace("_", " ")
    title = f"{html.escape(name)} (best heuristic: {html.escape(reference)})"
    return f"<details><summary>{title}</summary>{_table(lines, base)}</details>"


def _table(lines: Sequence[Line], base: float) -> str:
    headings = ["policy", "expected utility", "vs best heuristic", "effective accuracy"]
    headings += ["missed %", "shed %", "p95 ms", "p99 ms"]
    rows = []
    for line in lines:
        colour = {1: "better", -1: "worse", 0: ""}[line.difference.sign]
        cells = [
            f"<td>{html.escape(line.policy)}</td>",
            f"<td>{plus_minus(line.utility)}</td>",
            f'<td class="{colour}">{percent_of(line.difference, base)}</td>',
            f"<td>{plus_minus(line.effective)}</td>",
            *[f"<td>{plus_minus(_times(v, 100.0), 1)}</td>" for v in (line.missed, line.shed)],
            *[f"<td>{plus_minus(_times(v, 1e3), 0)}</td>" for v in (line.p95, line.p99)],
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _times(value: Interval, factor: float) -> Interval:
    return Interval(value.mean * factor, value.half * factor)


def _line(lines: Sequence[Line], policy: str) -> Line:
    return next(line for line in lines if line.policy == policy)
