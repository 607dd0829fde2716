"""A suite as Markdown: what stands in docs/benchmark.md."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgewise.bench.compare import Line, SuiteComparison
from edgewise.bench.statistics import Interval

COLUMNS = 8
"""Policies side by side in the table by family; wider ones wrap on a screen."""


def markdown(comparison: SuiteComparison) -> str:
    """The whole section: what was run, over all families, by family, and every figure folded."""
    result = comparison.result
    requests = sum(map(sum, result.requests))
    seeds = f"{result.seeds[0]:,} … {result.seeds[-1]:,}"
    head = [
        f"`{result.command}`: {len(result.families)} families × {len(result.seeds)} held-out seeds "
        f"({seeds}) × {len(result.policies)} policies, {requests:,} requests each, in "
        f"{result.seconds / 60:.1f} min. {_versions(result.versions)}.",
        "",
        "Expected utility is the mean of accuracy × timeliness over all requests, refused and lost "
        "ones too. ± is half a 95 % confidence interval over seeds (Student); over families it is "
        "clustered by seed. *vs best heuristic* is the paired difference to the heuristic of "
        "highest mean in each family, in percent of its utility; it is 0 for a policy where it is "
        "that heuristic. Missed: not answered within the deadline; a refused request is one of "
        "them. p95 and p99 are of the requests served, means over episodes.",
    ]
    parts = ["\n".join(head), overall(comparison), by_family(comparison)]
    parts += [_folded(comparison, f) for f in range(len(result.families))]
    return "\n\n".join(parts) + "\n"


def overall(comparison: SuiteComparison) -> str:
    """A line per policy, means over all families."""
    rows = [_cells(line, mean_reference(comparison)) for line in comparison.overall]
    return table(_HEADINGS, rows)


def by_family(comparison: SuiteComparison, columns: int = COLUMNS) -> str:
    """Utility by family, the best policies side by side; bold where none is better."""
    names = [line.policy for line in comparison.overall[:columns]]
    rows = []
    for family, lines in zip(comparison.result.families, comparison.families, strict=True):
        found = {line.policy: line for line in lines}
        best = max(found[name].utility.mean for name in names)
        cells = [family.replace("_", " ")]
        for name in names:
            mean = found[name].utility.mean
            cells.append(f"**{mean:.3f}**" if mean == best else f"{mean:.3f}")
        rows.append(cells)
    return table(["family", *names], rows)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all but the first column to the right."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    lines = [headings, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plus_minus(value: Interval, digits: int = 3) -> str:
    """``0.612 ± 0.004``; without the second part if it is not known."""
    if math.isnan(value.mean):
        return "–"
    if math.isnan(value.half):
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} ± {value.half:.{digits}f}"


def percent_of(difference: Interval, base: float) -> str:
    """A difference in percent of `base`: ``+1.7 % ± 0.2``."""
    if math.isnan(difference.mean):
        return "–"
    half = "" if math.isnan(difference.half) else f" ± {100 * difference.half / base:.1f}"
    return f"{100 * difference.mean / base:+.1f} %{half}"


_HEADINGS = (
    "policy",
    "expected utility",
    "vs best heuristic",
    "effective accuracy",
    "missed",
    "shed",
    "p95 ms",
    "p99 ms",
)


def _cells(line: Line, base: float) -> list[str]:
    return [
        line.policy,
        plus_minus(line.utility),
        percent_of(line.difference, base),
        plus_minus(line.effective),
        _share(line.missed),
        _share(line.shed),
        _ms(line.p95),
        _ms(line.p99),
    ]


def _folded(comparison: SuiteComparison, f: int) -> str:
    result = comparison.result
    lines = comparison.families[f]
    base = next(line for line in lines if line.policy == comparison.reference[f]).utility.mean
    body = table(_HEADINGS, [_cells(line, base) for line in lines])
    mean = sum(result.requests[f]) / len(result.seeds)
    title = (
        f"{result.families[f].replace('_', ' ')}: {mean:,.0f} requests an episode, "
        f"best heuristic {comparison.reference[f]}"
    )
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def mean_reference(comparison: SuiteComparison) -> float:
    """Mean over families of the reference's utility."""
    means = [
        next(line for line in lines if line.policy == name).utility.mean
        for lines, name in zip(comparison.families, comparison.reference, strict=True)
    ]
    return math.fsum(means) / len(means)


def _share(value: Interval) -> str:
    half = "" if math.isnan(value.half) else f" ± {100 * value.half:.1f}"
    return f"{100 * value.mean:.1f}{half} %"


def _ms(value: Interval) -> str:
    if math.isnan(value.mean):
        return "–"
    half = "" if math.isnan(value.half) else f" ± {1e3 * value.half:.0f}"
    return f"{1e3 * value.mean:.0f}{half}"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
