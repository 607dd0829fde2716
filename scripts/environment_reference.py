"""Write the observation tables of docs/environment.md from the columns' definitions, in place.

    python scripts/environment_reference.py [--check]

The columns and their descriptions come from `edgewise.fleet.table`, which of them are shown and
how they are scaled from `edgewise.sim.env.observation`. With ``--check`` nothing is written and the
exit code says whether the file is current.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgewise.benchmark import document
from edgewise.fleet import table
from edgewise.sim.env import observation

DOCUMENT = Path(__file__).parents[1] / "docs" / "environment.md"
MARK = "observation"
"""The name in the two marks around what is written."""

SECTIONS = (
    ("The row", "rows", observation.ROW, table.ROW),
    ("The row's server", "servers", observation.SERVER, table.SERVER),
    ("Shared by all rows", "context", observation.CONTEXT, table.CONTEXT),
)
MEGA = {"bytes": "MB", "bytes/s": "MB/s"}


class Column(NamedTuple):
    """One column as a learner sees it."""

    name: str
    unit: str
    range: str
    meaning: str


def column(name: str, description: str) -> Column:
    """From ``[unit] meaning``. Raises ValueError if the description has another form, or if its
    unit disagrees with the scaling."""
    match = re.fullmatch(r"\[([^\]]+)\] (.+)", description)
    if match is None:
        raise ValueError(f"{name}: expected '[unit] meaning', got {description!r}")
    unit, meaning = match.groups()
    scaled = observation._factors((name,))[0] < 1.0
    if (unit in MEGA) != scaled:
        raise ValueError(f"{name}: in {unit}, but scaled: {scaled}")
    if unit in ("0 or 1", "0–1"):
        return Column(name, "–", unit, meaning)
    return Column(name, MEGA.get(unit, unit), f"0–{observation.TOP:,.0f}", meaning)


def columns() -> Iterator[tuple[str, str, list[Column]]]:
    """Heading, key in `parts`, and columns of each section, in the order of the observation."""
    for heading, key, shown, described in SECTIONS:
        yield heading, key, [column(name, described[name]) for name in shown]


def reference() -> str:
    """The tables as Markdown."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    number = 0
    for heading, key, listed in columns():
        yield f"### {heading}: `{key}`"
        yield ""
        yield "| column | name | unit | range | meaning |"
        yield "|---|---|---|---|---|"
        for each in listed:
            yield f"| {number} | `{each.name}` | {each.unit} | {each.range} | {each.meaning} |"
            number += 1
        yield ""


def main() -> int:
    if "--check" in sys.argv[1:]:
        return int(not document.is_current(DOCUMENT, MARK, reference()))
    document.rewrite(DOCUMENT, MARK, reference())
    return 0


if __name__ == "__main__":
    sys.exit(main())
