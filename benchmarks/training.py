"""Training decisions per second, end to end: worlds made, played and learned from.

    python benchmarks/training.py [--family medium] [--threads 2] [--seconds 30] [--json FILE]

Evolution strategies (`edgewise train`), PPO (`edgewise.learn.ppo`, linear heads and with the
network) and Stable-Baselines3's MaskablePPO on ``edgewise/Balance-v0``, one after the other on the
same family. The first round of each, in which numba compiles or loads what it compiled, is not
counted. *of wall* is what a clock shows; on a machine with other work that says little, so *of CPU*
stands beside it: decisions per second of this process's CPU time × threads, what it would be with
the cores to itself; Stable-Baselines3 has one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from edgewise.learn import ppo
from edgewise.learn.actor_critic import PpoSettings
from edgewise.learn.trainer import Recipe
from edgewise.learn.trainer import train as evolve
from edgewise.learn.worlds import Worlds
from edgewise.policy import POLICIES
from edgewise.policy.learned import untrained

Found = tuple[float, float]
"""Decisions per s of wall and of CPU time × threads."""


class Meter:
    """Decisions against both clocks, from the end of the first round on."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._first: tuple[float, float, int] | None = None
        self.found: Found = (0.0, 0.0)

    def see(self, progress: Any) -> None:
        now = (time.perf_counter(), time.process_time(), int(progress.decisions))
        if self._first is None:
            self._first = now
            return
        wall, cpu, made = (b - a for a, b in zip(self._first, now, strict=True))
        self.found = (made / wall, self._threads * made / cpu)


def of_es(family: str, threads: int, seconds: float) -> Found:
    meter = Meter(threads)
    recipe = Recipe(worlds=Worlds(names=(family,)), validation=2, every=10**9)
    heuristic = POLICIES["priced_greedy"]
    with tempfile.TemporaryDirectory() as folder:
        evolve(
            recipe,
            untrained(heuristic.params),
            heuristic,
            Path(folder),
            budget=seconds,
            threads=threads,
            progress=meter.see,
        )
    return meter.found


def of_ppo(family: str, threads: int, seconds: float, network: bool) -> Found:
    meter = Meter(threads)
    ppo.train(
        Worlds(names=(family,)),
        untrained(POLICIES["priced_greedy"].params),
        PpoSettings(network=network),
        budget=seconds,
        threads=threads,
        progress=meter.see,
    )
    return meter.found


def of_stable_baselines(family: str, threads: int, seconds: float) -> Found:
    """Torch on one thread, which is faster for its small batches than two that wait for each other
    on a busy machine; the environments run one after the other."""
    torch.set_num_threads(1)
    path = Path(__file__).parent.parent / "examples" / "maskable_ppo.py"
    spec = importlib.util.spec_from_file_location("maskable_ppo", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    _, speed = example.train(None, family, 2048, envs=8)
    cpu = time.process_time()
    model, speed = example.train(None, family, int(speed * seconds), envs=8)
    return speed, model.num_timesteps / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="medium")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each, by the clock")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    family, threads, seconds = given.family, given.threads, given.seconds
    runs: dict[str, Callable[[], Found]] = {
        "evolution strategies": lambda: of_es(family, threads, seconds),
        "PPO, linear heads": lambda: of_ppo(family, threads, seconds, False),
        "PPO, with the network": lambda: of_ppo(family, threads, seconds, True),
        "SB3 MaskablePPO": lambda: of_stable_baselines(family, threads, seconds),
    }
    found = {}
    print(f"{'training decisions/s':<22} {'of wall':>10} {'of CPU':>10}   ({threads} threads)")
    for name, run in runs.items():
        found[name] = run()
        print(f"{name:<22} {found[name][0]:>10,.0f} {found[name][1]:>10,.0f}", flush=True)
    base = found["SB3 MaskablePPO"]
    for name, (wall, cpu) in found.items():
        print(f"{name}: {wall / base[0]:.1f} × SB3 by the clock, {cpu / base[1]:.1f} × by CPU")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
