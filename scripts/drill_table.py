"""Write the table of drills on virtual time into docs/reliability.md, in place.

edgewise drill --virtual --seed 0 --seeds 2000 --json drill.json
python scripts/drill_table.py drill.json
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from edgewise.benchmark import document

DOCUMENT = Path(__file__).parents[1] / "docs" / "reliability.md"
MARK = "drill"
"""The name in the two marks around what is written."""
COLUMNS = {
    "injected": "met",
    "requests": "requests",
    "answered": "served",
    "late": "late",
    "refused": "refused",
    "failed": "failed",
    "broken": "connection",
    "second_runs": "run again",
    "states": "states",
}
"""Fields of `edgewise.testing.drill.KindCounts`, and their headings."""


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    facts = msgspec.json.decode(Path(sys.argv[1]).read_bytes())
    lines = [f"| fault | {' | '.join(COLUMNS.values())} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for kind, figures in facts["kinds"].items():
        cells = " | ".join(f"{figures[field]:,}" for field in COLUMNS)
        lines.append(f"| {kind} | {cells} |")
    command = f"edgewise drill --virtual --seed {facts['first']} --seeds {facts['seeds']}"
    if facts["requests_of_a_run"] != 500:
        command += f" --requests {facts['requests_of_a_run']}"
    lines += [
        "",
        f"{facts['seeds']:,} runs with {facts['requests']:,} requests; {len(facts['failed'])} runs "
        f"violated something. Made by `{command} --json drill.json` and `scripts/drill_table.py`.",
    ]
    document.rewrite(DOCUMENT, MARK, "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
