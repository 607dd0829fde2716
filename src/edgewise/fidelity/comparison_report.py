"""Show a comparison: a table for the terminal, an SVG picture, an HTML page.

The picture has a row per policy and a panel per stage with two empirical distribution functions:
the share of requests (vertical) that took at most so long (horizontal, ms). Where the sides agree,
one line covers the other. It is plain SVG: a few polylines need no plotting library, and the same
text fits in a page, a document or a file.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgewise.fidelity.comparison import (
    LATENCY,
    STAGES,
    Floats,
    PolicyPair,
    RecordedRun,
    RunComparison,
    SideSummary,
)
from edgewise.files import write_atomically
from edgewise.html_page import html_page, html_table

COLOURS = ("#0072B2", "#D55E00")
"""Okabe & Ito: distinguishable with every kind of colour blindness."""
WIDE, HIGH, GAP, LEFT, TOP = 150, 90, 22, 130, 46
"""Pixels: size of a panel, gap between panels, margins beside and above them."""
POINTS = 120
"""Points of a line: more than a panel has pixels."""

SHOWN = (*STAGES, LATENCY)


def svg(runs: Mapping[str, tuple[RecordedRun, RecordedRun]], sides: tuple[str, str]) -> str:
    """The picture of `runs` (by policy) as an SVG document."""
    width = LEFT + len(SHOWN) * (WIDE + GAP)
    height = TOP + len(runs) * (HIGH + 2 * GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="system-ui, sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for place, name in enumerate(sides):
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
            parts.append(_panel(x, y, [run.served_times(stage) for run in both]))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(x: int, y: int, times: list[Floats]) -> str:
    """One stage of one policy. The axis ends where 99 % of the requests of both sides do."""
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
    """One line per stage: its name, then p50 and p95 of both sides and their difference, ms."""
    lines = []
    for stage in SHOWN:
        first, second = (side.times[stage] for side in pair.sides)
        cells = [stage]
        for name in ("p50_ms", "p95_ms"):
            a, b = getattr(first, name), getattr(second, name)
            known = a is not None and b is not None
            cells += [_ms(a), _ms(b), f"{b - a:+.1f}" if known else "-"]
        lines.append(cells)
    return lines


def headings(sides: tuple[str, str]) -> list[str]:
    """Headings of `rows`."""
    return ["stage", *(f"{p} {w}" for p in ("p50", "p95") for w in (*sides, "Δ"))]


def shares(side: SideSummary) -> str:
    """The shares of served, moved and model-ready requests, in one line."""
    return (
        f"{100 * side.served:.1f} % served, {100 * side.moved:.0f} % of them moved, "
        f"{100 * side.ready:.0f} % of these model-ready"
    )


def verdicts(comparison: RunComparison) -> list[str]:
    """Sentences: is every difference within the tolerance, is the ranking the same?"""
    lines = []
    for pair in comparison.policies:
        a, b = (side.utility for side in pair.sides)
        within = "within" if pair.within else "NOT within"
        half = "" if pair.plus_minus is None else f" ± {pair.plus_minus:.4f}"
        lines.append(
            f"{pair.policy}: expected utility {a:.4f} and {b:.4f}, Δ {pair.difference:+.4f}{half}: "
            f"{within} {comparison.tolerance:g}"
        )
    if len(comparison.policies) > 1:
        first, second = (" > ".join(each) for each in comparison.rankings)
        if comparison.same_ranking:
            lines.append(f"ranking: the same in both, {first}")
        else:
            lines.append(f"ranking: {first} and {second}")
    for each in comparison.inversions:
        noise = "" if each.noise is None else f", the smaller gap ± {each.noise:.4f}"
        lines.append(
            f"ranked differently: {each.policies[0]} - {each.policies[1]} is "
            f"{each.gaps[0]:+.4f} and {each.gaps[1]:+.4f}{noise}"
        )
    return lines


def tables(comparison: RunComparison) -> RenderableType:
    """The comparison for the terminal."""
    parts: list[RenderableType] = []
    for pair in comparison.policies:
        same = "the same requests" if pair.paired else "other requests of the same kind"
        table = Table(
            title=f"{pair.policy}: ms by stage, {same}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for place, heading in enumerate(headings(comparison.sides)):
            table.add_column(heading, justify="right" if place else "left")
        for line in rows(pair):
            table.add_row(*line)
        parts.append(table)
        for name, side in zip(comparison.sides, pair.sides, strict=True):
            parts.append(Text(f"{name}: {shares(side)}", style="dim"))
    parts += [Text(f"note: {note}", style="yellow") for note in comparison.notes]
    parts += [Text(line) for line in verdicts(comparison)]
    return Group(*parts)


def write_page(
    folder: Path,
    comparison: RunComparison,
    runs: Mapping[str, tuple[RecordedRun, RecordedRun]],
    command: str,
) -> None:
    """Write ``stages.svg`` and ``page.html``. Raises BadInput if that is impossible."""
    picture = svg(runs, comparison.sides)
    write_atomically(folder / "stages.svg", picture.encode())
    write_atomically(folder / "page.html", page(comparison, picture, command).encode())


def page(comparison: RunComparison, picture: str, command: str) -> str:
    """An HTML page with the verdicts, `picture`, and every figure."""
    body = [
        f"<h1>{html.escape(comparison.scenario)}: {' and '.join(comparison.sides)}</h1>",
        f"<p><code>{html.escape(command)}</code>; seeds "
        f"{', '.join(map(str, comparison.seeds))}</p><ul>",
        *(
            f"<li{' class=worse' if 'NOT' in line else ''}>{html.escape(line)}</li>"
            for line in (*verdicts(comparison), *comparison.notes)
        ),
        "</ul><p>Share of the served requests that took at most so long; transfer: of those that "
        "were moved.</p>",
        picture,
    ]
    for pair in comparison.policies:
        body += [
            f"<h2>{html.escape(pair.policy)}</h2>",
            html_table(headings(comparison.sides), rows(pair)),
            *(
                f"<p>{name}: {shares(side)}</p>"
                for name, side in zip(comparison.sides, pair.sides, strict=True)
            ),
        ]
    return html_page(comparison.scenario, body)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100.0 else f"{value:.3g}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
