"""Training decisions per second of `edgewise train`: worlds made, played and learned from.

    python benchmarks/es_throughput.py [--generations 5] [--threads 2]

Prints decisions per second of wall time, and per second of CPU time, which is what a core with no
other work would do.
"""

from __future__ import annotations

import argparse
import time

from edgewise.cli.failures import in_one_line
from edgewise.learn.es import EsSettings, EvolutionStrategies
from edgewise.learn.search import Budget, search
from edgewise.learn.train import beginning
from edgewise.sim.source import WorldSource


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    start, _ = beginning()
    source = WorldSource(family="train")
    for groups in (("base", "heads"), ("base", "heads", "network")):
        for generations in (1, options.generations):  # the first compiles
            settings = EsSettings(groups=groups, worlds=40, pairs=1)
            algorithm = EvolutionStrategies(source, start, settings, options.threads)
            wall, cpu = time.monotonic(), time.process_time()
            done = search(algorithm, Budget(steps=generations))
            wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        print(
            f"{'+'.join(groups):20} {done.decisions:9,} decisions, {options.threads} threads: "
            f"{done.decisions / wall:9,.0f}/s, {done.decisions / cpu:9,.0f} per CPU second"
        )


if __name__ == "__main__":
    with in_one_line():
        main()
