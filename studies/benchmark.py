"""Write the sections of docs/benchmark.md on disciplines, published results and scale, in place.

    python -m studies.benchmark disciplines [--seeds 20] [--generations 25]
    python -m studies.benchmark published [--seeds 10]
    python -m studies.benchmark scale [--seeds 100]

``edgewise bench --docs docs/benchmark.md`` makes the section on the suite.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgewise.benchmark import document
from edgewise.cli.failures import in_one_line
from edgewise.versions import versions
from edgewise.worlds import families
from studies import disciplines, published, scale

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmark.md"


def main() -> None:
    """Run one study and rewrite its section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=("disciplines", "published", "scale"))
    parser.add_argument("--seeds", type=int, help="worlds (default: 20, 10 and 100)")
    parser.add_argument("--generations", type=int, default=25, help="of re-tuning; 0: none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--docs", type=Path, default=DOCUMENT)
    options = parser.parse_args()

    def show(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    command = f"python -m studies.benchmark {options.study}"
    if options.study == "published":
        seeds = families.evaluation_seeds(options.seeds or 10)
        command += f" --seeds {len(seeds)}"
        text = published.markdown(seeds, command, options.threads, show)
    elif options.study == "scale":
        command += f" --seeds {options.seeds or 100}"
        text = scale.markdown(options.seeds or 100, command, options.threads, show)
    else:
        seeds = families.evaluation_seeds(options.seeds or 20)
        command += f" --seeds {len(seeds)} --generations {options.generations}"
        results, control = disciplines.measure(
            seeds, threads=options.threads, generations=options.generations, progress=show
        )
        text = disciplines.markdown(results, control, seeds, command)
    found = ", ".join(f"{name} {version}" for name, version in versions("cma").items())
    text += f"\n\n{found}."
    document.rewrite(options.docs, options.study, text)
    print(text)


if __name__ == "__main__":
    with in_one_line():
        main()
