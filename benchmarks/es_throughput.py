"""Training decisions per second of `edgewise train`, worlds made and steps taken included.

    python benchmarks/es_throughput.py [--generations 5] [--threads 2]

Prints decisions per second of wall time, and per second of CPU time, which is what a core that has
nothing else to do would give.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from edgewise.learn.trainer import Recipe, initial, train
from edgewise.policy import POLICIES


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    wishes = parser.parse_args()
    heuristic = POLICIES["priced_greedy"]
    for groups in (("base", "heads"), ("base", "heads", "network")):
        for generations in (1, wishes.generations):  # the first compiles
            recipe = Recipe(groups=groups, count=40, generations=generations, validation=1)
            with tempfile.TemporaryDirectory() as folder:
                wall, cpu = time.monotonic(), time.process_time()
                done = train(
                    recipe, initial(heuristic), heuristic, Path(folder), threads=wishes.threads
                )
                wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        print(
            f"{'+'.join(groups):20} {done.decisions:9,} decisions, {wishes.threads} threads: "
            f"{done.decisions / wall:9,.0f}/s, {done.decisions / cpu:9,.0f} per CPU second"
        )


if __name__ == "__main__":
    main()
