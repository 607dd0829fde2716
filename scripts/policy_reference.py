"""Write the parameter tables of docs/policies.md from the code, in place.

    python scripts/policy_reference.py [--check]

With ``--check`` nothing is written and the exit code says whether the file is current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from edgewise.benchmark import document
from edgewise.policies import POLICIES

DOCUMENT = Path(__file__).parents[1] / "docs" / "policies.md"
MARK = "parameters"
"""The name in the two marks around what is written."""


def reference() -> str:
    """The tables as Markdown."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for name, spec in POLICIES.items():
        if not spec.parameters:
            continue
        yield f"### `{name}`"
        yield ""
        yield f"Values: tuned by `{spec.tuned}`." if spec.tuned else "Values: defaults, not tuned."
        yield ""
        yield "| parameter | value | default | range | unit | meaning |"
        yield "|---|---|---|---|---|---|"
        for parameter, value in zip(spec.parameters, spec.params, strict=True):
            scale = ", log" if parameter.log else ""
            yield (
                f"| `{parameter.name}` | {value:.4g} | {parameter.default:.4g} "
                f"| {parameter.low:.4g} – {parameter.high:.4g}{scale} "
                f"| {parameter.unit or '–'} | {parameter.about} |"
            )
        yield ""


def main() -> int:
    if "--check" in sys.argv[1:]:
        return int(not document.is_current(DOCUMENT, MARK, reference()))
    document.rewrite(DOCUMENT, MARK, reference())
    return 0


if __name__ == "__main__":
    sys.exit(main())
