#!/usr/bin/env python
"""Rewrite the README's table from a run's summary: nobody types a measured number.

scripts/up && python scripts/readme_table.py runs/<id>/summary.json
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

from edgewise.benchmark import document

README = Path(__file__).parent.parent / "README.md"


def table(summary: dict) -> str:  # type: ignore[type-arg]
    """Markdown, best policy first."""
    policies = sorted(summary["policies"], key=lambda p: -p["utility"]["expected"])
    lines = [
        "| policy | utility | effective | in time | p50 | p95 | moved | not served |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for p in policies:
        lost = p["requests"] - p["outcomes"]["served"]
        lines.append(
            f"| {p['policy']} | {p['utility']['expected']:.3f} | {p['effective_accuracy']:.0%} "
            f"| {p['deadline_met']:.0%} | {p['latency_ms']['p50']:.0f} ms "
            f"| {p['latency_ms']['p95']:.0f} ms | {p['transferred']:.0%} | {lost} |"
        )
    requests = policies[0]["requests"]
    lines += [
        "",
        f"One run of `scripts/up` (`{summary['scenario']}`, seed {summary['seed']}, {requests} "
        f"requests a policy) on two shared cores, {platform.machine()}; "
        "`scripts/readme_table.py` wrote it.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    document.rewrite(README, "up", table(json.loads(Path(sys.argv[1]).read_text())))
