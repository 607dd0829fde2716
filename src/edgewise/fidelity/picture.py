"""The two worlds side by side: a table for the terminal, an SVG picture, a page around it.

The picture has a row per policy and a panel per stage with two empirical distribution functions:
the share of requests (up) that took at most so long (right, ms). Where the worlds agree one line
covers the other. It is written by hand as SVG: a few polylines need no plotting library, and the
same text stands in a page, a document or a file.
"""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgewise.fidelity.compare import (
    LATENCY,
    STAGES,
    Facts,
    Floats,
    PolicyPair,
    Run,
    WorldsComparison,
)

COLOURS = ("#0072B2", "#D55E00")
"""Okabe & Ito: told apart under every colour blindness."""
WIDE, HIGH, GAP, LEFT, TOP = 150, 90, 22, 130, 46
"""Pixels: a panel's sides, between panels, beside and above them."""
POINTS = 120
"""Of a line: finer than a pixel of the panel."""

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#222;margin:0 auto;padding:1.5rem;"
    "max-width:1400px}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}"
    "table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}"
    "th,td{text-align:right;padding:.2rem .6rem;border-bottom:1px solid #e5e5e5}"
    "th:first-child,td:first-child{text-align:left}.out{color:#b33a00}svg{max-width:100%;height:auto}"
)
SHOWN = (*STAGES, LATENCY)


def svg(runs: Mapping[str, tuple[Run, Run]], worlds: tuple[str, str]) -> str:
    """The picture of `runs` (by policy) as an SVG document."""
    width = LEFT + len(SHOWN) * (WIDE + GAP)
    height = TOP + len(runs) * (HIGH + 2 * GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="system-ui, sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for place, name in enumerate(worlds):
        x = LEFT + place * 130
        parts.append(f'<path d="M{x} 12h22" stroke="{COLOURS[place]}" {_dash(place)}/>')
        parts.append(f'<text x="{x + 28}" y="16">{html.escape(name)}</text>')
    for number, stage in enumerate(SHOWN):
        x = LEFT + number * (WIDE + GAP)
        parts.append(f'<text x="{x}" y="{TOP - 8}" font-weight="bold">{stage}</text>')
    for line, (policy, both) in enumerate(runs.items()):
        y = TOP + line * (HIGH + 2 * GAP)
        parts.append(f'<text x="4" y="{y + HIGH / 2}">{html.escape(policy)}</text>')
        for number, stage in enumerate(SHOWN):
            x = LEFT + number * (WIDE + GAP)
            parts.append(_panel(x, y, [run.spread_of(stage) for run in both]))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(x: int, y: int, times: list[Floats]) -> str:
    """One stage of one policy; its axis ends where 99 % of both worlds do."""
    end = max((float(np.percentile(each, 99)) for each in times if len(each)), default=0.0)
    end = max(1e3 * end, 0.1)  # ms
    parts = [
        f'<rect x="{x}" y="{y}" width="{WIDE}" height="{HIGH}" fill="none" stroke="#bbb"/>',
        f'<path d="M{x} {y + HIGH / 2}h{WIDE}" stroke="#e8e8e8"/>',
        f'<text x="{x}" y="{y + HIGH + 12}" fill="#555">0</text>',
        f'<text x="{x + WIDE}" y="{y + HIGH + 12}" fill="#555" text-anchor="end">{_short(end)} ms'
        "</text>",
    ]
    grid = np.linspace(0.0, end, POINTS)
    for place, each in enumerate(times):
        if not len(each):
            continue
        share = np.searchsorted(np.sort(each) * 1e3, grid, side="right") / len(each)
        points = " ".join(
            f"{x + WIDE * at / end:.1f},{y + HIGH * (1.0 - up):.1f}"
            for at, up in zip(grid.tolist(), share.tolist(), strict=True)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[place]}" {_dash(place)}/>'
        )
    return "\n".join(parts)


def _dash(place: int) -> str:
    return 'stroke-width="2"' if place == 0 else 'stroke-width="1.5" stroke-dasharray="5 3"'


# -- tables --------------------------------------------------------------------------------------


