"""Rewrites what docs/benchmark.md says of disciplines and of published cases.

    python scripts/benchmark_studies.py disciplines [--seeds 20] [--generations 25]
    python scripts/benchmark_studies.py published [--seeds 10]

The suite's own section is made by ``edgewise bench --docs docs/benchmark.md``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from studies import disciplines, published

from edgewise.bench import document, suite

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmark.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=("disciplines", "published"))
    parser.add_argument("--seeds", type=int, help="worlds (default: 20, published 10)")
    parser.add_argument("--generations", type=int, default=25, help="of re-tuning; 0: none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--docs", type=Path, default=DOCUMENT)
    given = parser.parse_args()

    def say(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    command = f"python scripts/benchmark_studies.py {given.study}"
    if given.study == "published":
        seeds = suite.evaluation_seeds(given.seeds or 10)
        command += f" --seeds {len(seeds)}"
        text = published.markdown(seeds, command, given.threads, say)
    else:
        seeds = suite.evaluation_seeds(given.seeds or 20)
        command += f" --seeds {len(seeds)} --generations {given.generations}"
        worth, control = disciplines.measure(
            seeds, threads=given.threads, generations=given.generations, progress=say
        )
        text = disciplines.markdown(worth, control, seeds, command)
    versions = ", ".join(f"{name} {version}" for name, version in suite.versions().items())
    text += f"\n\n{versions}."
    document.rewrite(given.docs, given.study, text)
    print(text)


if __name__ == "__main__":
    main()
