"""A suite's result as Markdown, as docs/benchmark.md has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edgewise.benchmark.compare import Line, SuiteComparison
from edgewise.benchmark.statistics import Interval

COLUMNS_MAX = 8
"""Policies side by side in the table by family; a wider table wraps on a screen."""

COLUMNS: dict[str, Callable[[Line, float], str]] = {
    "policy": lambda line, _: line.policy,
    "expected utility": lambda line, _: f"{line.utility:.3f}",
    "vs best heuristic": lambda line, reference: percent_of(line.difference, reference),
    "effective accuracy": lambda line, _: f"{line.effective:.3f}",
    "missed": lambda line, _: f"{line.missed.scaled(100.0):.1f} %",
    "shed": lambda line, _: f"{line.shed.scaled(100.0):.1f} %",
    "p95 ms": lambda line, _: f"{line.p95.scaled(1e3):.0f}",
    "p99 ms": lambda line, _: f"{line.p99.scaled(1e3):.0f}",
}
"""By heading: a cell, from a policy's line and the utility of the reference."""


def markdown(comparison: SuiteComparison) -> str:
    """The whole section: the run, all families together, by family, and every figure folded."""
    result = comparison.result
    requests = sum(map(sum, result.requests))
    seeds = f"{result.seeds[0]:,} … {result.seeds[-1]:,}"
    head = [
        f"`{result.command}`: {len(result.families)} families × {len(result.seeds)} held-out seeds "
        f"({seeds}) × {len(result.policies)} policies, {requests:,} requests each, in "
        f"{result.seconds / 60:.1f} min. {versions(comparison)}.",
        "",
        "Expected utility is the mean of accuracy × timeliness over all requests, shed and lost "
        "ones too. ± is half a 95 % confidence interval over seeds (Student); over families it is "
        "clustered by seed. *vs best heuristic* is the paired difference to the heuristic of "
        "highest mean in each family, in percent of its utility; for that heuristic itself it is "
        "0. Missed: not answered within the deadline, shed requests included. p95 and p99 are of "
        "the requests served, means over episodes.",
    ]
    parts = ["\n".join(head), overall(comparison), by_family(comparison)]
    parts += [_folded(comparison, f) for f in range(len(result.families))]
    return "\n\n".join(parts) + "\n"


def overall(comparison: SuiteComparison) -> str:
    """A line per policy, with means over all families."""
    return _lines(comparison.overall, comparison.mean_reference)


def by_family(comparison: SuiteComparison, columns: int = COLUMNS_MAX) -> str:
    """Utility by family, with the best policies side by side and the highest in bold."""
    names = [line.policy for line in comparison.overall[:columns]]
    rows = []
    for family, lines in zip(comparison.result.families, comparison.families, strict=True):
        means = {line.policy: line.utility.mean for line in lines}
        best = max(means[name] for name in names)
        cells = [
            f"**{means[name]:.3f}**" if means[name] == best else f"{means[name]:.3f}"
            for name in names
        ]
        rows.append([family.replace("_", " "), *cells])
    return table(["family", *names], rows)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with all columns but the first aligned to the right."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, rule, *rows])


def percent_of(difference: Interval, reference: float) -> str:
    """A difference in percent of `reference`, such as ``+1.7 % ± 0.2``."""
    if math.isnan(difference.mean):
        return "–"
    half = "" if math.isnan(difference.half) else f" ± {100 * difference.half / reference:.1f}"
    return f"{100 * difference.mean / reference:+.1f} %{half}"


def versions(comparison: SuiteComparison) -> str:
    """The versions of everything that can change the numbers."""
    return ", ".join(f"{name} {value}" for name, value in comparison.result.versions.items())


def _lines(lines: Sequence[Line], reference: float) -> str:
    rows = [[cell(line, reference) for cell in COLUMNS.values()] for line in lines]
    return table(list(COLUMNS), rows)


def _folded(comparison: SuiteComparison, f: int) -> str:
    result = comparison.result
    body = _lines(comparison.families[f], comparison.reference_utility(f))
    mean = sum(result.requests[f]) / len(result.seeds)
    title = (
        f"{result.families[f].replace('_', ' ')}: {mean:,.0f} requests an episode, "
        f"best heuristic {comparison.reference[f]}"
    )
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"