def rows(pair: PolicyPair) -> list[list[str]]:
    """A line per stage: its name, then p50 and p95 of both worlds and their differences, ms."""
    lines = []
    for stage in SHOWN:
        first, second = (facts.spreads[stage] for facts in pair.worlds)
        cells = [stage]
        for name in ("p50_ms", "p95_ms"):
            a, b = getattr(first, name), getattr(second, name)
            known = a is not None and b is not None
            cells += [_ms(a), _ms(b), f"{b - a:+.1f}" if known else "-"]
        lines.append(cells)
    return lines


def headings(worlds: tuple[str, str]) -> list[str]:
    """Of `rows`."""
    return ["stage", *(f"{p} {w}" for p in ("p50", "p95") for w in (*worlds, "Δ"))]


def shares(facts: Facts) -> str:
    """Who was served and how, in one line."""
    return (
        f"{100 * facts.served:.1f} % served, {100 * facts.moved:.0f} % of them moved, "
        f"{100 * facts.ready:.0f} % of these model-ready"
    )


def verdicts(comparison: WorldsComparison) -> list[str]:
    """Sentences: is every difference within the tolerance, is the ranking the same?"""
    said = []
    for pair in comparison.policies:
        a, b = (facts.utility for facts in pair.worlds)
        within = "within" if pair.within else "NOT within"
        half = "" if pair.plus_minus is None else f" ± {pair.plus_minus:.4f}"
        said.append(
            f"{pair.policy}: expected utility {a:.4f} and {b:.4f}, Δ {pair.difference:+.4f}{half}: "
            f"{within} {comparison.tolerance:g}"
        )
    if len(comparison.policies) > 1:
        first, second = (" > ".join(each) for each in comparison.rankings)
        if comparison.same_ranking:
            said.append(f"ranking: the same in both, {first}")
        else:
            said.append(f"ranking: {first} and {second}")
    for each in comparison.inversions:
        noise = "" if each.noise is None else f", the smaller gap ± {each.noise:.4f}"
        said.append(
            f"ranked differently: {each.policies[0]} - {each.policies[1]} is "
            f"{each.gaps[0]:+.4f} and {each.gaps[1]:+.4f}{noise}"
        )
    return said


def tables(comparison: WorldsComparison) -> RenderableType:
    """For the terminal."""
    parts: list[RenderableType] = []
    for pair in comparison.policies:
        same = "the same requests" if pair.paired else "other requests of the same kind"
        table = Table(
            title=f"{pair.policy}: ms by stage, {same}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for place, heading in enumerate(headings(comparison.worlds)):
            table.add_column(heading, justify="right" if place else "left")
        for line in rows(pair):
            table.add_row(*line)
        parts.append(table)
        for world, facts in zip(comparison.worlds, pair.worlds, strict=True):
            parts.append(Text(f"{world}: {shares(facts)}", style="dim"))
    parts += [Text(f"note: {note}", style="yellow") for note in comparison.notes]
    parts += [Text(line) for line in verdicts(comparison)]
    return Group(*parts)


def page(comparison: WorldsComparison, picture: str, command: str) -> str:
    """An HTML page that needs nothing else: verdicts, `picture`, and every figure."""
    body = [
        f"<h1>{html.escape(comparison.scenario)}: {' and '.join(comparison.worlds)}</h1>",
        f"<p><code>{html.escape(command)}</code>; seeds "
        f"{', '.join(map(str, comparison.seeds))}</p><ul>",
        *(
            f"<li{' class=out' if 'NOT' in line else ''}>{html.escape(line)}</li>"
            for line in (*verdicts(comparison), *comparison.notes)
        ),
        "</ul><p>Share of the served requests that took at most so long; transfer: of those that "
        "were moved.</p>",
        picture,
    ]
    for pair in comparison.policies:
        head = "".join(f"<th>{html.escape(each)}</th>" for each in headings(comparison.worlds))
        lines = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in rows(pair)
        )
        body += [f"<h2>{html.escape(pair.policy)}</h2><table><tr>{head}</tr>{lines}</table>"]
        body += [
            f"<p>{world}: {shares(facts)}</p>"
            for world, facts in zip(comparison.worlds, pair.worlds, strict=True)
        ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(comparison.scenario)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100.0 else f"{value:.3g}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
